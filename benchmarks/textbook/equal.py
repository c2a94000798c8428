"""Hold the gradients of a textbook module against those of our model."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

NOISE = 1e-4
"""The share of the largest gradient of a model below which a gradient is rounding: that of a key's bias, by which a
softmax does not change, is 0 in exact arithmetic."""


def gradient_differences(ours: nn.Module, textbook: nn.Module) -> dict[str, float]:
    """The relative difference of the gradients of every parameter that both have, by our names.

    The textbook's parameters either read the memory of ours (one expert may be a part of our stack), or have the same
    names.
    """
    compared = list(_gradients(ours, textbook))
    assert compared, "no parameter has a gradient"
    largest = max(float(expected.abs().max()) for _, _, expected, _ in compared)
    differences: dict[str, float] = {}
    for name, given, expected, scale in compared:
        difference = float((given - expected).abs().max()) / max(scale, NOISE * largest)
        differences[name] = max(differences.get(name, 0.0), difference)
    return differences


def _gradients(ours: nn.Module, textbook: nn.Module) -> Iterator[tuple[str, Tensor, Tensor, float]]:
    """Our name of each shared parameter, the textbook's gradient and ours, flat, and the largest number in all of
    ours; 0 for an absent gradient."""
    by_memory = {each.untyped_storage().data_ptr(): (name, each) for name, each in ours.named_parameters()}
    by_name = dict(ours.named_parameters())
    for name, parameter in textbook.named_parameters():
        start = parameter.storage_offset()
        owner = by_memory.get(parameter.untyped_storage().data_ptr())
        if owner is None:
            if name not in by_name:
                continue
            owner, start = (name, by_name[name]), 0
        if owner[1].grad is None and parameter.grad is None:
            continue
        whole = _flat(owner[1])
        part = whole[start : start + parameter.numel()]
        yield owner[0], _flat(parameter), part, float(whole.abs().max())


def _flat(parameter: Tensor) -> Tensor:
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
