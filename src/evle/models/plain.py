"""Whether a linear layer is nothing but its weight, so that a faster form of its product may read the weight directly.

Adapters, quantisation, offloading and hooks act when a module is called. A fast path that reads `module.weight` would
skip them without an error, so it asks `is_plain` first and calls the module otherwise.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


def is_plain(layer: nn.Module) -> bool:
    """Whether calling `layer` only multiplies by its weight and adds its bias.

    False for subclasses and replacements (adapters, quantised layers, parametrisations), for tensor subclasses and
    offloaded weights, and for layers with any hook or a replaced `forward`.
    """
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter or layer.weight.is_meta:
        return False
    if "forward" in layer.__dict__ or any(getattr(layer, name) for name in HOOKS):
        return False
    return not any(getattr(torch_module, name) for name in GLOBAL_HOOKS)


def biased(layer: nn.Module, states: Tensor, bias: Tensor) -> Tensor:
    """`layer(states) + bias` for a linear layer without its own bias, in one product if the layer is plain."""
    if is_plain(layer):
        return F.linear(states, layer.get_parameter("weight"), bias)
    projected: Tensor = layer(states)
    return projected + bias.to(projected.dtype)


def float_dtype(layer: nn.Module) -> torch.dtype:
    """The number format that `layer` computes in: that of its first floating-point parameter, float32 without one."""
    return next((each.dtype for each in layer.parameters() if each.is_floating_point()), torch.float32)
