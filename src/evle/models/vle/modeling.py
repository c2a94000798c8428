"""VLE: a text tower, an image tower, and co-attention between them (iFLYTEK and HFL, 2023; in the line of METER).

DeBERTa reads the text, CLIP's vision Transformer the image; both are projected to one width, get a type vector, and go
through blocks of two layers, one a stream, each of which attends to itself and then to the other stream's output of
the previous block. Module names are those of the released checkpoints, so that a released directory is read and
written without a table of keys. Task heads are in `heads.py`, `vcr.py` and `pretraining.py`.

B batch, P image tokens ([CLS], the patches, and a VCR question's boxes), T text tokens, D fusion width, H heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.deberta_v2.modeling_deberta_v2 import LegacyDebertaV2LMPredictionHead
from transformers.utils import ModelOutput

from evle.errors import CheckpointError, ConfigError, DataError
from evle.models.vle.configuration import VLEConfig
from evle.models.vle.text import VLETextTower
from evle.models.vle.towers import read_clip, read_deberta
from evle.models.vle.vision import VLEVisionTower

TEXT_TYPE, IMAGE_TYPE = 0, 1


@dataclass
class VLEOutput(ModelOutput):
    """What every VLE model returns; fields that a model or a call has no use for are None.

    Attributes:
        loss: the sum of `losses`, scalar.
        losses: named scalars, already weighted: "mlm", "itm", "mpc", "pbc", "itc", "answers", "choice".
        logits: the head's scores.
        image_hidden: (B, P, D) image states after the fusion, [CLS] first.
        text_hidden: (B, T, D) text states after the fusion.
        pooler_output: (B, 2 D) the first text state and the first image state, each through its pooler.
        itm_logits, itm_labels: (pairs, 2) and (pairs,) of pre-training's matching.
        pbc_logits: (B, P - 1, 2) of pre-training's patch-box classification, column 1 = belongs to the text.
        mpc_logits: (B, classes) of pre-training's masked patch-box classification; rows without an object hold 0.
        attentions: by name, one map a layer, when asked for: "text" (B, H, T, T) and "image" (B, H, P, P) of the
            towers; "text_self", "image_self", "text_to_image" (B, H, T, P) and "image_to_text" (B, H, P, T) of the
            fusion.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    image_hidden: Tensor | None = None
    text_hidden: Tensor | None = None
    pooler_output: Tensor | None = None
    itm_logits: Tensor | None = None
    itm_labels: Tensor | None = None
    pbc_logits: Tensor | None = None
    mpc_logits: Tensor | None = None
    attentions: dict[str, tuple[Tensor, ...]] | None = None

    @property
    def image_embeds(self) -> Tensor | None:
        """The released name of `image_hidden`."""
        return self.image_hidden

    @property
    def text_embeds(self) -> Tensor | None:
        """The released name of `text_hidden`."""
        return self.text_hidden


class Fused(NamedTuple):
    """What the fusion makes of pairs; as in `VLEOutput`."""

    image_hidden: Tensor
    text_hidden: Tensor
    pooler_output: Tensor
    attentions: dict[str, tuple[Tensor, ...]] | None = None


def extend_token_types(table: Tensor, num_types: int) -> Tensor:
    """A type table (N, D) with `num_types` rows: the old rows first, each new one a copy of the text row (0).

    A named object's tokens stand in the text, so a model that never saw object types starts by reading them as text;
    the rows part in training. Raises `CheckpointError` when rows would be lost.
    """
    if num_types < len(table):
        raise CheckpointError(
            f"the checkpoint has {len(table)} token types and the model {num_types}; set num_token_types={len(table)}"
        )
    return torch.cat([table, table[TEXT_TYPE].expand(num_types - len(table), -1)])


