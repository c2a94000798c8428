"""Read the authors' released EVE checkpoints into our models, by one two-way table of keys.

A released file is `torch.save` of `{"model": state_dict, ...}` or of the state dict alone (`.th`, `.pth`, `.bin`), or
the same tensors as `.safetensors`. Files are read by `evle.models.folders`, which runs no code in them.

L layers, E experts, D width, C channels, p patch size.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evle.errors import CheckpointError, ConfigError
from evle.models.eve.configuration import EVEConfig
from evle.models.folders import first_keys, load_tensors

# Released prefix -> ours; no prefix begins another; `{n}` is the number of the layer.
TABLE: dict[str, str] = {
    "backbone.patch_embed.": "eve.image_embedding.patch.",
    "backbone.class_embedding_vision": "eve.image_embedding.cls_token",
    "backbone.type_embed_vision": "eve.image_embedding.type_vector",
    "backbone.pos_embed_vision": "eve.image_embedding.position",
    "backbone.word_embedding.": "eve.text_embedding.word.",
    "backbone.layer_norm_text.": "eve.text_embedding.norm.",
    "backbone.type_embed_text": "eve.text_embedding.type_vector",
    "backbone.pos_embed_text": "eve.text_embedding.position",
    "backbone.pre_layrnorm.": "eve.pre_norm.",
    "backbone.norm.": "eve.norm.",
    "backbone.encoder.layers.{n}.norm1.": "eve.layers.{n}.attention_norm.",
    "backbone.encoder.layers.{n}.attn.": "eve.layers.{n}.attention.",
    "backbone.encoder.layers.{n}.gamma_1": "eve.layers.{n}.attention_scale",
    "backbone.encoder.layers.{n}.gamma_2": "eve.layers.{n}.feed_forward_scale",
    "backbone.encoder.layers.{n}.norm2_imag.": "eve.layers.{n}.feed_forward.image_norm.",
    "backbone.encoder.layers.{n}.mlp_imag.": "eve.layers.{n}.feed_forward.image.",
    "backbone.encoder.layers.{n}.norm2_text.": "eve.layers.{n}.feed_forward.text_norm.",
    "backbone.encoder.layers.{n}.mlp_text.": "eve.layers.{n}.feed_forward.text.",
    "backbone.encoder.layers.{n}.norm2_vl.": "eve.layers.{n}.feed_forward.norm.",
    "backbone.encoder.layers.{n}.mlp_moe.moe.vision_embed": "eve.layers.{n}.feed_forward.image_vector",
    "backbone.encoder.layers.{n}.mlp_moe.moe.text_embed": "eve.layers.{n}.feed_forward.text_vector",
    "backbone.encoder.layers.{n}.mlp_moe.moe.gate.wg.": "eve.layers.{n}.feed_forward.gate.",
    "itc_vision_proj_head.": "contrast.image_projection.",
    "itc_text_proj_head.": "contrast.text_projection.",
    "itc_temp": "contrast.temperature",
    "itm_head.": "matching.",
    "attn1.": "head.attn1.",
    "attn2.": "head.attn2.",
    "fc.": "head.fc.",
    "attn_pool.fc.": "head.pool.",
    "nlvr2_output.": "head.answer.",
}
# VQA's classifier and NLVR2's plain head share this released prefix; ours is the model's `released_classifier`.
CLASSIFIER = "output."
# The release has one tensor per expert; ours are stacked (E, ...).
EXPERTS = {
    "fc1.weight": "up_proj",
    "fc1.bias": "up_proj_bias",
    "fc2.weight": "down_proj",
    "fc2.bias": "down_proj_bias",
}
RELEASED_EXPERT = re.compile(r"backbone\.encoder\.layers\.(\d+)\.mlp_moe\.moe\.experts\.experts\.(\d+)\.(fc\d\.\w+)")
OUR_EXPERTS = re.compile(r"eve\.layers\.(\d+)\.feed_forward\.experts\.(\w+)")
# The release's NLVR2 attention holds the projections of queries, keys and values in one tensor, ours in three.
PROJECTIONS = ("query", "key", "value")
RELEASED_PROJECTIONS = re.compile(r"attn([12])\.in_proj_(weight|bias)")
OUR_PROJECTIONS = re.compile(r"head\.attn([12])\.(?:query|key|value)\.(weight|bias)")
# Counting buffers of the release; they hold no weights.
IGNORED = re.compile(r"backbone\.position_ids_(vision|text)")


def to_ours(state: Mapping[str, Tensor], classifier: str | None) -> dict[str, Tensor]:
    """A released state dict under our names; `classifier` is our prefix for the head that the release calls `output.`.

    Unknown keys are kept as they are.
    """
    rename = _renamer({**TABLE, CLASSIFIER: classifier} if classifier else TABLE)
    renamed: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for key, tensor in state.items():
        if IGNORED.fullmatch(key):
            continue
        if (found := RELEASED_EXPERT.fullmatch(key)) and found[3] in EXPERTS:
            name = f"eve.layers.{found[1]}.feed_forward.experts.{EXPERTS[found[3]]}"
            experts.setdefault(name, {})[int(found[2])] = tensor
        elif found := RELEASED_PROJECTIONS.fullmatch(key):
            for projection, part in zip(PROJECTIONS, tensor.chunk(3)):
                renamed[f"head.attn{found[1]}.{projection}.{found[2]}"] = part.clone()
        elif key == "backbone.patch_embed.weight" and tensor.dim() == 4:
            renamed[rename(key)] = tensor.flatten(1)  # (D, C, p, p) -> (D, C p p)
        elif key == "itc_temp" and tensor.numel() == 1:
            renamed[rename(key)] = tensor.reshape(())
        else:
            renamed[rename(key)] = tensor
    for name, parts in experts.items():
        renamed[name] = torch.stack([parts[number] for number in sorted(parts)])
    return renamed


def to_released(state: Mapping[str, Tensor], config: EVEConfig, classifier: str | None) -> dict[str, Tensor]:
    """The inverse of `to_ours`, bit for bit. Tensors without a released name keep ours."""
    table = {**TABLE, CLASSIFIER: classifier} if classifier else TABLE
    rename = _renamer({ours: theirs for theirs, ours in table.items()})
    names = {ours: theirs for theirs, ours in EXPERTS.items()}
    released: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if (found := OUR_EXPERTS.fullmatch(key)) and found[2] in names:
            prefix = f"backbone.encoder.layers.{found[1]}.mlp_moe.moe.experts.experts"
            for number, expert in enumerate(tensor):
                released[f"{prefix}.{number}.{names[found[2]]}"] = expert.clone()
        elif found := OUR_PROJECTIONS.fullmatch(key):
            parts = [state[f"head.attn{found[1]}.{projection}.{found[2]}"] for projection in PROJECTIONS]
            released[f"attn{found[1]}.in_proj_{found[2]}"] = torch.cat(parts)
        elif (
            key == "eve.image_embedding.patch.weight" and tensor.shape[1] == config.num_channels * config.patch_size**2
        ):
            released[rename(key)] = tensor.unflatten(1, (config.num_channels, config.patch_size, config.patch_size))
        else:
            released[rename(key)] = tensor
    return released


def read_released(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a released checkpoint under their released names. Raises `CheckpointError` if it holds none."""
    state = load_tensors(path, "a released EVE checkpoint (.th, .pth, .bin or .safetensors)")
    if "backbone.patch_embed.weight" not in state:
        if any(key.startswith(("eve.", "vle.")) for key in state):
            raise CheckpointError(f"{path}: holds weights in evle's own names; load its folder with from_pretrained")
        raise CheckpointError(
            f"{path}: not a released EVE checkpoint; it has no backbone.patch_embed.weight, but {first_keys(state)}"
        )
    _refuse_odd_shapes(state, path)
    return state


