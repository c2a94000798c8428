"""Turn features into batches: small pure functions that stack, pad and number the features of a task's samples."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evle.transforms.masking import IGNORED


def pad_rows(rows: Sequence[Sequence[int]], value: int, length: int | None = None) -> Tensor:
    """int64 (B, T) with each row padded at its end with `value`; T is `length`, or the length of the longest row.
    Longer rows are cut.
    """
    length = max((len(row) for row in rows), default=0) if length is None else length
    padded = torch.full((len(rows), length), value, dtype=torch.int64)
    for index, row in enumerate(rows):
        row = row[:length]
        padded[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return padded


def pad_text(rows: Sequence[Sequence[int]], pad_id: int, length: int | None = None) -> tuple[Tensor, Tensor]:
    """`input_ids` and `attention_mask` (1 = a real token), both int64 (B, T).

    >>> pad_text([[2, 7, 3], [2, 3]], pad_id=0)
    (tensor([[2, 7, 3],
            [2, 3, 0]]), tensor([[1, 1, 1],
            [1, 1, 0]]))
    """
    return pad_rows(rows, pad_id, length), pad_rows([[1] * len(row) for row in rows], 0, length)


def stack(rows: Sequence[Tensor | np.ndarray]) -> Tensor:
    """One tensor (B, ...) of rows of equal shape."""
    return torch.stack([torch.as_tensor(row) for row in rows])


def number_ids(names: Sequence[str | None]) -> Tensor:
    """int64 (B,): equal numbers for equal names, on any rank, in any batch and in any process, by a 63-bit hash; -100
    for None.
    """
    return torch.tensor([IGNORED if name is None else _hash(name) for name in names], dtype=torch.int64)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1
