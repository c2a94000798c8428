"""Start EVE's image side from a pre-trained vision Transformer: BEiT v2 (as in the paper), BEiT, DeiT, ViT, DINO(v2).

The paper states only that EVE is initialised from BEiT v2. Decided here: patch projection, [CLS], positions, attention
with its LayerNorm and LayerScale, and the final LayerNorm are copied to their counterparts. Each feed-forward is copied
to the image feed-forward of a hard-routed block, by default also to its text feed-forward, and to every expert of a
soft-routed block. Tensors without a counterpart in EVE (relative position bias, classifier) are left behind, and so is
the key bias, which cancels in the softmax.

D width, C channels, p patch size.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evle.errors import CheckpointError
from evle.models.eve.modeling import EVELayer, EVEModel, EVEPreTrainedModel
from evle.models.eve.routing import FeedForward, HardRouter, SharedFeedForward, SoftRouter
from evle.models.folders import load_tensors, local_folder, read_tensors
from evle.models.positions import resize_positions
from evle.models.soundness import refuse_odd_tensors

# transformers' names (of version 4 and on disk, and of version 5) -> the original ones of timm and BEiT, used here.
RENAMES = (
    (r"^(vit|beit|deit)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.distillation_token", "dist_token"),
    (r"^(embeddings\.)?register_tokens", "reg_token"),
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.lambda_([12])$", r".gamma_\1"),
    # DINOv2: transformers' and its own names.
    (r"^(dinov2|dinov2_with_registers)\.", ""),
    (r"(blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"^layernorm\.", "norm."),
)


@dataclass(frozen=True)
class VisionReport:
    """What was used of a vision checkpoint: the number of blocks filled, the keys that were left behind, and the names
    of the backbone's parameters that started at random."""

    num_blocks: int
    left_behind: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        kinds = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in self.new})
        return (
            f"{self.num_blocks} blocks started from the vision checkpoint, {len(self.left_behind)} tensors left "
            f"behind; {len(self.new)} tensors of the backbone started at random: {', '.join(kinds)}"
        )


@torch.no_grad()
def init_from_vision(model: EVEPreTrainedModel, path: str | Path, text_feed_forward: bool = True) -> VisionReport:
    """Fill the image side of `model` from a vision checkpoint of the same width and patch size.

    Args:
        model: any EVE model; its parameters are overwritten in place. Blocks beyond the checkpoint's depth stay new.
        path: a `.pth`, `.th`, `.bin` or `.safetensors` file, or a directory of transformers' ViT, DeiT, BEiT or
            DINOv2.
        text_feed_forward: start the text feed-forwards of hard-routed blocks from the image ones as well.

    Raises:
        CheckpointError: not a vision Transformer, one of another width or feed-forward size, or weights that are
            missing, quantised or not finite. A patch projection of another patch size, feed-forwards of another kind,
            and the [CLS] of a checkpoint without one start at random instead; biases that it has nowhere are 0.
    """
    eve: EVEModel = model if isinstance(model, EVEModel) else model.get_submodule("eve")  # type: ignore[assignment]
    state = {_original_name(key): tensor for key, tensor in _read(Path(path)).items()}
    _fuse_attention(state, path)
    used: set[str] = set()
    filled: set[int] = set()  # storages; all experts share one

    def put(parameter: Tensor, key: str, value: Tensor | None = None) -> None:
        tensor = _sound(state, key, path, parameter) if value is None else value
        if parameter.shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {key} is {tuple(tensor.shape)}, this model needs {tuple(parameter.shape)}; "
                "choose a model of the same width, patch and feed-forward"
            )
        parameter.copy_(tensor)
        used.add(key)
        filled.add(parameter.untyped_storage().data_ptr())

    image = eve.image_embedding
    if "patch_embed.proj.weight" not in state or "blocks.0.norm1.weight" not in state:
        raise CheckpointError(f"{path}: not a vision Transformer, it lacks patch_embed.proj or blocks.0")
    projection = _sound(state, "patch_embed.proj.weight", path)
    projection = projection.flatten(1) if projection.dim() > 1 else projection.reshape(1, -1)
    if projection.shape[1] == image.patch.weight.shape[1]:
        put(image.patch.weight, "patch_embed.proj.weight", projection)
        put(image.patch.bias, "patch_embed.proj.bias")
    if "cls_token" in state:
        put(image.cls_token, "cls_token", _sound(state, "cls_token", path).flatten())
    if "pos_embed" in state:
        put(image.position, "pos_embed", _positions(state, image.position, eve.config.patches_per_side, path))
    if "norm.weight" in state:
        put(eve.norm.weight, "norm.weight")
        put(eve.norm.bias, "norm.bias")

    num_blocks = 0
    for index, layer in enumerate(eve.layers):
        prefix = f"blocks.{index}."
        if f"{prefix}norm1.weight" not in state:
            break
        num_blocks += 1
        assert isinstance(layer, EVELayer)
        put(layer.attention_norm.weight, f"{prefix}norm1.weight")
        put(layer.attention_norm.bias, f"{prefix}norm1.bias")
        for name in ("qkv.weight", "q_bias", "v_bias", "proj.weight", "proj.bias"):
            put(layer.attention.get_parameter(name), f"{prefix}attn.{name}")
        for scale, name in ((layer.attention_scale, "gamma_1"), (layer.feed_forward_scale, "gamma_2")):
            if f"{prefix}{name}" in state:
                put(scale, f"{prefix}{name}")
            else:
                scale.fill_(1.0)  # a ViT without LayerScale is equal to one with a scale of 1
        norms, feed_forwards = _feed_forwards(layer, text_feed_forward)
        for norm in norms:
            put(norm.weight, f"{prefix}norm2.weight")
            put(norm.bias, f"{prefix}norm2.bias")
        for feed_forward in feed_forwards if f"{prefix}mlp.fc1.weight" in state else []:
            for name, parameter in feed_forward.items():
                put(parameter, f"{prefix}mlp.{name}")
    new = [name for name, each in eve.named_parameters() if each.untyped_storage().data_ptr() not in filled]
    return VisionReport(num_blocks, tuple(sorted(state.keys() - used)), tuple(new))


