"""The configuration of VLE: two towers, the fusion on top of them, and what its heads and objectives need.

Sources: [R] the authors' README and released checkpoints, [C] their released code, [M] METER (arXiv 2111.02387), on
which VLE builds, [D] stated nowhere and decided here. The defaults are VLE-base.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from evle.errors import ConfigError, nearest
from evle.models.fields import Count, NotNegative, Positive, Rate, checker, field_problems, refuse_kernels
from evle.models.presets import PRESETS
from evle.models.vle.towers import (
    longest_text,
    read_image_size,
    refuse_no_encoder,
    refuse_unknown_family,
    vision_shape,
    write_image_size,
    write_longest_text,
)

OBJECTIVES = ("mlm", "itm", "mpc", "pbc", "itc")

TEXT_BASE: dict[str, Any] = {
    "vocab_size": 128100,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "pad_token_id": 0,
}
"""DeBERTa-v3-base (its published config.json)."""

VISION_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 11,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
"""CLIP ViT-B/16 without its last layer: with 12 layers the model would have more than the published 378 million
parameters."""

ROUTED = {
    "image_size": "vision_config",
    "patch_size": "vision_config",
    "num_channels": "vision_config",
    "vocab_size": "text_config",
    "max_position_embeddings": "text_config",
    "pad_token_id": "text_config",
}
"""Fields of a tower that may be read and set on the whole configuration."""

FAMILIES = {"vision_config": "clip_vision_model", "text_config": "deberta-v2"}
"""The families of the published towers, to which fields without a `model_type` belong."""


def _routed(name: str) -> property:
    sub = ROUTED[name]

    def read(self: "VLEConfig") -> Any:
        return getattr(getattr(self, sub), name)

    def write(self: "VLEConfig", value: Any) -> None:
        setattr(getattr(self, sub), name, value)

    return property(read, write, doc=f"`{sub}.{name}`")


class VLEConfig(PreTrainedConfig):
    """Sizes and switches of a VLE model; the defaults are VLE-base at 224 pixels.

    A released `config.json` is read as it is. Raises `ConfigError`, naming every field that cannot work.

    >>> VLEConfig.from_preset("vle-tiny", image_size=96).vision_config.image_size
    96

    Attributes: Towers
        text_config: the configuration of any text encoder of transformers, as fields with its `model_type`. Fields
            without a `model_type` are those of a `DebertaV2Config`; the default is DeBERTa-v3-base [R].
        vision_config: the same for any image encoder. Fields without a `model_type` are those of a `CLIPVisionConfig`;
            the default is CLIP ViT-B/16 with 11 layers [R].
        image_size, patch_size, num_channels, vocab_size, max_position_embeddings, pad_token_id: fields of the towers
            that can also be read and set here. `patch_size` is the side in pixels of the square that one image state
            covers, and `max_position_embeddings` the maximum number of tokens of a text.

    Attributes: Fusion
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: width, number of blocks, heads, and
            width of the feed-forwards of both streams [R].
        hidden_act, hidden_dropout_prob, attention_probs_dropout_prob, layer_norm_eps, initializer_range: as in BERT
            [C].
        position_init_range: standard deviation of the image tower's new positions; None is initializer_range [C]. Patch
            embeddings have about 0.6: with positions of 0.02 a model learns to use positions, and so shapes, only in
            long training, so short runs from random weights need about 0.5, and 2 to learn where things are (recipe
            scenes-composition) [D].
        num_token_types: rows of the type table: 0 is text, 1 is image, and from 2 upwards the objects that a VCR text
            names [C: 2, and 83 in the VCR checkpoints].
        classifier_dropout: written by the release and used by nothing; kept so that configurations round-trip [C].
        tie_word_embeddings: whether the MLM decoder is the word embedding [C].

    Attributes: Pre-training
        objectives: any of "mlm", "itm", "mpc", "pbc" [R], and "itc" [D].
        objective_weights: weight of each objective's loss, 1 by default [D: the release states none].
        object_classes: the classes of masked patch-box classification, in the order of its labels.
        mpc_readout: what that classification reads: "box_token", a token made from the states of the blacked-out
            patches that goes through the fusion [R], or "patches", the mean of these patches' states after the fusion
            [D].

    Attributes: Heads
        projection_dim: width of retrieval embeddings; None is hidden_size [D].
        pooling: what ITC projects: "cls", the first token of each tower, or "mean", the means of the patch states and
            of the real text tokens, which learns faster from scratch [D].
        text_projection_init: "normal", or "identity": both projections of the text states start as the identity, so
            that embeddings of texts are those of the text tower until training changes them (with
            model.freeze=[text_model,text_projection_layer,contrast.text_projection] it never does). Needs hidden_size
            and projection_dim of the text tower's width [D].
        temperature_init: initial ITC temperature [D: 0.07], kept within [0.001, 0.5].
        num_labels, id2label: the answers of VQA (transformers' fields).
        vcr_token_types: give each object that a VCR text names its own token type [R]; false leaves these types out, as
            METER does.
        vcr_box_tokens: append a token for each named object to the image [R]; false leaves these tokens out.
        vcr_shares_image: encode an image once for all candidates [D]; false encodes it again for each candidate, as the
            release does, with the same scores.
    """

    model_type = "vle"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": SubConfigSpec(AutoConfig, model_type=FAMILIES["text_config"], init_kwargs=TEXT_BASE),
        "vision_config": SubConfigSpec(AutoConfig, model_type=FAMILIES["vision_config"], init_kwargs=VISION_BASE),
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "losses",
        "image_hidden",
        "text_hidden",
        "pooler_output",
        "hidden_states",
        "itm_logits",
        "itm_labels",
        "pbc_logits",
        "mpc_logits",
        "attentions",
    ]

    text_config: Any = None  # given as fields, a configuration or None; then always a configuration
    vision_config: Any = None  # likewise
    num_token_types: Count = 2
    hidden_size: Count = 768
    num_hidden_layers: Count = 6
    num_attention_heads: Count = 12
    intermediate_size: Count = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    initializer_range: NotNegative = 0.02
    position_init_range: NotNegative | None = None
    layer_norm_eps: Positive = 1e-12
    classifier_dropout: float | None = None
    tie_word_embeddings: bool = True

    objectives: tuple[str, ...] = ("mlm", "itm", "mpc", "pbc")
    objective_weights: dict[str, NotNegative] | None = None
    object_classes: tuple[str, ...] = ()
    mpc_readout: str = "box_token"
    vcr_token_types: bool = True
    vcr_box_tokens: bool = True
    vcr_shares_image: bool = True

    projection_dim: Count | None = None
    pooling: str = "cls"
    text_projection_init: str = "normal"
    temperature_init: Positive = 0.07

    num_channels = _routed("num_channels")
    vocab_size = _routed("vocab_size")
    pad_token_id = _routed("pad_token_id")

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the image tower is configured for."""
        return read_image_size(self.vision_config)

    @image_size.setter
    def image_size(self, value: int) -> None:
        write_image_size(self.vision_config, value)

    @property
    def patch_size(self) -> int:
        """Side in pixels of the square that one image state covers."""
        return vision_shape(self.vision_config).patch_size

    @patch_size.setter
    def patch_size(self, value: int) -> None:
        self.vision_config.patch_size = value

    @property
    def max_position_embeddings(self) -> int:
        """The maximum number of tokens of a text."""
        return longest_text(self.text_config)

    @max_position_embeddings.setter
    def max_position_embeddings(self, value: int) -> None:
        write_longest_text(self.text_config, value)

    def __post_init__(self, **kwargs: Any) -> None:
        # Setting a field of a tower must not change the caller's object.
        self.text_config, self.vision_config = copy.deepcopy(self.text_config), copy.deepcopy(self.vision_config)
        if isinstance(self.vision_config, dict) and "vision_config" in self.vision_config:
            self.vision_config = _half(self.vision_config, "vision_config")  # of a whole CLIP, as the release reads it
        elif not isinstance(self.vision_config, dict):
            self.vision_config = getattr(self.vision_config, "vision_config", self.vision_config)
        for name in FAMILIES:
            refuse_unknown_family(name, getattr(self, name))
        for name in ("object_classes", "objectives"):
            if isinstance(given := getattr(self, name), list):
                setattr(self, name, tuple(given))  # JSON knows no tuples
        try:
            super().__post_init__(**kwargs)
        except StrictDataclassError as error:  # of a tower's field
            raise ConfigError(f"this VLE model cannot be built: {_last_words(error)}") from None
        for name in FAMILIES:
            refuse_no_encoder(name, getattr(self, name))
        towers: tuple[tuple[str, Any, Any], ...] = (
            ("text_config.", self.text_config, TEXT_FIELDS),
            ("vision_config.", self.vision_config, VISION_FIELDS),
        )
        # Other families check their own fields, which may be lists (one number per stage).
        problems: list[str] = [
            line
            for where, tower, fields in towers
            if tower.model_type in FAMILIES.values()
            for line in field_problems(tower, fields, where)
        ]
        problems = [*field_problems(self, FIELDS), *problems] or list(self._problems())
        if problems:
            raise ConfigError("this VLE model cannot be built: " + "; ".join(problems))
        write_image_size(self.vision_config, self.image_size)  # also where the family's own fields do not hold it
        self.objectives = tuple(name for name in OBJECTIVES if name in self.objectives)  # in whatever order given

    @property
    def num_patches(self) -> int:
        """Patches of an image of the configured size, without [CLS]."""
        return self.patches_per_side**2

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    def weight_of(self, objective: str) -> float:
        """The weight of one objective's loss."""
        return (self.objective_weights or {}).get(objective, 1.0)

    def with_changes(self, **changes: Any) -> Self:
        """A copy with fields replaced, checked as a whole; refuses unknown names.

        `text_config` and `vision_config` may be partial: fields that they do not contain keep their values.
        """
        self.check_fields({**changes, **self._with_families(changes)})
        fields = {name: value for name, value in self.to_dict().items() if name != "architectures"}
        for name in self.sub_configs_defaults:
            if (
                name in changes
                and changes[name].get("model_type", fields[name]["model_type"]) == fields[name]["model_type"]
            ):
                changes[name] = {**fields[name], **changes[name]}
        if "num_labels" in changes and "id2label" not in changes:
            changes |= {"id2label": None, "label2id": None}
        # No dictionary of a configuration has it.
        attention = changes.pop("attn_implementation", self._attn_implementation)
        return type(self).from_dict({**fields, **changes}, attn_implementation=attention)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """As transformers does, for the fields of a file. Raises CheckpointError where they name code to download."""
        refuse_kernels(config_dict, kwargs.get("name_or_path") or "config.json")
        return super().from_dict(config_dict, **kwargs)

    def _with_families(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The towers in `changes`, with the `model_type` that determines their fields."""
        return {
            name: {"model_type": getattr(self, name).model_type, **changes[name]}
            for name in FAMILIES
            if isinstance(changes.get(name), Mapping)
        }

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """The configuration `name` of `evle.models.presets`, with fields replaced; refuses unknown names and fields.

        `text_config` and `vision_config` may be partial: fields that they do not contain are those of the preset.
        """
        known = [preset for preset, (family, _) in PRESETS.items() if family == cls.model_type]
        if name not in known:
            raise ConfigError(f"there is no VLE preset {name!r}; {nearest(name, known)}")
        cls.check_fields(overrides)
        fields = {**PRESETS[name][1], **overrides}
        for sub, base in (("text_config", TEXT_BASE), ("vision_config", VISION_BASE)):
            given = overrides.get(sub) or {}
            if given.get("model_type", FAMILIES[sub]) == FAMILIES[sub]:
                given = {**base, **PRESETS[name][1].get(sub, {}), **given}
            fields[sub] = given
        return cls(**fields)

    @classmethod
    def check_fields(cls, fields: dict[str, Any]) -> None:
        """Refuse names that are no field of this configuration, or of a tower's, with the nearest one."""
        known = {*cls.__dataclass_fields__, *ROUTED, "num_labels", "attn_implementation"}
        unknown = [f"{name!r} ({nearest(name, known, 'docs/vle.md')})" for name in fields if name not in known]
        for sub, spec in cls.sub_configs_defaults.items():
            given = fields.get(sub) or {}
            if not isinstance(given, Mapping):
                raise ConfigError(f"{sub} {given!r} must be fields of a configuration, such as {{model_type: ...}}")
            refuse_unknown_family(sub, given)
            config_class = CONFIG_MAPPING[given.get("model_type", FAMILIES[sub])]
            allowed = {*config_class.__dataclass_fields__, *spec.init_kwargs, "model_type", "image_size"}
            unknown += [
                f"{sub}.{name!r} ({nearest(name, allowed, f'the {config_class.__name__} of transformers')})"
                for name in given
                if name not in allowed
            ]
        if unknown:
            raise ConfigError("no such field of a VLE model: " + ", ".join(unknown))

    def to_diff_dict(self) -> dict[str, Any]:
        """Every field, including defaults, because the released code has other defaults than current transformers."""
        return self.to_dict()

    def _problems(self) -> Iterator[str]:
        for where, config in (("", self), ("text_config.", self.text_config), ("vision_config.", self.vision_config)):
            width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
            if isinstance(width, int) and isinstance(heads, int) and width % heads:
                yield f"{where}hidden_size {width} is not a multiple of {where}num_attention_heads {heads}"
        if self.image_size % self.patch_size:
            yield f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
        if self.mpc_readout not in ("box_token", "patches"):
            yield f"mpc_readout {self.mpc_readout!r} is not one of box_token, patches"
        if self.num_token_types < 2:
            yield f"num_token_types {self.num_token_types} must be at least 2, text and image"
        if self.pooling not in ("cls", "mean"):
            yield f"pooling {self.pooling!r} is not one of cls, mean"
        if self.text_projection_init not in ("normal", "identity"):
            yield f"text_projection_init {self.text_projection_init!r} is not one of normal, identity"
        for name in (*self.objectives, *(self.objective_weights or {})):
            if name not in OBJECTIVES:
                yield f"unknown objective {name!r} ({nearest(name, OBJECTIVES)})"
        if len(set(self.object_classes)) < len(self.object_classes):
            yield "object_classes contains a duplicate"


def _half(fields: dict[str, Any], name: str) -> Any:
    """The fields of one tower, with its `model_type`, from the configuration of a model with both modalities."""
    half = fields[name]
    family = fields.get("model_type", "clip")
    if isinstance(half, dict) and "model_type" not in half and family in CONFIG_MAPPING:
        default = CONFIG_MAPPING[family].sub_configs.get(name)
        half = {"model_type": getattr(default, "model_type", FAMILIES[name]), **half}
    return half


def _last_words(error: StrictDataclassError) -> str:
    return str(error).splitlines()[-1].strip().removeprefix("TypeError: ")


FIELDS = checker({name: kind for name, kind in VLEConfig.__annotations__.items() if name != "sub_configs_defaults"})
TOWER = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"), Count),
    "hidden_act": str,
    "layer_norm_eps": Positive,
}
TEXT_FIELDS = checker(
    {
        **TOWER,
        "vocab_size": Count,
        "max_position_embeddings": Count,
        "position_buckets": int,
        "hidden_dropout_prob": Rate,
        "attention_probs_dropout_prob": Rate,
    }
)
VISION_FIELDS = checker(
    {**TOWER, **dict.fromkeys(("image_size", "patch_size", "num_channels"), Count), "attention_dropout": Rate}
)
