"""EVE-Base, a fine-tuning step of VQA (forward and backward): 480 pixels, batch 4, 3,129 answers."""

import torch
from benchmarks.case import OURS, TEXTBOOK, Case, Setting, relative_difference
from benchmarks.eve_batches import eve_config, pairs, product
from benchmarks.textbook.equal import gradient_differences
from benchmarks.textbook.eve import VQA

from evle.models.eve import EVEForVQA

NOTE = """
Of the fp32 step 73 % are matrix products and 21 % fused attention, whose backward reaches about two thirds of the
rate of a matrix product. Residuals, norms and the router together are 2 %. In bf16 attention is two batched products,
which took 13 to 17 % off the step and keep 0.9 GB of weights.
"""
"""What limits this row, from a profile, and what was tried."""


def build(setting: Setting) -> Case:
    config = eve_config(setting, 480, num_labels=7 if setting.quick else 3129)
    model = EVEForVQA(config).train()
    textbook = VQA(model).train()
    size = 2 if setting.quick else 4
    inputs = pairs(config, size)
    labels = torch.zeros(size, config.num_labels)
    labels[:, :3] = 0.6
    given = inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"], labels

    def differences() -> dict[str, float]:
        ours, (logits, loss) = model(**inputs, labels=labels), textbook(*given)
        ours.loss.backward()
        loss.backward()
        return {
            "logits": relative_difference(logits, ours.logits),
            "loss": relative_difference(loss, ours.loss),
            **gradient_differences(model, textbook),
        }

    return Case(
        ways={
            OURS: setting.step(model, lambda: model(**inputs, labels=labels).loss),
            TEXTBOOK: setting.step(textbook, lambda: textbook(*given)[1]),
        },
        product=product(config, size * (1 + config.num_patches + 40)),
        differences=differences,
        model=model,
    )
