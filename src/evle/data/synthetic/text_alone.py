"""Pairs of a true and a false text of which a reader of the words alone cannot tell the true one.

SugarCrepe (Hsieh et al., 2023) keeps such pairs alone, because a model that never looks at the image tells the others
apart, too. The reader here is a logistic regression on the difference of two texts in their 1- to 3-grams, which never
judges a pair that it was fitted on.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

NUM_FOLDS = 5
FEWEST_PAIRS = 40
"""With fewer pairs a reader learns nothing that holds for other ones."""
MOST_ROUNDS = 20
_BINS = 20
_PASSES = 60
_DECAY = 0.05

Pair = tuple[str, str]
"""A true text and a false one."""


class _Differences(NamedTuple):
    """The n-grams of pairs: `value[i]` is how many more of n-gram `column[i]` the true text of pair `row[i]` has."""

    row: np.ndarray
    column: np.ndarray
    value: np.ndarray
    num_rows: int
    num_columns: int

    def margins(self, weights: np.ndarray) -> np.ndarray:
        """By how much each true text is the likelier one."""
        return np.bincount(self.row, self.value * weights[self.column], self.num_rows)


def n_grams(text: str) -> list[str]:
    """The 1- to 3-grams of the words of a text, with its ends.

    >>> n_grams("a cat")
    ['<', 'a', 'cat', '>', '< a', 'a cat', 'cat >', '< a cat', 'a cat >']
    """
    words = ["<", *text.lower().split(), ">"]
    return [*words, *map(" ".join, pairwise(words)), *map(" ".join, zip(words, words[1:], words[2:]))]


def accuracy(train: Sequence[Pair], test: Sequence[Pair]) -> float:
    """Percent of the pairs of `test` of which a reader fitted on `train` tells the true text; ties count half."""
    every = _differences([*train, *test])
    is_fitted = np.arange(every.num_rows) < len(train)
    return share_right(every.margins(_fitted(every, is_fitted))[~is_fitted])


def cross_fitted(pairs: Sequence[Pair], groups: Sequence[int]) -> np.ndarray:
    """By how much each true text seems the likelier one to a reader that was fitted on the pairs of other groups:
    float64 (pairs,), above 0 where it is right."""
    every = _differences(pairs)
    fold = np.asarray(groups) % NUM_FOLDS
    margins = np.zeros(len(pairs))
    for number in range(NUM_FOLDS):
        margins[fold == number] = every.margins(_fitted(every, fold != number))[fold == number]
    return margins


def balanced(margins: np.ndarray) -> np.ndarray:
    """Which pairs to keep so that wrong readings balance right ones, by margins of the same size: bool
    (pairs,). Earlier pairs are kept first."""
    size = np.abs(margins)
    edges = np.quantile(size, np.linspace(0, 1, _BINS + 1)[1:-1]) if len(size) else np.zeros(0)
    where = np.searchsorted(edges, size)
    keep = margins == 0
    for number in range(_BINS):
        right, wrong = (np.flatnonzero((where == number) & (sign * margins > 0)) for sign in (1, -1))
        both = min(len(right), len(wrong))
        keep[right[:both]] = keep[wrong[:both]] = True
    return keep


def is_at_chance(margins: np.ndarray) -> bool:
    """Whether no more readings are right, or wrong, than may be by chance: half of them and two standard errors."""
    return len(margins) < FEWEST_PAIRS or abs(share_right(margins) - 50) <= 100 / np.sqrt(len(margins))


def share_right(margins: np.ndarray) -> float:
    """Percent of the pairs that are read right; ties count half. Chance, 50, for no pairs."""
    return float(100 * np.where(np.abs(margins) < 1e-9, 0.5, margins > 0).mean()) if len(margins) else 50.0


def _differences(pairs: Sequence[Pair]) -> _Differences:
    columns: dict[str, int] = {}
    row, column, value = [], [], []
    for number, texts in enumerate(pairs):
        counts: dict[str, int] = {}
        for sign, text in zip((1, -1), texts, strict=True):
            for gram in n_grams(text):
                counts[gram] = counts.get(gram, 0) + sign
        for gram, count in counts.items():
            if count:
                row.append(number)
                column.append(columns.setdefault(gram, len(columns)))
                value.append(float(count))
    return _Differences(np.array(row, int), np.array(column, int), np.array(value), len(pairs), len(columns))


def _fitted(every: _Differences, is_fitted: np.ndarray) -> np.ndarray:
    """The weights of the n-grams that tell true from false in the fitted pairs: logistic regression by Adagrad."""
    kept = is_fitted[every.row]
    some = every._replace(row=every.row[kept], column=every.column[kept], value=every.value[kept])
    weights, squares = np.zeros(every.num_columns), np.full(every.num_columns, 1e-8)
    for _ in range(_PASSES):
        wrong = 1 / (1 + np.exp(np.clip(some.margins(weights), -30, 30)))
        gradient = np.bincount(some.column, some.value * wrong[some.row], every.num_columns) - _DECAY * weights
        squares += gradient**2
        weights += 0.5 * gradient / np.sqrt(squares)
    return weights
