"""Scoring a model on a split: as a whole, or source by source where these have labels."""

import statistics
from collections.abc import Mapping

from transformers import PreTrainedModel

from evle.data.samples import Samples
from evle.data.sources import Labelled
from evle.report import Table
from evle.tasks.task import Evaluation, EvaluationSettings, Task


def score(task: Task, model: PreTrainedModel, samples: Samples, settings: EvaluationSettings) -> Evaluation:
    """The task's evaluation. If sources have labels, each is evaluated on its own, and the scores are averaged."""
    if not isinstance(samples, Labelled):
        return task.evaluate(model, samples, settings)
    return joined({label: task.evaluate(model, part, settings) for label, part in samples.parts.items()}, task.metric)


def joined(parts: Mapping[str, Evaluation], metric: str) -> Evaluation:
    """Evaluations by label as one: means of their scores, `metric` of each, and a table of all."""
    results = list(parts.values())
    names = [name for name in results[0].scores if all(name in result.scores for result in results)]
    rows = [[label, *(result.scores[name] for name in names)] for label, result in parts.items()]
    return Evaluation(
        scores=_means([result.scores for result in results])
        | {f"{metric}/{label}": result.scores[metric] for label, result in parts.items() if metric in result.scores},
        chance=_means([result.chance for result in results])
        | {f"{metric}/{label}": result.chance[metric] for label, result in parts.items() if metric in result.chance},
        galleries=results[0].galleries,
        predictions=[{"label": label, **each} for label, result in parts.items() for each in result.predictions],
        skipped=list(dict.fromkeys(line for result in results for line in result.skipped)),
        tables=[Table("By label", ["label", *names], rows), *results[0].tables],
    )


def _means(scores: list[dict[str, float]]) -> dict[str, float]:
    names = [name for name in scores[0] if all(name in each for each in scores)]
    return {name: statistics.fmean(each[name] for each in scores) for name in names}
