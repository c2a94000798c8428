"""The image tower: any vision encoder of transformers, with its states as [CLS] and patches.

Encoders return their states in two forms: as tokens, the last of which are the patches, or as a feature map. Before the
patches there may be [CLS] and other tokens (a distillation token, registers), which are left out. An encoder without
[CLS] gets the mean of the patches instead.

B batch, P image tokens, [CLS] first, D width.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from evle.errors import CheckpointError, ConfigError, DataError
from evle.models.attention import prefer_attend
from evle.models.positions import resize_positions
from evle.models.vle.towers import read_image_size, takes_one_size, vision_shape, write_image_size

LAST_NORMS = {
    "clip_vision_model": "post_layernorm",
    "metaclip_2_vision_model": "post_layernorm",
    "convnext": "layernorm",
    "convnextv2": "layernorm",
    "beit": "pooler.layernorm",
}
"""The last norm of encoders that apply it only to their pooled state. Here it is applied to all states, as the released
code does for CLIP."""

POOLERS = ("pooler", "head")
"""Modules on top of the states, which nothing here reads."""


@contextmanager
def eager(config: PreTrainedConfig) -> Iterator[None]:
    """A context in which a stock tower keeps its attention maps, which only the eager implementation has."""
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """A stock encoder of transformers, without a pooler, with its own fused attention if it has one."""
    if config._attn_implementation not in (None, "eager"):
        _fall_back_to_eager(config)
    tower: Any = AutoModel.from_config(config, trust_remote_code=False)
    for name in POOLERS:
        pooler = getattr(tower, name, None)
        holds_norm = LAST_NORMS.get(config.model_type, "").startswith(name) and getattr(pooler, "layernorm", None)
        if isinstance(pooler, nn.Module) and list(pooler.parameters()) and not holds_norm:
            setattr(tower, name, None)
            if hasattr(tower, "use_head"):
                tower.use_head = False
    return tower


def _fall_back_to_eager(config: PreTrainedConfig) -> None:
    """Select eager attention for an encoder that has no SDPA."""
    model_class: Any = MODEL_MAPPING[type(config)]
    if not model_class._supports_sdpa:
        config._attn_implementation = "eager"


class VLEVisionTower(nn.Module):
    """A vision encoder of transformers; all of its tokens pass through its last LayerNorm.

    The extra level, `vision_model.vision_model`, is part of the released names.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.shape = vision_shape(config)
        if isinstance(config, CLIPVisionConfig):
            prefer_attend(config)
            self.vision_model: PreTrainedModel = CLIPVisionModel(config)
        else:
            self.vision_model = build_tower(config)
        arguments = inspect.signature(self.vision_model.forward).parameters
        self.interpolates: bool = "interpolate_pos_encoding" in arguments
        self.takes_patches: bool = "spatial_shapes" in arguments
        self.gives_maps = "timm_model" not in dict(self.vision_model.named_children())
        self.is_convolutional = any(isinstance(each, nn.BatchNorm2d) for each in self.vision_model.modules())

    def forward(self, pixel_values: Tensor, keep_maps: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`pixel_values` (B, C, H, W) -> states (B, P, vision width) and, if requested, the encoder's own maps.

        For other sizes than the configured one, the positions are interpolated.
        """
        self._check(pixel_values)
        height, width = pixel_values.shape[-2:]
        if self.is_convolutional and not torch.compiler.is_compiling():  # halves the time of a step on a CPU
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        options: dict[str, Any] = {"pixel_values": pixel_values}
        if self.interpolates:
            size = read_image_size(self.config)
            options["interpolate_pos_encoding"] = (height, width) != (size, size)
        if self.takes_patches:
            options = self._as_patches(pixel_values)
        keep_maps = keep_maps and self.gives_maps
        if keep_maps:
            options["output_attentions"] = True
        with eager(self.vision_model.config) if keep_maps else nullcontext():
            output = self.vision_model(**options)
        states = self._tokens(output.last_hidden_state, height, width)
        attentions = tuple(getattr(output, "attentions", None) or ()) if keep_maps else ()
        return states, attentions

    def _tokens(self, states: Tensor, height: int, width: int) -> Tensor:
        """An encoder's last states, tokens (B, S, D) or a map (B, D, H, W), as [CLS] and patches (B, P, D)."""
        rows, columns = height // self.shape.patch_size, width // self.shape.patch_size
        if states.dim() == 4:
            timm_model = getattr(self.vision_model, "timm_model", None)
            if getattr(timm_model, "output_fmt", "NCHW") == "NCHW":
                states = states.permute(0, 2, 3, 1)
            states = states.flatten(1, 2)
        num_before = states.shape[1] - rows * columns
        if num_before < 0 or states.shape[-1] != self.shape.width:
            raise DataError(
                f"{self.config.model_type} gives {states.shape[1]} states of width {states.shape[-1]} for {height} x "
                f"{width} pixels; {rows} x {columns} patches of width {self.shape.width} were expected; choose another "
                "encoder"
            )
        if norm := LAST_NORMS.get(self.config.model_type):
            module: Any = self.vision_model
            for name in norm.split("."):
                module = getattr(module, name, None)
            if module is not None:
                states = module(states)
        if num_before == 1:
            return states
        patches = states[:, num_before:]
        first = states[:, :1] if num_before else patches.mean(dim=1, keepdim=True)
        return torch.cat([first, patches], dim=1)

    def _as_patches(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Images in the form that SigLIP 2 takes: the pixels of patches (B, P, patch pixels), channels last."""
        size = self.shape.patch_size
        batch, _, height, width = pixel_values.shape
        rows, columns = height // size, width // size
        patches = pixel_values.unflatten(3, (columns, size)).unflatten(2, (rows, size))  # (B, C, rows, s, columns, s)
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.long, device=patches.device),
            "spatial_shapes": torch.tensor([[rows, columns]] * batch, device=patches.device),
        }

    def _check(self, pixel_values: Tensor) -> None:
        config, size = self.config, self.shape.patch_size
        wanted = getattr(config, "num_channels", 3)
        channels, height, width = pixel_values.shape[1:]
        if channels != wanted or height % size or width % size or not height or not width:
            raise DataError(
                f"pixel_values have {channels} channels and {height} x {width} pixels; this model takes {wanted} "
                f"channels and sides that are multiples of its patch, {size}"
            )
        configured = read_image_size(config)
        if takes_one_size(config) and (height, width) != (configured, configured):
            raise DataError(
                f"pixel_values have {height} x {width} pixels, but {config.architecture} takes only {configured} x "
                f"{configured}; load the model with image_size={height}"
            )

    @property
    def position_table(self) -> nn.Parameter | None:
        """The position table, (rows, vision width) or (1, rows, vision width), if the encoder has one."""
        for name, parameter in self.vision_model.named_parameters():
            if name.endswith(("position_embedding.weight", "position_embeddings", "pos_embed")):
                return parameter
        return None

    def resize_images(self, image_size: int) -> None:
        """Interpolate the position tables for images with a side of `image_size` pixels, and configure that size."""
        if isinstance(self.vision_model, CLIPVisionModel):
            return self._resize_clip(image_size)
        before = self.vision_model
        state, frozen = (
            before.state_dict(),
            {name for name, each in before.named_parameters() if not each.requires_grad},
        )
        device, dtype, training = before.device, before.dtype, before.training
        write_image_size(self.config, image_size)
        with torch.random.fork_rng(devices=[]):
            resized: Any = type(self)(self.config).vision_model
        resized.load_state_dict(fit_tables(state, resized.state_dict()), strict=False)
        for name, parameter in resized.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.vision_model = resized.to(device=device, dtype=dtype).train(training)

    def _resize_clip(self, image_size: int) -> None:
        """`resize_images` without building the encoder again, which takes seconds for a large one."""
        embeddings: Any = self.vision_model.embeddings
        table = embeddings.position_embedding.weight
        side = image_size // embeddings.patch_size
        resized = resize_positions(table.detach(), side, side)
        embeddings.position_embedding = nn.Embedding.from_pretrained(resized, freeze=not table.requires_grad)
        embeddings.image_size = self.vision_model.config.image_size = image_size
        embeddings.num_patches, embeddings.num_positions = side**2, len(resized)
        embeddings.position_ids = torch.arange(len(resized), device=resized.device)[None]


def fit_tables(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an image tower in the shapes of `wanted`; position tables are interpolated to other grids.

    Buffers of position indices are left out. Raises CheckpointError for any other difference.
    """
    fitting: dict[str, Tensor] = {}
    for name, target in wanted.items():
        if name.endswith(("position_ids", "relative_position_index")):
            continue
        if name not in state:
            raise CheckpointError(f"the image tower lacks {name}; give a complete tower of the same kind")
        tensor = state[name]
        fitting[name] = tensor if tensor.shape == target.shape else fit_table(name, tensor, target)
    return fitting


def fit_table(name: str, table: Tensor, target: Tensor) -> Tensor:
    """A position table of a square grid, (rows, D) or (1, rows, D), interpolated to the rows of `target`.

    Rows outside of the grid, such as that of [CLS], are kept: they are first in position tables and last in BEiT's
    tables of relative positions. Raises CheckpointError for a tensor that is not such a table.
    """
    if table.dim() == target.dim() and table.dim() in (2, 3) and table.shape[-1] == target.shape[-1]:
        flat, rows = table.flatten(0, -2), len(target.flatten(0, -2))
        is_relative = "relative_position" in name
        for others in (3, 0) if is_relative else (0, 1, 2, 5):
            side, new_side = ((count - others) ** 0.5 for count in (len(flat), rows))
            if side.is_integer() and new_side.is_integer() and side > 0 and new_side > 0:
                grid = flat[: len(flat) - others] if is_relative else flat[others:]
                rest = flat[len(flat) - others :] if is_relative else flat[:others]
                with_cls = torch.cat([grid[:1], grid])  # `resize_positions` skips the first row
                resized = resize_positions(with_cls, int(new_side), int(new_side))[1:]
                parts = [resized, rest] if is_relative else [rest, resized]
                return torch.cat(parts).reshape(target.shape)
    raise CheckpointError(
        f"{name} has shape {tuple(table.shape)} but this model needs {tuple(target.shape)}; leave the size to the "
        "tower's own configuration"
    )


def check_image_size(config: Any, image_size: int) -> None:
    """Raise ConfigError unless images with a side of `image_size` pixels consist of whole patches."""
    patch_size = vision_shape(config).patch_size
    if image_size <= 0 or image_size % patch_size:
        raise ConfigError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