def key_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask (B, S), 1 or True = real, as (B, 1, 1, S) to add to attention scores; None stays None."""
    if mask is None:
        return None
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return added.masked_fill(~mask.bool(), torch.finfo(dtype).min)[:, None, None]


class FusionSelfAttention(nn.Module):
    """Attention of one stream to itself or to the other; the released names say "self" for both."""

    def __init__(self, config: VLEConfig):
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.num_heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(
        self, hidden: Tensor, source: Tensor, mask: Tensor | None, keep_map: bool
    ) -> tuple[Tensor, Tensor | None]:
        """`hidden` (B, S, D) asks, `source` (B, R, D) answers, `mask` (B, 1, 1, R) is added -> (B, S, D) and, if asked
        for, the map (B, H, S, R)."""
        query, key, value = (
            projection(states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, states in ((self.query, hidden), (self.key, source), (self.value, source))
        )  # each (B, H, S or R, D / H)
        dropout = self.dropout_rate if self.training else 0.0
        mask = None if mask is None else mask.to(query.dtype)
        if not keep_map and self.config._attn_implementation != "eager":
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
            return context.transpose(1, 2).flatten(2), None
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = (scores if mask is None else scores + mask).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        context = F.dropout(weights, dropout) @ value
        return context.transpose(1, 2).flatten(2), weights


class FusionResidual(nn.Module):
    """Linear, dropout, and the sum with what came before, normalised (post-LN)."""

    def __init__(self, config: VLEConfig, in_features: int):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, branch: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(branch)) + before)


class FusionAttention(nn.Module):
    """Attention and its residual."""

    def __init__(self, config: VLEConfig):
        super().__init__()
        self.self = FusionSelfAttention(config)
        self.output = FusionResidual(config, config.hidden_size)

    def forward(
        self, hidden: Tensor, source: Tensor, mask: Tensor | None, keep_map: bool
    ) -> tuple[Tensor, Tensor | None]:
        context, weights = self.self(hidden, source, mask, keep_map)
        return self.output(context, hidden), weights


class FusionIntermediate(nn.Module):
    """The widening half of the feed-forward."""

    def __init__(self, config: VLEConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))


class VLEFusionLayer(GradientCheckpointingLayer):
    """One stream's half of a block: self-attention, attention to the other stream, feed-forward; post-LN as BERT."""

    def __init__(self, config: VLEConfig):
        super().__init__()
        self.attention = FusionAttention(config)
        self.crossattention = FusionAttention(config)
        self.intermediate = FusionIntermediate(config)
        self.output = FusionResidual(config, config.intermediate_size)

    def forward(
        self, hidden: Tensor, other: Tensor, mask: Tensor | None, other_mask: Tensor | None, keep_maps: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`hidden` (B, S, D) of this stream, `other` (B, R, D), masks as `key_mask` -> (B, S, D), and the maps of both
        attentions if asked for."""
        hidden, self_map = self.attention(hidden, hidden, mask, keep_maps)
        hidden, cross_map = self.crossattention(hidden, other, other_mask, keep_maps)
        return self.output(self.intermediate(hidden), hidden), self_map, cross_map


class VLEPooler(nn.Module):
    """The first token through a linear layer and tanh."""

    def __init__(self, config: VLEConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden[:, 0]))


class VLEPreTrainedModel(PreTrainedModel):
    """What all VLE models share: the configuration, the initialisation, reading and writing released directories."""

    config: VLEConfig
    config_class = VLEConfig
    base_model_prefix = "vle"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["VLEFusionLayer", "DebertaV2Layer", "CLIPEncoderLayer"]  # noqa: RUF012
    _supports_sdpa = True
    # Counting buffers: the release keeps them in its files, they hold no weights.
    _keys_to_ignore_on_load_unexpected = [r"position_ids$"]  # noqa: RUF012
    decoder_in_file: Tensor | None = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LegacyDebertaV2LMPredictionHead):
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Every part by its own rule (CLIP has one of its own), then the image tower's positions by the configuration.

        What a checkpoint holds stays: transformers' initialisation functions pass over it.
        """
        super().initialize_weights()
        if self.config.place_init_range:
            for module in self.modules():
                if isinstance(module, VLEVisionTower):
                    init.normal_(module.positions.weight, std=self.config.place_init_range)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    @property
    def backbone(self) -> "VLEModel":
        """The `VLEModel` in a model with a head, or the model itself."""
        model = self.base_model
        assert isinstance(model, VLEModel)
        return model

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *args: Any,
        image_size: int | None = None,
        num_token_types: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """The model in a directory or hub repository, released or of `save_pretrained`, as transformers reads it.

        `image_size`: interpolate the positions for images of that many pixels a side (`resize_images`).
        `num_token_types`: make room for that many token types (`add_token_types`). All else is transformers'.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if image_size is not None:
            model.resize_images(image_size)
        if num_token_types is not None:
            model.add_token_types(num_token_types)
        return loaded

    @classmethod
    def from_vision_text_pretrained(
        cls, vision: str | Path, text: str | Path, *, vision_layers: int | None = None, **config_fields: Any
    ) -> Self:
        """A new VLE whose towers are a trained CLIP and a trained DeBERTa; fusion and head start at random.

        Args:
            vision: a directory or hub repository of a CLIP, whole or its vision model alone.
            text: one of a DeBERTa-v2 or v3, with or without a head.
            vision_layers: how many of CLIP's layers to keep, from the first; all by default. The published VLE models
                leave out the last one.
            config_fields: fields of `VLEConfig`, such as `image_size` (interpolates the positions) or `hidden_size`.

        Raises:
            CheckpointError: a directory that holds no such model, or not all of its weights.
            ConfigError: unknown fields, or more layers than CLIP has.
        """
        VLEConfig.check_fields(config_fields)
        image_size = config_fields.pop("image_size", None)
        image_tower, text_tower = read_clip(vision, vision_layers), read_deberta(text)
        sub_configs: dict[str, Any] = {
            name: {**tower.config.to_dict(), **config_fields.pop(name, {})}
            for name, tower in (("vision_config", image_tower), ("text_config", text_tower))
        }
        model = cls(cls.config_class(**sub_configs, **config_fields))
        model.backbone.vision_model.vision_model.load_state_dict(image_tower.state_dict())
        model.backbone.text_model.load_state_dict(text_tower.state_dict())
        if image_size is not None:
            model.resize_images(image_size)
        return model.eval()

    def resize_images(self, image_size: int) -> None:
        """Interpolate the image positions, bicubic, for images of `image_size` pixels a side, and configure that size.

        Raises ConfigError when it is no multiple of the patch.
        """
        if image_size <= 0 or image_size % self.config.patch_size:
            raise ConfigError(f"image_size {image_size} is not a multiple of patch_size {self.config.patch_size}")
        self.backbone.vision_model.resize_images(image_size)
        self.config.image_size = image_size

    def add_token_types(self, num_types: int) -> None:
        """Extend the type table to `num_types` rows, as `extend_token_types`, and configure that number.

        Each new row starts at a small distance of its own from the text's, so that named objects are told apart.
        Raises CheckpointError when rows would be lost.
        """
        table = self.backbone.token_type_embeddings.weight
        extended = extend_token_types(table.detach(), num_types)
        extended[len(table) :] += torch.randn_like(extended[len(table) :]) * self.config.initializer_range
        self.backbone.token_type_embeddings = nn.Embedding.from_pretrained(extended, freeze=not table.requires_grad)
        self.config.num_token_types = num_types

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Tie the MLM decoder to the word embeddings, as the released code does whatever its file holds.

        transformers would leave them apart where a file holds two different ones. The file's decoder, which nothing
        reads, is kept aside, so that what was loaded is what is saved.
        """
        decoder = self.get_output_embeddings()
        if missing_keys is not None and decoder is not None and self.config.tie_word_embeddings:
            words = self.get_input_embeddings().get_parameter("weight")
            weight = decoder.get_parameter("weight")
            names = {name for name, each in self.named_parameters() if each is words or each is weight}
            if weight is not words and not names & missing_keys and not torch.equal(weight, words):
                self.decoder_in_file = weight.detach().clone()
                weight.data.copy_(words.data)
        super().tie_weights(missing_keys, recompute_mapping)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a directory that the released code reads: its keys, all of them (`released_state`)."""
        state = self.released_state(self.state_dict() if state_dict is None else state_dict)
        super().save_pretrained(save_directory, is_main_process, state, **kwargs)

    def released_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this model with exactly the keys that the released code writes.

        Counting buffers belong to them, and the tied MLM decoder, once more than needed.
        """
        prefix = "" if self.base_model is self else f"{self.base_model_prefix}."
        config = self.config
        counts = {
            "vision_model.vision_model.embeddings": 1 + config.num_patches,
            "text_model.embeddings": config.max_position_embeddings,
        }
        released = {key: tensor for key, tensor in state.items() if not key.endswith("predictions.decoder.bias")}
        for key, tensor in released.items():
            if key.endswith("predictions.decoder.weight"):
                released[key] = tensor.clone() if self.decoder_in_file is None else self.decoder_in_file
        return released | {f"{prefix}{name}.position_ids": torch.arange(count)[None] for name, count in counts.items()}


class VLEModel(VLEPreTrainedModel):
    """The backbone: an image and a text to states that have seen each other.

    >>> model = VLEModel(VLEConfig.from_preset("vle-tiny"))
    >>> model(torch.zeros(1, 3, 64, 64), torch.tensor([[1, 5, 2]])).pooler_output.shape
    torch.Size([1, 256])
    """

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vision_model = VLEVisionTower(config.vision_config)
        self.text_model = VLETextTower(config.text_config)
        self.text_projection_layer = nn.Linear(config.text_config.hidden_size, config.hidden_size)
        self.image_projection_layer = nn.Linear(config.vision_config.hidden_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.num_token_types, config.hidden_size)
        self.cross_modal_image_layers = nn.ModuleList(VLEFusionLayer(config) for _ in range(config.num_hidden_layers))
        self.cross_modal_text_layers = nn.ModuleList(VLEFusionLayer(config) for _ in range(config.num_hidden_layers))
        self.cross_modal_image_pooler = VLEPooler(config)
        self.cross_modal_text_pooler = VLEPooler(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the image tower's states at the fusion's width, (B, P, D), without a type."""
        if not len(pixel_values):  # transformers' CLIP takes no empty batch
            height, width = (side // self.config.patch_size for side in pixel_values.shape[-2:])
            return pixel_values.new_zeros(0, 1 + height * width, self.config.hidden_size)
        return self.image_projection_layer(self.vision_model(pixel_values)[0])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Texts (B, T) -> the text tower's states at the fusion's width, (B, T, D), without a type."""
        return self.text_projection_layer(self.read_text(input_ids, attention_mask)[0])

    def read_text(
        self, input_ids: Tensor, attention_mask: Tensor | None, keep_maps: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Texts (B, T) -> the text tower's own states (B, T, text width) and, if asked for, the maps of its layers."""
        config = self.config.text_config
        if input_ids.shape[1] > config.max_position_embeddings:
            raise DataError(
                f"a text of {input_ids.shape[1]} tokens is longer than this model's {config.max_position_embeddings} "
                "positions; truncate it"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        output = self.text_model(input_ids, attention_mask, output_attentions=keep_maps)
        return output.last_hidden_state, tuple(output.attentions or ())

    def fuse(
        self,
        image: Tensor,
        text: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        image_mask: Tensor | None = None,
        image_type_ids: Tensor | None = None,
        output_attentions: bool = False,
    ) -> Fused:
        """States of `encode_image` (B, P, D) and `encode_text` (B, T, D) through the fusion.

        Masks (B, T) and (B, P) say 1 where a token is real, type ids (B, T) and (B, P) which row of the type table it
        gets: by default all tokens are real, text is of type 0 and image of type 1.
        """
        types = self.token_type_embeddings
        text = text + (types.weight[TEXT_TYPE] if token_type_ids is None else types(token_type_ids))
        image = image + (types.weight[IMAGE_TYPE] if image_type_ids is None else types(image_type_ids))
        text_mask, image_key_mask = key_mask(attention_mask, text.dtype), key_mask(image_mask, image.dtype)
        maps: dict[str, list[Tensor]] = {}
        for text_layer, image_layer in zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True):
            # Both layers of a block read the previous block.
            after_text = text_layer(text, image, text_mask, image_key_mask, output_attentions)
            after_image = image_layer(image, text, image_key_mask, text_mask, output_attentions)
            (text, *text_maps), (image, *image_maps) = after_text, after_image
            if output_attentions:
                names = ("text_self", "text_to_image", "image_self", "image_to_text")
                for name, each in zip(names, (*text_maps, *image_maps), strict=True):
                    maps.setdefault(name, []).append(each)
        pooled = torch.cat([self.cross_modal_text_pooler(text), self.cross_modal_image_pooler(image)], dim=-1)
        return Fused(image, text, pooled, {name: tuple(each) for name, each in maps.items()} or None)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_attentions: bool = False,
    ) -> VLEOutput:
        """Encode image-text pairs.

        Args:
            pixel_values: (B, C, H, W), sides multiples of the patch; other sizes than the configured interpolate the
                positions.
            input_ids: (B, T), T at most `max_position_embeddings`.
            attention_mask: (B, T), 1 = real token, 0 = padding; all real when absent.
            token_type_ids: (B, T) rows of the fusion's type table; all 0, text, when absent.
            output_attentions: also return the maps of every layer; this call then computes attention eagerly.

        Raises:
            DataError: sizes this model cannot take, or not as many images as texts.
        """
        if len(pixel_values) != len(input_ids):
            raise DataError(
                f"pixel_values hold {len(pixel_values)} images, input_ids {len(input_ids)} texts; give as many of both"
            )
        image, image_maps = self.vision_model(pixel_values, output_attentions)
        text, text_maps = self.read_text(input_ids, attention_mask, output_attentions)
        fused = self.fuse(
            self.image_projection_layer(image),
            self.text_projection_layer(text),
            attention_mask,
            token_type_ids,
            output_attentions=output_attentions,
        )
        output = VLEOutput(**fused._asdict())
        if fused.attentions is not None:
            output.attentions = {"text": text_maps, "image": image_maps, **fused.attentions}
        return output
