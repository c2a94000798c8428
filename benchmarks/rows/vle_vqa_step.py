"""VLE-base, a fine-tuning step of VQA (forward and backward): 384 pixels, batch 4, 24 text tokens."""

import torch
from benchmarks.case import OURS, TEXTBOOK, Case, Setting, relative_difference
from benchmarks.textbook.equal import gradient_differences
from benchmarks.textbook.vle import stock_port
from benchmarks.vle_batches import pairs, product, vle_config

from evle.models.vle import VLEForVQA

NOTE = """
Of the bf16 step the image tower takes 55 %, the fusion 37 % and the text tower 8 %; by operator, products of weights
67 %, attention's products 11 %, drawing dropout 5 %.
"""
"""What limits this row, from a profile, and what was tried."""


def build(setting: Setting) -> Case:
    config = vle_config(setting, num_labels=7 if setting.quick else 3129)
    model = VLEForVQA(config).train()
    textbook = stock_port(model)
    size = 2 if setting.quick else 4
    inputs = {**pairs(config, size, 24), "labels": torch.full((size, config.num_labels), 0.1)}

    def differences() -> dict[str, float]:
        ours, theirs = model(**inputs), textbook(**inputs, output_hidden_states=True)
        ours.loss.backward()
        theirs.loss.backward()
        return {
            "logits": relative_difference(theirs.logits, ours.logits),
            **gradient_differences(model, textbook),
        }

    return Case(
        ways={
            OURS: setting.step(model, lambda: model(**inputs).loss),
            TEXTBOOK: setting.step(textbook, lambda: textbook(**inputs, output_hidden_states=True).loss),
        },
        product=product(config, size * (1 + config.num_patches)),
        differences=differences,
        model=model,
    )
