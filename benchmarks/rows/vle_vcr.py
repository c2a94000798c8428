"""VLE-base, one VCR question with four candidates: 384 pixels, 63 to 74 tokens a candidate.

Ours encodes the image once and runs the candidates together. The textbook encodes the image for every candidate and
runs one after the other, as the released code does; so does the second way, with our modules.
"""

import torch
from benchmarks.case import OURS, TEXTBOOK, Case, Setting, relative_difference
from benchmarks.textbook.vle import stock_port
from benchmarks.vle_batches import CANDIDATES, product, vcr_batch, vle_config
from torch import Tensor

from evle.models.vle import VLEForVCRQ2A

NOTE = """
The fusion is 62 % of the operations, and no two candidates share a state of it; the image tower, which is encoded
once, is 24 %.
"""
"""What limits this row, from a profile, and what was tried."""
OBJECTS = 3


def one_by_one(model: VLEForVCRQ2A, inputs: dict[str, Tensor]) -> Tensor:
    """One candidate after the other without padding, the image encoded for each of them."""
    logits = []
    for row in range(len(inputs["input_ids"])):
        for candidate in range(CANDIDATES):
            real = int(inputs["attention_mask"][row, candidate].sum())
            part = {
                name: tensor[row : row + 1, candidate : candidate + 1]
                for name, tensor in inputs.items()
                if name not in ("pixel_values", "image_rows")
            }
            for name in ("input_ids", "attention_mask", "token_type_ids"):
                part[name] = part[name][..., :real]
            pixels = inputs["pixel_values"][row : row + 1]
            logits.append(model(pixel_values=pixels, **part, output_hidden_states=True).logits)
    return torch.cat(logits).view(-1, CANDIDATES)


def build(setting: Setting) -> Case:
    config = vle_config(setting, num_token_types=2 + OBJECTS)
    model = VLEForVCRQ2A(config).eval()
    textbook = stock_port(model)
    inputs = vcr_batch(config, 1, 24 if setting.quick else 80, OBJECTS)

    def differences() -> dict[str, float]:
        with torch.no_grad():
            ours, theirs, apart = model(**inputs).logits, one_by_one(textbook, inputs), one_by_one(model, inputs)
        return {
            "the textbook's scores": relative_difference(theirs, ours),
            "our scores one by one": relative_difference(apart, ours),
        }

    return Case(
        ways={
            OURS: setting.forward(lambda: model(**inputs)),
            TEXTBOOK: setting.forward(lambda: one_by_one(textbook, inputs)),
            "our modules, one by one": setting.forward(lambda: one_by_one(model, inputs)),
        },
        product=product(config, 1 + config.num_patches),
        differences=differences,
        model=model,
    )
