"""One report of several runs: it compares the stages of a recipe and the seeds of a stage."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evle.engine.run_folder import Run
from evle.files import read_json
from evle.report import Curve, Gallery, Report, Table, read_galleries
from evle.run.claims import LOSS, METRICS, claims_chart, claims_table, judge
from evle.run.config import JointStage, Stage, Stages

SHOWN_ROWS = 6  # of each gallery of a stage, in the report of all stages
PERCENTAGES = {*METRICS.values()} - {LOSS}
"""The metrics that are percentages."""


class Comparison(Report):
    """A report of several runs. It has one table of scores per task; a single table would be mostly empty."""

    def all_tables(self) -> list[Table]:
        return self.tables


@dataclass(frozen=True)
class Result:
    """What a stage reached: its scores (their mean over the seeds), their standard deviation (empty for one run), what
    guessing would reach, and the scores and points of the training loss of each run by name."""

    name: str
    task: str
    start: str
    scores: dict[str, float]
    spread: dict[str, float]
    chance: dict[str, float]
    runs: dict[str, dict[str, float]]
    losses: dict[str, list[tuple[float, float]]]

    def cell(self, score: str) -> float | str | None:
        """A score for a table, with its spread where there is one."""
        if score not in self.scores or score not in self.spread:
            return self.scores.get(score)
        return f"{self.scores[score]:.4g} ± {self.spread[score]:.2g}"


def compare(recipe: Stages) -> Report:
    """The report of a recipe's finished stages: the verdicts on its claims; what each task's stages reached, beside
    chance; all scores task by task; mean and standard deviation over seeds; the losses; the first images of every
    stage."""
    finished = [stage for stage in recipe.every if has_report(stage)]
    reports = {stage.name: _read(stage.output) for stage in finished}
    results = [_result(stages, reports) for stages in _groups(finished).values()]
    tasks: dict[str, list[Result]] = {}
    for result in results:
        tasks.setdefault(result.task, []).append(result)
    diverged = diverged_runs(recipe)
    seeds = {group: [stage.seed for stage in stages] for group, stages in _groups(recipe.every).items()}
    judged = judge(recipe.claims, *_by_stage_and_seed(recipe, reports, diverged), seeds)
    scores: dict[str, Any] = {}
    for task, own in tasks.items():
        if chance := _chance(own):
            scores[f"{task}: chance"] = chance
        for result in own:
            scores[result.name] = result.scores
            if result.spread:
                scores[f"{result.name}: standard deviation"] = result.spread
    return Comparison(
        title=recipe.title,
        summary=[
            *([recipe.about] if recipe.about else []),
            *_unfinished(len(finished), len(recipe.every), diverged),
            *(_in_words(task, own) for task, own in tasks.items()),
        ],
        links=[(stage.name, f"{stage.output.relative_to(recipe.output).as_posix()}/report.html") for stage in finished],
        provenance={name: report["provenance"] for name, report in reports.items()},
        tables=[
            *claims_table(judged),
            *_overview(tasks),
            *(_score_table(task, own) for task, own in tasks.items()),
            *(_seed_table(result) for result in results if result.spread),
        ],
        curves=[
            Curve(f"{task}: training loss", "step", "loss", losses)
            for task, own in tasks.items()
            if (losses := {name: points for result in own for name, points in result.losses.items()})
        ],
        intervals=claims_chart(judged, PERCENTAGES),
        galleries=[
            Gallery(f"{stage.name}: {gallery.title}", gallery.rows[:SHOWN_ROWS], gallery.note)
            for stage in finished
            for gallery in read_galleries(stage.output)
        ],
        scores=scores,
    )


def has_report(stage: Stage | JointStage) -> bool:
    """Whether the report of a stage is there, of a run that is not to be made again."""
    replaced = isinstance(stage, Stage) and Run(stage.output).is_replaced()
    return (stage.output / "report.json").is_file() and not replaced


def diverged_runs(recipe: Stages) -> dict[str, str]:
    """The runs that diverged, and those that read one of these, each with the name of the one that diverged."""
    found: dict[str, str] = {}
    for stage in recipe.every:
        if isinstance(stage, Stage) and Run(stage.output).has_diverged():
            found[stage.name] = stage.name
        elif not has_report(stage) and (read := stage.reads & found.keys()):
            found[stage.name] = found[min(read)]
    return found


def in_words(diverged: Mapping[str, str]) -> str:
    """Which of the runs that `diverged_runs` found diverged, and which were skipped for it."""
    skipped = [name for name, origin in diverged.items() if name != origin]
    named = ", ".join(dict.fromkeys(diverged.values()))
    return f"diverged: {named}" + (f"; skipped, because they start from these: {', '.join(skipped)}" if skipped else "")


def _unfinished(finished: int, number: int, diverged: Mapping[str, str]) -> list[str]:
    lines = [] if finished == number else [f"{finished} of {number} runs are finished"]
    return [*lines, in_words(diverged)] if diverged else lines


def _groups(stages: Sequence[Stage | JointStage]) -> dict[str, list[Stage | JointStage]]:
    groups: dict[str, list[Stage | JointStage]] = {}
    for stage in stages:
        groups.setdefault(stage.group, []).append(stage)
    return groups


def _by_stage_and_seed(
    recipe: Stages, reports: Mapping[str, dict[str, Any]], diverged: Collection[str]
) -> tuple[dict[str, dict[int, dict[str, float] | None]], dict[str, str]]:
    """Scores by stage, seed and name (None for a run that diverged, or started from one), with the speed of training
    among them, and the metric of each stage's task."""
    scores: dict[str, dict[int, dict[str, float] | None]] = {}
    for stage in recipe.every:
        if stage.name in diverged:
            scores.setdefault(stage.group, {})[stage.seed] = None
        elif stage.name in reports:
            report = reports[stage.name]
            speed = report["provenance"].get("training", {})
            scores.setdefault(stage.group, {})[stage.seed] = {**speed, **_measured(report)}
    return scores, {stage.group: METRICS[stage.task] for stage in recipe.every}


