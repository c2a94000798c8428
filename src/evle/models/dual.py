"""Dual encoders of transformers (CLIP, MetaCLIP 2, SigLIP, SigLIP 2) with the methods of our retrieval models.

They embed images and texts separately. They have no joint pass and cannot match.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoProcessor, CLIPModel, MetaClip2Model, PreTrainedModel, SiglipModel


class _UnitFeatures:
    """Returns embeddings as unit vectors (B, D); transformers returns them without normalisation, inside an output."""

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return normalize(_pooled(super().get_image_features(pixel_values=pixel_values)), dim=-1)  # type: ignore[misc]

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        features = super().get_text_features(input_ids=input_ids, attention_mask=attention_mask)  # type: ignore[misc]
        return normalize(_pooled(features), dim=-1)

    def similarity_scale(self) -> Tensor:
        """The factor by which cosines are multiplied before a softmax."""
        scale: Tensor = self.logit_scale  # type: ignore[attr-defined]
        return scale.exp()


class CLIPEncoder(_UnitFeatures, CLIPModel):
    """A CLIP model."""


class MetaCLIP2Encoder(_UnitFeatures, MetaClip2Model):
    """A MetaCLIP 2 model."""


class SiglipEncoder(_UnitFeatures, SiglipModel):
    """A SigLIP model, or a SigLIP 2 model of fixed image size."""


DUAL_ENCODERS: dict[str, type[PreTrainedModel]] = {
    "clip": CLIPEncoder,
    "metaclip_2": MetaCLIP2Encoder,
    "siglip": SiglipEncoder,
}
PADDED_TO_THE_END = {"siglip"}
"""Families whose texts were always padded to the full length in training, and read without a mask."""

DUAL_PROCESSORS: dict[str, Any] = dict.fromkeys(DUAL_ENCODERS, AutoProcessor)


def _pooled(features: Any) -> Tensor:
    return features if isinstance(features, torch.Tensor) else features.pooler_output
