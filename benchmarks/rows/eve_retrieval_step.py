"""EVE-Base, a fine-tuning step of retrieval (contrast and matching, forward and backward): 224 pixels, batch 4."""

from unittest import mock

import torch
from benchmarks.case import OURS, TEXTBOOK, Case, Setting, relative_difference
from benchmarks.eve_batches import eve_config, pairs, product
from benchmarks.textbook.equal import gradient_differences
from benchmarks.textbook.eve import Retrieval

from evle.models.contrast import Negatives
from evle.models.eve import EVEForRetrieval

NOTE = """
Of the bf16 step feed-forwards take 41 %, experts 24 %, attention's projections 24 % and its softmax and products 7 %.
Casts of weights between float32 and bfloat16 are 5 %.
"""
"""What limits this row, from a profile, and what was tried."""


def build(setting: Setting) -> Case:
    # Load balancing, a product of means over one pass, would differ: the textbook runs the pairs in two passes.
    config = eve_config(setting, 224, router_aux_loss_coef=0.0)
    model = EVEForRetrieval(config).train()
    textbook = Retrieval(model).train()
    size = 3 if setting.quick else 4
    inputs = pairs(config, size)
    given = inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"]

    def differences() -> dict[str, float]:
        neighbour = torch.arange(size).roll(1)
        drawn = Negatives(neighbour, neighbour, torch.ones(size, dtype=torch.bool))
        with mock.patch("evle.models.eve.heads.draw_negatives", return_value=drawn):
            ours = model(**inputs).loss
        loss = textbook(*given, (neighbour, neighbour))
        ours.backward()
        loss.backward()
        return {"loss": relative_difference(loss, ours), **gradient_differences(model, textbook)}

    return Case(
        ways={
            OURS: setting.step(model, lambda: model(**inputs).loss),
            TEXTBOOK: setting.step(textbook, lambda: textbook(*given, None)),
        },
        product=product(config, 3 * size * (1 + config.num_patches + 40)),
        differences=differences,
        model=model,
    )