def _positions(state: Mapping[str, Tensor], own: Tensor, side: int, path: str | Path) -> Tensor:
    """The position table of a checkpoint with one row for [CLS], for `side` x `side` patches.

    Rows of a distillation token and of registers, which EVE does not have, are left out. A table without a row for
    [CLS] adds nothing to it; without any [CLS], its row is that of EVE's `own` table.
    """
    table = _sound(state, "pos_embed", path)
    rows = table.squeeze(0)
    extra = sum(
        state[name].shape[-2] for name in ("dist_token", "reg_token") if name in state and state[name].dim() > 1
    )
    has_cls = "cls_token" in state
    is_table = rows.dim() == 2 and rows.shape[1] == own.shape[1]
    for before in (1, 0, 1 + extra) if has_cls else (0, extra):
        if is_table and len(rows) > before and math.isqrt(len(rows) - before) ** 2 == len(rows) - before:
            first = (rows[:1] if before else torch.zeros_like(rows[:1])) if has_cls else own[:1]
            return resize_positions(torch.cat([first.to(rows.dtype), rows[before:]]), side, side)
    raise CheckpointError(
        f"{path}: pos_embed is {tuple(table.shape)}, no table of a square of patches of width {own.shape[1]}, with or "
        "without a row for [CLS]; choose a vision Transformer of square images and of the model's width"
    )


def _sound(state: Mapping[str, Tensor], key: str, path: str | Path, like: Tensor | None = None) -> Tensor:
    """The weight of that name. Raises CheckpointError where it is missing, quantised or not finite.

    A bias that no block has is 0, in the shape of the parameter `like`. A norm without one is no LayerNorm.
    """
    if key not in state:
        has_none = key.endswith("bias") and _kind(key) not in map(_kind, state)
        if like is not None and has_none and "norm" not in key:
            return torch.zeros_like(like)
        raise CheckpointError(f"{path}: {key} is missing; choose a vision Transformer with all of its weights")
    refuse_odd_tensors({key: state[key]}, {key: torch.empty(0)}, path)
    return state[key]


def _kind(key: str) -> str:
    """The name of a tensor without the number of its block."""
    return re.sub(r"\d+", "*", key, count=1)


def _feed_forwards(layer: EVELayer, text_too: bool) -> tuple[list[torch.nn.LayerNorm], list[dict[str, Tensor]]]:
    """The LayerNorms and feed-forwards of a block that receive image weights; parameters are named as in a ViT's
    `mlp`."""
    router = layer.feed_forward

    def named(feed_forward: FeedForward) -> dict[str, Tensor]:
        return dict(feed_forward.named_parameters())

    if isinstance(router, HardRouter):
        if text_too:
            return [router.image_norm, router.text_norm], [named(router.image), named(router.text)]
        return [router.image_norm], [named(router.image)]
    if isinstance(router, SharedFeedForward):
        return [router.norm], [named(router.feed_forward)]
    assert isinstance(router, SoftRouter)
    experts = router.experts
    names = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    stacked = (experts.up_proj, experts.up_proj_bias, experts.down_proj, experts.down_proj_bias)
    return [router.norm], [dict(zip(names, expert, strict=True)) for expert in zip(*stacked, strict=True)]


def _read(path: Path) -> Mapping[str, Tensor]:
    path = local_folder(path)
    if path.is_dir():
        return read_tensors(path)
    return load_tensors(path, "a vision Transformer (.pth, .th, .bin, .safetensors, or a directory)")


def _original_name(key: str) -> str:
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def _fuse_attention(state: dict[str, Tensor], path: str | Path) -> None:
    """Bring every block's attention to `qkv.weight`, `q_bias`, `v_bias`."""
    for prefix in {key.split("attn.")[0] + "attn." for key in state if ".attn." in key}:
        if f"{prefix}query.weight" in state:
            parts = [_sound(state, f"{prefix}{name}.weight", path) for name in ("query", "key", "value")]
            if any(part.dim() != 2 or part.shape != parts[0].shape for part in parts):
                raise CheckpointError(
                    f"{path}: {prefix}query, key and value have weights of {[tuple(part.shape) for part in parts]}; "
                    "choose a vision Transformer with a query, key and value of the model's width"
                )
            state[f"{prefix}qkv.weight"] = torch.cat(parts)
            for name in ("query", "key", "value"):
                del state[f"{prefix}{name}.weight"]
                bias = state.pop(f"{prefix}{name}.bias", None)
                if bias is not None and name != "key":
                    state[f"{prefix}{name[0]}_bias"] = bias
        elif f"{prefix}qkv.bias" in state:
            bias = state.pop(f"{prefix}qkv.bias").flatten()
            third = len(bias) // 3
            state[f"{prefix}q_bias"], state[f"{prefix}v_bias"] = bias[:third], bias[2 * third :]
