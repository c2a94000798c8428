"""Wrap one function of a model as a module, because torch exports modules."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class AsModule(nn.Module):
    """Calls `run`, a function of `model`, with its arguments by the names `inputs`."""

    def __init__(self, model: nn.Module, run: Callable[..., Tensor], inputs: Sequence[str]):
        super().__init__()
        self.model, self.run, self.inputs = model, run, tuple(inputs)

    def forward(self, *values: Tensor) -> Tensor:
        return self.run(**dict(zip(self.inputs, values, strict=True)))
