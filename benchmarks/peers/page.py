"""The report of `benchmarks.peers`, in Markdown."""

import platform
import statistics
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from benchmarks.peers.contest import CHANCE, WARMUP, WEIGHT_DECAY, Contest
from evle.report import Table
from evle.report.markdown import markdown_table

FULL_MINUTES = 10
"""The minutes that the benchmark is meant for."""
CLEARLY = 1.25
"""A trial is above chance if its score is that many times the score of chance."""
Results = Sequence[dict[str, Any]]


def page(found: Sequence[tuple[Contest, Results, Results]], minutes: float, command: str) -> str:
    """The report on contests, each with the results of its trials and of its runs."""
    blocks = [
        "# Peers at equal compute",
        f"Each contender was trained for {minutes:g} minutes of processor time per run, on one thread that also reads "
        "the images, on the same samples. Evaluation is not counted. Other work on the machine is not counted either, "
        "but takes caches and memory from a run: the steps tell how much each contender was trained. The learning rate "
        "of each contender is the best of short trials, on samples that training does not show; nothing else was "
        f"tuned. Optimizer: AdamW, weight decay {WEIGHT_DECAY}, warm-up {WARMUP:.0%}, cosine over the budget. No "
        "contender starts from pre-training, except those on trained towers.",
        "Scores are percentages, mean ± standard deviation over seeds; the test samples are the same for all seeds. "
        f"{platform.processor() or platform.machine()}, torch {torch.__version__.split('+')[0]}, "
        f"transformers {transformers.__version__}.",
    ]
    if minutes < FULL_MINUTES:
        blocks.append(
            f"**These are runs of {minutes:g} minutes, not of the {FULL_MINUTES} that the benchmark is meant for.** "
            "They show who is ahead after very little training, which favours models that start from trained towers "
            "and small ones; the order may change with more."
        )
    if any(results and max(each["seed"] for each in results) == 0 for _, _, results in found):
        blocks.append(
            "**One run of each contender**: how much runs differ is not known, and small differences mean nothing."
        )
    for contest, trials, results in found:
        blocks += section(contest, trials, results)
    return "\n\n".join([*blocks, "Made by", f"```shell\n{command}\n```"]) + "\n"


def added(title: str, note: str, found: Sequence[tuple[Contest, Results, Results]], command: str) -> str:
    """The contests as one section below `title`, to be added to a page."""
    blocks = [block for each in found for block in section(*each)]
    lowered = [f"#{block}" if block.startswith("##") else block for block in blocks]
    shown = [f"## {title}", *([note] if note else []), *lowered, "Made by", f"```shell\n{command}\n```"]
    return "\n\n".join(shown)


def section(contest: Contest, trials: Results, results: Results) -> list[str]:
    """One contest: its notes, a table for each test split, and the settings of all contenders."""
    names = dict.fromkeys(each["peer"] for each in results)
    by_peer = {name: [each for each in results if each["peer"] == name] for name in names}
    blocks = [f"## {contest.title}", f"{results[0]['samples']:,} training samples.", *contest.notes]
    untuned = [name for name in names if _is_untuned(contest, name, trials)]
    if untuned:
        blocks.append(
            f"**The trials of {', '.join(untuned)} are hardly better than chance**, so they may not tell learning "
            "rates apart: longer trials, or other settings, may give other results."
        )
    if given := [name for name in names if name not in {each["peer"] for each in trials}]:
        blocks.append(f"The learning rate of {', '.join(given)} was given, not chosen by trials.")
    if at_end := [name for name in names if _is_at_end(name, by_peer[name], trials)]:
        blocks.append(f"The best rate of {', '.join(at_end)} is at the end of those tried; one beyond may be better.")
    if len({each["minutes"] for each in trials}) > 1:
        blocks.append("Contenders with longer trials (see the settings) had them from an earlier command.")
    for split in contest.tests:
        first = results[0]["tests"][split]
        rows = [["chance", "", *(f"{first[CHANCE.format(score)]:.1f}" for score in contest.scores)]]
        rows += [
            [name, len(own), *(_with_spread([each["tests"][split][score] for each in own]) for score in contest.scores)]
            for name, own in by_peer.items()
        ]
        blocks += [f"### Split `{split}`", markdown_table(Table(split, ["contender", "runs", *contest.scores], rows))]
    columns = ["contender", "what", "pixels", "M parameters", "M trained", "learning rate", "of", "trial minutes"]
    columns += ["steps", "seconds"]
    rows = [_settings(contest, name, own, trials) for name, own in by_peer.items()]
    return [*blocks, f"### Settings: {contest.title.lower()}", markdown_table(Table("Settings", columns, rows))]


def _is_untuned(contest: Contest, name: str, trials: Results) -> bool:
    tuning = [each["tuning"] for each in trials if each["peer"] == name]
    chance = CHANCE.format(contest.chosen_by)
    return bool(tuning) and all(each[contest.chosen_by] < CLEARLY * each[chance] for each in tuning)


def _is_at_end(name: str, own: Results, trials: Results) -> bool:
    rates = [each["rate"] for each in trials if each["peer"] == name]
    return bool(rates) and own[0]["rate"] in (min(rates), max(rates))


def _settings(contest: Contest, name: str, own: Results, trials: Results) -> list[Any]:
    mine = [each for each in trials if each["peer"] == name]
    tried = sorted((each["rate"], each["tuning"][contest.chosen_by]) for each in mine)
    return [
        name,
        contest.about[name],
        own[0]["image size"],
        f"{own[0]['parameters'] / 1e6:.1f}",
        f"{own[0]['trained'] / 1e6:.1f}",
        f"{own[0]['rate']:g}",
        ", ".join(f"{rate:g}: {score:.1f}" for rate, score in tried) or "given",
        f"{mine[0]['minutes']:g}" if mine else "",
        _range([each["steps"] for each in own]),
        round(statistics.fmean(each["seconds"] for each in own)),
    ]


def _range(numbers: Sequence[int]) -> str:
    """The smallest and the largest, or the one number.

    >>> _range([274, 211, 236]), _range([300])
    ('211 to 274', '300')
    """
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _with_spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean
