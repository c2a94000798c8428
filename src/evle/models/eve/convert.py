"""Convert released EVE checkpoint files to our model directories and back, bit for bit."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from evle.errors import CheckpointError, ConfigError, EvleError, in_one_line, nearest
from evle.models.eve import EVEConfig, EVEForNLVR2, EVEForRetrieval, EVEForVQA, EVEModel, EVEProcessor
from evle.models.eve.modeling import EVEPreTrainedModel
from evle.models.eve.released import read_released, to_released
from evle.models.folders import from_folder, read_tensors
from evle.models.soundness import refuse_odd_tensors
from evle.models.vocabulary import tokens_noted

# By the key that only such a checkpoint has; a checkpoint with none of them is a bare backbone.
RELEASED_HEADS: dict[str, type[EVEPreTrainedModel]] = {
    "itc_vision_proj_head.weight": EVEForRetrieval,
    "nlvr2_output.weight": EVEForNLVR2,
    "output.3.weight": EVEForVQA,
}
MODELS: dict[str, type[EVEPreTrainedModel]] = {
    model.__name__: model for model in (EVEForRetrieval, EVEForNLVR2, EVEForVQA, EVEModel)
}
TORCH_SUFFIXES = (".th", ".pth", ".bin")


def convert_eve(
    source: str | Path,
    destination: str | Path,
    *,
    num_attention_heads: int | None = None,
    released_routing: bool = False,
    tokenizer: str | Path | None = None,
    answers: str | Path | None = None,
) -> str:
    """Convert one EVE checkpoint. A `source` that is a file is a released checkpoint, a directory is ours.

    Args:
        source: a released `.th`, `.pth`, `.bin` or `.safetensors` file, or a directory of `save_pretrained`.
        destination: the model directory to write, or the released file (`.th`, `.pth`, `.bin` hold `{"model": ...}`).
        num_attention_heads: the weights do not contain it; width / 64 by default.
        released_routing: give the directory the released `capacity_factor` of 1.0 instead of dropless routing.
        tokenizer: a tokenizer's directory to save beside the weights, which hold none; pipelines, search and
            evaluation need one.
        answers: the answer list of a VQA checkpoint, a JSON list of strings in the order of its outputs.

    Returns:
        One line that describes what was written.

    Raises:
        CheckpointError: nothing to convert, keys that do not fit, or a model that the released format cannot hold.
        ConfigError: a tokenizer or answers that cannot be read, do not fit the weights, or are not used.
    """
    source, destination = Path(source), Path(destination)
    if source.is_dir():
        if tokenizer is not None or answers is not None:
            raise ConfigError(f"{destination}: a released file holds no tokenizer and no answers; leave them out")
        return _to_released_file(source, destination)
    overrides: dict[str, Any] = {"capacity_factor": 1.0} if released_routing else {}
    if num_attention_heads is not None:
        overrides["num_attention_heads"] = num_attention_heads
    return _to_directory(source, destination, overrides, tokenizer, answers)


def released_model(source: str | Path) -> type[EVEPreTrainedModel]:
    """The model class that a released checkpoint belongs to, by its head."""
    state = read_released(source)
    for key, model in RELEASED_HEADS.items():
        if key in state:
            # The plain NLVR2 head has the keys of VQA's, but reads two [CLS] states side by side.
            width = len(state["backbone.class_embedding_vision"])
            if model is EVEForVQA and state["output.0.weight"].shape[-1] == 2 * width:
                return EVEForNLVR2
            return model
    return EVEModel


def _to_directory(
    source: Path,
    destination: Path,
    overrides: dict[str, Any],
    tokenizer: str | Path | None,
    answers: str | Path | None,
) -> str:
    if destination.is_file():
        raise CheckpointError(f"{destination}: is a file; name a directory for the converted model")
    model = released_model(source).from_released(source, **overrides)
    config = model.config
    if answers is not None:
        labels = _read_answers(Path(answers))
        if not isinstance(model, EVEForVQA) or len(labels) != config.num_labels:
            built = f"was built for {config.num_labels}" if isinstance(model, EVEForVQA) else "has no VQA head"
            raise ConfigError(f"{answers} has {len(labels)} answers but the model in {source} {built}")
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    processor = None if tokenizer is None else _processor(tokenizer, config)
    with nullcontext() if processor is None else tokens_noted(model, processor.tokenizer):
        _write(destination, lambda: model.save_pretrained(destination))
    if processor is not None:
        _write(destination, lambda: processor.save_pretrained(destination))
    return f"{destination}: {type(model).__name__}, {_describe(config)}"


def _processor(tokenizer: str | Path, config: EVEConfig) -> EVEProcessor:
    try:
        read = from_folder(AutoTokenizer, tokenizer)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{tokenizer}: no tokenizer that can be read ({in_one_line(error)})") from None
    if len(read) > config.vocab_size:
        raise ConfigError(f"{tokenizer} has {len(read)} tokens but the model was built for {config.vocab_size}")
    return EVEProcessor.for_size(config.image_size, read)


def _read_answers(path: Path) -> list[str]:
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no answer list that can be read ({error})") from None
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ConfigError(f"{path}: must hold a JSON list of strings, one answer per output")
    if len(set(answers)) < len(answers):
        twice = next(answer for answer in answers if answers.count(answer) > 1)
        raise ConfigError(f"{path}: the answer {twice!r} is duplicated; name each output once")
    return answers


def _to_released_file(source: Path, destination: Path) -> str:
    if destination.suffix not in (*TORCH_SUFFIXES, ".safetensors"):
        raise CheckpointError(f"{destination}: name a file that ends in .th, .pth, .bin or .safetensors")
    config_file = source / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{source}: no model directory, it has no config.json")
    config = from_folder(EVEConfig, source)
    name = next(iter(config.architectures or []), "")
    if config.model_type != EVEConfig.model_type or name not in MODELS:
        raise CheckpointError(f"{config_file}: the release has no form for {name!r}; {nearest(name, MODELS)}")
    tensors = read_tensors(source)
    model, info = from_folder(MODELS[name], source, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{source}: the weights lack {len(missing)} tensors of {name}, first {missing[0]}")
    refuse_odd_tensors(tensors, model.state_dict(), source)
    with torch.device("meta"):
        plain = MODELS[name](config)
    state, known = (to_released(_ours(each), config, each.released_classifier) for each in (model, plain))
    ours_only = sorted(state.keys() - (known.keys() - _ours(plain).keys()))
    if ours_only:
        raise CheckpointError(f"{source}: the release has no form for {ours_only[0]} ({len(ours_only)} such tensors)")
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.suffix == ".safetensors":
        _write(destination, lambda: save_file(state, destination))
    else:
        _write(destination, lambda: torch.save({"model": state}, destination))
    return f"{destination}: {len(state)} tensors of {name}, {_describe(config)}"


def _ours(model: EVEPreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of a model, those of a bare backbone with the prefix that it has in a model with a head."""
    prefix = "eve." if isinstance(model, EVEModel) else ""
    return {prefix + key: tensor for key, tensor in model.state_dict().items()}


def _describe(config: EVEConfig) -> str:
    experts = (
        f"{config.num_experts} experts in layers {list(config.soft_layers)}" if config.soft_layers else "no experts"
    )
    return (
        f"{config.num_hidden_layers} layers of width {config.hidden_size}, {config.num_attention_heads} heads, "
        f"{experts}, {config.image_size} pixels in patches of {config.patch_size}"
    )


def _write(destination: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        reason = error.strerror or error
        raise EvleError(f"{destination}: cannot be written ({reason}); free space or choose another folder") from error
