"""One report of any finished runs: scores with intervals, curves on common axes, and their images side by side."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from evle.errors import ConfigError, DataError
from evle.files import read_json
from evle.pipelines.abilities import display_names
from evle.report import Cell, Curve, Gallery, GalleryRow, Report, Table, flatten, image_uri, read_galleries
from evle.run.claims import METRICS
from evle.run.comparison import Comparison
from evle.tasks import TASKS

MOST_EXAMPLES = 24
"""Examples of a gallery, at most."""

MOST_SETTINGS = 60
OWN_SETTINGS = ("output", "title", "about", "needs")
"""Settings that name a run and do not change what it does."""


@dataclass(frozen=True)
class Finished:
    """A finished run or evaluation: its name on the page, its folder, and its report.json."""

    name: str
    folder: Path
    report: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration of the run, of two runs for one that was scored jointly."""
        found: dict[str, Any] = self.report.get("provenance", {}).get("config") or {}
        return found

    @property
    def has_own_weights(self) -> bool:
        """False for two models that were scored jointly."""
        return "task" in self.settings

    @property
    def task(self) -> str:
        return str((self.settings.get("task") or {}).get("name") or "vcr")

    @property
    def scores(self) -> dict[str, float]:
        """What the run reached, without chance."""
        rows: dict[str, dict[str, float]] = self.report["scores"]
        return next((row for name, row in rows.items() if name != "chance"), {})

    @property
    def chance(self) -> dict[str, float]:
        found: dict[str, float] = self.report["scores"].get("chance", {})
        return found

    @property
    def tested_on(self) -> str:
        """The fingerprint of the test data, "" if unknown."""
        data = self.report.get("provenance", {}).get("data") or {}
        return str(next((part.get("fingerprint", "") for name, part in data.items() if name in ("test", "val")), ""))

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95 % confidence intervals of the scores that have one."""
        rows: list[Any] = next((t["rows"] for t in self.report["tables"] if t["title"] == "Confidence intervals"), [])
        return {row[0]: (row[2], row[3]) for row in rows}

    def cell(self, score: str) -> str | float | None:
        """A score for a table, with its interval where there is one."""
        if score not in self.scores or score not in (intervals := self.intervals()):
            return self.scores.get(score)
        low, high = intervals[score]
        return f"{self.scores[score]:.2f} ({low:.2f} to {high:.2f})"


def finished_in(folder: Path) -> list[Path]:
    """The folders of finished runs in `folder`: itself, or the stages of a recipe.

    Raises ConfigError for no folder, DataError for one without a report.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give folders of runs or of evaluations")
    if not (folder / "config.yaml").is_file():
        stages = sorted(each.parent for each in folder.glob("*/report.json"))
        if stages:
            return [run for stage in stages for run in finished_in(stage)]
    if not (folder / "report.json").is_file():
        raise DataError(f"{folder}: has no report.json; finish the run, or score it with `evle evaluate {folder}`")
    return [folder]


def compare_runs(folders: Sequence[str | Path], output: Path) -> Report:
    """The report of the runs in `folders`, whose links are relative to `output`, where it is to be written.

    A folder is that of a run, of an evaluation, or of a recipe, whose stages are taken. Raises ConfigError and
    DataError for folders without a report.
    """
    paths = list(dict.fromkeys(run for folder in folders for run in finished_in(Path(folder))))
    runs = [_read(name, path) for name, path in zip(display_names([each.resolve() for each in paths]), paths)]
    tasks: dict[str, list[Finished]] = {}
    for run in runs:
        tasks.setdefault(run.task, []).append(run)
    links = [(run.name, os.path.relpath(run.folder / "report.html", output)) for run in runs]
    return Comparison(
        title=f"{len(runs)} runs" if len(runs) > 1 else f"The run {runs[0].name}",
        summary=[line for task, own in tasks.items() for line in _summary(task, own)],
        links=[(name, Path(path).as_posix()) for name, path in links],
        provenance={run.name: run.report.get("provenance", {}) for run in runs},
        tables=[_overview(runs), *(_scores(task, own) for task, own in tasks.items()), *_settings(runs)],
        curves=[curve for task, own in tasks.items() for curve in _curves(task, own, named=len(tasks) > 1)],
        galleries=[gallery for own in tasks.values() for gallery in _side_by_side(own)],
        scores={run.name: run.scores for run in runs},
    )


