"""VLE-base, VQA inference: 384 pixels, batch 4, 24 text tokens."""

import torch
from benchmarks.case import OURS, TEXTBOOK, Case, Setting, relative_difference
from benchmarks.textbook.vle import stock_port
from benchmarks.vle_batches import pairs, product, vle_config

from evle.models.vle import VLEForVQA

NOTE = """
Matrix products limit it: 94 % of their peak in float32 and 78 % in bfloat16.
"""
"""What limits this row, from a profile, and what was tried."""


def build(setting: Setting) -> Case:
    config = vle_config(setting, num_labels=7 if setting.quick else 3129)
    model = VLEForVQA(config).eval()
    textbook = stock_port(model)
    size = 2 if setting.quick else 4
    inputs = pairs(config, size, 24)

    def differences() -> dict[str, float]:
        with torch.no_grad():
            ours, theirs = model(**inputs), textbook(**inputs, output_hidden_states=True)
        return {"logits": relative_difference(theirs.logits, ours.logits)}

    return Case(
        ways={
            OURS: setting.forward(lambda: model(**inputs)),
            TEXTBOOK: setting.forward(lambda: textbook(**inputs, output_hidden_states=True)),
        },
        product=product(config, size * (1 + config.num_patches)),
        differences=differences,
        model=model,
    )
