"""Recipes of several runs: pre-train once, fine-tune from it, compare. Each stage is a run in <output>/<stage>.

A recipe of stages holds `defaults:`, which every stage starts from, and `stages:`, NAME: {what differs}. `model.init:
stage:NAME` starts from the model of an earlier stage. Running it again skips finished stages and resumes unfinished
ones.

`vcr: {NAME: [Q2A_STAGE, QA2R_STAGE]}` beside the stages scores two of them together, VCR's Q to AR, in <output>/NAME.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evle.config import apply_overrides, load_yaml, merge
from evle.distributed import barrier, is_main
from evle.engine.devices import join_processes
from evle.engine.run_folder import MAY_CHANGE, Run
from evle.errors import ConfigError, nearest
from evle.recipes import find_recipe
from evle.report import Curve, Gallery, Report, Table, read_galleries
from evle.run.config import RunConfig
from evle.run.splits import refuse_unread_path
from evle.run.training import finetune, pretrain
from evle.run.vcr import judge_vcr
from evle.tasks import TASKS

STAGE = "stage:"
SHOWN_ROWS = 6  # of each gallery of a stage, in the report of all stages
TOP_KEYS = {"title", "about", "needs", "output", "defaults", "stages", "vcr"}
JOINT = "vcr"
METRICS = {**{name: task.metric for name, task in TASKS.items()}, JOINT: "q2ar"}


@dataclass(frozen=True)
class Stage:
    """One run of a recipe, and the earlier stage its weights come from ("" where it starts from something else)."""

    name: str
    config: RunConfig
    after: str = ""

    @property
    def task(self) -> str:
        return self.config.task["name"]

    @property
    def start(self) -> str:
        """Where its weights come from, "" for nowhere."""
        return self.after or self.config.model.init or ""


@dataclass(frozen=True)
class JointStage:
    """Two stages scored together: which answer is right, and for which reason."""

    name: str
    q2a: Stage
    qa2r: Stage
    output: Path

    @property
    def task(self) -> str:
        return JOINT

    @property
    def start(self) -> str:
        return self.q2a.start if self.q2a.start == self.qa2r.start else f"{self.q2a.start} and {self.qa2r.start}"


@dataclass(frozen=True)
class Stages:
    """A recipe of stages, resolved and checked."""

    title: str
    about: str
    output: Path
    stages: list[Stage]
    joint: list[JointStage]

    @property
    def every(self) -> list[Stage | JointStage]:
        """What is trained, then what is scored together."""
        return [*self.stages, *self.joint]


class Comparison(Report):
    """A report of several runs: its tables say all the scores, task by task; one table of all would be mostly empty."""

    def all_tables(self) -> list[Table]:
        return self.tables


def read_stages(name: str | Path, overrides: Sequence[str] = ()) -> Stages:
    """A recipe of stages with `key=value` overrides, which hold for every stage; `stages.NAME.key=value` for one.

    A recipe of one run is read as one stage. Raises ConfigError naming all that is wrong.
    """
    path = find_recipe(name)
    tree = load_yaml(path)
    if "stages" not in tree:
        tree = {"title": tree.get("title", ""), "stages": {path.stem: tree}}
    top = [each for each in overrides if each.split("=")[0].split(".")[0] in TOP_KEYS]
    everywhere = [each for each in overrides if each not in top]
    tree = apply_overrides(tree, top)
    if unknown := [f"{key!r} ({nearest(key, TOP_KEYS)})" for key in tree if key not in TOP_KEYS]:
        raise ConfigError(
            f"{path}: unknown key {', '.join(unknown)} beside stages; what all stages share goes in defaults"
        )
    if not isinstance(tree["stages"], dict) or not tree["stages"]:
        raise ConfigError(f"{path}: stages must hold at least one NAME: {{...}}")
    output = Path(tree.get("output") or f"runs/{path.stem}")
    stages: list[Stage] = []
    for stage, own in tree["stages"].items():
        own = apply_overrides(merge(tree.get("defaults") or {}, own or {}), everywhere)
        after = ""
        init = (own.get("model") or {}).get("init")
        if isinstance(init, str) and init.startswith(STAGE):
            after = init.removeprefix(STAGE)
            earlier = [each.name for each in stages]
            if after not in earlier:
                hint = nearest(after, earlier) if earlier else "the first stage has none before it"
                raise ConfigError(f"{path}: stage {stage!r} starts from {init}, which is no earlier stage; {hint}")
            own = merge(own, {"model": {"init": str(output / after)}})
        own = {"title": stage, **own, "output": str(output / stage)}
        stages.append(Stage(stage, RunConfig.build(own, f"{path}, stage {stage}"), after))
    refuse_unread_path([stage.config.data for stage in stages])
    joint = [_joint_stage(path, name, pair, stages, output) for name, pair in (tree.get(JOINT) or {}).items()]
    return Stages(tree.get("title") or path.stem, tree.get("about") or "", output, stages, joint)


def _joint_stage(path: Path, name: str, pair: Any, stages: Sequence[Stage], output: Path) -> JointStage:
    named = {stage.name: stage for stage in stages}
    tasks = ("vcr-q2a", "vcr-qa2r")
    if not isinstance(pair, list) or [named[each].task for each in pair if each in named] != [*tasks]:
        raise ConfigError(
            f"{path}: vcr.{name}: {pair} must be two stages, one of the task {tasks[0]}, one of {tasks[1]}"
        )
    if name in named:
        raise ConfigError(f"{path}: vcr.{name}: a stage has that name already")
    return JointStage(name, named[pair[0]], named[pair[1]], output / name)


def run_stages(recipe: Stages, *, overwrite: bool = False, say: Callable[[str], None] = print) -> Report:
    """Run every stage that is not finished, and write the combined report into the recipe's output.

    A finished stage of the same configuration is skipped; one whose weights came from a stage that ran anew runs
    anew too. Raises ConfigError for a finished stage of another configuration, unless `overwrite`.
    """
    join_processes()
    ran: set[str] = set()
    reports: dict[str, Path] = {}
    for number, stage in enumerate(recipe.stages, 1):
        run = Run(stage.config.output)
        label = f"[{number}/{len(recipe.every)}] {stage.name}"
        anew = overwrite or stage.after in ran
        is_kept = not anew and is_finished(run)
        if is_main():
            say(f"{label}: finished before, kept" if is_kept else f"{label}: {stage.config.output}")
        if is_kept:
            _refuse_changes(run, stage.config)
        else:
            verb = pretrain if stage.config.task["name"] == "pretraining" else finetune
            verb(stage.config, resume=not anew, overwrite=anew)
            ran.add(stage.name)
            barrier()  # the main process writes the report that all of them read
        reports[stage.name] = run.folder / "report.json"
    for number, pair in enumerate(recipe.joint, len(recipe.stages) + 1):
        reports[pair.name] = pair.output / "report.json"
        is_kept = not overwrite and not ran & {pair.q2a.name, pair.qa2r.name} and reports[pair.name].is_file()
        if is_main():
            label = f"[{number}/{len(recipe.every)}] {pair.name}"
            say(f"{label}: finished before, kept" if is_kept else f"{label}: {pair.output}")
        if not is_kept:
            judge_vcr(pair.q2a.config.output, pair.qa2r.config.output, output=pair.output, title=pair.name)
            barrier()
    report = combine(recipe, reports)
    if is_main():
        report.write(recipe.output)
    return report


def is_finished(run: Run) -> bool:
    """Whether the run trained to its end and was reported on."""
    return run.status().get("state") == "finished" and (run.folder / "report.json").is_file()


def combine(recipe: Stages, reports: Mapping[str, Path]) -> Report:
    """One report of all stages: what each task's stages reached, beside chance; all scores task by task; the losses
    beside each other; the first images of every stage."""
    read = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in reports.items()}
    tables: list[Table] = []
    curves: list[Curve] = []
    galleries: list[Gallery] = []
    scores: dict[str, Any] = {}
    results: dict[str, dict[str, float]] = {}  # by "task: score", then by what was measured
    summary = [recipe.about] if recipe.about else []
    for task in dict.fromkeys(stage.task for stage in recipe.every):
        rows: dict[str, dict[str, float]] = {}
        for stage in recipe.every:
            if stage.task == task:
                found = read[stage.name]["scores"]
                if chance := found.get("chance"):
                    rows.setdefault("chance", chance)
                rows[stage.name] = next((row for name, row in found.items() if name != "chance"), {})
        scores |= {f"{task}: chance" if name == "chance" else name: row for name, row in rows.items()}
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        tables.append(Table(f"{task}: scores", ["score", *rows], _turned(columns, rows)))
        starts = {stage.name: start for stage in recipe.every if (start := _start(stage, recipe)) is not None}
        measured = {starts.get(name, name): row for name, row in rows.items()}
        for column in rows.get("chance", ()):
            if "/" not in column:  # the scores of parts have a name with a stroke
                results[f"{task}: {column}"] = {name: row[column] for name, row in measured.items() if column in row}
        summary.append(_in_words(task, measured))
        losses = {name: points for name in rows if name in read and (points := _losses(read[name]))}
        if losses:
            curves.append(Curve(f"{task}: training loss", "step", "loss", losses))
    summary.append(
        "Images, curves and settings of each stage: " + ", ".join(f"{s.name}/report.html" for s in recipe.every)
    )
    provenance = {stage.name: read[stage.name]["provenance"] for stage in recipe.every}
    for name, path in reports.items():
        for gallery in read_galleries(path.parent):
            galleries.append(Gallery(f"{name}: {gallery.title}", gallery.rows[:SHOWN_ROWS], gallery.note))
    if results:
        names = list(dict.fromkeys(name for row in results.values() for name in row))
        rows_of_results = [[score, *(row.get(name) for name in names)] for score, row in results.items()]
        tables.insert(0, Table("Results", ["percent", *names], rows_of_results))
    return Comparison(recipe.title, summary, provenance, tables, curves, galleries, scores)


def _turned(columns: Sequence[str], rows: Mapping[str, Mapping[str, float]]) -> list[list[Any]]:
    """A line a score, which has many, and a column a stage, of which there are few."""
    return [[column, *(row.get(column) for row in rows.values())] for column in columns]


def _start(stage: Stage | JointStage, recipe: Stages) -> str | None:
    """What a stage started from, in words; None where another stage of its task started from the same."""
    if sum((each.task, each.start) == (stage.task, stage.start) for each in recipe.every) > 1:
        return None
    return f"weights of {stage.start}" if stage.start else "random weights"


def _in_words(task: str, measured: Mapping[str, Mapping[str, float]]) -> str:
    metric = METRICS[task]
    found = [f"{row[metric]:.4g} by chance" if name == "chance" else f"{row[metric]:.4g} from {name}"
             for name, row in measured.items() if metric in row]  # fmt: skip
    return f"{task}, {metric}: {', '.join(found)}"


def _losses(report: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The points of the training loss in a stage's report.json."""
    points = (curve["series"]["loss"] for curve in report["curves"] if "loss" in curve["series"])
    return [(x, y if y is not None else float("nan")) for x, y in next(points, [])]


def _refuse_changes(run: Run, config: RunConfig) -> None:
    # Built anew, so that a setting that came after the run has the default that the run had.
    before = _flatten(RunConfig.build(run.config(), str(run.folder / "config.yaml")).plain())
    now = _flatten(config.plain())
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changed = [key for key in changed if key not in MAY_CHANGE and not key.startswith("evaluate.")]
    if changed:
        listed = ", ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed[:5])
        raise ConfigError(
            f"{run.folder} was made with other settings ({listed}); choose another output=FOLDER, or --overwrite it"
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