def _read(name: str, folder: Path) -> Finished:
    report = read_json(folder / "report.json", kind=dict)
    rows = report.get("scores")
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise DataError(f"{folder / 'report.json'}: not the report of a run; write it again with `evle evaluate`")
    report.setdefault("tables", [])
    report.setdefault("curves", [])
    return Finished(name, folder, report)


def _summary(task: str, runs: Sequence[Finished]) -> Iterator[str]:
    """The best run of a task by its metric, and a warning where the runs cannot be compared."""
    metric = METRICS.get(task, "")
    measured = [run for run in runs if run.scores.get(metric) is not None]
    if measured:
        sign = 1 if task not in TASKS or TASKS[task].higher_is_better else -1
        best = max(measured, key=lambda run: sign * run.scores[metric])
        many = f", the best of {len(measured)} runs" if len(measured) > 1 else ""
        cell = best.cell(metric)
        yield f"{task}: {metric} {cell if isinstance(cell, str) else format(cell, '.2f')} by {best.name}{many}"
    if len({run.tested_on for run in runs if run.tested_on}) > 1:
        yield f"{task}: the runs were tested on different data, so their scores cannot be compared"


def _overview(runs: Sequence[Finished]) -> Table:
    """What each run is: its task, where its weights come from, its steps and its main score."""
    names = {run.folder.resolve(): run.name for run in runs}
    rows = []
    for run in runs:
        init = (run.settings.get("model") or {}).get("init")
        start = names.get(Path(init).resolve(), init) if init else "random weights" if run.has_own_weights else None
        steps = (run.settings.get("train") or {}).get("steps")
        metric = METRICS.get(run.task, "")
        rows.append([run.name, run.task, start, steps, metric, run.cell(metric)])
    return Table("Runs", ["run", "task", "starts from", "steps", "metric", "score"], rows)


def _scores(task: str, runs: Sequence[Finished]) -> Table:
    """One row per score and one column per run."""
    chance = next((run.chance for run in runs if run.chance), {})
    names = list(dict.fromkeys(name for run in runs for name in run.scores))
    first = ["chance"] if chance else []
    rows = [[name, *([chance.get(name)] if chance else []), *(run.cell(name) for run in runs)] for name in names]
    has_interval = any(run.intervals() for run in runs)
    note = (
        "In brackets, 95 % intervals by resampling the test samples; they leave out how training varies."
        if has_interval
        else ""
    )
    return Table(f"{task}: scores", ["score", *first, *(run.name for run in runs)], rows, note)


def _settings(runs: Sequence[Finished]) -> list[Table]:
    """The settings that differ between the runs."""
    flat = [dict(flatten(run.settings)) for run in runs]
    keys = [
        key
        for key in dict.fromkeys(key for each in flat for key in each)
        if key.split(".")[-1] not in OWN_SETTINGS and len({each.get(key) for each in flat}) > 1
    ]
    if not keys:
        return []
    rest = f"The first {MOST_SETTINGS} of {len(keys)}." if len(keys) > MOST_SETTINGS else ""
    rows = [[key, *(each.get(key) for each in flat)] for key in keys[:MOST_SETTINGS]]
    return [Table("Settings that differ", ["setting", *(run.name for run in runs)], rows, rest, folded=True)]


def _curves(task: str, runs: Sequence[Finished], *, named: bool) -> Iterator[Curve]:
    """Each curve of a task's reports with one series per run, of a curve of several losses the total."""
    titles = dict.fromkeys(curve["title"] for run in runs for curve in run.report["curves"])
    for title in titles:
        series: dict[str, list[tuple[float, float]]] = {}
        axes = ("step", title)
        for run in runs:
            curve = next((each for each in run.report["curves"] if each["title"] == title and each["series"]), None)
            if curve is not None:
                points = curve["series"].get("loss") or next(iter(curve["series"].values()))
                series[run.name] = [(x, float("nan") if y is None else y) for x, y in points]
                axes = (curve["x_label"], curve["y_label"])
        if series:
            yield Curve(f"{task}: {title}" if named else title, *axes, series)


