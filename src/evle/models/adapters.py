"""Low-rank adapters (LoRA, Hu et al. 2021; DoRA, Liu et al. 2024) beside a model folder's config.json.

    config.json                        the whole model's, as in any model folder
    adapter/adapter_config.json        rank, scale and targets, as peft writes them
    adapter/adapter_model.safetensors  the factors, and every other tensor that differs from the base, in peft's names
    adapter/base.json                  the model that is adapted, and a checksum of those of its tensors that are used

peft can load the folder `adapter` on top of the base model. Here the factors are multiplied out, which needs no peft.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evle.errors import CheckpointError, in_one_line
from evle.files import read_json
from evle.models.checksums import refuse_damaged, write_checksum

FOLDER, WEIGHTS, SETTINGS, BASE = "adapter", "adapter_model.safetensors", "adapter_config.json", "base.json"
PREFIX = "base_model.model."
"""What peft puts in front of the names of a model's tensors."""
FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")


def has_adapter(folder: str | Path) -> bool:
    """Whether a model folder holds an adapter in place of weights."""
    return (Path(folder) / FOLDER / BASE).is_file()


def refuse_peft_adapter(folder: str | Path) -> None:
    """Raise CheckpointError for a folder with an adapter as peft saves it, which transformers alone applies to a model:
    who reads only the tensors beside it would leave it out."""
    file = Path(folder) / SETTINGS
    if file.is_file():
        raise CheckpointError(
            f"{file}: an adapter of peft beside whole weights, which is not applied here; merge it first (peft's "
            "merge_and_unload), or remove it"
        )


def write_adapter(
    folder: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any], base: str, tensors: Mapping[str, Tensor]
) -> None:
    """Write the folder `adapter` into the model folder `folder`.

    Args:
        state: the state dict of the model with adapters in it.
        settings: what adapter_config.json holds.
        base: the folder or hub name of the adapted model.
        tensors: the tensors of `base`.
    """
    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    names = {name: name.replace(".base_layer.", ".") for name in state}
    used = {
        short: tensor
        for name, short in names.items()
        if (tensor := _find(tensors, short)) is not None and _equal(state[name], tensor)
    }
    own = {PREFIX + _stored(name): state[name].contiguous() for name, short in names.items() if short not in used}
    save_file(own, target / WEIGHTS, metadata={"format": "pt"})
    write_checksum(target / WEIGHTS)
    (target / SETTINGS).write_text(json.dumps({**settings, "base_model_name_or_path": base}, indent=2) + "\n")
    local = Path(base).exists()
    note = {
        "model": os.path.relpath(base, folder) if local else base,
        "absolute": str(Path(base).resolve()) if local else None,
        "sha256": _digest(used),
        "used": sorted(used),
    }
    (target / BASE).write_text(json.dumps(note, indent=1) + "\n")


def merged_tensors(folder: Path, read_base: Callable[[str], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of the model in `folder`, with its adapter multiplied into the base, which `read_base` reads by its
    folder or hub name.

    Raises CheckpointError where the adapter is damaged, or the base is missing or another model.
    """
    where = folder / FOLDER
    settings = read_json(where / SETTINGS, kind=dict, error=CheckpointError)
    note = read_json(where / BASE, kind=dict, error=CheckpointError)
    try:
        own = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(where / WEIGHTS).items()}
        used, digest, scale = list(note["used"]), note["sha256"], float(settings["lora_alpha"]) / int(settings["r"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{where}: a damaged adapter ({in_one_line(error)}); copy or train it again") from None
    refuse_damaged(where / WEIGHTS)
    name = _base(folder, note)
    try:
        tensors = read_base(name)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: the base of this adapter cannot be read ({error})") from None
    merged = {each: tensor for each in used if (tensor := _find(tensors, each)) is not None}
    if len(merged) < len(used) or _digest(merged) != digest:
        raise CheckpointError(
            f"{where}: an adapter of another model than {name}, whose weights are not those that it was trained on; "
            f"put the original model back, or correct the path in {where / BASE}"
        )
    merged |= {each.replace(".base_layer.", "."): own[each] for each in own if not each.endswith(FACTORS)}
    for module in sorted(each.removesuffix(FACTORS[0]) for each in own if each.endswith(FACTORS[0])):
        down, up = (own[module + factor].float() for factor in FACTORS[:2])
        weight = merged[f"{module}.weight"].float() + scale * (up @ down)
        if (magnitude := own.get(module + FACTORS[2])) is not None:
            weight = weight * (magnitude.float() / weight.norm(dim=1))[:, None]
        merged[f"{module}.weight"] = weight
    return merged


def base_of_adapter(folder: Path) -> tuple[str, bool]:
    """What the adapter in a model folder adapts: a hub name, or the name of a folder without its path; and whether it
    is a folder. Raises CheckpointError for a damaged adapter."""
    note = read_json(folder / FOLDER / BASE, kind=dict, error=CheckpointError)
    if note.get("absolute") is None:
        return str(note.get("model")), False
    parts = [part for part in Path(str(note["absolute"])).parts if part != "model"]
    return parts[-1] if parts else "model", True


def _base(folder: Path, note: Mapping[str, Any]) -> str:
    """The path of the base: relative to the adapter or absolute, as recorded when the adapter was written, or a hub
    name."""
    near = folder / str(note.get("model"))
    if note.get("absolute") is None:
        return str(note.get("model"))
    return str(near if near.exists() else note["absolute"])


def _stored(name: str) -> str:
    """The name that peft gives a tensor of a state dict in a file: without the adapter's own name, "default"."""
    if name.endswith(".lora_magnitude_vector.default.weight"):
        return name.removesuffix(".default.weight")
    return name.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")


def _find(tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
    """A tensor of the base, which may be a bare backbone, without the prefix of a model with a head."""
    return tensors.get(name, tensors.get(name.partition(".")[2]))


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours, theirs.to(ours.dtype))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of names and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
