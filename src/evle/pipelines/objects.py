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
from evle.models.loading import PROCESSORS
from evle.models.soundness import refuse_odd_images
from evle.models.vocabulary import refuse_other_tokenizer, report_few_tokens

GIVEN = "the processor"
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
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise ConfigError(f"processor= is {type(processor).__name__}, without {part}; give the model's processor")
    if bare.config.model_type not in PROCESSORS:
        return
    try:
        refuse_odd_images(processor, bare.config.image_size, Path(GIVEN))
        _refuse_other_tokenizer(bare, processor.tokenizer)
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{GIVEN}: ").rpartition("; ")[0]
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


def _refuse_other_tokenizer(model: Any, tokenizer: Any) -> None:
    """Raise CheckpointError for a tokenizer that cannot pad, has tokens which the model has no embedding of, or is not
    the one of the training, where the model is as its folder has it. A doubtful one is reported in the log."""
    where, known = Path(GIVEN), getattr(model.config, "text_config", model.config).vocab_size
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{where}: the tokenizer has no padding token; give another")
    last = max(tokenizer.get_vocab().values(), default=0)
    if last >= known:
        raise CheckpointError(
            f"{where}: the tokenizer has a token of number {last:,}, and the model knows {known:,} tokens; give another"
        )
    folder = Path(str(model.name_or_path))
    if str(model.name_or_path) == str(tokenizer.name_or_path):
        return
    if folder.is_dir() and _is_as_saved(model, folder):
        try:
            refuse_other_tokenizer(folder, tokenizer, known)
        except CheckpointError as error:
            raise CheckpointError(str(error).removeprefix(f"{folder}: ")) from None
    else:
        report_few_tokens(where, tokenizer, known)


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
