"""Hold the gradients of a textbook module against those of our model, whose weights it shares."""

from torch import nn


def gradient_differences(ours: nn.Module, textbook: nn.Module) -> dict[str, float]:
    """The relative difference of the gradients of every parameter that both share, by our names.

    A parameter of the textbook may be a part of ours, such as one expert of a stack.
    """
    owners = {each.untyped_storage().data_ptr(): (name, each) for name, each in ours.named_parameters()}
    differences: dict[str, float] = {}
    for parameter in textbook.parameters():
        owner = owners.get(parameter.untyped_storage().data_ptr())
        if owner is None or (owner[1].grad is None and parameter.grad is None):
            continue
        name, own = owner
        assert own.grad is not None, f"{name} has a gradient in the textbook alone"
        whole = own.grad.flatten()
        part = whole[parameter.storage_offset() : parameter.storage_offset() + parameter.numel()]
        given = part.new_zeros(part.shape) if parameter.grad is None else parameter.grad.flatten()
        scale = whole.abs().max().clamp(min=1e-9)
        differences[name] = max(differences.get(name, 0.0), float((given - part).abs().max() / scale))
    return differences
