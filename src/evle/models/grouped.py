"""Products of groups of rows with a stack of matrices, one matrix per group: the two layers of many experts.

M rows, G groups, I inputs, O outputs. The results, and the gradients of the matrices, are written where they belong in
one tensor. Separate products would be copied into it afterwards: with 32 experts of EVE-Base that was an eighth of a
pre-training step.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from evle.models.even_rows import even_rows, evens_rows


def grouped_linear(rows: Tensor, sizes: Sequence[int], weight: Tensor, bias: Tensor) -> Tensor:
    """`rows` (M, I), the first `sizes[0]` of them by `weight[0]`, and so on -> (M, O).

    `sizes` sum to M; `weight` (G, O, I), `bias` (G, O). Under autocast all are computed in its format.
    """
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        rows, weight, bias = rows.to(dtype), weight.to(dtype), bias.to(dtype)
    return cast(Tensor, _GroupedLinear.apply(rows, tuple(sizes), weight, bias))


class _GroupedLinear(Function):
    """`grouped_linear` of one number format."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...], weight: Tensor, bias: Tensor) -> Tensor:
        ctx.sizes = sizes
        ctx.save_for_backward(rows, weight)
        output = rows.new_empty(len(rows), weight.shape[1])
        for part, own, one_bias, out in zip(rows.split(sizes), weight, bias, output.split(sizes)):
            torch.addmm(one_bias, part, own.T, out=out)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        parts = gradient.split(ctx.sizes)
        of_rows = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_rows = torch.empty_like(rows)
            for part, own, out in zip(parts, weight, of_rows.split(ctx.sizes)):
                torch.mm(part, own, out=out)
        if ctx.needs_input_grad[2]:
            of_weight = torch.empty_like(weight)
            for part, given, out in zip(parts, rows.split(ctx.sizes), of_weight):
                torch.mm(part.T, given, out=out)
        if ctx.needs_input_grad[3]:
            of_bias = torch.stack([part.sum(dim=0) for part in parts])
        return of_rows, None, of_weight, of_bias


def even_layout(counts: Sequence[int], like: Tensor) -> tuple[list[int], Tensor]:
    """How to lay out groups of `counts` rows so that the number of rows of each is cheap (`even_rows`): the sizes of
    the groups, and the index (sum of counts,) of each row, group by group, in the layout."""
    sizes = [even_rows(count) for count in counts] if evens_rows(like) else list(counts)
    given, starts = torch.tensor(counts), torch.tensor([0, *sizes[:-1]]).cumsum(0)
    first = torch.repeat_interleave(starts - (given.cumsum(0) - given), given)
    return sizes, (first + torch.arange(sum(counts))).to(like.device)
