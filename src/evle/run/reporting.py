"""What a run or an evaluation found, as the lines, tables, curves and files of its report."""

from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from evle.data.samples import Split
from evle.distributed import is_main
from evle.engine.run_folder import Run, read_events, read_log
from evle.engine.steps import FitResult
from evle.files import json_line
from evle.report import Curve, Report, Table, plain, write_whole
from evle.run.splits import DataConfig, as_list
from evle.tasks.task import Evaluation, Task

SHOWN_SKIPPED = 20  # unreadable samples named in a report; the rest is counted
LOG_ROWS = 40


def score_rows(split: str, found: Evaluation) -> dict[str, dict[str, float]]:
    """What was found on `split`, and what guessing would reach, as rows of a table."""
    rows = {split: found.scores, "chance": found.chance}
    return {name: scores for name, scores in rows.items() if scores}


def split_read(config: DataConfig, slot: Split) -> str:
    """The name of the split that was read for `slot`: data.test may well read the split val."""
    names: list[str] = []
    for source in as_list(getattr(config, slot)):
        split = source.get("split") or slot
        names += [split] if isinstance(split, str) else [str(name) for name in split]
    return "+".join(dict.fromkeys(names)) or slot


def data_read(config: DataConfig, slot: Split) -> str:
    """The name of the data that were read for `slot`: the last part of their path, else their source."""
    names = []
    for source in as_list(getattr(config, slot)):
        path = source.get("path") or config.path
        names.append(PurePath(path).name if isinstance(path, str) else str(source.get("source", "")))
    return "+".join(dict.fromkeys(filter(None, names)))


def score_lines(task: Task, found: Evaluation, split: str, data: str = "") -> list[str]:
    """The task's metric on `split` of `data`, with its confidence interval and beside chance."""
    if task.metric not in found.scores:
        return []
    facts = []
    if values := found.averaged(task.metric):
        low, high = interval(*values)
        facts.append(f"95 % interval {low:.2f} to {high:.2f}")
    if task.metric in found.chance:
        facts.append(f"chance {found.chance[task.metric]:.2f}")
    where = f"{split} of {data}" if data else split
    return [f"{task.metric} on {where}: {found.scores[task.metric]:.2f}" + (f" ({', '.join(facts)})" if facts else "")]


def weights_scored(keep: str, result: FitResult, task: Task) -> str:
    """Which of a training's weights are kept and scored, and whether they were chosen on val."""
    if result.best_step is None:
        return f"weights of the last step, {result.steps}; no checkpoint was chosen on val"
    how = f", {task.quick_metric}" if task.quick_metric else ""
    best = f"{task.metric} {result.best_score:.4g}{how}"
    if keep == "last":
        return (
            f"weights of the last step, {result.steps}; not chosen on val (best there: step {result.best_step}, {best})"
        )
    return f"weights of step {result.best_step} of {result.steps}, chosen as the best on val ({best})"


def interval(*parts: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of a mean over samples, or of the mean of several such means, by 1,000 bootstrap
    resamples of each; always the same for the same values."""
    rng = np.random.default_rng(0)
    arrays = [np.asarray(values, dtype=np.float64) for values in parts]
    means = [np.mean([array[rng.integers(0, len(array), len(array))].mean() for array in arrays]) for _ in range(1000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def interval_table(found: Evaluation) -> list[Table]:
    """The confidence intervals of the scores that are means over samples."""
    rows = [
        [name, value, *interval(*values), sum(map(len, values))]
        for name, value in found.scores.items()
        if (values := found.averaged(name))
    ]
    note = "95 % intervals by 1,000 bootstrap resamples of the test samples: they leave out how training varies."
    return [Table("Confidence intervals", ["score", "value", "low", "high", "samples"], rows, note)] if rows else []


def log_table(run: Run) -> list[Table]:
    """The log of training, of at most LOG_ROWS lines that are evenly spread, the last one included."""
    events = [event for event in read_events(run) if event["event"] == "train"]
    if not events:
        return []
    stride = -(-len(events) // LOG_ROWS)
    events = events[::-1][::stride][::-1]
    columns = [name for name in ("step", "epoch", "loss", "grad_norm", "lr", "samples_per_second") if name in events[0]]
    losses = [name for name in events[0].get("losses", {})]
    rows = [
        [*(event.get(name) for name in columns), *(event.get("losses", {}).get(name) for name in losses)]
        for event in events
    ]
    return [Table("Log", [*columns, *(f"loss/{name}" for name in losses)], rows, folded=True)]


def file_lines(found: Evaluation) -> list[str]:
    """The files for leaderboards that are written beside the report, and what they lack."""
    lacks = f" (without {len(found.skipped)} samples that could not be read)" if found.skipped else ""
    return [f"to submit: {name}{lacks}" for name in found.files]


def skipped_lines(skipped: Sequence[str], number: int | None = None) -> list[str]:
    """How many samples were left out, `number` in all, and why the first three were."""
    lines = list(dict.fromkeys(skipped))
    number = len(lines) if number is None else number
    if not number:
        return []
    return [
        f"left out, as they could not be used: {number:,} rows or samples: {'; '.join(lines[:3])}"
        + ("; ..." if number > 3 else "")
    ]


def skipped_table(skipped: list[str], number: int | None = None) -> list[Table]:
    """The first lines about what was left out, `number` of them in all (as many as there are lines)."""
    lines = list(dict.fromkeys(skipped))
    if not lines:
        return []
    number = len(lines) if number is None else number
    rest = f"{number - SHOWN_SKIPPED:,} more" if number > SHOWN_SKIPPED else ""
    rows = [[line] for line in lines[:SHOWN_SKIPPED]]
    return [Table(f"Skipped samples: {number:,}", ["sample and reason"], rows, rest)]


def curves(run: Run, task: Task) -> list[Curve]:
    """Losses, validation and learning rate over the steps of a run."""
    log = read_log(run)
    losses = {name: points for name, points in log.items() if name == "loss" or name.startswith("loss/")}
    drawn = [Curve("Training losses", "step", "loss", losses)] if losses else []
    if points := log.get(f"eval/{task.metric}"):
        drawn.append(Curve(f"{task.metric} on val", "step", task.metric, {"val": points}))
    if points := log.get("lr"):
        drawn.append(Curve("Learning rate", "step", "learning rate", {"lr": points}))
    return drawn


def write_report(report: Report, found: Evaluation, folder: Path) -> None:
    """The report's files, the predictions and the files for leaderboards, written by the main process."""
    if not is_main():
        return
    report.write(folder)
    if found.predictions:
        lines = (json_line(plain(record)) for record in found.predictions)
        write_whole(folder / "predictions.jsonl", "\n".join(lines) + "\n")
    for name, text in found.files.items():
        write_whole(folder / name, text)
