"""Make matrix products cheap on a CPU whose numbers of rows change in every step: experts' loads, masked words."""

import torch
from torch import Tensor
from torch.nn import functional as F

FEWEST = 16
"""Rows of the smallest product, and the step between small ones: the rows of one tile of a matrix unit."""


def even_rows(num_rows: int) -> int:
    """The number of rows rounded up to one of few sizes: four per octave up to 256 rows (16, 32, 48, 64, 80, 96, 112,
    128, 160 ...), eight up to 1,024 and sixteen above, where added rows cost more than a new size does. At most a
    quarter, or 15, more rows than given; above 256 an eighth, above 1,024 a sixteenth.

    >>> [even_rows(n) for n in (0, 1, 64, 65, 129, 257, 849, 1025)]
    [0, 16, 64, 80, 160, 288, 896, 1088]
    """
    finer = (num_rows > 256) + (num_rows > 1024)
    step = max(FEWEST, 1 << max(0, num_rows.bit_length() - 3 - finer))
    return -(-num_rows // step) * step


def evens_rows(rows: Tensor) -> bool:
    """Whether products of `rows` are computed on a CPU in a short number format.

    For every shape of such a product oneDNN compiles a kernel, which takes milliseconds.
    """
    dtype, device = rows.dtype, rows.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return device == "cpu" and dtype in (torch.bfloat16, torch.float16)


def pad_rows(rows: Tensor) -> Tensor:
    """`rows` (n, D), where `evens_rows` with rows of zeros up to `even_rows` of n.

    Take the first n rows of what is computed; the others have no gradient.
    """
    if not evens_rows(rows):
        return rows
    return F.pad(rows, (0, 0, 0, even_rows(len(rows)) - len(rows)))