def _measured(report: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a run's report, without those of chance."""
    return next((row for name, row in report["scores"].items() if name != "chance"), {})


def _read(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = read_json(folder / "report.json", kind=dict)
    return report


def _result(stages: Sequence[Stage | JointStage], reports: Mapping[str, dict[str, Any]]) -> Result:
    """The result of a stage from the reports of its runs, one per seed."""
    runs: dict[str, dict[str, float]] = {}
    chance: dict[str, float] = {}
    for stage in stages:
        rows = reports[stage.name]["scores"]
        chance = chance or rows.get("chance", {})
        runs[stage.name] = _measured(reports[stage.name])
    values = {
        score: [row[score] for row in runs.values()]
        for score in next(iter(runs.values()))
        if all(row.get(score) is not None for row in runs.values())
    }
    first = stages[0]
    return Result(
        name=first.group,
        task=first.task,
        start=first.start,
        scores={score: statistics.fmean(each) for score, each in values.items()} if len(runs) > 1 else runs[first.name],
        spread={score: statistics.stdev(each) for score, each in values.items()} if len(runs) > 1 else {},
        chance=chance,
        runs=runs,
        losses={stage.name: points for stage in stages if (points := _losses(reports[stage.name]))},
    )


def _overview(tasks: Mapping[str, Sequence[Result]]) -> list[Table]:
    """The main scores of all tasks in one table, by starting weights; no table without chance scores."""
    cells: dict[str, dict[str, Any]] = {}
    for task, results in tasks.items():
        chance = _chance(results)
        for score in chance:
            if "/" not in score:  # scores of parts have a slash in their name
                row: dict[str, Any] = {"chance": chance[score]}
                row |= {_label(result, results): result.cell(score) for result in results if score in result.scores}
                cells[f"{task}: {score}"] = row
    columns = list(dict.fromkeys(name for row in cells.values() for name in row))
    rows = [[name, *(row.get(column) for column in columns)] for name, row in cells.items()]
    return [Table("Results", ["percent", *columns], rows)] if rows else []


def _score_table(task: str, results: Sequence[Result]) -> Table:
    """One row per score, of which there are many, and one column per stage, of which there are few."""
    chance = _chance(results)
    names = list(dict.fromkeys([*chance, *(score for result in results for score in result.scores)]))
    own = ["chance"] if chance else []
    rows = [
        [name, *([chance.get(name)] if chance else []), *(result.cell(name) for result in results)] for name in names
    ]
    return Table(f"{task}: scores", ["score", *own, *(result.name for result in results)], rows)


def _seed_table(result: Result) -> Table:
    """Every run of a stage, and mean and standard deviation over them."""
    rows = [
        [score, *(row.get(score) for row in result.runs.values()), result.scores[score], result.spread[score]]
        for score in result.spread
    ]
    names = [name.rpartition("/")[2] for name in result.runs]
    return Table(f"{result.name}: by seed", ["score", *names, "mean", "standard deviation"], rows)


def _chance(results: Sequence[Result]) -> dict[str, float]:
    return next((result.chance for result in results if result.chance), {})


def _label(result: Result, results: Sequence[Result]) -> str:
    """The weights that a stage started from, or its name if another stage of its task started from the same."""
    if sum(each.start == result.start for each in results) > 1:
        return result.name
    return f"weights of {result.start}" if result.start else "random weights"


def _in_words(task: str, results: Sequence[Result]) -> str:
    metric = METRICS[task]
    measured = [
        f"{result.cell(metric)} from {_label(result, results)}"
        if result.spread
        else f"{result.scores[metric]:.4g} from {_label(result, results)}"
        for result in results
        if result.scores.get(metric) is not None  # None: it was not finite
    ]
    chance = _chance(results)
    by_chance = [f"{chance[metric]:.4g} by chance"] if metric in chance else []
    return f"{task}, {metric}: {', '.join([*by_chance, *measured])}"


def _losses(report: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The points of the training loss in a stage's report.json."""
    points: list[list[Any]] = next(
        (each["series"]["loss"] for each in report["curves"] if "loss" in each["series"]), []
    )
    return [(x, y if y is not None else float("nan")) for x, y in points]
