"""VLE: a text tower, an image tower, and co-attention between them (iFLYTEK and HFL, 2023; based on METER).

DeBERTa, or another text encoder, reads the text; CLIP, or another image encoder, reads the image. Both are projected to
one width, get a type vector, and pass through the blocks of `fusion.py`, in which each stream attends to itself and
then to the other stream's output of the previous block. Module names are those of the released checkpoints, so that a
released directory is read and written without a table of keys. Task heads are in `heads.py`, `vcr.py` and
`pretraining.py`.

B batch, P image tokens ([CLS], the patches, and a VCR question's boxes), T text tokens, D fusion width, H heads.
"""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionConfig, DebertaV2Config, PreTrainedModel
from transformers import initialization as init
from transformers.models.deberta_v2.modeling_deberta_v2 import LegacyDebertaV2LMPredictionHead

from evle.errors import CheckpointError, ConfigError, DataError
from evle.models.checksums import write_checksums
from evle.models.folders import HUB_OPTIONS, merged_adapter, refuse_damaged_weights, weights_folder
from evle.models.padding import check_text
from evle.models.vle.configuration import ROUTED, VLEConfig
from evle.models.vle.fusion import EVERYTHING, Fused, Reads, Stream, VLEFusionLayer, VLEPooler, key_mask
from evle.models.vle.outputs import VLEOutput, returns_tuple_if_asked
from evle.models.vle.text import KnownTexts, VLETextTower, WordPredictions, start_in_text_space, text_tower
from evle.models.vle.tower_weights import Kind, read_tower, refuse_unfit
from evle.models.vle.vision import VLEVisionTower, check_image_size, eager, fit_tables

TEXT_TYPE, IMAGE_TYPE = 0, 1
MAPS = ("image_self", "image_to_text", "text_self", "text_to_image")
"""The attention maps of a block, in the order of computation."""


