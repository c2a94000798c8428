"""Products of ever new numbers of rows, made cheap on a CPU: experts' loads, masked words."""

import torch
from torch import Tensor
from torch.nn import functional as F

FEWEST = 16
"""Rows of the smallest product, and the step between small ones: the rows of one tile of a matrix unit."""


def even_rows(num_rows: int) -> int:
    """The next of four sizes an octave (16, 32, 48, 64, 80, 96, 112, 128, 160, 192 ...): few sizes, and at most a
    quarter more rows, or 15, than asked for.

    >>> [even_rows(n) for n in (0, 1, 64, 65, 129, 849)]
    [0, 16, 64, 80, 160, 896]
    """
    step = max(FEWEST, 1 << max(0, num_rows.bit_length() - 3))
    return -(-num_rows // step) * step


def pad_rows(rows: Tensor) -> Tensor:
    """`rows` (n, D), on a CPU in a short number format with rows of zeros up to `even_rows` of n.

    oneDNN compiles a kernel for every shape of such a product that it meets, which takes milliseconds. Take the first n
    rows of what is computed; the others have no gradient.
    """
    dtype, device = rows.dtype, rows.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if device != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return rows
    return F.pad(rows, (0, 0, 0, even_rows(len(rows)) - len(rows)))
