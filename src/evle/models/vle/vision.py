"""The image tower: transformers' CLIP vision Transformer (Radford et al., arXiv 2103.00020), all of its tokens.

B batch, P image tokens, [CLS] first.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedConfig

from evle.errors import DataError
from evle.models.attention import prefer_attend
from evle.models.positions import resize_positions


@contextmanager
def _eager(config: PreTrainedConfig) -> Iterator[None]:
    """Within it a stock tower keeps its attention maps, which only the eager implementation has."""
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


class VLEVisionTower(nn.Module):
    """transformers' CLIP vision Transformer, all of whose tokens go through its last LayerNorm.

    The level between, `vision_model.vision_model`, is in the released names.
    """

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        prefer_attend(config)
        self.vision_model = CLIPVisionModel(config)

    def forward(self, pixel_values: Tensor, keep_maps: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`pixel_values` (B, C, H, W) -> states (B, P, vision width) and, if asked for, the maps of all layers.

        Another size than the configured one interpolates the positions.
        """
        config: Any = self.vision_model.config
        channels, height, width = pixel_values.shape[1:]
        size = config.patch_size
        if channels != config.num_channels or height % size or width % size or not height or not width:
            raise DataError(
                f"pixel_values have {channels} channels and {height} x {width} pixels; this model takes "
                f"{config.num_channels} channels and sides that are multiples of its patch, {size}"
            )
        resized = (height, width) != (config.image_size, config.image_size)
        with _eager(config) if keep_maps else nullcontext():
            output = self.vision_model(
                pixel_values, interpolate_pos_encoding=resized, output_attentions=keep_maps or None
            )
        return self.vision_model.post_layernorm(output.last_hidden_state), tuple(output.attentions or ())

    @property
    def positions(self) -> nn.Embedding:
        """The position table, (P, vision width)."""
        embeddings: Any = self.vision_model.embeddings
        return embeddings.position_embedding

    def resize_images(self, image_size: int) -> None:
        """Interpolate the position table for images of `image_size` pixels a side and take that size from now on."""
        embeddings: Any = self.vision_model.embeddings
        table = embeddings.position_embedding.weight
        side = image_size // embeddings.patch_size
        resized = resize_positions(table.detach(), side, side)
        embeddings.position_embedding = nn.Embedding.from_pretrained(resized, freeze=not table.requires_grad)
        embeddings.image_size = self.vision_model.config.image_size = image_size
        embeddings.num_patches, embeddings.num_positions = side**2, len(resized)
        embeddings.position_ids = torch.arange(len(resized), device=resized.device)[None]