def mean_states(states: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the patch states (B, P, D) that are `chosen`, (B, ..., P) bool -> (B, ..., D); 0 if none are.

    This is the token of a box.
    """
    weights = chosen.to(states.dtype)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.einsum("b...p,bpd->b...d", weights, states)


def extend_token_types(table: Tensor, num_types: int) -> Tensor:
    """A type table (N, D) with `num_types` rows: the old rows first, each new one a copy of the text row (0).

    The tokens that name an object are part of the text, so a model that never saw object types starts by reading them
    as text; training makes the rows different. Raises `CheckpointError` if rows would be lost.
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
    _no_split_modules = ["VLEFusionLayer"]  # noqa: RUF012
    _supports_sdpa = True
    # Buffers of position indices, which the release keeps in its files; they hold no weights.
    _keys_to_ignore_on_load_unexpected = [r"position_ids$"]  # noqa: RUF012
    decoder_in_file: Tensor | None = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LegacyDebertaV2LMPredictionHead | WordPredictions):
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
        """Initialise every part by its own rule, and positions and projections of texts by the configuration.

        Loaded tensors stay as they are: transformers' initialisation functions skip them.
        """
        super().initialize_weights()
        if self.config.position_init_range:
            for module in self.modules():
                if isinstance(module, VLEVisionTower) and (table := module.position_table) is not None:
                    init.normal_(table, std=self.config.position_init_range)
        if self.config.text_projection_init == "identity":
            start_in_text_space(self)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def _set_gradient_checkpointing(  # type: ignore[override]
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, **options: Any
    ) -> None:
        """As in transformers, but refuses the reentrant kind, which would not see the tensors in a `Stream`."""
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
        """The model in a model folder, a run's folder or a hub repository, released or of `save_pretrained`, as
        transformers reads it.

        `image_size`: interpolate the positions for images of that side in pixels (`resize_images`).
        `num_token_types`: extend the table to that number of token types (`add_token_types`). Both may also be in
        `config`, where the Auto classes put them. All other arguments are those of transformers.
        """
        path = weights_folder(pretrained_model_name_or_path)
        if isinstance(config := kwargs.get("config"), VLEConfig) and path is not None:
            hub = {name: kwargs[name] for name in HUB_OPTIONS & kwargs.keys()}
            fields, _ = VLEConfig.get_config_dict(path, **hub)
            # Weights without a configuration are described by the given one.
            held = VLEConfig.from_dict(fields) if "vision_config" in fields else config
            image_size = config.image_size if image_size is None else image_size
            num_token_types = config.num_token_types if num_token_types is None else num_token_types
            kwargs["config"] = config = copy.deepcopy(config)
            config.image_size, config.num_token_types = held.image_size, held.num_token_types
        path = merged_adapter(path, VLEConfig, kwargs)
        loaded = super().from_pretrained(path, *args, **kwargs)
        refuse_damaged_weights(path, kwargs)
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
        """A new VLE whose towers are trained encoders; fusion and head start at random.

        Args:
            vision: a folder or hub repository of an image encoder: CLIP or SigLIP (the whole model or its vision
                model), DINOv2, ViT, Swin, ConvNeXt, a timm model and so on.
            text: a folder or hub repository of a text encoder, with or without a head: DeBERTa-v2 or v3, BERT, RoBERTa,
                ModernBERT and so on.
            vision_layers: how many layers of the image encoder to keep, from the first; all by default. The published
                VLE models leave out the last one of CLIP.
            config_fields: fields of `VLEConfig`, such as `image_size` (interpolates the positions) or `hidden_size`.

        Raises:
            CheckpointError: a folder that holds no such model, or not all of its weights.
            ConfigError: unknown fields, fields that the trained weights do not fit, or more layers than there are.
        """
        towers: dict[Kind, PreTrainedModel] = {
            "vision_config": read_tower(vision, "vision_config", vision_layers),
            "text_config": read_tower(text, "text_config"),
        }
        families = {name: {"model_type": tower.config.model_type} for name, tower in towers.items()}
        VLEConfig.check_fields(
            {**config_fields, **{n: {**f, **(config_fields.get(n) or {})} for n, f in families.items()}}
        )
        given = {name: dict(config_fields.pop(name, None) or {}) for name in towers}
        image_size = config_fields.pop("image_size", given["vision_config"].pop("image_size", None))
        for name, tower in towers.items():
            refuse_unfit(tower, given[name], f"{name}.")
            refuse_unfit(tower, {field: config_fields[field] for field in config_fields if ROUTED.get(field) == name})
        sub_configs: dict[str, Any] = {
            name: {**tower.config.to_dict(), **given[name]} for name, tower in towers.items()
        }
        model = cls(cls.config_class(**sub_configs, **config_fields))
        model.load_towers(towers)
        if image_size is not None:
            model.resize_images(image_size)
        return model.eval()

    def load_towers(self, towers: Mapping[Kind, PreTrainedModel]) -> None:
        """Copy the weights of trained encoders of the same configuration; only image sizes may differ."""
        for name, tower in towers.items():
            own = self.backbone.vision_model.vision_model if name == "vision_config" else self.backbone.text_model
            own.load_state_dict(fit_tables(tower.state_dict(), own.state_dict()), strict=False)

    def resize_images(self, image_size: int) -> None:
        """Interpolate the image positions (bicubic) for a side of `image_size` pixels, and configure that size.

        Raises ConfigError if it is not a multiple of the patch.
        """
        check_image_size(self.config.vision_config, image_size)
        self.backbone.vision_model.resize_images(image_size)
        self.config.image_size = image_size

    def add_token_types(self, num_types: int) -> None:
        """Extend the type table to `num_types` rows, as `extend_token_types` does, and configure that number.

        Each new row starts at a small random distance from the row for text, so that named objects can be
        distinguished. Raises CheckpointError if rows would be lost.
        """
        table = self.backbone.token_type_embeddings.weight
        extended = extend_token_types(table.detach(), num_types)
        extended[len(table) :] += torch.randn_like(extended[len(table) :]) * self.config.initializer_range
        self.backbone.token_type_embeddings = nn.Embedding.from_pretrained(extended, freeze=not table.requires_grad)
        self.config.num_token_types = num_types

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Tie the MLM decoder to the word embeddings, as the released code does whatever its file holds.

        transformers would not tie them if a file holds two different matrices. The file's decoder, which is not used,
        is kept separately, so that saving writes what was loaded.
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
        """Replace the decoder of masked words, as `resize_token_embeddings` does for a larger or smaller vocabulary."""
        predictions = self.get_submodule("mlm_score.1.predictions")
        predictions.register_module("decoder", new_embeddings)
        bias = new_embeddings.get_parameter("bias")
        if not self.config.tie_word_embeddings:  # a shared tensor would be saved under one of its names
            bias = nn.Parameter(bias.detach().clone())
        predictions.register_parameter("bias", bias)
        self.decoder_in_file = None  # of the old size

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a directory that the released code can read, with all of its keys (`released_state`)."""
        state = self.released_state(self.state_dict() if state_dict is None else state_dict)
        super().save_pretrained(save_directory, is_main_process, state, **kwargs)
        write_checksums(self, save_directory, is_main_process, kwargs)

    def released_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this model with exactly the keys that the released code writes.

        They include buffers of position indices and a copy of the tied MLM decoder.
        """
        prefix = "" if self.base_model is self else f"{self.base_model_prefix}."
        config = self.config
        counts = {
            name: count
            for name, (is_released, count) in {
                "vision_model.vision_model.embeddings": (
                    isinstance(config.vision_config, CLIPVisionConfig),
                    1 + config.num_patches,
                ),
                "text_model.embeddings": (
                    isinstance(config.text_config, DebertaV2Config),
                    config.text_config.max_position_embeddings,
                ),
            }.items()
            if is_released
        }
        released = dict(state)
        if config.tie_word_embeddings:
            released = {key: tensor for key, tensor in state.items() if not key.endswith("predictions.decoder.bias")}
        for key, tensor in released.items():
            if config.tie_word_embeddings and key.endswith("predictions.decoder.weight"):
                released[key] = tensor.clone() if self.decoder_in_file is None else self.decoder_in_file
        return released | {f"{prefix}{name}.position_ids": torch.arange(count)[None] for name, count in counts.items()}


