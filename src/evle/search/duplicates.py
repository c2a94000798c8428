"""Images of an index that are the same file, or look the same to the model."""

from numbers import Real

import numpy as np

from evle.errors import ConfigError
from evle.search.index import ImageIndex

LARGEST = 200_000
"""Rows up to which all pairs are compared: 200,000 x 256 take minutes on two cores."""

BLOCK = 2048


def find_duplicates(index: ImageIndex, *, similarity: float | None = None) -> list[list[str]]:
    """Groups of two or more images with equal contents, or with at least this cosine `similarity`, by path.

    Similar images are joined through others: a group is connected by pairs. Groups and their members stand in the order
    of the index. Raises ConfigError for a similarity that is not above 0 and at most 1, and for an index of more than
    LARGEST images.
    """
    store = index.store if index.store.is_current() else type(index.store).load(index.path)
    entries = list(store.entries())
    parents = np.arange(len(entries))
    if similarity is None:
        first: dict[str, int] = {}
        for row, entry in enumerate(entries):
            if entry.digest:
                _join(parents, first.setdefault(entry.digest, row), row)
    else:
        if not (isinstance(similarity, Real) and 0 < similarity <= 1):
            raise ConfigError(f"similarity={similarity!r}: give a cosine above 0 and at most 1, such as 0.98")
        if len(entries) > LARGEST:
            raise ConfigError(
                f"{index.path}: comparing all pairs of {len(entries):,} images takes too long (at most {LARGEST:,}); "
                "index folders apart, or look for equal files only"
            )
        for start in range(0, len(entries), BLOCK):
            rows = store.vectors(range(start, min(start + BLOCK, len(entries)))).astype(np.float32)
            for other in range(start, len(entries), BLOCK):
                columns = store.vectors(range(other, min(other + BLOCK, len(entries)))).astype(np.float32)
                for row, column in np.argwhere(rows @ columns.T >= similarity - 1e-3).tolist():
                    if start + row < other + column and _cosine(rows[row], columns[column]) >= similarity:
                        _join(parents, start + row, other + column)
    groups: dict[int, list[str]] = {}
    for row, entry in enumerate(entries):
        groups.setdefault(_root(parents, row), []).append(entry.path)
    return [group for group in groups.values() if len(group) > 1]


def _cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right))) + 1e-6


def _root(parents: np.ndarray, row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = int(parents[row])
    return row


def _join(parents: np.ndarray, left: int, right: int) -> None:
    roots = sorted((_root(parents, left), _root(parents, right)))
    parents[roots[1]] = roots[0]
