"""Which samples a report shows: some drawn by a seed, the best and the worst."""

import math
from collections.abc import Sequence

import numpy as np

from evle.tasks.task import EvaluationSettings

EXTREME_SHARE = 3
"""For every three examples that are drawn, one of the best and one of the worst are shown."""


def draw(number: int, settings: EvaluationSettings) -> list[int]:
    """At most `settings.num_examples` of `number` indices, in rising order, drawn by `settings.seed`.

    >>> draw(5, EvaluationSettings(num_examples=9)), len(draw(100, EvaluationSettings(num_examples=9)))
    ([0, 1, 2, 3, 4], 9)
    """
    count = min(number, settings.num_examples)
    return sorted(np.random.default_rng(settings.seed).permutation(number)[:count].tolist())


def choose_examples(goodness: Sequence[float], settings: EvaluationSettings) -> dict[str, list[int]]:
    """Indices of the examples to show, by what they are: drawn, the best and the worst.

    `goodness` is a number per sample, above 0 for a right prediction and below 0 for a wrong one, larger in either
    direction the surer the model was; NaN where nobody knows what is right. A sample is among the best only if it is
    right, among the worst only if it is wrong.

    >>> choose_examples([0.9, -0.8, 0.1, math.nan, -0.2], EvaluationSettings(num_examples=3))
    {'drawn at random': [2, 3, 4], 'surest and right': [0], 'surest and wrong': [1]}
    """
    count = -(-settings.num_examples // EXTREME_SHARE)
    order = sorted(
        (index for index, value in enumerate(goodness) if not math.isnan(value)), key=lambda index: -goodness[index]
    )
    best = [index for index in order if goodness[index] > 0][:count]
    worst = [index for index in reversed(order) if goodness[index] < 0][:count]
    chosen = {"drawn at random": draw(len(goodness), settings), "surest and right": best, "surest and wrong": worst}
    return {name: indices for name, indices in chosen.items() if indices}
