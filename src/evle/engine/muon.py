"""Muon (Jordan et al. 2024): matrices move along their momentum, orthogonalised; scaled to AdamW's step as Liu et al.
2025 (arXiv 2502.16982) do.

torch.optim.Muon computes in bf16, which a CPU without it emulates at a fortieth of its speed, and knows no stacks of
matrices, as experts are. This one computes in what the machine multiplies, and a stack as so many matrices.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from evle.precision import resolve_precision

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that takes every singular value near 1 in five rounds [Jordan et al.]."""
ROUNDS = 5


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay.

    Parameters are matrices (m, n), stacks of them (E, m, n), or kernels of convolutions (m, C, h, w), taken as matrices
    (m, C h w). A step's root mean square is 0.2 times the learning rate, as AdamW's usually is.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float = 0.95):
        super().__init__(groups, {"momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "the training loop has no closure"
        for group in self.param_groups:
            # Equal shapes are orthogonalised together: few large products instead of many small ones.
            alike: dict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape, parameter.device].append(parameter)
            for (shape, _), parameters in alike.items():
                directions = torch.stack([self._direction(each, group["momentum"]) for each in parameters])
                if len(shape) == 4:
                    directions = directions.flatten(2)
                moves = orthogonalize(directions)
                lr = 0.2 * math.sqrt(max(directions.shape[-2:])) * group["lr"]
                for parameter, move in zip(parameters, moves, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(move.view(shape), alpha=-lr)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"]
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices (..., m, n) with singular values near 1 (0.7 to 1.2) and their singular vectors: five rounds of Newton
    and Schulz."""
    dtype = torch.bfloat16 if resolve_precision("auto", matrices.device) == "bf16" else torch.float32
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    wide = (matrices.mT if is_tall else matrices).to(dtype)
    shape = wide.shape
    wide = wide.reshape(-1, *shape[-2:])
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    # float32 alone: in bfloat16 the error of the small products would grow from round to round.
    is_short = dtype == torch.float32 and wide.shape[-1] >= 2 * wide.shape[-2]
    wide = (_rounds_on_products if is_short else _rounds_on_matrices)(wide)
    wide = wide.reshape(shape).to(matrices.dtype)
    return wide.mT if is_tall else wide


def _rounds_on_matrices(wide: Tensor) -> Tensor:
    for _ in range(ROUNDS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, _without_first(gram), wide, beta=COEFFICIENTS[0])
    return wide


def _rounds_on_products(wide: Tensor) -> Tensor:
    """The same, up to the last product on the (m, m) products of rows alone: 1.5 to 1.8 times as fast where n is three
    to five times m."""
    gram = wide @ wide.mT
    factor: Tensor | None = None
    for number in range(ROUNDS):
        polynomial = _without_first(gram)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(COEFFICIENTS[0])
        factor = polynomial if factor is None else polynomial @ factor
        if number < ROUNDS - 1:
            gram = polynomial @ gram @ polynomial
    assert factor is not None
    return factor @ wide


def _without_first(gram: Tensor) -> Tensor:
    """The polynomial of the products of rows without its constant."""
    return torch.baddbmm(gram, gram, gram, beta=COEFFICIENTS[1], alpha=COEFFICIENTS[2])
