"""VLE: a text tower, an image tower, and co-attention between them (iFLYTEK and HFL, 2023; in the line of METER).

DeBERTa reads the text, CLIP's vision Transformer the image; both are projected to one width, get a type vector, and go
through the blocks of `fusion.py`, in which each stream attends to itself and then to the other one's output of the
previous block. Module names are those of the released checkpoints, so that a released directory is read and written
without a table of keys. Task heads are in `heads.py`, `vcr.py` and `pretraining.py`.

B batch, P image tokens ([CLS], the patches, and a VCR question's boxes), T text tokens, D fusion width, H heads.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.deberta_v2.modeling_deberta_v2 import LegacyDebertaV2LMPredictionHead
from transformers.utils import ModelOutput

from evle.errors import CheckpointError, ConfigError, DataError
from evle.models.vle.configuration import HUB_OPTIONS, ROUTED, VLEConfig
from evle.models.vle.fusion import EVERYTHING, Fused, Reads, Stream, VLEFusionLayer, VLEPooler, key_mask
from evle.models.vle.text import VLETextTower
from evle.models.vle.towers import read_clip, read_deberta, refuse_unfit
from evle.models.vle.vision import VLEVisionTower

TEXT_TYPE, IMAGE_TYPE = 0, 1
MAPS = ("image_self", "image_to_text", "text_self", "text_to_image")
"""The attentions of a block, in the order in which it computes them."""


@dataclass
class VLEOutput(ModelOutput):
    """What every VLE model returns; fields that a model or a call has no use for are None.

    Attributes:
        loss: the sum of `losses`, scalar.
        losses: named scalars, already weighted: "mlm", "itm", "mpc", "pbc", "itc", "answers", "choice".
        logits: the head's scores.
        image_hidden: (B, P, D) image states after the fusion, [CLS] first. A head that does not read them has them
            computed only with `output_hidden_states=True`.
        text_hidden: (B, T, D) text states after the fusion; likewise.
        pooler_output: (B, 2 D) the first text state and the first image state, each through its pooler; likewise.
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

    def _set_gradient_checkpointing(  # type: ignore[override]
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, **options: Any
    ) -> None:
        """As in transformers, but refuses the reentrant kind: it would not see the tensors in a `Stream`."""
        chosen = gradient_checkpointing_func.keywords if isinstance(gradient_checkpointing_func, partial) else {}
        if enable and chosen.get("use_reentrant"):
            raise ConfigError("VLE's fusion would get no gradient with use_reentrant=True; leave it out")
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **options)

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
        `num_token_types`: make room for that many token types (`add_token_types`). Both may come in `config`, too,
        where the Auto classes put them. All else is transformers'.
        """
        if isinstance(config := kwargs.get("config"), VLEConfig) and pretrained_model_name_or_path is not None:
            hub = {name: kwargs[name] for name in HUB_OPTIONS & kwargs.keys()}
            fields, _ = VLEConfig.get_config_dict(pretrained_model_name_or_path, **hub)
            # Weights without a configuration are what the given one says.
            held = VLEConfig.from_dict(fields) if "vision_config" in fields else config
            image_size = config.image_size if image_size is None else image_size
            num_token_types = config.num_token_types if num_token_types is None else num_token_types
            kwargs["config"] = config = copy.deepcopy(config)
            config.image_size, config.num_token_types = held.image_size, held.num_token_types
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if image_size is not None and image_size != model.config.image_size:
            model.resize_images(image_size)
        if num_token_types is not None and num_token_types != model.config.num_token_types:
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
            ConfigError: unknown fields, fields that the trained weights do not fit, or more layers than CLIP has.
        """
        VLEConfig.check_fields(config_fields)
        image_tower, text_tower = read_clip(vision, vision_layers), read_deberta(text)
        towers = {"vision_config": image_tower, "text_config": text_tower}
        given = {name: dict(config_fields.pop(name, None) or {}) for name in towers}
        image_size = config_fields.pop("image_size", given["vision_config"].pop("image_size", None))
        for name, tower in towers.items():
            refuse_unfit(tower, given[name], f"{name}.")
            refuse_unfit(tower, {field: config_fields[field] for field in config_fields if ROUTED.get(field) == name})
        sub_configs: dict[str, Any] = {
            name: {**tower.config.to_dict(), **given[name]} for name, tower in towers.items()
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

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Give masked words another decoder, as `resize_token_embeddings` does for a larger or smaller vocabulary."""
        predictions = self.get_submodule("mlm_score.1.predictions")
        predictions.register_module("decoder", new_embeddings)
        predictions.register_parameter("bias", new_embeddings.get_parameter("bias"))
        self.decoder_in_file = None  # of the old size

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

    def typed(self, states: Tensor, modality: int, type_ids: Tensor | None = None) -> Tensor:
        """States (B, S, D) of `encode_image` or `encode_text` with their types: `type_ids` (B, S), or `modality`,
        `TEXT_TYPE` or `IMAGE_TYPE`, for all."""
        types = self.token_type_embeddings
        return states + (types.weight[modality] if type_ids is None else types(type_ids))

    def mix(
        self, image: Stream, text: Stream, keep_maps: bool = False
    ) -> tuple[Stream, Stream, list[tuple[Tensor | None, ...]]]:
        """Both streams through all blocks but the last, and the maps of each block in the order of `MAPS`."""
        maps = []
        *blocks, _ = zip(self.cross_modal_image_layers, self.cross_modal_text_layers, strict=True)
        for image_layer, text_layer in blocks:
            # Both layers of a block read the previous block.
            image_states, *image_maps = image_layer(image, image, text, keep_maps)
            text_states, *text_maps = text_layer(text, text, image, keep_maps)
            image, text = Stream(image_states, image.mask), Stream(text_states, text.mask)
            maps.append((*image_maps, *text_maps))
        return image, text, maps

    def read(
        self, image: Stream, text: Stream, reads: Reads, keep_maps: bool = False
    ) -> tuple[Fused, tuple[Tensor | None, ...]]:
        """What `reads` asks for of the last block and the poolers, and the last block's maps."""
        image_layer, text_layer = self.cross_modal_image_layers[-1], self.cross_modal_text_layers[-1]
        image_states = text_states = pooled = None
        maps: list[Tensor | None] = []
        if reads.image or reads.pooled:
            asking = image if reads.image else image.first()
            image_states, *image_maps = image_layer(asking, image, text, keep_maps)
            maps += image_maps
        if reads.text or reads.pooled:
            asking = text if reads.text else text.first()
            text_states, *text_maps = text_layer(asking, text, image, keep_maps)
            maps += text_maps
        if reads.pooled:
            pooled = torch.cat(
                [self.cross_modal_text_pooler(text_states), self.cross_modal_image_pooler(image_states)], dim=-1
            )
        fused = Fused(image_states if reads.image else None, text_states if reads.text else None, pooled)
        return fused, tuple(maps)

    def fuse(self, image: Stream, text: Stream, reads: Reads = EVERYTHING, output_attentions: bool = False) -> Fused:
        """Image and text, `typed`, through the whole fusion; with maps, everything is computed."""
        image, text, maps = self.mix(image, text, output_attentions)
        fused, last_maps = self.read(image, text, EVERYTHING if output_attentions else reads, output_attentions)
        if not output_attentions:
            return fused
        return fused._replace(attentions=dict(zip(MAPS, zip(*maps, last_maps, strict=True), strict=True)))

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_attentions: bool = False,
        reads: Reads = EVERYTHING,
    ) -> VLEOutput:
        """Encode image-text pairs.

        Args:
            pixel_values: (B, C, H, W), sides multiples of the patch; other sizes than the configured interpolate the
                positions.
            input_ids: (B, T), T at most `max_position_embeddings`.
            attention_mask: (B, T), 1 = real token, 0 = padding; all real when absent.
            token_type_ids: (B, T) rows of the fusion's type table; all 0, text, when absent.
            output_attentions: also return the maps of every layer; this call then computes attention eagerly.
            reads: what the caller reads of the output; the rest is not computed, and None. With maps, everything is.

        Raises:
            DataError: sizes this model cannot take, types that it does not have, or not as many images as texts.
        """
        if len(pixel_values) != len(input_ids):
            raise DataError(
                f"pixel_values hold {len(pixel_values)} images, input_ids {len(input_ids)} texts; give as many of both"
            )
        if token_type_ids is not None and token_type_ids.numel():
            highest = int(token_type_ids.max())
            if highest >= self.config.num_token_types:
                raise DataError(
                    f"token_type_ids go up to {highest}, the model has {self.config.num_token_types} types; load it "
                    f"with num_token_types={highest + 1} or more"
                )
        image, image_maps = self.vision_model(pixel_values, output_attentions)
        text, text_maps = self.read_text(input_ids, attention_mask, output_attentions)
        fused = self.fuse(
            Stream(self.typed(self.image_projection_layer(image), IMAGE_TYPE)),
            Stream(
                self.typed(self.text_projection_layer(text), TEXT_TYPE, token_type_ids),
                key_mask(attention_mask, text.dtype),
            ),
            reads,
            output_attentions,
        )
        output = VLEOutput(**fused._asdict())
        if fused.attentions is not None:
            output.attentions = {"text": text_maps, "image": image_maps, **fused.attentions}
        return output
