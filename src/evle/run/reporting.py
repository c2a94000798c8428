"""What a run or an evaluation found, as the lines, tables, curves and files of its report."""

import json
from collections.abc import Sequence
from pathlib import Path

from evle.distributed import is_main
from evle.engine.run_folder import Run, read_log
from evle.report import Curve, Report, Table, plain, write_whole
from evle.tasks.task import Evaluation, Task

SHOWN_SKIPPED = 20  # unreadable samples named in a report; the rest is counted


def score_rows(split: str, found: Evaluation) -> dict[str, dict[str, float]]:
    """What was found on `split`, and what guessing would reach, as rows of a table."""
    rows = {split: found.scores, "chance": found.chance}
    return {name: scores for name, scores in rows.items() if scores}


def score_lines(task: Task, found: Evaluation, split: str) -> list[str]:
    """The task's metric on `split`, beside chance."""
    if task.metric not in found.scores:
        return []
    chance = f" (chance {found.chance[task.metric]:.2f})" if task.metric in found.chance else ""
    return [f"{task.metric} on {split}: {found.scores[task.metric]:.2f}{chance}"]


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
        lines = (json.dumps(plain(record), ensure_ascii=False) for record in found.predictions)
        write_whole(folder / "predictions.jsonl", "\n".join(lines) + "\n")
    for name, text in found.files.items():
        write_whole(folder / name, text)
