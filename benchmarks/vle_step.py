"""VLE against a straightforward port: stock DeBERTa and CLIP, eager attention, every state of the fusion's last block,
a pass of its own for every objective.

Three comparisons on one shape: answering (VQA inference), a fine-tuning step (VQA), and a pre-training step with all
four objectives, of which ours runs each part of the model once (see `VLEForPreTraining`).

    python benchmarks/vle_step.py --batch 4 --rounds 5 --json step.json
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evle.models.vle import VLEConfig, VLEForPreTraining, VLEForVQA
from evle.models.vle.modeling import mean_states
from evle.models.vle.pretraining import black_out
from side_by_side import add_options, autocast, machine, measure, show, stock_port

PARTS = ("inference", "fine-tuning", "pre-training")


def make_batch(config: VLEConfig, size: int, length: int) -> dict[str, Tensor]:
    """Noise for images and texts, without padding: 15 % of the words masked, an object in every image."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, config.vocab_size, (size, length), generator=generator)
    words = torch.rand(size, length, generator=generator) < 0.15
    words[:, 1] = True
    patches = torch.rand(size, config.num_patches, generator=generator) < 0.1
    patches[:, 0] = True
    side = config.image_size
    inputs = {
        "pixel_values": torch.randn(size, config.num_channels, side, side, generator=generator),
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "masked_input_ids": input_ids.masked_fill(words, 3),
        "mlm_labels": input_ids.masked_fill(~words, -100),
        "pbc_labels": patches.long(),
        "mpc_patches": patches,
        "mpc_labels": torch.zeros(size, dtype=torch.long),
        "black": torch.full((config.num_channels,), -1.5),
    }
    return {name: tensor.to("cuda" if torch.cuda.is_available() else "cpu") for name, tensor in inputs.items()}


def pass_by_pass(model: VLEForPreTraining, inputs: dict[str, Tensor]) -> Tensor:
    """The four losses as one would port them: each objective runs the whole model on its own inputs."""
    pixels, ids, mask = (inputs[name] for name in ("pixel_values", "input_ids", "attention_mask"))
    chosen = inputs["mlm_labels"] != -100
    words = model.mlm_score(model.vle(inputs["masked_input_ids"], pixels, mask).text_hidden[chosen])
    loss = F.cross_entropy(words.float(), inputs["mlm_labels"][chosen])

    other_pixels, other_ids, other_mask = (tensor.roll(1, 0) for tensor in (pixels, ids, mask))
    matches = model.itm_score(
        model.vle(
            torch.cat([ids, other_ids, ids]),
            torch.cat([pixels, pixels, other_pixels]),
            torch.cat([mask, other_mask, mask]),
        ).pooler_output
    )
    labels = (torch.arange(len(matches), device=matches.device) < len(ids)).long()
    loss = loss + F.cross_entropy(matches.float(), labels)

    patches = model.pbc_classifier(model.vle(ids, pixels, mask).image_hidden[:, 1:])
    loss = loss + F.cross_entropy(patches.float().flatten(0, 1), inputs["pbc_labels"].flatten())

    blacked = black_out(pixels, inputs["mpc_patches"], inputs["black"])
    states = model.vle(ids, blacked, mask).image_hidden[:, 1:]
    objects = model.mpc_classifier(mean_states(states, inputs["mpc_patches"]))
    return loss + F.cross_entropy(objects.float(), inputs["mpc_labels"])


def step(model: torch.nn.Module, loss: Callable[[], Tensor], dtype: str) -> Callable[[], None]:
    """Forward and backward, into fresh gradients."""

    def work() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(dtype):
            found = loss()
        found.backward()

    return work


def compare(part: str, config: VLEConfig, inputs: dict[str, Tensor], options: argparse.Namespace) -> dict[str, Any]:
    """One comparison: ours first, then the port."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = (VLEForPreTraining if part == "pre-training" else VLEForVQA)(config).to(device)
    model.train(part != "inference")
    port = stock_port(copy.deepcopy(model))
    if part == "pre-training":
        ways = {
            "ours": step(model, lambda: model(**inputs).loss, options.dtype),
            "port": step(port, lambda: pass_by_pass(port, inputs), options.dtype),
        }
        return measure(ways, options.rounds, options.peak_size)
    pair = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    labels = torch.zeros(len(inputs["input_ids"]), config.num_labels, device=device)
    if part == "fine-tuning":
        ways = {
            "ours": step(model, lambda: model(**pair, labels=labels).loss, options.dtype),
            "port": step(port, lambda: port(**pair, labels=labels, output_hidden_states=True).loss, options.dtype),
        }
        return measure(ways, options.rounds, options.peak_size)
    with torch.no_grad(), autocast(options.dtype):
        ways = {
            "ours": lambda: model(**pair).logits,
            "port": lambda: port(**pair, output_hidden_states=True).logits,
        }
        return measure(ways, options.rounds, options.peak_size)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--batch", type=int, default=4, help="pairs at once (default: 4)")
    parser.add_argument("--text-length", type=int, default=50, help="tokens per text (default: 50)")
    parser.add_argument("--image-size", type=int, help="side in pixels (default: the preset's)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="comparisons to run (default: all)")
    options = parser.parse_args(arguments)
    classes = [f"class {number}" for number in range(100)]
    config = VLEConfig.from_preset(options.preset, num_labels=3129, object_classes=classes, mpc_readout="patches")
    if options.image_size:
        config.image_size = options.image_size
    inputs = make_batch(config, options.batch, options.text_length)
    report = {
        **machine(),
        "preset": options.preset,
        "image_size": config.image_size,
        "text_length": options.text_length,
        "batch": options.batch,
        "dtype": options.dtype,
        "compared": {part: compare(part, config, inputs, options) for part in options.only},
    }
    show(report, options.json)
    return report


if __name__ == "__main__":
    main()
