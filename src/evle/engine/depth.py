"""How far below the top of a model each parameter is, for learning rates that shrink towards the input.

A stack is a list of layers of one class. The stacks directly in the backbone, such as EVE's layers or VLE's fusion, are
on top; those in its parts, such as VLE's image and text towers, are below them.
"""

from collections.abc import Iterator

from torch import nn

from evle.errors import ConfigError


def layers_below_top(model: nn.Module) -> dict[str, int]:
    """The distance of each parameter from the top: 0 for heads and final norms, 1 for the last layer, and so on; the
    embeddings of a stack are one below its first layer, as in BEiT (Bao et al. 2021).

    In encoders of several stages (Swin, ConvNeXt) a stage counts as a layer. Raises ConfigError for a model without
    layers.
    """
    backbone = getattr(model, "base_model_prefix", "")
    prefix = f"{backbone}." if backbone and hasattr(model, backbone) else ""
    stacks = dict(_stacks(model, prefix.rstrip(".")))
    if not stacks:
        raise ConfigError(f"optim.layer_decay: {type(model).__name__} has no stack of layers; set it to 1")
    on_top = {path: size for path, size in stacks.items() if "." not in path.removeprefix(prefix)}
    height = max(on_top.values(), default=0)
    seen: set[str] = set()
    distances: dict[str, int] = {}
    for name, _ in model.named_parameters():
        if not name.startswith(prefix):
            distances[name] = 0
            continue
        path = next((path for path in stacks if name.startswith(f"{path}.")), None)
        part = name.removeprefix(prefix).split(".")[0]
        if path is not None:
            index = int(name.removeprefix(f"{path}.").split(".")[0])
            seen |= {path, part}
            distances[name] = stacks[path] - index + (0 if path in on_top else height)
            continue
        below = [path for path in stacks if path not in on_top and path.startswith(f"{prefix}{part}.")]
        if below:  # in a tower: its embeddings, or what follows its layers
            distances[name] = height + 1 + (0 if part in seen else max(stacks[path] for path in below))
        else:  # between the towers and the layers on top, or after these
            distances[name] = 0 if seen & on_top.keys() else height + 1
    return distances


def _stacks(module: nn.Module, path: str) -> Iterator[tuple[str, int]]:
    """The outermost stacks in the part `path` of a module, and their numbers of layers."""
    root = module.get_submodule(path)
    if isinstance(root, nn.ModuleList | nn.Sequential) and len(root) and len({type(each) for each in root}) == 1:
        if not any(list(part.children()) for part in root[0].children()):
            return  # a list of plain operations, such as a convolutional stem, and not of layers with parts
        yield path, len(root)
        return
    for name, _ in root.named_children():
        yield from _stacks(module, f"{path}.{name}" if path else name)
