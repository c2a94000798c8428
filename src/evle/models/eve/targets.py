"""Targets of MIM other than pixels: codes of an image tokenizer, or features of a trained image model.

The paper compares pixels with tokens of BEiT v2 and of DALL-E (EVE, tables 1 and 3). Any model folder of transformers
can be used: an image tokenizer (FLAVA's version of DALL-E's, the VQ models of Chameleon or Janus) gives codes, and any
image encoder (ViT, BEiT, DINOv2, CLIP, a convolutional network, another EVE or VLE) gives features, of which
`codebook.py` makes codes.

B batch, N patches, F width of the features.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    ChameleonVQVAE,
    CLIPVisionModel,
    FlavaImageCodebook,
    JanusVQVAE,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from evle.errors import CheckpointError, in_one_line
from evle.files import read_json
from evle.models.folders import from_folder, model_folder
from evle.models.soundness import refuse_odd_weights

TOKENIZER_SIDE = 64
"""Side in pixels of the test image that shows how many pixels one code of a tokenizer describes."""
OURS = 0.5
"""Mean and standard deviation of EVE's input pixels [P]."""
TOWERS: dict[str, type[PreTrainedModel]] = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
"""The image half of models of images and text."""
CODEBOOKS: dict[str, type[PreTrainedModel]] = {
    "flava_image_codebook": FlavaImageCodebook,
    "chameleon_vqgan": ChameleonVQVAE,
    "janus_vqgan": JanusVQVAE,
}
"""Image tokenizers that AutoModel does not know."""


