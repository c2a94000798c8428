"""VCR inference: the image encoded once for all candidates, against once a candidate, and one candidate at a time.

The released code runs both encoders again for every candidate, one after the other, and computes every state of the
fusion's last block; its way is measured with our attention and, as a straightforward port, with stock modules and eager
attention. All ways give the same scores. Ours computes of the last block what the head reads, and what candidates
share only once.

    python benchmarks/vle_vcr.py --rounds 5 --json vcr.json
"""

import argparse
import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from evle.engine.operations import EXTRA_FLOPS
from evle.models.vle import VLEConfig, VLEForVCRQ2A
from side_by_side import add_options, autocast, machine, measure, show, stock_port

CANDIDATES = 4


def make_batch(config: VLEConfig, size: int, length: int, objects: int, an_image: int = 1) -> dict[str, Tensor]:
    """Noise for images and candidates; texts of 3/4 to all of `length`, padded to the longest as the processor pads,
    each naming `objects` objects; `an_image` questions are about one image."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(3 * length // 4, length + 1, (size, CANDIDATES, 1), generator=generator)
    length = int(real.max())
    attention_mask = (torch.arange(length) < real).long()
    shape = (size, CANDIDATES, length)
    input_ids = torch.randint(5, config.vocab_size, shape, generator=generator) * attention_mask
    types = 2 + torch.arange(objects).expand(size, CANDIDATES, -1)
    token_type_ids = torch.zeros_like(input_ids)
    token_type_ids[..., 1 : 1 + objects] = types
    boxes = torch.rand(size, CANDIDATES, objects, config.num_patches, generator=generator) < 0.2
    boxes[..., 0] = True
    side = config.image_size
    image_rows = torch.arange(size) // an_image
    inputs = {
        "pixel_values": torch.randn(int(image_rows[-1]) + 1, config.num_channels, side, side, generator=generator),
        "image_rows": image_rows,
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
        "box_patches": boxes,
        "box_token_types": types,
    }
    return {name: tensor.to("cuda" if torch.cuda.is_available() else "cpu") for name, tensor in inputs.items()}


def once(model: VLEForVCRQ2A, inputs: dict[str, Tensor]) -> Tensor:
    """Our way: B questions, their candidates as a dimension."""
    return model(**inputs).logits


def rows_of(inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Each candidate as a question of one candidate with an image of its own."""
    texts = {name: each for name, each in inputs.items() if name not in ("pixel_values", "image_rows")}
    pixels = inputs["pixel_values"][inputs["image_rows"]].repeat_interleave(CANDIDATES, dim=0)
    return pixels, {name: each.flatten(0, 1)[:, None] for name, each in texts.items()}


def once_a_candidate(model: VLEForVCRQ2A, inputs: dict[str, Tensor]) -> Tensor:
    """All candidates at once, but each with an image of its own."""
    pixels, rows = rows_of(inputs)
    return model(pixel_values=pixels, **rows, output_hidden_states=True).logits.view(-1, CANDIDATES)


def one_by_one(model: VLEForVCRQ2A, inputs: dict[str, Tensor]) -> Tensor:
    """One candidate after the other, each question's image encoded for each; no padding of the text."""
    pixels, rows = rows_of(inputs)
    logits = []
    for place, real in enumerate(rows["attention_mask"].sum(dim=-1).flatten().tolist()):
        row = {name: each[place : place + 1] for name, each in rows.items()}
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            row[name] = row[name][..., :real]
        logits.append(model(pixel_values=pixels[place : place + 1], **row, output_hidden_states=True).logits)
    return torch.cat(logits).view(-1, CANDIDATES)


def shares(model: VLEForVCRQ2A, inputs: dict[str, Tensor]) -> dict[str, str]:
    """How our operations divide: nothing but the image tower is there once for all candidates."""
    with FlopCounterMode(display=False, custom_mapping=EXTRA_FLOPS) as counter:
        once(model, inputs)
    counts = {name: sum(each.values()) for name, each in counter.get_flop_counts().items()}
    total, backbone = counts["Global"], f"{type(model).__name__}.vle"
    parts = {"image tower": counts[f"{backbone}.vision_model"], "text tower": counts[f"{backbone}.text_model"]}
    for stream in ("image", "text"):
        layers = f"{backbone}.cross_modal_{stream}_layers."
        blocks = [count for name, count in counts.items() if name.startswith(layers) and name.count(".") == 3]
        parts[f"fusion, {stream} stream"] = sum(blocks)
        parts[f"of that, {stream}: first and last block"] = blocks[0] + blocks[-1]
    return {name: f"{count / 1e9:.2f} Gflop, {count / total:.1%}" for name, count in parts.items()}


@torch.no_grad()
def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--batch", type=int, default=1, help="questions at once (default: 1)")
    parser.add_argument("--text-length", type=int, default=80, help="tokens of the longest candidate (default: 80)")
    parser.add_argument("--objects", type=int, default=3, help="objects that a candidate names (default: 3)")
    parser.add_argument("--questions-an-image", type=int, default=1, help="questions about one image (default: 1)")
    parser.add_argument("--image-size", type=int, help="side in pixels (default: the preset's; the release took 384)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    config = VLEConfig.from_preset(options.preset, num_token_types=2 + options.objects)
    if options.image_size:
        config.image_size = options.image_size
    model = VLEForVCRQ2A(config).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    port = stock_port(copy.deepcopy(model))
    inputs = make_batch(config, options.batch, options.text_length, options.objects, options.questions_an_image)
    ways = {
        "image once, candidates at once": lambda: once(model, inputs),
        "image four times, candidates at once": lambda: once_a_candidate(model, inputs),
        "image four times, one by one": lambda: one_by_one(model, inputs),
        "stock modules, eager, one by one": lambda: one_by_one(port, inputs),
    }
    with autocast(options.dtype):
        expected, *others = (way().float() for way in ways.values())
        difference = max(float((other - expected).abs().max()) for other in others)
        result = measure(ways, options.rounds, options.peak_size)
    report = {
        **machine(),
        "preset": options.preset,
        "image_size": config.image_size,
        "text_length": options.text_length,
        "batch": options.batch,
        "dtype": options.dtype,
        "questions_an_image": options.questions_an_image,
        "largest difference of a score": difference,
        "our operations": shares(model, inputs),
        "compared": {"VCR, one call": result},
    }
    show(report, options.json)
    return report


if __name__ == "__main__":
    main()
