"""VLE-base, a pre-training step with its four objectives (forward and backward): 224 pixels, batch 2, 50 text tokens.

Ours runs each part of the model once for all objectives, the textbook the whole model once per objective.
"""

from unittest import mock

import torch
from benchmarks.case import OURS, TEXTBOOK, Case, Setting, relative_difference
from benchmarks.textbook.equal import gradient_differences
from benchmarks.textbook.vle import pass_by_pass, stock_port
from benchmarks.vle_batches import pretraining_batch, product, vle_config

from evle.models.contrast import Negatives
from evle.models.vle import VLEForPreTraining

DTYPES = ("fp32",)
NOTE = """
The fusion takes 62 % of the step, the image tower 25 % and the text tower 11 %; by operator, products of weights 82
%, attention's 5 %, drawing dropout 3 %.
"""
"""What limits this row, from a profile, and what was tried."""


def build(setting: Setting) -> Case:
    classes = [f"class {number}" for number in range(3 if setting.quick else 100)]
    config = vle_config(setting, object_classes=classes, mpc_readout="patches")
    if not setting.quick:
        config.image_size = 224
    model = VLEForPreTraining(config).train()
    textbook = stock_port(model)
    inputs = pretraining_batch(config, 3 if setting.quick else 2, 50)

    def differences() -> dict[str, float]:
        size = len(inputs["input_ids"])
        rolled = torch.arange(size).roll(1)
        drawn = Negatives(rolled, rolled, torch.ones(size, dtype=torch.bool))
        with mock.patch("evle.models.vle.matching.draw_negatives", return_value=drawn):
            ours = model(**inputs).loss
        loss = pass_by_pass(textbook, inputs)
        ours.backward()
        loss.backward()
        return {"loss": relative_difference(loss, ours), **gradient_differences(model, textbook)}

    return Case(
        ways={
            OURS: setting.step(model, lambda: model(**inputs).loss),
            TEXTBOOK: setting.step(textbook, lambda: pass_by_pass(textbook, inputs)),
        },
        product=product(config, len(inputs["input_ids"]) * (1 + config.num_patches)),
        differences=differences,
        model=model,
    )
