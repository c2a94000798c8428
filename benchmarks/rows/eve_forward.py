"""EVE-Base, joint forward of image-text pairs: 384 pixels, batch 8, 40 text tokens of which 12 are real."""

import torch
from benchmarks.case import OURS, TEXTBOOK, Case, Setting, relative_difference
from benchmarks.eve_batches import eve_config, pairs, product
from benchmarks.textbook.eve import Encoder

from evle.models.eve import EVEModel

NOTE = """
Of the bf16 forward matrix products of the weights take 66 %, and attention's softmax and products 24 %: softmax alone
11 %. Two batched products replaced torch's fused kernel, which reaches 60 Gflop/s in bfloat16 as in float32. bfloat16
cannot be 2.5 times float32 here: the peak of its products is 2.1 times that of float32 (196 against 92 Gflop/s).
Tried without gain: huge pages (`THP_MEM_ALLOC_ENABLE`, `glibc.malloc.hugetlb`) on top of the tuned allocator.
"""
"""What limits this row, from a profile, and what was tried."""


def build(setting: Setting) -> Case:
    config = eve_config(setting, 384)
    model = EVEModel(config).eval()
    textbook = Encoder(model).eval()
    inputs = pairs(config, 2 if setting.quick else 8)
    given = inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"]

    def differences() -> dict[str, float]:
        with torch.no_grad():
            ours, (image, text, _) = model(**inputs), textbook(*given)
        real = inputs["attention_mask"].bool()
        return {
            "image_hidden": relative_difference(image, ours.image_hidden),
            "text_hidden": relative_difference(text[real], ours.text_hidden[real]),
        }

    return Case(
        ways={OURS: setting.forward(lambda: model(**inputs)), TEXTBOOK: setting.forward(lambda: textbook(*given))},
        product=product(config, len(given[0]) * (1 + config.num_patches + 40)),
        differences=differences,
        model=model,
    )
