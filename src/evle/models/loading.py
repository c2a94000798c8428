"""Loading a model folder with its processor."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from evle.errors import CheckpointError, in_one_line
from evle.models.dual import DUAL_PROCESSORS
from evle.models.eve import EVEForVQA, EVEProcessor
from evle.models.folders import from_folder, model_folder, read_fields, read_tensors
from evle.models.soundness import (
    refuse_not_finite,
    refuse_odd_format,
    refuse_odd_images,
    refuse_odd_labels,
    refuse_other_layers,
)
from evle.models.vle import VLEProcessor
from evle.models.vocabulary import encoded, refuse_other_tokenizer, report_few_tokens

PROCESSORS: dict[str, Any] = {"eve": EVEProcessor, "vle": VLEProcessor}
ALL_PROCESSORS: dict[str, Any] = {**PROCESSORS, **DUAL_PROCESSORS}


def load_model(
    path: str | Path, models: Mapping[str, type[PreTrainedModel]], device: str | torch.device | None = None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model in `path` (see `model_folder`), as the class that `models` has for its family, and its processor.

    A checkpoint with several heads, as written by pre-training, can be loaded as each of them. Raises CheckpointError
    for a family that `models` does not have, a checkpoint with another head, and damaged or missing files. A tensor
    that the checkpoint lacks is an error; it is never initialised at random. The model is not moved to `device`, on
    which it will compute; the default is an accelerator if there is one. For a CPU, float16 weights become float32, in
    which it computes faster and more exactly.
    """
    folder = model_folder(path)
    fields = read_fields(folder, models)
    family = fields["model_type"]
    wanted = models[family]
    head = (fields.get("architectures") or ["unknown"])[0]
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers would warn about missing tensors, which are an error here
    try:
        with without_bars():
            loaded: Any = from_folder(wanted, folder, output_loading_info=True, **_precision(fields, device))
        processor = from_folder(ALL_PROCESSORS[family], folder)
    except CheckpointError:
        raise
    except Exception as error:  # from_pretrained raises a dozen kinds of errors for damaged files, none of them ours
        read_tensors(folder)  # names the file that is at fault, if one is
        raise CheckpointError(f"{folder}: cannot be loaded as {wanted.__name__} ({in_one_line(error)})") from error
    finally:
        logging.set_verbosity(level)
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing and head != wanted.__name__:
        raise CheckpointError(
            f"{folder} holds {head}, but {wanted.__name__} is needed here; fine-tune it for this task"
        )
    if missing:
        raise CheckpointError(
            f"{folder}: the weights lack {len(missing)} tensors of {wanted.__name__}, first {missing[0]}"
        )
    refuse_odd_format(folder, model)
    refuse_other_layers(report["unexpected_keys"], model, folder)
    refuse_not_finite(model.named_parameters(), folder)
    if family in PROCESSORS:
        refuse_odd_labels(fields.get("id2label"), folder)
    refuse_unfit_processor(model, processor, folder)
    return model, processor


def refuse_unfit_processor(model: Any, processor: Any, folder: Path | None = None) -> None:
    """Raise CheckpointError for a processor that does not prepare the images and texts that `model`, of one of our
    families, was trained on. Of models of other families, only that it has both parts.

    `folder` is where both were read; by default they are objects that a caller gives, of which no file tells more.
    """
    where = str(folder or "the given processor")
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise CheckpointError(
                f"{where}: a {type(processor).__name__} without {part}; give a processor of the model's family"
            )
    if model.config.model_type not in PROCESSORS:
        return
    refuse_odd_images(processor, model.config.image_size, where)
    _refuse_unfit_tokenizer(model, processor.tokenizer, where)
    known = getattr(model.config, "text_config", model.config).vocab_size
    if folder is not None:
        refuse_other_tokenizer(folder, processor.tokenizer, known)
    else:
        report_few_tokens(where, processor.tokenizer, known)
    last = max(processor.tokenizer.get_vocab().values(), default=0)
    if last >= known:
        raise CheckpointError(
            f"{where}: the tokenizer has a token of number {last:,}, and the model knows {known:,} tokens; copy the "
            "tokenizer that belongs to it"
        )


def _refuse_unfit_tokenizer(model: Any, tokenizer: Any, where: str) -> None:
    """Raise CheckpointError for a tokenizer that cannot encode or pad, or lacks tokens that the model reads."""
    tokens = encoded(tokenizer, "a", where)
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"{where}: the tokenizer has no padding token; copy tokenizer_config.json again")
    if isinstance(model, EVEForVQA) and model.config.vqa_slot and tokenizer.mask_token_id is None:
        raise CheckpointError(
            f"{where}: the tokenizer has no mask token, where this model reads the answer (vqa_slot); copy "
            "tokenizer_config.json again"
        )
    ends = (("[CLS]", tokenizer.cls_token_id, tokens[:1]), ("[SEP]", tokenizer.sep_token_id, tokens[-1:]))
    for name, token, found in ends:
        if token is not None and found != [token]:
            raise CheckpointError(
                f"{where}: the tokenizer puts no {name} around a text, as the model was trained; copy tokenizer.json "
                "again"
            )


def _precision(fields: Mapping[str, Any], device: str | torch.device | None) -> dict[str, Any]:
    """The type in which to load weights, if it is not the type in the configuration."""
    is_half = (fields.get("dtype") or fields.get("torch_dtype")) in ("float16", torch.float16)
    where = device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return {"dtype": torch.float32} if is_half and torch.device(where).type == "cpu" else {}


@contextmanager
def without_bars() -> Iterator[None]:
    """A context in which transformers shows no progress bars, as it does for every model that is read or written."""
    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_bars:
            logging.enable_progress_bar()
