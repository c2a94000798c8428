"""NLVR2: is a sentence true for a pair of images (Suhr et al., 2019)?"""

import math
from collections.abc import Sequence
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evle.data.images import open_image
from evle.data.samples import NLVR2Sample, Sample, readable
from evle.errors import SampleError
from evle.metrics import nlvr2_scores
from evle.models.eve import EVEForNLVR2
from evle.models.soundness import finite
from evle.models.vle import VLEForNLVR2
from evle.report import Cell, Gallery, GalleryRow, Mark, Table, class_table
from evle.tasks.examples import choose_examples
from evle.tasks.predict import predict_all
from evle.tasks.submission import nlvr2_submission
from evle.tasks.task import Batch, Evaluation, EvaluationSettings, Features, Task

VERDICTS = ("false", "true")


class NLVR2Task(Task):
    """Training: whether a sentence is true for each pair. Evaluation: accuracy, and consistency over the pairs of one
    sentence.

    `nlvr2_head` in the model's config selects the head. Chance is the more frequent label of the evaluated pairs.
    """

    name = "nlvr2"
    reads = "nlvr2"
    sample_type = NLVR2Sample
    models: ClassVar[dict[str, type[PreTrainedModel]]] = {"eve": EVEForNLVR2, "vle": VLEForNLVR2}
    metric = "accuracy"

    def features(self, sample: Sample, rng: np.random.Generator, train: bool) -> Features:
        sample = cast(NLVR2Sample, sample)
        if train and sample.label is None:
            raise SampleError(f"{sample.key}: no label; training needs one")
        return {
            "images": torch.stack([self.read_image(image, rng, train, sample.sentence) for image in sample.images]),
            "tokens": self.tokens(self.clean(sample.sentence)),
            "label": sample.label,
        }

    def collate_raw(self, features: list[Features]) -> Batch:
        batch = {
            "pixel_values": torch.stack([each["images"] for each in features]),
            **self.collate_tokens([each["tokens"] for each in features]),
        }
        if all(each["label"] is not None for each in features):
            batch["labels"] = torch.tensor([int(each["label"]) for each in features])
        return batch

    def evaluate(self, model: PreTrainedModel, samples: Sequence[Sample], settings: EvaluationSettings) -> Evaluation:
        predicted = predict_all(
            model,
            samples,
            self,
            lambda keys, batch: _verdicts(finite(model(**batch).logits)),
            settings,
        )
        judged: list[NLVR2Sample] = [sample for sample in readable(samples) if sample.key in predicted.results]
        verdicts = {key: verdict for key, (verdict, _) in predicted.results.items()}
        known = [sample for sample in judged if sample.label is not None]
        return Evaluation(
            scores=_scores(known, [verdicts[sample.key] for sample in known]),
            chance=_scores(known, [int(2 * sum(bool(each.label) for each in known) >= len(known))] * len(known)),
            galleries=[] if settings.quick else _galleries(judged, predicted.results, settings),
            tables=[] if settings.quick else _tables(known, verdicts),
            values={"accuracy": [100.0 * (verdicts[each.key] == int(bool(each.label))) for each in known]},
            predictions=[]
            if settings.quick
            else [
                {"key": sample.key, "sentence": sample.sentence, "verdict": VERDICTS[verdicts[sample.key]]}
                for sample in judged
            ],
            skipped=predicted.skipped,
            files=nlvr2_submission({sample.key: bool(verdicts[sample.key]) for sample in judged}),
        )


def _scores(samples: list[NLVR2Sample], verdicts: list[int]) -> dict[str, float]:
    if not samples:
        return {}
    set_ids = [sample.set_id or sample.key for sample in samples]
    return nlvr2_scores(verdicts, [int(bool(sample.label)) for sample in samples], set_ids)


def _verdicts(logits: Tensor) -> list[tuple[int, float]]:
    """Logits (B, 2) as verdicts, each with its probability."""
    shares = logits.softmax(dim=-1).amax(dim=-1)
    return list(zip(logits.argmax(dim=-1).tolist(), shares.tolist(), strict=True))


def _tables(samples: list[NLVR2Sample], verdicts: dict[str, int]) -> list[Table]:
    truths, given = (
        [VERDICTS[int(verdict)] for verdict in each]
        for each in ([bool(sample.label) for sample in samples], [verdicts[sample.key] for sample in samples])
    )
    return [class_table("Verdicts, by the true one", truths, given)] if truths else []


def _galleries(
    samples: list[NLVR2Sample], results: dict[str, tuple[int, float]], settings: EvaluationSettings
) -> list[Gallery]:
    """Some sentences about pairs, each with the model's verdict and its probability."""

    def goodness(sample: NLVR2Sample) -> float:
        verdict, share = results[sample.key]
        return math.nan if sample.label is None else share if verdict == int(sample.label) else -share

    def row(sample: NLVR2Sample) -> GalleryRow:
        verdict, share = results[sample.key]
        mark: Mark = "" if sample.label is None else "good" if verdict == int(sample.label) else "bad"
        said = f"{VERDICTS[verdict]} ({100 * share:.0f} %)"
        left, right = (open_image(image) for image in sample.images)
        return GalleryRow(sample.sentence, [Cell(left), Cell(right), Cell(None, said, mark)])

    chosen = choose_examples([goodness(sample) for sample in samples], settings)
    return [
        Gallery(f"Sentences about pairs and the model's verdicts: {name}", [row(samples[index]) for index in indices])
        for name, indices in chosen.items()
    ]
