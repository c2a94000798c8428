"""Released EVE checkpoints <-> ours: a file of theirs to a model directory, and back, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from evle.errors import CheckpointError, EvleError, nearest
from evle.models.eve import EVEConfig, EVEForNLVR2, EVEForRetrieval, EVEForVQA, EVEModel
from evle.models.eve.modeling import EVEPreTrainedModel
from evle.models.eve.released import read_released, to_released

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
) -> str:
    """Convert one EVE checkpoint. The direction follows from `source`: a file is a released one, a directory ours.

    Args:
        source: a released `.th`, `.pth`, `.bin` or `.safetensors` file, or a directory of `save_pretrained`.
        destination: the model directory to write, or the released file (`.th`, `.pth`, `.bin` hold `{"model": ...}`).
        num_attention_heads: the weights do not tell it; width / 64 by default.
        released_routing: give the directory the released `capacity_factor` of 1.0 instead of dropless routing.

    Returns:
        One line that says what was written.

    Raises:
        CheckpointError: nothing to convert, keys that do not fit, or a model that the release has no form for.
    """
    source, destination = Path(source), Path(destination)
    if source.is_dir():
        return _to_released_file(source, destination)
    overrides: dict[str, Any] = {"capacity_factor": 1.0} if released_routing else {}
    if num_attention_heads is not None:
        overrides["num_attention_heads"] = num_attention_heads
    return _to_directory(source, destination, overrides)


def released_model(source: str | Path) -> type[EVEPreTrainedModel]:
    """The model class that a released checkpoint belongs to, by its head."""
    state = read_released(source)
    for key, model in RELEASED_HEADS.items():
        if key in state:
            # The plain NLVR2 head has the keys of VQA's, but reads two [CLS] states side by side.
            width = len(state["backbone.class_embedding_vision"])
            if model is EVEForVQA and state["output.0.weight"].shape[1] == 2 * width:
                return EVEForNLVR2
            return model
    return EVEModel


def _to_directory(source: Path, destination: Path, overrides: dict[str, Any]) -> str:
    if destination.is_file():
        raise CheckpointError(f"{destination}: is a file; name a directory for the converted model")
    model = released_model(source).from_released(source, **overrides)
    _write(destination, lambda: model.save_pretrained(destination))
    return f"{destination}: {type(model).__name__}, {_describe(model.config)}"


def _to_released_file(source: Path, destination: Path) -> str:
    if destination.suffix not in (*TORCH_SUFFIXES, ".safetensors"):
        raise CheckpointError(f"{destination}: name a file that ends in .th, .pth, .bin or .safetensors")
    config_file = source / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{source}: no model directory, it has no config.json")
    config = EVEConfig.from_pretrained(source)
    name = next(iter(config.architectures or []), "")
    if config.model_type != EVEConfig.model_type or name not in MODELS:
        raise CheckpointError(f"{config_file}: the release has no form for {name!r}; {nearest(name, MODELS)}")
    model = MODELS[name].from_pretrained(source)
    ours = {
        key if key.startswith("eve.") or name != "EVEModel" else f"eve.{key}": t
        for key, t in model.state_dict().items()
    }
    state = {key: tensor.contiguous() for key, tensor in to_released(ours, config, model.released_classifier).items()}
    ours_only = [key for key in state if key in ours]
    if ours_only:
        raise CheckpointError(f"{source}: the release has no form for {ours_only[0]} ({len(ours_only)} such tensors)")
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.suffix == ".safetensors":
        _write(destination, lambda: save_file(state, destination))
    else:
        _write(destination, lambda: torch.save({"model": state}, destination))
    return f"{destination}: {len(state)} tensors of {name}, {_describe(config)}"


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
        raise EvleError(f"{destination}: cannot be written ({reason}); free space or choose another place") from error
