"""The trained models that a new VLE starts from: any CLIP, any DeBERTa-v2 or v3, as transformers saves them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionModel, DebertaV2Model, PreTrainedConfig, PreTrainedModel

from evle.errors import CheckpointError, ConfigError, in_one_line


def read_clip(path: str | Path, num_layers: int | None = None) -> CLIPVisionModel:
    """CLIP's vision Transformer with its first `num_layers` layers (all by default), from a CLIP or its vision model.

    Raises:
        CheckpointError: the directory holds no such model, or not all of its weights.
        ConfigError: it has fewer layers.
    """
    model: CLIPVisionModel = _read(path, CLIPVisionModel, ("clip", "clip_vision_model"), "a CLIP")
    layers = model.encoder.layers
    if num_layers is not None:
        if not 1 <= num_layers <= len(layers):
            raise ConfigError(f"vision_layers={num_layers}: the CLIP in {path} has {len(layers)} layers")
        del layers[num_layers:]
        model.config.num_hidden_layers = num_layers
    return model


def read_deberta(path: str | Path) -> DebertaV2Model:
    """DeBERTa-v2 or v3 without its head. Raises `CheckpointError` as `read_clip`."""
    return _read(path, DebertaV2Model, ("deberta-v2",), "a DeBERTa-v2 or v3")


def refuse_unfit(tower: PreTrainedModel, fields: Mapping[str, Any], where: str = "") -> None:
    """Raise ConfigError for `fields` of a configuration with which the trained `tower` would have other weights.

    `where` is put before their names.
    """
    has = {name: tensor.shape for name, tensor in tower.state_dict().items()}
    unfit = []
    for name, value in fields.items():
        try:
            with torch.device("meta"):
                changed = type(tower)(type(tower.config)(**{**tower.config.to_dict(), name: value}))
            fits = {name: tensor.shape for name, tensor in changed.state_dict().items()} == has
        except (ValueError, StrictDataclassError):  # it does not even go with the tower's other fields
            fits = False
        if not fits:
            unfit.append(f"{where}{name}={value!r} (they have {getattr(tower.config, name)!r})")
    if unfit:
        raise ConfigError(
            f"the trained weights of {type(tower).__name__} do not fit {', '.join(unfit)}; leave that out, or build a "
            "model with random weights from a VLEConfig"
        )


def _read(path: str | Path, model_class: type[PreTrainedModel], families: tuple[str, ...], wanted: str) -> Any:
    try:
        family = PreTrainedConfig.get_config_dict(path)[0].get("model_type")
        if family not in families:
            raise CheckpointError(f"{path}: is of model_type {family!r}; give {wanted} as transformers saves it")
        loaded: Any = model_class.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: holds no model ({in_one_line(error)}); give {wanted}") from None
    except Exception as error:  # from_pretrained raises a dozen kinds on damaged files
        raise CheckpointError(f"{path}: cannot be read ({in_one_line(error)}); fetch it again") from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{path}: lacks {len(missing)} weights of {model_class.__name__}, such as {missing[0]}; give {wanted} whole"
        )
    return model
