"""What one row of the benchmark measures: several ways to do one thing, ours first."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

OURS = "ours"
TEXTBOOK = "textbook"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """How a row is built.

    Attributes:
        dtype: "fp32", or "bf16" for autocast to bfloat16 over float32 weights.
        quick: build the smallest sizes, which show that a row works and whose figures mean nothing.
        exact: leave out dropout and sampling, so that outputs and gradients of two ways can be compared.
    """

    dtype: str = "fp32"
    quick: bool = False
    exact: bool = False

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which a forward runs."""
        if self.dtype == "fp32":
            return nullcontext()
        return torch.autocast("cpu", dtype=DTYPES[self.dtype])

    def forward(self, run: Callable[[], Any]) -> Callable[[], None]:
        """`run` under autocast and without gradients."""

        def work() -> None:
            with torch.no_grad(), self.autocast():
                run()

        return work

    def step(self, modules: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        """A forward and a backward into gradients that are released afterwards."""

        def work() -> None:
            with self.autocast():
                value = loss()
            value.backward()
            modules.zero_grad(set_to_none=True)

        return work


@dataclass
class Case:
    """The ways of one row.

    Attributes:
        ways: the work by name. The first is ours.
        base: the way that each other way is compared with; the first one by default. A ratio is the other way's time
            over that of its base.
        product: rows, inner size and columns of the matrix product whose rate is the peak of this row; None for work
            that is not matrix products.
        units: how much of `unit` each way does in one call; the table then shows the rate of our way too.
        differences: the relative difference of outputs and gradients by name, when the case was built with
            `Setting.exact`; the largest is checked by a test.
        model: our model, for a profile by its parts.
        facts: further figures by name, computed once.
    """

    ways: dict[str, Callable[[], Any]]
    base: Mapping[str, str] = field(default_factory=dict)
    product: tuple[int, int, int] | None = None
    unit: str = ""
    units: Mapping[str, float] = field(default_factory=dict)
    differences: Callable[[], dict[str, float]] | None = None
    model: nn.Module | None = None
    facts: Callable[[], dict[str, Any]] | None = None


def relative_difference(given: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest magnitude."""
    difference = (given.detach().float() - expected.detach().float()).abs().max()
    return float(difference / expected.detach().float().abs().max().clamp(min=1e-12))