class VLEModel(VLEPreTrainedModel):
    """The backbone: encodes an image and a text, each in the context of the other.

    >>> model = VLEModel(VLEConfig.from_preset("vle-tiny"))
    >>> model(torch.tensor([[1, 5, 2]]), torch.zeros(1, 3, 64, 64)).pooler_output.shape
    torch.Size([1, 256])
    """

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vision_model = VLEVisionTower(config.vision_config)
        self.text_model = text_tower(config.text_config)
        self.text_projection_layer = nn.Linear(config.text_config.hidden_size, config.hidden_size)
        self.image_projection_layer = nn.Linear(self.vision_model.shape.width, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.num_token_types, config.hidden_size)
        self.cross_modal_image_layers = nn.ModuleList(VLEFusionLayer(config) for _ in range(config.num_hidden_layers))
        self.cross_modal_text_layers = nn.ModuleList(VLEFusionLayer(config) for _ in range(config.num_hidden_layers))
        self.cross_modal_image_pooler = VLEPooler(config)
        self.cross_modal_text_pooler = VLEPooler(config)
        self.known_texts: KnownTexts | None = None  # in training with a frozen text tower, the states that it gave
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Images (B, C, H, W) -> the image tower's states at the fusion's width, (B, P, D), without a type.

        In place of images it takes the image tower's own states (B, P, vision width), computed earlier.
        """
        if pixel_values.dim() == 3 and pixel_values.shape[-1] == self.image_projection_layer.in_features:
            return self.image_projection_layer(pixel_values)
        if pixel_values.shape[0] == 0:  # transformers' CLIP does not accept an empty batch
            height, width = (side // self.config.patch_size for side in pixel_values.shape[-2:])
            return pixel_values.new_zeros(0, 1 + height * width, self.config.hidden_size)
        return self.image_projection_layer(self.vision_model(pixel_values)[0])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Texts (B, T) -> the text tower's states at the fusion's width, (B, T, D), without a type."""
        return self.text_projection_layer(self.read_text(input_ids, attention_mask)[0])

    def read_text(
        self, input_ids: Tensor, attention_mask: Tensor | None, keep_maps: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Texts (B, T) -> the text tower's own states (B, T, text width) and, if requested, the maps of its layers."""
        check_text(input_ids, attention_mask)
        longest = self.config.max_position_embeddings
        if input_ids.shape[1] > longest:
            raise DataError(
                f"a text of {input_ids.shape[1]} tokens is longer than this model's {longest} positions; truncate it"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if input_ids.shape[0] == 0:
            return self.text_projection_layer.weight.new_zeros(
                0, input_ids.shape[1], self.config.text_config.hidden_size
            ), ()
        if self.known_texts is not None and self.training and not keep_maps:
            return self.known_texts(input_ids, attention_mask), ()
        config = self.text_model.config
        with eager(config) if keep_maps and not isinstance(self.text_model, VLETextTower) else nullcontext():
            output = self.text_model(input_ids, attention_mask=attention_mask, output_attentions=keep_maps or None)
        return output.last_hidden_state, tuple(output.attentions or ()) if keep_maps else ()

    def typed(self, states: Tensor, modality: int, type_ids: Tensor | None = None) -> Tensor:
        """Add type vectors to states (B, S, D) of `encode_image` or `encode_text`: those of `type_ids` (B, S), or of
        `modality` (`TEXT_TYPE` or `IMAGE_TYPE`) for all tokens."""
        if type_ids is None:
            type_ids = torch.tensor(modality, device=states.device)
        return states + self.token_type_embeddings(type_ids)

    def mix(
        self, image: Stream, text: Stream, keep_maps: bool = False, kept: list[Tensor] | None = None
    ) -> tuple[Stream, Stream, list[tuple[Tensor | None, ...]]]:
        """Pass both streams through all blocks but the last; also returns each block's maps in the order of `MAPS`.

        The input of each block is appended to `kept`, text tokens first.
        """
        maps = []
        *blocks, _ = zip(self.cross_modal_image_layers, self.cross_modal_text_layers, strict=True)
        for image_layer, text_layer in blocks:
            if kept is not None:
                kept.append(torch.cat([text.whole(), image.whole()], dim=1))
            # Both layers of a block read the previous block.
            image_states, *image_maps = image_layer(image, image, text, keep_maps)
            text_states, *text_maps = text_layer(text, text, image, keep_maps)
            image, text = Stream(image_states, image.mask), Stream(text_states, text.mask)
            maps.append((*image_maps, *text_maps))
        return image, text, maps

    def read(
        self, image: Stream, text: Stream, reads: Reads, keep_maps: bool = False
    ) -> tuple[Fused, tuple[Tensor | None, ...]]:
        """The parts of the last block and the poolers that `reads` selects, and the last block's maps."""
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

    def fuse(
        self,
        image: Stream,
        text: Stream,
        reads: Reads = EVERYTHING,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> Fused:
        """Pass image and text, already `typed`, through the whole fusion. With maps or hidden states, everything is
        computed."""
        kept: list[Tensor] | None = [] if output_hidden_states else None
        image, text, maps = self.mix(image, text, output_attentions, kept)
        if output_attentions or output_hidden_states:
            reads = EVERYTHING
        fused, last_maps = self.read(image, text, reads, output_attentions)
        if kept is not None and fused.text_hidden is not None and fused.image_hidden is not None:
            last = torch.cat([fused.text_hidden, fused.image_hidden], dim=1)
            kept += [torch.cat([text.whole(), image.whole()], dim=1), last]
            fused = fused._replace(hidden_states=tuple(kept))
        if output_attentions:
            fused = fused._replace(attentions=dict(zip(MAPS, zip(*maps, last_maps, strict=True), strict=True)))
        return fused

    @returns_tuple_if_asked
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        reads: Reads = EVERYTHING,
    ) -> VLEOutput:
        """Encode image-text pairs; the order of the arguments is the released one.

        Args:
            input_ids: (B, T), T at most `config.max_position_embeddings`.
            pixel_values: (B, C, H, W), whose sides are multiples of the patch; for other sizes than the configured
                one, the positions are interpolated.
            attention_mask: (B, T), 1 = real token, 0 = padding on the right; by default all are real.
            token_type_ids: (B, T) rows of the fusion's type table; by default all are 0, text.
            output_attentions: also return the maps of every layer; this call then computes attention eagerly.
            output_hidden_states: also return the states before and after every block of the fusion.
            reads: what the caller reads from the output; the rest is not computed, and None. With maps or hidden
                states, everything is computed.

        Raises:
            DataError: sizes that this model cannot take, types that it does not have, or unequal numbers of images and
                texts.
        """
        check_text(input_ids, attention_mask)
        if pixel_values.shape[0] != input_ids.shape[0]:
            raise DataError(
                f"pixel_values hold {len(pixel_values)} images, input_ids {len(input_ids)} texts; give the same number "
                "of both"
            )
        if token_type_ids is not None and token_type_ids.numel():
            highest = int(token_type_ids.max())
            if highest >= self.config.num_token_types:
                raise DataError(
                    f"token_type_ids go up to {highest}, the model has {self.config.num_token_types} types; load it "
                    f"with num_token_types={highest + 1} or more"
                )
        if output_attentions and len(pixel_values):
            image, image_maps = self.vision_model(pixel_values, True)
            image = self.image_projection_layer(image)
        else:
            image, image_maps = self.encode_image(pixel_values), ()
        text, text_maps = self.read_text(input_ids, attention_mask, output_attentions)
        fused = self.fuse(
            Stream(self.typed(image, IMAGE_TYPE)),
            Stream(
                self.typed(self.text_projection_layer(text), TEXT_TYPE, token_type_ids),
                key_mask(attention_mask, text.dtype),
            ),
            reads,
            output_attentions,
            output_hidden_states,
        )
        output = VLEOutput(**fused._asdict())
        if fused.attentions is not None:
            output.attentions = {"text": text_maps, "image": image_maps, **fused.attentions}
        return output
