"""Claims: what a recipe of several stages tests, and the verdicts of its runs.

A claim compares two stages by one score, paired over their seeds. Its verdict follows from the 95 % interval of the
mean difference alone: confirmed where the whole interval is above what the claim needs, refuted where it is below, and
undecided otherwise.
"""

import math
import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from evle.config import Config
from evle.report import Interval, Intervals, Mark, Table

Verdict = Literal["confirmed", "refuted", "undecided"]

T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t at 97.5 %, for 1 to 15 degrees of freedom; 1.96 is taken beyond 30, 2.131 between."""
SPEED = "samples_per_second"
"""The score that is the speed of training."""
COLUMNS = ["claim", "of", "than", "score", "mean of", "mean than", "difference", "95 % interval", "needs", "verdict"]


class Claim(Config):
    """One claim: the stage `of` scores higher than the stage `than` by more than `by`."""

    text: str
    """The claim in words."""
    of: str
    """The stage that the claim favours."""
    than: str
    """The stage that it is compared with."""
    score: str = ""
    """The score of both; empty is the metric of the stages' task. `samples_per_second` is the speed of training."""
    by: float = 0.0
    """The difference that must be exceeded: 0 for better, -2 for at most 2 worse, 5 for better by more than 5."""
    lower: bool = False
    """Whether lower scores are better, as of a loss."""
    relative: bool = False
    """Whether differences are percentages of the second stage's score instead of its unit."""


@dataclass(frozen=True)
class Judged:
    """A claim with the paired scores of its stages: a verdict and what it rests on."""

    claim: Claim
    score: str
    of: tuple[float, ...]
    than: tuple[float, ...]

    @property
    def differences(self) -> list[float]:
        """The advantage of the favoured stage, seed by seed."""
        sign = -1 if self.claim.lower else 1
        unit = [abs(than) / 100 if self.claim.relative else 1.0 for than in self.than]
        return [sign * (of - than) / scale for of, than, scale in zip(self.of, self.than, unit, strict=True)]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean difference over seeds by Student's t; None for fewer than two pairs."""
        values = self.differences
        if len(values) < 2:
            return None
        half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
        return statistics.fmean(values) - half, statistics.fmean(values) + half

    @property
    def verdict(self) -> Verdict:
        if self.interval is None:
            return "undecided"
        low, high = self.interval
        if low > self.claim.by:
            return "confirmed"
        return "refuted" if high < self.claim.by else "undecided"

    def row(self) -> list[str | float | None]:
        """The claim as a row of COLUMNS."""
        unit = " %" if self.claim.relative else ""
        interval = "" if self.interval is None else "{:+.2f} to {:+.2f}".format(*self.interval) + unit
        shown = [_with_spread(self.of), _with_spread(self.than)]
        difference = f"{statistics.fmean(self.differences):+.2f}{unit}" if self.of else ""
        needs = f"above {self.claim.by:+g}{unit}"
        score = self.score + (" (lower is better)" if self.claim.lower else "")
        return [
            self.claim.text,
            self.claim.of,
            self.claim.than,
            score,
            *shown,
            difference,
            interval,
            needs,
            self.verdict,
        ]


def t_quantile(freedom: int) -> float:
    """Student's t at 97.5 % for `freedom` degrees of freedom, rounded up where the table has none.

    >>> t_quantile(2), t_quantile(100)
    (4.303, 1.96)
    """
    if freedom > 30:
        return 1.96
    return T_QUANTILES[min(freedom, len(T_QUANTILES)) - 1]


def judge(
    claims: Sequence[Claim], scores: Mapping[str, Mapping[int, Mapping[str, float]]], metrics: Mapping[str, str]
) -> list[Judged]:
    """The verdicts on `claims` from the scores of stages by seed; `metrics` names the metric of each stage's task.

    Only seeds that both stages of a claim have finished are compared.
    """
    judged = []
    for claim in claims:
        name = claim.score or metrics[claim.of]
        of, than = scores.get(claim.of, {}), scores.get(claim.than, {})
        seeds = [seed for seed in of if seed in than and name in of[seed] and name in than[seed]]
        pairs = [tuple(scores[seed][name] for seed in seeds) for scores in (of, than)]
        judged.append(Judged(claim, name, *pairs))
    return judged


def claims_table(judged: Sequence[Judged]) -> list[Table]:
    """One row per claim, with its verdict."""
    if not judged:
        return []
    counts = Counter(each.verdict for each in judged)
    numbers = ", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict))
    note = (
        f"{numbers}. Differences are paired by seed; the interval is Student's t over the seeds, for each claim alone. "
        "Confirmed: all of it is above what the claim needs; refuted: all of it is below; undecided otherwise."
    )
    return [Table("Claims", COLUMNS, [each.row() for each in judged], note)]


def claims_chart(judged: Sequence[Judged], percentages: Collection[str]) -> list[Intervals]:
    """The differences of the claims on scores that are `percentages`, in points."""
    marks: dict[Verdict, Mark] = {"confirmed": "good", "refuted": "bad", "undecided": ""}
    rows = []
    for each in judged:
        if each.interval is not None and each.score in percentages and not each.claim.relative:
            mean, mark = statistics.fmean(each.differences), marks[each.verdict]
            rows.append(Interval(each.claim.text, mean, *each.interval, each.claim.by, mark))
    if not rows:
        return []
    note = "The short upright line is what a claim needs. Claims on other scores and unfinished ones are in the table."
    words: dict[Mark, str] = {mark: verdict for verdict, mark in marks.items()}
    label = "Difference in points, with its 95 % interval"
    return [Intervals("Claims at a glance", label, rows, words, note)]


def _with_spread(values: Sequence[float]) -> str:
    if not values:
        return "not run"
    mean = f"{statistics.fmean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g} ({len(values)})" if len(values) > 1 else f"{mean} (1)"
