"""Position tables of square images at other sizes."""

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """A position table (1 + side**2, D), [CLS] first, interpolated to (1 + rows * columns, D), bicubic as released."""
    side = round((len(table) - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return table
    grid = table[1:].T.reshape(1, -1, side, side)
    resized = F.interpolate(grid.float(), size=(rows, columns), mode="bicubic", align_corners=False).to(table.dtype)
    return torch.cat([table[:1], resized.flatten(2).squeeze(0).T])
