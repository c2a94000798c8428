"""What VLE needs to know about a tower's configuration: whether it is an encoder, its width and its grid.

Any encoder of transformers can be a tower of VLE. Families differ in how their configurations name sizes. This file
hides the differences, so that the models see one width, one image size and one number of pixels per patch.
"""

import json
import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from evle.errors import ConfigError, nearest

DEFAULT_IMAGE_SIZE = 224
POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "mpnet"}
"""Text encoders that count positions from `pad_token_id + 1`, so that their table has rows that no token uses."""


class VisionShape(NamedTuple):
    """The image states of a tower: their width, and the side in pixels of the square that each of them covers."""

    width: int
    patch_size: int


def refuse_no_encoder(name: str, config: PreTrainedConfig) -> None:
    """Raise ConfigError unless `config`, the field `name` of a VLE, is that of an encoder of the right modality."""
    family = config.model_type
    if name == "vision_config":
        is_encoder = family in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES or family.endswith("_vision_model")
        is_encoder = (is_encoder or family.startswith("dinov3")) and family in MODEL_MAPPING_NAMES
        is_encoder = is_encoder and not hasattr(config, "text_config")
        wanted = "an image encoder such as CLIP, SigLIP, DINOv2, ViT, Swin or a timm model"
    else:
        is_encoder = family in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder
        is_encoder = is_encoder and not getattr(config, "is_decoder", False)
        wanted = "a text encoder such as DeBERTa-v3, BERT, RoBERTa, MPNet, ELECTRA or ModernBERT"
    if not is_encoder:
        raise ConfigError(f"{name} is of model_type {family!r}, which is not {wanted}; name one of these")


def refuse_unknown_family(name: str, fields: Any) -> None:
    """Raise ConfigError for a tower whose `model_type` transformers does not know."""
    family = fields.get("model_type") if isinstance(fields, dict) else None
    if family is not None and family not in CONFIG_MAPPING_NAMES:
        raise ConfigError(f"{name} has the unknown model_type {family!r}; {nearest(family, CONFIG_MAPPING_NAMES)}")


def vision_shape(config: Any) -> VisionShape:
    """The shape of an image tower's states.

    Towers of several stages (Swin, ConvNeXt, ResNet) start with patches and halve the grid between stages.
    """
    if config.model_type == "timm_wrapper":
        return _timm_facts(config.architecture, json.dumps(config.model_args or {}, sort_keys=True)).shape
    width = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    patch_size = getattr(config, "patch_size", None) or (4 if hasattr(config, "depths") else None)
    if width is None or patch_size is None:
        raise ConfigError(
            f"vision_config: a configuration of model_type {config.model_type!r} has no width of states or no patch "
            "size; use the model through timm (model_type timm_wrapper)"
        )
    if isinstance(patch_size, list | tuple):
        patch_size = patch_size[-1]
    if hasattr(config, "depths"):
        patch_size *= 2 ** (len(config.depths) - 1)
    return VisionShape(int(width), int(patch_size))


def read_image_size(config: Any) -> int:
    """Side in pixels of the images that a tower is configured for."""
    size = getattr(config, "image_size", None)
    if size is None and config.model_type == "timm_wrapper":
        size = (config.model_args or {}).get("img_size") or (getattr(config, "pretrained_cfg", None) or {}).get(
            "input_size"
        )
    if size is None and hasattr(config, "num_patches"):  # SigLIP 2 has only the number of patches
        size = math.isqrt(config.num_patches) * config.patch_size
    if isinstance(size, list | tuple):
        size = size[-1]
    return DEFAULT_IMAGE_SIZE if size is None else size


def write_image_size(config: Any, image_size: int) -> None:
    """Configure a tower for images with a side of `image_size` pixels."""
    config.image_size = image_size
    if hasattr(config, "num_patches") and isinstance(image_size, int):
        config.num_patches = (image_size // config.patch_size) ** 2
    if config.model_type == "timm_wrapper" and takes_one_size(config):
        config.model_args = {**(config.model_args or {}), "img_size": image_size}


def takes_one_size(config: Any) -> bool:
    """Whether a tower takes only images of its configured size, as timm's Transformers do by default."""
    if config.model_type != "timm_wrapper":
        return False
    arguments = {name: value for name, value in (config.model_args or {}).items() if name != "img_size"}
    facts = _timm_facts(config.architecture, json.dumps(arguments, sort_keys=True))
    return facts.is_sized and not arguments.get("dynamic_img_size", False)


def longest_text(config: Any) -> int:
    """The maximum number of tokens for which a text tower has positions."""
    return int(config.max_position_embeddings - _unused_positions(config))


def write_longest_text(config: Any, length: int) -> None:
    """Configure a text tower for `length` tokens."""
    config.max_position_embeddings = length + _unused_positions(config)


def _unused_positions(config: Any) -> int:
    if config.model_type == "mpnet":
        return 2  # its embeddings have the padding index 1, whatever the configuration names
    return config.pad_token_id + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0


class _TimmFacts(NamedTuple):
    shape: VisionShape
    is_sized: bool
    """Whether the model is built for one image size."""


@lru_cache(maxsize=64)
def _timm_facts(architecture: str, model_args: str) -> _TimmFacts:
    """Facts that only a timm model itself knows; it is built without memory. Raises ConfigError if that fails."""
    try:
        import timm
    except ImportError:
        raise ConfigError("a tower of timm needs timm; install it with: pip install 'evle[timm]'") from None
    arguments = json.loads(model_args)
    if arguments.get("features_only"):
        raise ConfigError("vision_config.model_args: features_only=true gives no last states; leave it out")
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(architecture, num_classes=0, **arguments)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        known = timm.list_models()
        raise ConfigError(
            f"timm cannot build {architecture!r} with {arguments or 'no arguments'} ({str(error).splitlines()[0]}); "
            f"{nearest(architecture, known, 'timm.list_models()')}"
        ) from None
    patches = getattr(model, "patch_embed", None)
    reductions = [each["reduction"] for each in getattr(model, "feature_info", ()) if "reduction" in each]
    if reductions:
        patch_size = reductions[-1]
    elif patches is not None:
        patch_size = patches.patch_size[-1]
    else:
        raise ConfigError(f"timm's {architecture!r} does not report how many pixels its states cover; choose another")
    return _TimmFacts(VisionShape(int(model.num_features), patch_size), getattr(patches, "img_size", None) is not None)
