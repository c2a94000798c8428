"""EVE-Base, evaluation of retrieval with re-ranking: 224 pixels, 8 images, 16 texts of 7 to 30 words.

Beside it the bare forward passes of the same pairs at their true lengths, and of the embeddings: no files, no
tokenizer, no sorting, no metrics.
"""

import io
from typing import Any

import numpy as np
import torch
from benchmarks.case import OURS, Case, Setting
from benchmarks.eve_batches import eve_config, product
from PIL import Image

from evle.data.samples import CaptionSample
from evle.models.eve import EVEForRetrieval, EVEProcessor
from evle.tasks.retrieval import RetrievalConfig, RetrievalTask
from evle.tasks.task import EvaluationSettings
from evle.transforms.text import train_tokenizer

NOTE = """
Almost all of the time is in the joint passes: images are encoded once and pairs sorted by length, so padding is
small; files, tokenizer, sorting and metrics are the 2 % that the bare passes leave out.
"""
"""What limits this row, from a profile, and what was tried."""

WORDS = [f"{kind}{number}" for number in range(10) for kind in ("red", "car", "tree", "in", "two", "old", "big")]


def samples_of(count: int, seed: int = 0) -> list[CaptionSample]:
    """Images of noise with two captions each, of 7 to 30 words."""
    rng = np.random.default_rng(seed)
    result = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(256, size=(120, 160, 3), dtype=np.uint8)).save(buffer, "JPEG")
        captions = tuple(" ".join(rng.choice(WORDS, size=int(rng.integers(7, 31)))) for _ in range(2))
        result.append(CaptionSample(str(number), buffer.getvalue(), captions))
    return result


def build(setting: Setting) -> Case:
    samples = samples_of(3 if setting.quick else 8)
    tokenizer = train_tokenizer([" ".join(WORDS)], 400)
    config = eve_config(setting, 224, vocab_size=len(tokenizer)).with_changes(vocab_size=len(tokenizer))
    model = EVEForRetrieval(config).eval()
    processor = EVEProcessor.for_size(config.image_size, tokenizer)
    task = RetrievalTask(RetrievalConfig(k_test=2 if setting.quick else 6), processor)
    settings = EvaluationSettings(
        batch_size=4 if setting.quick else 16, precision="no" if setting.dtype == "fp32" else "bf16", num_examples=0
    )
    lengths: list[list[int]] = []  # of the texts of each joint pass

    def evaluate() -> None:
        task.evaluate(model, samples, settings)

    def record(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        lengths.append(inputs["attention_mask"][inputs["text_rows"]].sum(dim=1).tolist())

    logits = model.itm_logits
    model.itm_logits = lambda **inputs: (record(None, None, inputs), logits(**inputs))[1]  # type: ignore[method-assign]
    evaluate()
    model.itm_logits = logits  # type: ignore[method-assign]
    pairs = sorted(length for part in lengths for length in part)
    side = config.image_size

    def bare() -> None:
        pixels = torch.zeros(settings.batch_size, 3, side, side)
        model.get_image_features(pixels[: len(samples)])
        model.get_text_features(torch.full((2 * len(samples), 20), 7))
        for start in range(0, len(pairs), settings.batch_size):
            part = pairs[start : start + settings.batch_size]
            mask = (torch.arange(max(part)) < torch.tensor(part)[:, None]).long()
            model.itm_logits(pixels[: len(part)], torch.full_like(mask, 7), mask)

    return Case(
        ways={OURS: evaluate, "bare forward passes": setting.forward(bare)},
        product=product(config, settings.batch_size * config.num_patches),
        unit="pairs",
        units={OURS: float(len(pairs)), "bare forward passes": float(len(pairs))},
    )