class ImageTeacher:
    """A frozen image tokenizer or image model, and how its images are prepared.

    It is not a module, so a model that holds one neither trains nor saves it.

    Raises CheckpointError for a folder that holds neither, or not the kind that `target` ("codes", "features") needs.
    """

    def __init__(self, folder: str | Path, target: str):
        self.folder, self.target = Path(folder), target
        self.model = _load(model_folder(folder)).eval().requires_grad_(False)
        self.mean, self.std, self.side = _preprocessing(model_folder(folder), self.model)
        tokenizer = _codes_of(self.model)
        if (target == "codes") != (tokenizer is not None):
            other = "features" if target == "codes" else "codes"
            clusters = ", or task.mim_codes=1024 for codes that are clusters of its features"
            raise CheckpointError(
                f"{folder}: {type(self.model).__name__} gives {other}, not {target}; set "
                f"task.mim_target={other}{clusters if target == 'codes' else ''}"
            )
        try:
            probe = self._states(torch.zeros(1, 3, self.side, self.side))
        except Exception as error:  # whatever a model raises that takes no images, or other ones
            raise CheckpointError(
                f"{folder}: {type(self.model).__name__} gives no states of an image's patches "
                f"({in_one_line(error)}); give an image encoder or an image tokenizer"
            ) from error
        self.cell = self.side // probe.shape[-1]
        """Side in pixels of the square that one code or feature describes."""
        self.size = self._vocabulary() if target == "codes" else probe.shape[1]
        """Number of codes, or width of the features."""

    @torch.no_grad()
    def targets(self, pixel_values: Tensor, rows: int, columns: int) -> Tensor:
        """Codes (B, N) int64 or features (B, N, F) float32 of EVE's images (B, 3, H, W), for a grid of `rows` x
        `columns`.

        Each feature vector is normalised as by a LayerNorm without weights, so that none dominates the error.
        """
        if next(self.model.parameters()).device != pixel_values.device:
            self.model.to(pixel_values.device)
        with torch.autocast(pixel_values.device.type, enabled=False):
            images = pixel_values.float() * OURS + OURS
            images = (images - self.mean.to(images)) / self.std.to(images)
            is_tokenizer = self.target == "codes"
            size = (rows * self.cell, columns * self.cell) if is_tokenizer else (self.side, self.side)
            if images.shape[2:] != size:
                images = F.interpolate(images, size=size, mode="bicubic", antialias=True)
            states = self._states(images)
            if is_tokenizer:
                return states.flatten(1)
            if states.shape[2:] != (rows, columns):
                states = F.interpolate(states.float(), size=(rows, columns), mode="bilinear")
            features = states.float().flatten(2).transpose(1, 2)
            return F.layer_norm(features, features.shape[-1:])

    def _states(self, images: Tensor) -> Tensor:
        """Codes (B, h, w), or features (B, F, h, w)."""
        codes = _codes_of(self.model)
        if codes is not None:
            indices = codes(images)
            side = math.isqrt(indices.numel() // len(images))
            rows = side if images.shape[2] == images.shape[3] else images.shape[2] // self.cell
            return indices.reshape(len(images), rows, -1)
        output = self.model(pixel_values=images)
        states = output.image_hidden if is_eve(self.model) else output.last_hidden_state
        if states.dim() == 4:
            return states
        side = math.isqrt(states.shape[1])  # [CLS], distillation and register tokens are fewer than a grid's next row
        return states[:, states.shape[1] - side**2 :].transpose(1, 2).unflatten(2, (side, side))

    def _vocabulary(self) -> int:
        config: Any = self.model.config
        names = ("num_embeddings", "codebook_size", "vocab_size")
        size = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
        if size is None:
            raise CheckpointError(f"{self.folder}: config.json has no number of codes ({', '.join(names)})")
        return int(size)


def open_teacher(folder: str | Path, target: str) -> ImageTeacher:
    """The teacher in a folder, opened once for the task, which needs the size of its targets, and for the model."""
    files = sorted(model_folder(folder).iterdir())
    return _opened(str(folder), target, tuple((file.name, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=1)
def _opened(folder: str, target: str, stamps: tuple[tuple[str, int], ...]) -> ImageTeacher:
    """The teacher in a folder whose files have these names and times, so that a changed one is opened again."""
    return ImageTeacher(folder, target)


def is_eve(model: PreTrainedModel) -> bool:
    """Whether a teacher is an EVE itself, which encodes images alone, too."""
    return bool(model.config.model_type == "eve")


def _codes_of(model: PreTrainedModel) -> Any:
    """The function images -> code indices of an image tokenizer; None for a model that has no codes."""
    if isinstance(model, FlavaImageCodebook):
        return model.get_codebook_indices
    encode = getattr(model, "encode", None)
    if encode is None or not isinstance(getattr(model, "quantize", None), nn.Module):
        return None

    def indices(images: Tensor) -> Tensor:
        encoded = encode(images)
        parts = encoded if isinstance(encoded, tuple) else encoded.to_tuple()
        return next(part for part in reversed(parts) if not part.is_floating_point())

    return indices


def _load(folder: Path) -> PreTrainedModel:
    try:
        config = from_folder(AutoConfig, folder)
        kind = CODEBOOKS.get(config.model_type) or TOWERS.get(config.model_type) or AutoModel
        model, info = from_folder(kind, folder, output_loading_info=True)
    except Exception as error:  # transformers raises many kinds on damaged or unknown folders
        raise CheckpointError(f"{folder}: cannot be loaded as an image model ({in_one_line(error)})") from error
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise CheckpointError(
            f"{folder}: lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}; give a folder "
            "with all of its weights"
        )
    refuse_odd_weights(folder, model)
    is_vle = config.model_type == "vle"
    teacher: PreTrainedModel = model.vision_model.vision_model if is_vle else model
    return teacher


def _preprocessing(folder: Path, model: PreTrainedModel) -> tuple[Tensor, Tensor, int]:
    """Mean and standard deviation (3, 1, 1), and side in pixels, from the folder's preprocessor and config."""
    file = folder / "preprocessor_config.json"
    fields = read_json(file, kind=dict, error=CheckpointError) if file.is_file() else {}
    config: Any = model.config
    mean, std, side = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, 224
    if isinstance(model, FlavaImageCodebook):  # DALL-E's pixels: 0 .. 1 mapped to 0.1 .. 0.9
        mean, std, side = [-0.125] * 3, [1.25] * 3, TOKENIZER_SIDE
    elif _codes_of(model) is not None:
        mean, std, side = fields.get("image_mean", [0.5] * 3), fields.get("image_std", [0.5] * 3), TOKENIZER_SIDE
    else:
        mean, std = fields.get("image_mean", mean), fields.get("image_std", std)
        mean, std = ([OURS] * 3, [OURS] * 3) if is_eve(model) else (mean, std)
        side = getattr(config, "image_size", None) or side
    side = side[0] if isinstance(side, list | tuple) else side
    try:
        return torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1), int(side)
    except (TypeError, ValueError, RuntimeError):
        raise CheckpointError(f"{file}: image_mean and image_std must hold three numbers each") from None
