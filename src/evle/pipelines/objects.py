"""What a pipeline is given as objects: the model, its processor and the device, checked as a folder is."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evle.errors import CheckpointError, ConfigError, in_one_line
from evle.exported.model import GraphModel
from evle.models.checksums import weights_in
from evle.models.loading import refuse_unfit_processor

COMPARED = 64
"""Word embeddings that are compared with those of a file: the special tokens and bytes, which every training moves."""


def check_objects(pipeline: str, model: Any, processor: Any, classes: Iterable[type]) -> None:
    """Raise ConfigError for a model that is of none of `classes`, and for a processor that does not fit it.

    The graphs of an exported folder were checked when they were opened.
    """
    if isinstance(model, GraphModel):
        return
    bare, taken = bare_model(model), tuple(dict.fromkeys(classes))
    if not any(isinstance(bare, each) for each in taken):
        names = " or ".join(each.__name__ for each in taken)
        raise ConfigError(f"{pipeline} takes as model= {names}, not {type(bare).__name__}; load it as that class")
    folder = _folder_of(bare)
    try:
        refuse_unfit_processor(bare, processor, folder)
    except CheckpointError as error:  # names the folder, and a cure for its files
        reason = str(error).removeprefix(f"{folder or 'the given processor'}: ").rpartition("; ")[0]
        raise ConfigError(
            f"processor= does not fit the model: {reason}; give the processor that was saved with the model"
        ) from None


def bare_model(model: Any) -> Any:
    """The model inside of what torch.compile and peft put around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and (unwrap := getattr(model, "get_base_model", None)) is not None:
            inner = unwrap()
        if inner is None or inner is model:
            return model
        model = inner


def check_device(device: str | int | torch.device | None) -> None:
    """Raise ConfigError for a device that torch does not know, or that this machine lacks."""
    if device is None or device == "":
        return
    try:
        torch.empty(0, device=device)
    except Exception as error:  # torch raises a kind for each reason
        own = torch.accelerator.current_accelerator(check_available=True)
        there = "cpu" if own is None else f"cpu or {own.type}"
        raise ConfigError(f"device {device!r} cannot be used here ({in_one_line(error)}); choose {there}") from None


def _folder_of(model: Any) -> Path | None:
    """The folder that a model was read from, if it was not trained since: its weights tell their tokenizer."""
    folder = Path(str(model.name_or_path))
    return folder if folder.is_dir() and _is_as_saved(model, folder) else None


def _is_as_saved(model: Any, folder: Path) -> bool:
    """Whether the first word embeddings of a model are those in its folder: it was not trained since."""
    embeddings: Tensor = model.get_input_embeddings().weight
    names = {name for name, parameter in model.named_parameters() if parameter is embeddings}
    for file in weights_in(folder):
        try:
            with safe_open(file, "pt") as tensors:
                for name in names.intersection(tensors.keys()):
                    saved = tensors.get_slice(name)[:COMPARED]
                    return torch.equal(saved.to(embeddings.dtype), embeddings[:COMPARED].detach().cpu())
        except (OSError, SafetensorError):
            return False
    return False
