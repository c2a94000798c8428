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
from typing import Any, Literal, get_args

from evle.config import Config
from evle.errors import ConfigError, nearest
from evle.report import Interval, Intervals, Mark, Table
from evle.tasks import TASKS

Verdict = Literal["confirmed", "refuted", "undecided"]

T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t at 97.5 %, for 1 to 15 degrees of freedom."""
NORMAL_QUANTILE = 1.959964
"""What Student's t at 97.5 % comes to with many degrees of freedom."""
METRICS = {**{name: task.metric for name, task in TASKS.items()}, "vcr": "q2ar"}
"""The metric of each task, and of VCR's two halves together."""
LOSS = "loss"
"""The only metric of which less is better."""
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
    """A claim with the paired scores of its stages: a verdict and what it rests on.

    A score that is not finite has no difference, and a claim with such a score stays undecided: without that seed the
    verdict would rest on the seeds that went well.
    """

    claim: Claim
    score: str
    of: tuple[float, ...]
    than: tuple[float, ...]
    missing: str = "not run"
    """What a table shows in place of the scores where there are none."""

    @property
    def differences(self) -> list[float]:
        """The advantage of the favoured stage, seed by seed; NaN for a score that is not finite, and for a percentage
        of 0."""
        sign = -1 if self.claim.lower else 1
        unit = [abs(than) / 100 if self.claim.relative else 1.0 for than in self.than]
        found = zip(self.of, self.than, unit, strict=True)
        return [sign * (of - than) / scale if scale else math.nan for of, than, scale in found]

    @property
    def is_whole(self) -> bool:
        """Whether there are differences, all of them finite."""
        return bool(self.of) and all(map(math.isfinite, self.differences))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean difference over seeds by Student's t; None for fewer than two pairs, and where
        a difference is not finite."""
        values = self.differences
        if len(values) < 2 or not self.is_whole:
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
        shown = [_with_spread(values) if values else self.missing for values in (self.of, self.than)]
        difference = f"{statistics.fmean(self.differences):+.2f}{unit}" if self.is_whole else ""
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
    """Student's t at 97.5 % for `freedom` degrees of freedom, to three decimals: the table, and beyond it the
    expansion of Abramowitz and Stegun (26.7.5).

    >>> t_quantile(2), round(t_quantile(100), 3)
    (4.303, 1.984)
    """
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    z = NORMAL_QUANTILE
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def read_claim(tree: Any, where: str, tasks: Mapping[str, str] | None = None) -> Claim:
    """The claim that `tree` describes. `tasks` has the tasks of the recipe's stages.

    Raises ConfigError for what is no claim, for stages that do not exist or have no score in common, and for a claim
    by the loss that would call the higher one better.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{where} must hold `key: value` lines, not {tree!r}")
    claim = Claim.build(tree, where)
    if tasks is None:
        return claim
    for stage in (claim.of, claim.than):
        if stage not in tasks:
            raise ConfigError(f"{where}: there is no stage {stage!r}; {nearest(stage, tasks)}")
    metrics = [METRICS.get(tasks[stage], "") for stage in (claim.of, claim.than)]
    if not claim.score and metrics[0] != metrics[1]:
        raise ConfigError(
            f"{where}: the metric of {claim.of} is {metrics[0]}, that of {claim.than} is {metrics[1]}; name a score "
            "that both have with score"
        )
    if (claim.score or metrics[0]) == LOSS and not claim.lower:
        raise ConfigError(f"{where}: the higher loss would be the better one; add lower: true")
    return claim


def judge(
    claims: Sequence[Claim], scores: Mapping[str, Mapping[int, Mapping[str, float | None]]], metrics: Mapping[str, str]
) -> list[Judged]:
    """The verdicts on `claims` from the scores of stages by seed; `metrics` names the metric of each stage's task.

    Only seeds that both stages of a claim have finished are compared. A score of None is one that was not finite.
    """
    judged = []
    for claim in claims:
        name = claim.score or metrics[claim.of]
        of, than = scores.get(claim.of, {}), scores.get(claim.than, {})
        both = [seed for seed in of if seed in than]
        seeds = [seed for seed in both if name in of[seed] and name in than[seed]]
        first, second = (tuple(_number(stage[seed][name]) for seed in seeds) for stage in (of, than))
        missing = f"no score {name}; {nearest(name, of[both[0]].keys() & than[both[0]].keys())}" if both else "not run"
        judged.append(Judged(claim, name, first, second, missing))
    return judged


def _number(score: float | None) -> float:
    return math.nan if score is None else score


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
    odd = sum(not math.isfinite(value) for value in values)
    if odd:
        return f"not finite in {odd} of {len(values)}"
    mean = f"{statistics.fmean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g} ({len(values)})" if len(values) > 1 else f"{mean} (1)"
