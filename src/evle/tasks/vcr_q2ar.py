"""VCR as a whole, Q to AR: one model answers, another gives the reason (Zellers et al., 2019).

A question counts if both are right: the answer among four, and the reason among four for the right answer. The
leaderboard asks for the reasons for each of the answers, so all sixteen are scored, with the image encoded once.
"""

import csv
import io
import math
from collections.abc import Sequence
from typing import cast

import numpy as np
from transformers import PreTrainedModel

from evle.data.samples import Sample, Tagged, VCRSample, readable
from evle.metrics import vcr_scores
from evle.report import Cell, Gallery, GalleryRow, Mark
from evle.tasks.examples import choose_examples
from evle.tasks.predict import Predictions, predict_all
from evle.tasks.task import Batch, Evaluation, EvaluationSettings, Task
from evle.tasks.vcr import NUM_CHOICES, VCRQA2RTask, draw_objects, numbered
from evle.transforms.tagged import object_names

CHANCE = {"q2a": 100 / NUM_CHOICES, "qa2r": 100 / NUM_CHOICES, "q2ar": 100 / NUM_CHOICES**2}
LEADERBOARD = "vcr_leaderboard.csv"


class ReasonsForEachAnswer(VCRQA2RTask):
    """The four reasons for each of the four answers: sixteen candidates, answer by answer."""

    def parts(self, sample: VCRSample) -> list[tuple[Tagged, ...]]:
        return [
            (sample.question, answer, reason) for answer in sample.answer_choices for reason in sample.rationale_choices
        ]

    def label(self, sample: VCRSample) -> int | None:
        return None  # only for the right answer is it known which reason is right


def judge(
    answering: PreTrainedModel,
    answer_task: Task,
    reasoning: PreTrainedModel,
    reason_task: Task,
    samples: Sequence[Sample],
    settings: EvaluationSettings,
) -> Evaluation:
    """Percent of right answers (`q2a`), of right reasons for the right answer (`qa2r`), and of both (`q2ar`)."""

    def logits_of(model: PreTrainedModel, task: Task) -> Predictions:
        def predict(keys: list[str], batch: Batch) -> list[np.ndarray]:
            return list(model(**batch).logits.float().cpu().numpy())

        return predict_all(model, samples, task, predict, settings)

    answers, reasons = logits_of(answering, answer_task), logits_of(reasoning, reason_task)
    both = answers.results.keys() & reasons.results.keys()
    judged: list[VCRSample] = [sample for sample in readable(samples) if sample.key in both]
    shares = {sample.key: _softmax(answers.results[sample.key]) for sample in judged}
    reason_shares = {sample.key: _softmax(reasons.results[sample.key].reshape(NUM_CHOICES, -1)) for sample in judged}
    known = [each for each in judged if each.answer_label is not None and each.rationale_label is not None]
    scores: dict[str, float] = {}
    if known:
        scores = vcr_scores(
            {
                "q2a": [int(shares[each.key].argmax()) for each in known],
                "qa2r": [int(reason_shares[each.key][each.answer_label].argmax()) for each in known],
            },
            {
                "q2a": [cast(int, each.answer_label) for each in known],
                "qa2r": [cast(int, each.rationale_label) for each in known],
            },
        )
    return Evaluation(
        scores=scores,
        chance=CHANCE if known else {},
        galleries=_galleries(judged, shares, reason_shares, settings),
        predictions=[
            {
                "key": each.key,
                "answers": [round(float(share), 4) for share in shares[each.key]],
                "reasons": [[round(float(share), 4) for share in row] for row in reason_shares[each.key]],
            }
            for each in judged
        ],
        skipped=list(dict.fromkeys([*answers.skipped, *reasons.skipped])),
        files={LEADERBOARD: leaderboard(shares, reason_shares)},
    )


def leaderboard(answers: dict[str, np.ndarray], reasons: dict[str, np.ndarray]) -> str:
    """The file for VCR's leaderboard: one line per question with the probability of each answer (4,) and, given each
    answer, of each reason (4, 4).

    >>> leaderboard({"test-0": np.full(4, 0.25)}, {"test-0": np.full((4, 4), 0.25)}).split()[0][:58]
    'annot_id,answer_0,answer_1,answer_2,answer_3,rationale_con'
    """
    choices = range(NUM_CHOICES)
    columns = [f"answer_{answer}" for answer in choices]
    columns += [f"rationale_conditioned_on_a{answer}_{reason}" for answer in choices for reason in choices]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["annot_id", *columns])
    for key, row in answers.items():
        writer.writerow([key, *(f"{share:.6f}" for share in (*row, *reasons[key].ravel()))])
    return text.getvalue()


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def _galleries(
    samples: list[VCRSample],
    answers: dict[str, np.ndarray],
    reasons: dict[str, np.ndarray],
    settings: EvaluationSettings,
) -> list[Gallery]:
    """Some questions with the chosen answer, and the reason chosen for the right answer (for the chosen one if the
    right one is not known)."""

    def choices(sample: VCRSample) -> tuple[int, int]:
        answer = int(answers[sample.key].argmax())
        given = answer if sample.answer_label is None else sample.answer_label
        return answer, int(reasons[sample.key][given].argmax())

    def goodness(sample: VCRSample) -> float:
        if sample.answer_label is None or sample.rationale_label is None:
            return math.nan
        share = float(answers[sample.key].max() * reasons[sample.key][sample.answer_label].max())
        return share if choices(sample) == (sample.answer_label, sample.rationale_label) else -share

    def row(sample: VCRSample) -> GalleryRow:
        names = object_names([box.label for box in sample.objects])
        answer, reason = choices(sample)
        cells = [Cell(draw_objects(sample))]
        for part, choice, label in (
            (sample.answer_choices[answer], answer, sample.answer_label),
            (sample.rationale_choices[reason], reason, sample.rationale_label),
        ):
            mark: Mark = "" if label is None else "good" if choice == label else "bad"
            cells.append(Cell(None, " ".join(word for word, _ in numbered(part, names)), mark))
        return GalleryRow(" ".join(word for word, _ in numbered(sample.question, names)), cells)

    title = "Questions, the answers chosen, and the reasons chosen for the right answers"
    chosen = choose_examples([goodness(sample) for sample in samples], settings)
    return [Gallery(f"{title}: {name}", [row(samples[index]) for index in indices]) for name, indices in chosen.items()]
