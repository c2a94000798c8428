"""The numbers of a training step on their way from the device to the host, and what is unusual about them.

Reading a number stops a GPU's queue of work. So the losses and the gradient's norm of a step are copied in the
background and read while the next step is already queued; a step that is logged, saved or validated is read at once.
"""

import math
import statistics
from collections.abc import Mapping

import torch
from torch import Tensor

SPIKE_WINDOW = 50
SPIKE_SPREADS = 8.0
SPIKE_RATIO = 1.5
MOST_EXPONENT = 700  # math.exp raises beyond


class Readings:
    """Losses by name, and the gradient's norm, of the optimizer step that ends as number `step`."""

    def __init__(self, step: int, names: list[str], numbers: Tensor):
        """`numbers` (len(names) + 1,) float32 on the device: the losses, and last the gradient's norm."""
        self.step = step
        self._names = names
        self._ready: torch.Event | None = None
        self._numbers = numbers
        if numbers.device.type != "cpu":
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._ready = torch.Event(numbers.device)
            self._ready.record()

    def read(self) -> tuple[dict[str, float], float]:
        """The losses and the norm; waits for this step's work on the device, not for what was queued after it."""
        if self._ready is not None:
            self._ready.synchronize()
        *losses, norm = self._numbers.tolist()
        return dict(zip(self._names, losses, strict=True)), norm


def not_finite(losses: Mapping[str, float], grad_norm: float | None) -> dict[str, float]:
    """The numbers that are not finite: the single losses, else their sum, else the gradient (unless None)."""
    bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
    parts = {name: value for name, value in bad.items() if name != "loss"}
    if bad or grad_norm is None or math.isfinite(grad_norm):
        return parts or bad
    return {"gradient": grad_norm}


def spike_above(recent: list[float], loss: float) -> float | None:
    """The usual loss (the median of the `recent` ones) where `loss` is far above it, else None.

    Far is 1.5 times the median and 8 robust standard deviations above it, for at least 20 recent losses. Positive
    losses are compared by their logarithms: near 0, where a model has learned its task, one hard sample makes a loss a
    hundred times as high, and the losses before it differ by as much.

    >>> spike_above([1.0, 1.1] * 10, 1.2), spike_above([1.0, 1.1] * 10, 5.0)
    (None, 1.05)
    """
    if len(recent) < 20:
        return None
    usual = statistics.median(recent)
    if min(recent) > 0:
        ratio = math.exp(min(SPIKE_SPREADS * _spread([math.log(value) for value in recent]), MOST_EXPONENT))
        far = usual * max(ratio, SPIKE_RATIO)
    else:
        far = usual + max(SPIKE_SPREADS * _spread(recent), (SPIKE_RATIO - 1) * abs(usual))
    return usual if loss > far else None


def _spread(values: list[float]) -> float:
    """The standard deviation of `values` as their median distance from the median tells it."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values)