def infer_config(state: Mapping[str, Tensor], overrides: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """The fields of `EVEConfig` inferred from the shapes of a released state dict, with `overrides` applied.

    The number of attention heads cannot be inferred: it is `hidden_size / 64` unless given. `image_size` is always that
    of the checkpoint; for another size, resize the position table afterwards.
    """
    EVEConfig.check_fields(dict(overrides))
    patch = state["backbone.patch_embed.weight"]
    if patch.dim() != 4 or patch.shape[2] != patch.shape[3]:
        raise CheckpointError(f"{path}: backbone.patch_embed.weight is {tuple(patch.shape)}, not (D, C, p, p)")
    width, channels, patch_size, _ = patch.shape
    num_positions = len(_needed(state, "backbone.pos_embed_vision", path))
    side = round((num_positions - 1) ** 0.5)
    if side**2 != num_positions - 1:
        raise CheckpointError(f"{path}: backbone.pos_embed_vision has {num_positions} rows; 1 + a square was expected")
    vocabulary = _needed(state, "backbone.word_embedding.weight", path)
    layers = {int(found[1]) for key in state if (found := re.match(r"backbone\.encoder\.layers\.(\d+)\.", key))}
    if layers != set(range(len(layers))) or not layers:
        raise CheckpointError(f"{path}: has layers {sorted(layers)}; they should count from 0 without a gap")
    fields: dict[str, Any] = {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": side * patch_size,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": len(_needed(state, "backbone.pos_embed_text", path)),
        "num_hidden_layers": len(layers),
        "soft_layers": (),
    }
    feed_forwards = (r"mlp_imag\.fc1\.weight", r"mlp_moe\.moe\.experts\.experts\.0\.fc1\.weight")
    inner = [state[key] for key in state if any(re.search(pattern, key) for pattern in feed_forwards)]
    if not inner:
        raise CheckpointError(f"{path}: has no feed-forward, neither mlp_imag.fc1 nor experts")
    fields["intermediate_size"] = len(inner[0])
    gates = {int(found[1]): key for key in state if (found := re.search(r"layers\.(\d+)\.mlp_moe\.moe\.gate\.", key))}
    if gates:
        fields["soft_layers"] = tuple(sorted(gates))
        fields["num_experts"] = len(state[next(iter(gates.values()))])
        fields["modality_routing"] = any("mlp_moe.moe.vision_embed" in key for key in state)
    if "itc_vision_proj_head.weight" in state:
        fields["projection_dim"] = len(state["itc_vision_proj_head.weight"])
    fields["nlvr2_head"] = "bi-attention" if "attn1.in_proj_weight" in state else "plain"
    if "output.3.weight" in state:
        fields["num_labels"] = len(state["output.3.weight"])
    if "num_attention_heads" not in overrides:
        if width % 64:
            raise ConfigError(
                f"{path}: the weights do not contain the number of attention heads, and width {width} is not a "
                "multiple of 64; give it as --num-attention-heads (num_attention_heads=)"
            )
        fields["num_attention_heads"] = width // 64
    return {**fields, **{name: value for name, value in overrides.items() if name != "image_size"}}


def compare(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Keys that are missing, unexpected, and of another shape (with both shapes)."""
    missing = sorted(expected.keys() - given.keys())
    unexpected = sorted(given.keys() - expected.keys())
    misshapen = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & given.keys())
        if expected[key].shape != given[key].shape
    ]
    return missing, unexpected, misshapen


def refuse_mismatch(path: str | Path, missing: list[str], unexpected: list[str], misshapen: list[str]) -> None:
    """Raise one `CheckpointError` that names the keys which do not fit, if there are any."""
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    parts = [f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in kinds.items() if keys]
    if parts:
        raise CheckpointError(f"{path}: does not fit the model; " + "; ".join(parts))


def _refuse_odd_shapes(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise CheckpointError for a weight that is a single number, and for experts of a layer that differ in shape or
    number format, which `to_ours` could not stack."""
    first: dict[tuple[str, str], str] = {}
    for key, tensor in state.items():
        if not tensor.dim() and key.startswith(("backbone.", "output.", "itc_vision", "itc_text", "attn1.", "attn2.")):
            raise CheckpointError(f"{path}: {key} is a single number, where a table is needed; copy the file again")
        if found := RELEASED_EXPERT.fullmatch(key):
            other = first.setdefault((found[1], found[3]), key)
            if _form(tensor) != _form(state[other]):
                raise CheckpointError(
                    f"{path}: {key} is {_form(tensor)}, and {other} is {_form(state[other])}; the experts of a layer "
                    "must have one shape and number format: copy the file again"
                )


def _form(tensor: Tensor) -> str:
    """The shape and number format of a tensor, such as (64, 24) of float32."""
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _listed(keys: list[str], limit: int = 6) -> str:
    shown = ", ".join(keys[:limit])
    return shown if len(keys) <= limit else f"{shown} and {len(keys) - limit} more"


def _needed(state: Mapping[str, Tensor], key: str, path: str | Path) -> Tensor:
    if key not in state:
        raise CheckpointError(f"{path}: not a complete EVE checkpoint, {key} is missing")
    return state[key]


def _renamer(table: Mapping[str, str]) -> Callable[[str], str]:
    """A function from one side's key to the other's."""
    rules = [(re.compile(re.escape(start).replace(r"\{n\}", r"(\d+)")), target) for start, target in table.items()]

    def rename(key: str) -> str:
        for pattern, target in rules:
            if found := pattern.match(key):
                number = found[1] if pattern.groups else ""
                return target.replace("{n}", number) + key[found.end() :]
        return key

    return rename