def _side_by_side(runs: Sequence[Finished]) -> Iterator[Gallery]:
    """The examples that at least two of the runs show, with the answers of each run; those they disagree on first."""
    shown = {run.name: dict(_examples(read_galleries(run.folder))) for run in runs}
    counts = Counter(key for examples in shown.values() for key in examples)
    for title in dict.fromkeys(key[0] for key in counts):
        rows: list[GalleryRow] = []
        cells: list[Cell] = []
        both = [
            {name: examples[key] for name, examples in shown.items() if key in examples}
            for key, count in counts.items()
            if count > 1 and key[0] == title
        ]
        for example in sorted(both, key=_agree)[:MOST_EXAMPLES]:
            if all(len(row.cells) == 1 and not row.heading for row in example.values()):
                cells.append(_joined_cell({name: row.cells[0] for name, row in example.items()}))
            else:
                rows.append(_joined(example))
        if cells:
            rows.append(GalleryRow("", cells))
        if rows:
            yield Gallery(f"{title}, side by side", rows, "Examples that the runs disagree on come first.")


def _agree(example: Mapping[str, GalleryRow]) -> bool:
    """Whether all runs are right, or all are wrong."""
    return len({tuple(cell.mark for cell in row.cells) for row in example.values()}) == 1


def _joined_cell(cells: Mapping[str, Cell]) -> Cell:
    """One cell of the cells of several runs: the image, what their texts share, and a line per run with the rest."""
    words = [cell.text.split() for cell in cells.values()]
    # The last word of a text is at least a part of the answer, and a question ends before it.
    num_shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*(each[:-1] for each in words))))
    num_shared = max((index + 1 for index in range(num_shared) if words[0][index].endswith("?")), default=num_shared)
    signs = {"good": "✓ ", "bad": "✗ ", "": ""}
    lines = [
        f"{signs[cell.mark]}{name}: {' '.join(own[num_shared:])}"
        for (name, cell), own in zip(cells.items(), words, strict=True)
    ]
    shared = " ".join(words[0][:num_shared])
    return Cell(next(iter(cells.values())).image, "\n".join(filter(None, [shared, *lines])))


Key = tuple[str, str, str]


def _examples(galleries: Sequence[Gallery]) -> Iterator[tuple[Key, GalleryRow]]:
    """The examples of a report by what identifies them: the gallery, the position or the heading, and the image.

    A row with a heading, or with answers beside an image, is one example; of other rows each cell is one.
    """
    for gallery in galleries:
        kind = gallery.title.partition(": ")[0]
        for number, row in enumerate(gallery.rows):
            if row.heading or any(cell.image is None for cell in row.cells):
                image = next((cell.image for cell in row.cells if cell.image is not None), None)
                name = row.heading or f"{gallery.title} {number}"
                yield (kind, name, image_uri(image)[0] if image is not None else ""), row
                continue
            for index, cell in enumerate(row.cells):
                if cell.image is not None:
                    key = (kind, f"{gallery.title} {number} {index}", image_uri(cell.image)[0])
                    yield key, GalleryRow("", [cell])


def _joined(rows: Mapping[str, GalleryRow]) -> GalleryRow:
    """One row of the cells of several runs: what they share comes first, then what each run adds, under its name."""
    seen: list[tuple[str, str]] = []
    shared, own = [], []
    for name, row in rows.items():
        for cell in row.cells:
            mark = (image_uri(cell.image)[0] if cell.image is not None else "", cell.text)
            if not cell.mark and (mark in seen or _in_all(mark, rows)):
                if mark not in seen:
                    seen.append(mark)
                    shared.append(cell)
                continue
            own.append(Cell(cell.image, f"{name}: {cell.text}" if cell.text else name, cell.mark))
    first = next(iter(rows.values()))
    return GalleryRow(first.heading, [*shared, *own], first.note)


def _in_all(mark: tuple[str, str], rows: Mapping[str, GalleryRow]) -> bool:
    """Whether every run's row has a cell of this image and text."""
    return all(
        any((image_uri(cell.image)[0] if cell.image is not None else "", cell.text) == mark for cell in row.cells)
        for row in rows.values()
    )
