"""Stacks of weights, cast once for all passes of a step.

autocast keeps the casts of whole parameters while it is active, but not those of the slices of a stack: experts would
be cast again in each pass, and their gradients cast back and added in float32. In a forward that is `cast_once` a stack
is cast once, and the gradients of all passes are added in the short format before one cast back, as autocast does for
every other weight.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

Forward = TypeVar("Forward", bound=Callable[..., Any])
_state = threading.local()


def cast_once(forward: Forward) -> Forward:
    """A model's `forward` of several passes, in which `cast_stack` casts each parameter once.

    It changes nothing in a compiled graph, which plans its own casts, nor for a sharded model, whose whole weights
    exist during a layer only.
    """

    @functools.wraps(forward)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or _casts() is not None:
            return forward(self, *args, **kwargs)
        if any(isinstance(module, FSDPModule) for module in self.modules()):
            return forward(self, *args, **kwargs)
        _state.casts = {}
        try:
            return forward(self, *args, **kwargs)
        finally:
            _state.casts = None

    return cast(Forward, wrapped)


def _casts() -> dict[Any, Tensor] | None:
    """The casts of the forward that this thread is in; None outside of one."""
    return getattr(_state, "casts", None)


def cast_stack(stack: Tensor) -> Tensor:
    """A stack of weights in autocast's format within a `cast_once` forward; elsewhere as it is, for autocast to cast
    each slice right before it is used."""
    device = stack.device.type
    if torch.compiler.is_compiling() or not torch.is_autocast_enabled(device):
        return stack
    casts = _casts()
    if casts is None:
        return stack
    dtype = torch.get_autocast_dtype(device)
    key = id(stack), dtype, torch.is_grad_enabled()
    if key not in casts:
        casts[key] = stack.to(dtype)
    return casts[key]
