"""Model folders: finding one, and loading it with its processor."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from evle.errors import CheckpointError, in_one_line, nearest
from evle.models.eve import EVEProcessor
from evle.models.vle import VLEProcessor

PROCESSORS: dict[str, type[EVEProcessor] | type[VLEProcessor]] = {"eve": EVEProcessor, "vle": VLEProcessor}


def model_folder(path: str | Path) -> Path:
    """The folder with the weights: `path` itself, or `path`/model when `path` is a run's folder.

    Raises CheckpointError saying what is there instead.
    """
    path = Path(path)
    for folder in (path / "model", path):
        if (folder / "config.json").is_file():
            return folder
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; give a model folder or a run's folder")
    inside = sorted(child.parent.parent.name for child in path.glob("*/model/config.json")) if path.is_dir() else []
    if inside:
        raise CheckpointError(f"{path} holds several runs; give one of them: {', '.join(inside)}")
    if (path / "log.jsonl").is_file() or (path / "checkpoints").is_dir():
        raise CheckpointError(
            f"{path} is a run without a model folder: it has not finished; repeat its command to resume it"
        )
    raise CheckpointError(
        f"{path} is neither a model folder (no config.json) nor a run's folder (no model/config.json)"
    )


def read_fields(folder: Path, families: Collection[str]) -> dict[str, Any]:
    """What config.json says in a model folder of one of `families`. Raises CheckpointError for another, or none."""
    try:
        fields, _ = PreTrainedConfig.get_config_dict(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: cannot be read ({in_one_line(error)})") from error
    family = str(fields.get("model_type", ""))
    if family not in families:
        raise CheckpointError(
            f"{folder} holds a checkpoint of another family: model_type {family!r}; {nearest(family, families)}"
        )
    return fields


def load_model(path: str | Path, models: Mapping[str, type[PreTrainedModel]]) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model in `path` (see `model_folder`) as the class that `models` names for its family, and its processor.

    A checkpoint of several heads, as pre-training leaves it, serves each of them. Raises CheckpointError for a family
    that `models` does not have, a checkpoint with another head, and damaged or missing files. No weight is ever made
    up: a tensor that the checkpoint lacks is an error.
    """
    folder = model_folder(path)
    fields = read_fields(folder, models)
    family = fields["model_type"]
    wanted = models[family]
    head = (fields.get("architectures") or ["unknown"])[0]
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers would warn of missing tensors, which are an error here
    try:
        with without_bars():
            loaded: Any = wanted.from_pretrained(folder, output_loading_info=True, local_files_only=True)
        processor = PROCESSORS[family].from_pretrained(folder, local_files_only=True)
    except Exception as error:  # from_pretrained raises a dozen kinds on damaged files, none of them ours
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
    return model, processor


@contextmanager
def without_bars() -> Iterator[None]:
    """Inside, transformers shows no progress bars, which it has for every model that is read or written."""
    had_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_bars:
            logging.enable_progress_bar()
