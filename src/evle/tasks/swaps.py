"""Composition: does an image score higher with its caption than with the same caption swapped (as in SugarCrepe and
Winoground)?"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from evle.data.images import open_image
from evle.data.samples import CaptionSample, Sample, Swap, readable
from evle.errors import SampleError
from evle.metrics import swap_scores
from evle.report import Cell, Gallery, GalleryRow
from evle.tasks.predict import predict_all
from evle.tasks.retrieval import RetrievalTask, learns_matching
from evle.tasks.task import Batch, Evaluation, EvaluationSettings, Features, Task, TaskConfig
from evle.transforms.collate import number_ids

CHANCE = {"accuracy": 50.0, "text": 25.0, "image": 25.0, "group": 100 / 6}
"""Chance: the scores of random numbers for two captions, for two sets of two, and for four pairs of which two must be
the highest in their rows and columns."""


class SwapsConfig(TaskConfig):
    """Options of composition."""

    negatives: Literal["swaps", "similar"] = "swaps"
    """What matching learns to refuse: "swaps", each image with its swapped caption, and each caption with an image
    drawn by similarity; "similar", both drawn by similarity from the batch, as in retrieval."""


class SwapsTask(Task):
    """Training: contrast and matching, with both images and both captions of a set in one batch, so that the swapped
    caption is a hard negative. Evaluation: each image with its true and its swapped caption, scored by
    `evle.metrics.swap_scores`.

    If the model has learned matching, the scores are those of matching, and those of the embeddings are named
    `itc/accuracy` and so on. Otherwise the scores are those of the embeddings.
    """

    name = "swaps"
    reads = "swaps"
    sample_type = CaptionSample
    models: ClassVar[dict[str, type[PreTrainedModel]]] = RetrievalTask.models
    metric = "accuracy"
    config_type = SwapsConfig
    options: SwapsConfig

    def bind(self, config: PreTrainedConfig) -> None:
        self._matches = learns_matching(config)

    def features(self, sample: Sample, rng: np.random.Generator, train: bool) -> Features:
        """Both images of the set and both captions; the true ones of the sample first."""
        sample, swap = _with_swap(sample)
        captions = (sample.captions[0], swap.caption)
        sources = [sample.image]
        if train:
            if swap.image is None:
                raise SampleError(f"{sample.key}: no second image to train on; swaps of captions are for evaluation")
            sources.append(swap.image)
        both = " ".join(captions)
        return {
            "images": [self.read_image(source, rng, train, both) for source in sources],
            "tokens": [self.tokens(self.clean(caption)) for caption in captions],
            "match": captions,
        }

    def collate_raw(self, features: list[Features]) -> Batch:
        batch = {
            "pixel_values": torch.stack([image for each in features for image in each["images"]]),
            **self.collate_tokens([tokens for each in features for tokens in each["tokens"]]),
        }
        if len(batch["pixel_values"]) == len(batch["input_ids"]):  # in training
            batch["match_ids"] = number_ids([match for each in features for match in each["match"]])
            if self._matches and self.options.negatives == "swaps":
                # Both captions of a set are neighbours.
                batch["wrong_texts"] = torch.arange(len(batch["input_ids"])) ^ 1
        return batch

    def evaluate(self, model: PreTrainedModel, samples: Sequence[Sample], settings: EvaluationSettings) -> Evaluation:
        encoder: Any = model  # of any family with get_image_features, get_text_features and itm_logits

        def score(keys: list[str], batch: Batch) -> list[list[float]]:
            pixels, texts = batch["pixel_values"], {name: batch[name] for name in ("input_ids", "attention_mask")}
            rows = torch.arange(len(keys), device=pixels.device).repeat_interleave(2)
            images = encoder.get_image_features(pixel_values=pixels)[rows]
            columns = [(images * encoder.get_text_features(**texts)).sum(dim=1)]
            if self._matches:
                text_rows = torch.arange(len(rows), device=pixels.device)
                logits = encoder.itm_logits(pixel_values=pixels, **texts, image_rows=rows, text_rows=text_rows)
                columns.append(logits[:, 1])
            return torch.stack(columns).float().reshape(len(columns), -1, 2).transpose(0, 1).flatten(1).tolist()

        predicted = predict_all(model, samples, self, score, settings)
        judged = [_with_swap(sample) for sample in readable(samples) if sample.key in predicted.results]
        sets = {sample.key: swap.set_id for sample, swap in judged}
        types = {sample.key: swap.type for sample, swap in judged}
        scores = self._scores(predicted.results, sets, types)
        chance = {name: CHANCE[name.partition("/")[0]] for name in scores if not name.startswith("itc/")}
        last = {key: values[-2:] for key, values in predicted.results.items()}
        return Evaluation(
            scores=scores,
            chance=chance | {f"itc/{name}": value for name, value in chance.items() if f"itc/{name}" in scores},
            galleries=[] if settings.quick else [_gallery(judged, last, settings.num_examples)],
            predictions=[
                {
                    "key": sample.key,
                    "type": swap.type,
                    "caption": sample.captions[0],
                    "swapped": swap.caption,
                    "scores": [round(value, 4) for value in last[sample.key]],
                }
                for sample, swap in judged
                if not settings.quick
            ],
            skipped=predicted.skipped,
        )

    def _scores(self, results: dict[str, list[float]], sets: dict[str, str], types: dict[str, str]) -> dict[str, float]:
        by_embeddings = swap_scores({key: (row[0], row[1]) for key, row in results.items()}, sets, types)
        if not self._matches:
            return by_embeddings
        by_matching = swap_scores({key: (row[2], row[3]) for key, row in results.items()}, sets, types)
        return by_matching | {f"itc/{name}": value for name, value in by_embeddings.items()}


def _with_swap(sample: Sample) -> tuple[CaptionSample, Swap]:
    sample = cast(CaptionSample, sample)
    if sample.swap is None or not sample.captions:
        raise SampleError(f"{sample.key}: no swapped caption; read the samples from the source 'swaps'")
    return sample, sample.swap


def _gallery(judged: list[tuple[CaptionSample, Swap]], scores: dict[str, list[float]], num_examples: int) -> Gallery:
    rows = []
    for index in np.linspace(0, len(judged) - 1, min(num_examples, len(judged))).astype(int):
        sample, swap = judged[index]
        right = scores[sample.key][0] > scores[sample.key][1]
        chosen = sample.captions[0] if right else swap.caption
        cells = [Cell(open_image(sample.image), sample.captions[0]), Cell(None, chosen, "good" if right else "bad")]
        rows.append(GalleryRow(swap.type, cells))
    return Gallery("Images, their captions, and the caption that the model prefers to its swap", rows)
