"""Claims: what a recipe of several stages tests, and the verdicts of its runs.

A claim compares two stages by one score, paired over their seeds, or unpaired where they have none in common. Its
verdict follows from the 95 % interval of the mean difference alone: confirmed where the whole interval is above what
the claim needs, refuted where it is below, and undecided otherwise, and as long as a seed is missing.
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
    """A claim with the scores of its stages, of the same seeds where `paired`: a verdict and what it rests on.

    A score that is not finite has no difference, and a claim with such a score stays undecided: without that seed the
    verdict would rest on the seeds that went well.
    """

    claim: Claim
    score: str
    of: tuple[float, ...]
    than: tuple[float, ...]
    missing: str = "not run"
    """What a table shows in place of the scores where there are none."""
    expected: tuple[int, int] = (0, 0)
    """How many scores of each stage the verdict needs; 0 is those that are here."""
    paired: bool = True

    @property
    def differences(self) -> list[float]:
        """The advantage of the favoured stage, seed by seed, or of the means where seeds are not paired; NaN for a
        score that is not finite, and for a percentage of 0."""
        of, than = self.of, self.than
        if not self.paired:
            of, than = ((statistics.fmean(values),) if values else () for values in (of, than))
        sign = -1 if self.claim.lower else 1
        unit = [abs(each) / 100 if self.claim.relative else 1.0 for each in than]
        found = zip(of, than, unit, strict=True) if of and than else ()
        return [sign * (one - other) / scale if scale else math.nan for one, other, scale in found]

    @property
    def is_whole(self) -> bool:
        """Whether there are differences, all of them finite."""
        return bool(self.differences) and all(map(math.isfinite, self.differences))

    @property
    def is_complete(self) -> bool:
        """Whether the scores of all seeds are here."""
        return len(self.of) >= self.expected[0] and len(self.than) >= self.expected[1]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean difference over seeds by Student's t, of unpaired ones by Welch's; None for
        fewer than two seeds, for two without any spread, and where a difference is not finite."""
        least = min(len(self.of), len(self.than))
        if least < 2 or not self.is_whole:
            return None
        error, freedom = self._paired_error() if self.paired else self._welch_error()
        if error == 0 and least < 3:
            return None
        mean = statistics.fmean(self.differences)
        half = t_quantile(freedom) * error
        return mean - half, mean + half

    def _paired_error(self) -> tuple[float, int]:
        """The standard error of the mean difference, and its degrees of freedom."""
        values = self.differences
        if math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12):  # equal but for rounding
            return 0.0, len(values) - 1
        return statistics.stdev(values) / math.sqrt(len(values)), len(values) - 1

    def _welch_error(self) -> tuple[float, int]:
        """The same for scores that are not paired, by Welch and Satterthwaite, rounded down; of a percentage, to first
        order."""
        of, than = statistics.fmean(self.of), statistics.fmean(self.than)
        scales = (100 / than, 100 * of / than**2) if self.claim.relative else (1.0, 1.0)
        pairs = [(values, scale) for values, scale in zip((self.of, self.than), scales, strict=True)]
        parts = [scale**2 * statistics.variance(values) / len(values) for values, scale in pairs]
        if not sum(parts):
            return 0.0, 1
        freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, (values, _) in zip(parts, pairs))
        return math.sqrt(sum(parts)), int(freedom)

    @property
    def verdict(self) -> Verdict:
        if self.interval is None or not self.is_complete:
            return "undecided"
        low, high = self.interval
        if low > self.claim.by:
            return "confirmed"
        return "refuted" if high < self.claim.by else "undecided"

    def row(self) -> list[str | float | None]:
        """The claim as a row of COLUMNS."""
        unit = " %" if self.claim.relative else ""
        interval = "" if self.interval is None else "{:+.2f} to {:+.2f}".format(*self.interval) + unit
        scores = zip((self.of, self.than), self.expected, strict=True)
        shown = [_with_spread(values, number) if values else self.missing for values, number in scores]
        difference = f"{statistics.fmean(self.differences):+.2f}{unit}" if self.is_whole else ""
        if difference and not self.paired:
            difference += " (unpaired)"
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


Scores = Mapping[str, float | None]


def judge(
    claims: Sequence[Claim],
    scores: Mapping[str, Mapping[int, Scores | None]],
    metrics: Mapping[str, str],
    seeds: Mapping[str, Collection[int]] | None = None,
) -> list[Judged]:
    """The verdicts on `claims` from the scores of stages by seed; `metrics` names the metric of each stage's task,
    `seeds` has the seeds that each stage will have in the end (by default those in `scores`).

    Seeds that both stages of a claim have are compared in pairs, and all of them where there are none. A score of None
    is one that was not finite; None in place of the scores is a run that diverged.
    """
    judged = []
    for claim in claims:
        name = claim.score or metrics[claim.of]
        stages = [scores.get(stage, {}) for stage in (claim.of, claim.than)]
        planned = [list((seeds or scores).get(stage, ())) for stage in (claim.of, claim.than)]
        common = [seed for seed in planned[0] if seed in planned[1]]
        paired = bool(common) or not all(planned)
        wanted = [common, common] if paired else planned
        own = [[seed for seed in each if _has(stage, seed, name)] for each, stage in zip(wanted, stages, strict=True)]
        if paired:
            own = [[seed for seed in own[0] if seed in own[1]]] * 2
        of, than = (tuple(_number(stage[seed], name) for seed in each) for each, stage in zip(own, stages, strict=True))
        missing = _missing(name, stages, len(wanted[0])) if not (of and than) else ""
        expected = (len(wanted[0]), len(wanted[1]))
        judged.append(Judged(claim, name, of, than, missing, expected, paired))
    return judged


def _has(stage: Mapping[int, Scores | None], seed: int, name: str) -> bool:
    scores = stage.get(seed, {})
    return scores is None or name in scores


def _missing(name: str, stages: Sequence[Mapping[int, Scores | None]], number: int) -> str:
    """Why two stages have no score `name` to compare."""
    first = [next((scores for scores in stage.values() if scores is not None), None) for stage in stages]
    if first[0] is None or first[1] is None:
        return "not run"
    shared = first[0].keys() & first[1].keys()
    return f"0 of {number} seeds" if name in shared else f"no score {name}; {nearest(name, shared)}"


def _number(scores: Scores | None, name: str) -> float:
    score = None if scores is None else scores[name]
    return math.nan if score is None else score


def claims_table(judged: Sequence[Judged]) -> list[Table]:
    """One row per claim, with its verdict."""
    if not judged:
        return []
    counts = Counter(each.verdict for each in judged)
    numbers = ", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict))
    note = (
        f"{numbers}. Differences are paired by seed; the interval is Student's t over the seeds (Welch's where "
        "unpaired, of stages without a seed in common), for each claim alone. Confirmed: all of it is above what the "
        "claim needs; refuted: all of it is below; undecided otherwise, and until all seeds have a finite score."
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


def _with_spread(values: Sequence[float], expected: int) -> str:
    odd = sum(not math.isfinite(value) for value in values)
    if odd:
        return f"not finite in {odd} of {max(len(values), expected)}"
    number = f"{len(values)} of {expected} seeds" if len(values) < expected else f"{len(values)}"
    mean = f"{statistics.fmean(values):.4g}"
    return f"{mean} ± {statistics.stdev(values):.2g} ({number})" if len(values) > 1 else f"{mean} ({number})"
