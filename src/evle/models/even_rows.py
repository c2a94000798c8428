"""Make matrix products cheap on a CPU whose numbers of rows change in every step: experts' loads, masked words."""

import torch
from torch import Tensor
from torch.nn import functional as F

FEWEST = 16
"""Rows of the smallest product, and the step between small ones: the rows of one tile of a matrix unit."""


def even_rows(num_rows: int) -> int:
    """The number of rows rounded up to one of four sizes per octave (16, 32, 48, 64, 80, 96, 112, 128, 160, 192 ...):
    few different sizes, and at most a quarter, or 15, more rows than given.

    >>> [even_rows(n) for n in (0, 1, 64, 65, 129, 849)]
    [0, 16, 64, 80, 160, 896]
    """
    step = max(FEWEST, 1 << max(0, num_rows.bit_length() - 3))
    return -(-num_rows // step) * step


def pad_rows(rows: Tensor) -> Tensor:
    """`rows` (n, D); on a CPU in a 16-bit format, zeros are appended up to `even_rows(n)` rows.

    oneDNN compiles a kernel for every new shape of such a product, which takes milliseconds. Use the first n rows of
    the result; the others have no gradient.
    """
    dtype, device = rows.dtype, rows.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if device != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return rows
    return F.pad(rows, (0, 0, 0, even_rows(len(rows)) - len(rows)))
