"""VCR as a whole, Q to AR: one model answers, another gives the reason (Zellers et al., 2019).

A question counts where both are right: the answer among four, and the reason among four for the right answer. The
leaderboard wants the reasons for each of the answers, so all sixteen are scored, for a picture that is encoded once.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel

from evle.config import apply_overrides
from evle.data.samples import Sample, Tagged, VCRSample, made
from evle.engine.devices import join_processes
from evle.engine.run import make_output
from evle.errors import ConfigError
from evle.metrics import vcr_scores
from evle.pipelines import family_text_options, model_folder
from evle.recipe import RunConfig, load_trained, read_run
from evle.report import Cell, Gallery, GalleryRow, Mark, Report
from evle.reporting import score_rows, skipped_table, write_report
from evle.splits import Samples, Split, describe, read_split
from evle.tasks.sweep import Swept, plain, sweep
from evle.tasks.task import Batch, Evaluation, EvaluationSettings, Task
from evle.tasks.vcr import NUM_CHOICES, VCRQ2ATask, VCRQA2RTask, draw_objects, numbered
from evle.transforms.tagged import object_names
from evle.zero_shot import refuse_training_settings

CHANCE = {"q2a": 100 / NUM_CHOICES, "qa2r": 100 / NUM_CHOICES, "q2ar": 100 / NUM_CHOICES**2}
LEADERBOARD = "vcr_leaderboard.csv"


class ReasonsForEachAnswer(VCRQA2RTask):
    """The four reasons for each of the four answers: sixteen candidates, answer by answer."""

    def parts(self, sample: VCRSample) -> list[tuple[Tagged, ...]]:
        return [
            (sample.question, answer, reason) for answer in sample.answer_choices for reason in sample.rationale_choices
        ]

    def label(self, sample: VCRSample) -> int | None:
        return None  # which reason is right is known for the right answer only


def judge_vcr(
    q2a: str | Path,
    qa2r: str | Path,
    overrides: Sequence[str] = (),
    *,
    output: str | Path | None = None,
    title: str = "VCR, question to answer and reason",
    samples: Samples | None = None,
) -> Report:
    """Score a model that answers and one that gives reasons together, and write a report and the leaderboard's file.

    Args:
        q2a: a run's folder, or a model folder, of the task vcr-q2a; its data.test is scored (data.val without one).
        qa2r: one of the task vcr-qa2r.
        overrides: `key=value` settings for both, such as data.test.split=val.
        output: where the report goes; by default `joint` in the folder of `qa2r`.
        title: of the report.
        samples: what to score instead of what the configuration names.

    Raises:
        EvleError: folders, settings or data that cannot be used.
    """
    device = join_processes()
    configs = [_read(q2a, "vcr-q2a", overrides), _read(qa2r, "vcr-qa2r", overrides)]
    split: Split = "test" if configs[0].data.test is not None else "val"
    samples = samples if samples is not None else read_split(configs[0].data, split, "vcr")
    if samples is None:
        raise ConfigError("there is nothing to evaluate on: name it with data.test.source=... data.test.split=...")
    loaded: list[tuple[PreTrainedModel, Task]] = []
    task_types: tuple[type[Task], type[Task]] = (VCRQ2ATask, ReasonsForEachAnswer)
    for config, folder, task_type in zip(configs, (q2a, qa2r), task_types, strict=True):
        model, task = load_trained(config, folder, task_type)
        torch.nn.Module.to(model, device)
        loaded.append((model, task))
    target = make_output(Path(output or Path(qa2r) / "joint"))
    found = judge(*loaded[0], *loaded[1], samples, configs[0].evaluate.settings(quick=False))
    said = [f"{name} on {split}: {found.scores[name]:.2f} (chance {CHANCE[name]:.2f})" for name in found.scores]
    report = Report(
        title=title,
        summary=[*said, f"to submit: {LEADERBOARD}"],
        provenance={
            "models": {"q2a": str(q2a), "qa2r": str(qa2r)},
            "data": {split: describe(samples)},
            "config": {"q2a": configs[0].plain(), "qa2r": configs[1].plain()},
        },
        tables=skipped_table(found.skipped),
        galleries=found.galleries,
        scores=score_rows(split, found),
    )
    write_report(report, found, target)
    return report


def judge(
    answering: PreTrainedModel,
    answer_task: Task,
    reasoning: PreTrainedModel,
    reason_task: Task,
    samples: Sequence[Sample],
    settings: EvaluationSettings,
) -> Evaluation:
    """Percent of right answers (`q2a`), of right reasons for the right answer (`qa2r`), and of both (`q2ar`)."""

    def logits_of(model: PreTrainedModel, task: Task) -> Swept:
        def predict(keys: list[str], batch: Batch) -> list[np.ndarray]:
            return list(model(**batch).logits.float().cpu().numpy())

        return sweep(model, samples, plain(task), task.collate, predict, settings)

    answers, reasons = logits_of(answering, answer_task), logits_of(reasoning, reason_task)
    both = answers.results.keys() & reasons.results.keys()
    judged: list[VCRSample] = [sample for sample in made(samples) if sample.key in both]
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
        galleries=[_gallery(judged, shares, reason_shares, settings.num_examples)],
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
    """The file of VCR's leaderboard: a line a question, the probability of each answer (4,) and, given each answer, of
    each reason (4, 4).

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


def _read(folder: str | Path, name: str, overrides: Sequence[str]) -> RunConfig:
    """The configuration of a run; of a model folder alone, such as a released one, its family's way to read."""
    refuse_training_settings(overrides)
    if (Path(folder) / "config.yaml").is_file():
        config = read_run(folder, overrides)
    else:
        model_folder(folder)
        text = family_text_options("vle").model_copy(update={"max_length": 80}).model_dump()
        bare: dict[str, Any] = {"task": {"name": name}, "text": text, "train": {"steps": 1}, "output": str(folder)}
        config = RunConfig.build(apply_overrides(bare, overrides), str(folder))
    if config.task["name"] != name:
        raise ConfigError(f"{folder} is a run of the task {config.task['name']}; give one of {name} in its place")
    return config


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def _gallery(
    samples: list[VCRSample], answers: dict[str, np.ndarray], reasons: dict[str, np.ndarray], num_examples: int
) -> Gallery:
    """Questions, the answer chosen, and the reason chosen for the right answer (for the chosen one where none is
    known)."""
    places = np.linspace(0, len(samples) - 1, min(num_examples, len(samples))).astype(int)
    rows = []
    for sample in (samples[place] for place in places):
        names = object_names([box.label for box in sample.objects])
        answer = int(answers[sample.key].argmax())
        given = answer if sample.answer_label is None else sample.answer_label
        reason = int(reasons[sample.key][given].argmax())
        cells = [Cell(draw_objects(sample))]
        for part, choice, label in (
            (sample.answer_choices[answer], answer, sample.answer_label),
            (sample.rationale_choices[reason], reason, sample.rationale_label),
        ):
            mark: Mark = "" if label is None else "good" if choice == label else "bad"
            cells.append(Cell(None, " ".join(word for word, _ in numbered(part, names)), mark))
        rows.append(GalleryRow(" ".join(word for word, _ in numbered(sample.question, names)), cells))
    return Gallery("Questions, the answers chosen, and the reasons chosen for the right answers", rows)
