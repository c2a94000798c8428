"""The configuration of EVE: every size, switch and choice, each with its source.

Sources: [P] the paper (arXiv 2308.11971), [C] the authors' released fine-tuning code, [D] stated by neither and
decided here. The defaults are EVE-Base.
"""

import math
from collections.abc import Iterator
from typing import Any, Self

from transformers import PreTrainedConfig

from evle.errors import ConfigError, nearest
from evle.models.fields import Count, NotNegative, Positive, Rate, checker, field_problems, refuse_kernels
from evle.models.presets import PRESETS

OBJECTIVES = ("mim", "mlm", "itc", "itm")


class EVEConfig(PreTrainedConfig):
    """Sizes and switches of an EVE model; the defaults are EVE-Base at 224 pixels.

    Raises `ConfigError`, naming every field that cannot work, when the fields contradict each other.

    >>> EVEConfig.from_preset("eve-tiny", num_experts=8).num_experts
    8

    Attributes: Backbone
        vocab_size: 64000, a BPE trained on BookCorpus and Wikipedia [P].
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: width, depth, heads, and the width of
            feed-forwards and experts [P].
        image_size, patch_size, num_channels: side in pixels of the square images that the position table is for; other
            sizes are interpolated at run time [P].
        stem_channels: channels of strided convolutions in front of the patch projection, each stage halving the
            image; 2 ** stages must be patch_size. Empty is the paper's plain patch projection; convolutions are
            for training from few images [D].
        stem_blocks: residual blocks of two convolutions after each stage of the stem, one number per stage; empty
            is none [D].
        max_position_embeddings: rows of the text position table, which is the length of the longest text [C: 196].
        hidden_act: activation of feed-forwards and experts [C: quick_gelu].
        layer_norm_eps: [C: 1e-6].
        layer_scale_init: initial LayerScale on both branches of a block [C: 0.1].
        drop_path_rate: rate of stochastic depth in the last block; it grows linearly from 0 in the first [C: 0.1].
        hidden_dropout_prob: dropout of the text embedding [C: 0.1].
        attention_dropout: [C: 0].
        initializer_range: standard deviation of the truncated normal initialisation [C: 0.02].
        position_init_range: standard deviation of new positions, type vectors and the class token; None is
            initializer_range [C]. They are added to word embeddings of standard deviation 1: at 0.02 a model learns to
            use order and position only in long training, so short runs need about 0.5 [D].

    Attributes: Routing
        soft_layers: 0-based indices of the soft-routed blocks [P: top 2 of Base, top 3 of Large]; the other blocks are
            hard-routed.
        deep_feed_forward: feed-forward of those blocks: "soft" (experts), or the paper's ablations "hard" (one per
            modality) and "shared" (one for both) [P, table 7].
        num_experts, num_experts_per_tok: experts per block, and how many of them each token uses: 32 and 2 [P]. With 1,
            the output is weighted by the gate's probability, as in Switch Transformers; otherwise the router would have
            no gradient [D].
        modality_routing: whether tokens get their modality's vector before the router and the experts [P].
        router_aux_loss_coef: weight of the load-balancing loss, 0 for none [P: 0.001].
        second_choice: how training picks the second expert, "sample" (Gumbel noise on the logits [C]) or "top".
            Evaluation always takes the best two, so it is deterministic; the released code samples there too.
        capacity_factor: None keeps every token [P, and ours]. A float is the released behaviour [C: 1.0]: an
            expert takes max(4, ceil(capacity_factor * 2 * tokens / experts)) tokens of the flattened batch and drops
            the rest.
        route_padding: whether padding tokens are routed (and use up capacity). None routes them, as the released code
            does, only if capacity_factor is set. Without a capacity this changes no output of a real token.

    Attributes: Pre-training
        objectives: any of "mim", "mlm" [P], and for comparison "itc", "itm" [P, tables 1 and 6].
        objective_weights: weight of each objective's loss, 1 by default [P: equal weights].
        joint_masking: mask image and text in one pass instead of two [P, table 5: worse].
        mim_target: what MIM predicts for a masked patch: its "pixels" [P], the "codes" of an image tokenizer or the
            "features" of a trained image model [P, tables 1 and 3: worse].
        mim_teacher: the model folder that gives codes or features; its weights are frozen and not saved.
        mim_target_size: number of codes, or width of the features.
        mim_code_width: for codes that are clusters of a trained image model's features, the width of these; None for
            the codes of an image tokenizer. The centres of the clusters are saved with the weights.
        mim_error: the error of predicted features: "squared" (MaskFeat, data2vec) or "cosine" (MVP, EVA) [D].
        mim_form: "decoder": only visible patches enter the encoder, and a light decoder predicts [P]; "encoder": a
            mask token enters for each masked patch, and a linear layer on the encoder predicts, as in BEiT [D].
        decoder_hidden_size, decoder_num_layers, decoder_num_heads: the light pixel decoder; the paper only states that
            it is narrower. Width and heads are MAE's. MAE's 8 layers would take a seventh of a step's operations and
            reduce the paper's speed-up over contrast and matching from 3.2 to 3.1; 4 layers keep it [D].
        norm_pixel_target: normalise the target per patch, as in MAE's best run; the paper uses raw pixels [P: False].
        tie_word_embeddings: share the MLM output matrix with the word embedding [D: no].

    Attributes: Heads
        projection_dim: width of retrieval embeddings; None is hidden_size [C].
        pooling: what ITC projects: "cls", the class token and the first text token [C], or "mean", the means of the
            patch states and of the real text tokens, which learns faster from scratch [D].
        temperature_init: initial ITC temperature [C: 0.07], kept within [0.001, 0.5].
        nlvr2_head: "bi-attention" (the published runs) or "plain" [C].
        vqa_slot: read VQA's answer at a [MASK] between the question and [SEP], by a head shaped like MLM's, instead of
            at the [CLS] of the text [D]. Pre-trained weights can then answer before any fine-tuning: see
            `answer_tokens`.
        answer_tokens: with vqa_slot, the token ids of each answer. An answer's row of the head starts from the mean of
            MLM's rows for its tokens, if the initial weights have an MLM head [D].
        vqa_balance_loss: add the balance loss when fine-tuning VQA; the released code computes it but does not add it
            [C: False].
        released_eval_features: compute retrieval features at evaluation without the final LayerNorm, as the released
            evaluation does, although its training applies it [C].
        num_labels, id2label: the answers of VQA (transformers' fields).
    """

    model_type = "eve"
    # What `transformers.Trainer` does not gather in evaluation, so that predictions are the logits alone.
    keys_to_ignore_at_inference = [  # noqa: RUF012
        "losses",
        "itm_logits",
        "itm_labels",
        "image_hidden",
        "text_hidden",
        "router",
        "hidden_states",
        "attentions",
    ]

    vocab_size: Count = 64000
    hidden_size: Count = 768
    num_hidden_layers: Count = 12
    num_attention_heads: Count = 12
    intermediate_size: Count = 3072
    image_size: Count = 224
    patch_size: Count = 16
    num_channels: Count = 3
    stem_channels: tuple[Count, ...] = ()
    stem_blocks: tuple[int, ...] = ()
    max_position_embeddings: Count = 196
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Positive = 1e-6
    layer_scale_init: NotNegative = 0.1
    drop_path_rate: Rate = 0.1
    hidden_dropout_prob: Rate = 0.1
    attention_dropout: Rate = 0.0
    initializer_range: NotNegative = 0.02
    position_init_range: NotNegative | None = None

    soft_layers: tuple[int, ...] = (10, 11)
    deep_feed_forward: str = "soft"
    num_experts: Count = 32
    num_experts_per_tok: Count = 2
    modality_routing: bool = True
    router_aux_loss_coef: NotNegative = 0.001
    second_choice: str = "sample"
    capacity_factor: Positive | None = None
    route_padding: bool | None = None

    objectives: tuple[str, ...] = ("mim", "mlm")
    objective_weights: dict[str, NotNegative] | None = None
    joint_masking: bool = False
    mim_target: str = "pixels"
    mim_teacher: str | None = None
    mim_target_size: Count | None = None
    mim_code_width: Count | None = None
    mim_error: str = "squared"
    mim_form: str = "decoder"
    decoder_hidden_size: Count = 512
    decoder_num_layers: Count = 4
    decoder_num_heads: Count = 16
    norm_pixel_target: bool = False
    tie_word_embeddings: bool = False

    projection_dim: Count | None = None
    pooling: str = "cls"
    temperature_init: Positive = 0.07
    nlvr2_head: str = "bi-attention"
    vqa_slot: bool = False
    answer_tokens: list[list[int]] | None = None
    vqa_balance_loss: bool = False
    released_eval_features: bool = False
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("soft_layers", "stem_channels", "stem_blocks", "objectives"):
            if isinstance(given := getattr(self, name), list):
                setattr(self, name, tuple(given))  # JSON knows no tuples
        super().__post_init__(**kwargs)
        problems = list(field_problems(self, FIELDS)) or list(self._problems())
        if problems:
            raise ConfigError("this EVE model cannot be built: " + "; ".join(problems))
        self.soft_layers = tuple(sorted(self.soft_layers))  # the order has no meaning, nor has that of objectives
        self.objectives = tuple(name for name in OBJECTIVES if name in self.objectives)

    @property
    def num_patches(self) -> int:
        """Patches of an image of the configured size, without [CLS]."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def has_mask_token(self) -> bool:
        """Whether a mask token enters the encoder for masked patches."""
        return self.mim_form == "encoder" and "mim" in self.objectives

    @property
    def mim_outputs(self) -> int:
        """Numbers that MIM predicts for a masked patch."""
        return self.mim_target_size or self.num_channels * self.patch_size**2

    @property
    def blocks_of_stem(self) -> tuple[int, ...]:
        """`stem_blocks` with its default resolved."""
        return self.stem_blocks or (0,) * len(self.stem_channels)

    @property
    def pads_are_routed(self) -> bool:
        """`route_padding` with its default resolved."""
        return self.capacity_factor is not None if self.route_padding is None else self.route_padding

    def weight_of(self, objective: str) -> float:
        """The weight of one objective's loss."""
        return (self.objective_weights or {}).get(objective, 1.0)

    def expert_capacity(self, num_tokens: int) -> int | None:
        """Tokens one expert may take of `num_tokens`, None for all; see `capacity_factor`."""
        if self.capacity_factor is None:
            return None
        return max(4, math.ceil(self.capacity_factor * 2 * num_tokens / self.num_experts))

    def with_changes(self, **changes: Any) -> Self:
        """A copy with fields replaced, checked as a whole; refuses unknown names."""
        self.check_fields(changes)
        fields = {name: value for name, value in self.to_dict().items() if name != "architectures"}
        asked = {  # no dictionary of a configuration has them
            name: changes.pop(name, getattr(self, f"_{name}"))
            for name in ("attn_implementation", "experts_implementation")
        }
        return type(self).from_dict({**fields, **changes}, **asked)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """As transformers does, for the fields of a file. Raises CheckpointError where they name code to download."""
        refuse_kernels(config_dict, kwargs.get("name_or_path") or "config.json")
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> Self:
        """The configuration `name` of `evle.models.presets`, with fields replaced; refuses unknown names and fields."""
        known = [preset for preset, (family, _) in PRESETS.items() if family == cls.model_type]
        if name not in known:
            raise ConfigError(f"there is no EVE preset {name!r}; {nearest(name, known)}")
        cls.check_fields(overrides)
        return cls(**{**PRESETS[name][1], **overrides})

    @classmethod
    def check_fields(cls, fields: dict[str, Any]) -> None:
        """Refuse names that are no field of this configuration, with the nearest one."""
        known = {*cls.__dataclass_fields__, "num_labels", "attn_implementation", "experts_implementation"}
        unknown = [f"{name!r} ({nearest(name, known, 'docs/eve.md')})" for name in fields if name not in known]
        if unknown:
            raise ConfigError("no such field of an EVE model: " + ", ".join(unknown))

    def _problems(self) -> Iterator[str]:
        if self.hidden_size % self.num_attention_heads:
            yield f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
        width, heads = self.decoder_hidden_size, self.decoder_num_heads
        if width % heads:
            yield f"decoder_hidden_size {width} is not a multiple of decoder_num_heads {heads}"
        if width % 4:
            yield f"decoder_hidden_size {width} is not a multiple of 4, which sin-cos positions need"
        if self.image_size % self.patch_size:
            yield f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
        if self.stem_channels and 2 ** len(self.stem_channels) != self.patch_size:
            yield (
                f"stem_channels {list(self.stem_channels)} make patches of {2 ** len(self.stem_channels)} pixels, "
                f"each stage halving the image; patch_size is {self.patch_size}"
            )
        if self.stem_blocks and (len(self.stem_blocks) != len(self.stem_channels) or min(self.stem_blocks) < 0):
            yield (
                f"stem_blocks {list(self.stem_blocks)} must hold one number of at least 0 for each of the "
                f"{len(self.stem_channels)} stages of stem_channels"
            )
        outside = [layer for layer in self.soft_layers if not 0 <= layer < self.num_hidden_layers]
        if outside:
            yield f"soft_layers {outside} are not indices of the {self.num_hidden_layers} layers (they start at 0)"
        for field, allowed in (
            ("deep_feed_forward", ("soft", "hard", "shared")),
            ("second_choice", ("sample", "top")),
            ("pooling", ("cls", "mean")),
            ("mim_target", ("pixels", "codes", "features")),
            ("mim_error", ("squared", "cosine")),
            ("mim_form", ("decoder", "encoder")),
            ("nlvr2_head", ("bi-attention", "plain")),
            ("num_experts_per_tok", (1, 2)),
        ):
            if getattr(self, field) not in allowed:
                yield f"{field} {getattr(self, field)!r} is not one of {', '.join(map(str, allowed))}"
        if self.num_experts < self.num_experts_per_tok:
            yield f"num_experts {self.num_experts} is smaller than num_experts_per_tok {self.num_experts_per_tok}"
        for name in (*self.objectives, *(self.objective_weights or {})):
            if name not in OBJECTIVES:
                yield f"unknown objective {name!r} ({nearest(name, OBJECTIVES)})"
        if (self.mim_target == "pixels") != (self.mim_target_size is None):
            yield (
                f"mim_target {self.mim_target!r} and mim_target_size {self.mim_target_size} do not fit: codes and "
                "features have a size, pixels have none"
            )
        if self.mim_code_width is not None and self.mim_target != "codes":
            yield f"mim_code_width {self.mim_code_width} is for mim_target codes, not for {self.mim_target}"
        if self.mim_error == "cosine" and self.mim_target != "features":
            yield f"mim_error cosine is for mim_target features, not for {self.mim_target}"
        if self.joint_masking and not {"mim", "mlm"} <= set(self.objectives):
            yield "joint_masking needs both objectives, mim and mlm"


FIELDS = checker(EVEConfig.__annotations__)
