"""Start EVE's image side from a pre-trained vision Transformer: BEiT v2 (as in the paper), BEiT, DeiT, ViT, DINO(v2).

The paper states only that EVE is initialised from BEiT v2. Decided here: patch projection, [CLS], positions, attention
with its LayerNorm and LayerScale, and the final LayerNorm are copied to their counterparts. Each feed-forward is copied
to the image feed-forward of a hard-routed block, by default also to its text feed-forward, and to every expert of a
soft-routed block. Tensors without a counterpart in EVE (relative position bias, classifier) are left behind, and so is
the key bias, which cancels in the softmax.

D width, C channels, p patch size.
"""

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

# transformers' names (of version 4 and on disk, and of version 5) -> the original ones of timm and BEiT, used here.
RENAMES = (
    (r"^(vit|beit|deit)\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
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
        CheckpointError: not a vision Transformer, or one of another width or feed-forward size. A patch projection of
            another patch size, and feed-forwards of another kind, start at random instead.
    """
    eve: EVEModel = model if isinstance(model, EVEModel) else model.get_submodule("eve")  # type: ignore[assignment]
    state = {_original_name(key): tensor for key, tensor in _read(Path(path)).items()}
    _fuse_attention(state)
    used: set[str] = set()
    filled: set[int] = set()  # storages; all experts share one

    def put(parameter: Tensor, key: str, value: Tensor | None = None) -> None:
        tensor = state[key] if value is None else value
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
    projection = state["patch_embed.proj.weight"].flatten(1)
    if projection.shape[1] == image.patch.weight.shape[1]:
        put(image.patch.weight, "patch_embed.proj.weight", projection)
        put(image.patch.bias, "patch_embed.proj.bias")
    put(image.cls_token, "cls_token", state["cls_token"].flatten())
    if "pos_embed" in state:
        side = eve.config.patches_per_side
        put(image.position, "pos_embed", resize_positions(state["pos_embed"].squeeze(0), side, side))
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


def _fuse_attention(state: dict[str, Tensor]) -> None:
    """Bring every block's attention to `qkv.weight`, `q_bias`, `v_bias`."""
    for prefix in {key.split("attn.")[0] + "attn." for key in state if ".attn." in key}:
        if f"{prefix}query.weight" in state:
            parts = [state.pop(f"{prefix}{name}.weight") for name in ("query", "key", "value")]
            state[f"{prefix}qkv.weight"] = torch.cat(parts)
            state[f"{prefix}q_bias"] = state.pop(f"{prefix}query.bias")
            state[f"{prefix}v_bias"] = state.pop(f"{prefix}value.bias")
            state.pop(f"{prefix}key.bias", None)
        elif f"{prefix}qkv.bias" in state:
            state[f"{prefix}q_bias"], _, state[f"{prefix}v_bias"] = state.pop(f"{prefix}qkv.bias").chunk(3)
