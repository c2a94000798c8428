"""EVE: one Transformer for images, text, and both (Chen et al., AAAI 2024, arXiv 2308.11971).

Image and text tokens form one sequence, `[image, text]`, normalised by one LayerNorm; the blocks share their attention
and route their feed-forwards by modality (`routing.py`). Task heads are in `heads.py` and `pretraining.py`.

B batch, N patches of an image, P image tokens (kept patches and [CLS]), T text tokens, S = P + T, D width, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from evle.errors import ConfigError, DataError
from evle.models.attention import ATTENTION
from evle.models.checksums import write_checksums
from evle.models.eve.configuration import EVEConfig
from evle.models.eve.embedding import EVEImageEmbedding, EVETextEmbedding, visible_patches
from evle.models.eve.released import compare, infer_config, read_released, refuse_mismatch, to_ours
from evle.models.eve.routing import HardRouter, Routing, SharedFeedForward, SoftRouter
from evle.models.folders import merged_adapter, read_fields, refuse_damaged_weights, weights_folder
from evle.models.padding import refuse_left_padding
from evle.models.plain import biased
from evle.models.positions import resize_positions
from evle.models.soundness import refuse_odd_tensors


@dataclass
class EVEOutput(ModelOutput):
    """What every EVE model returns; fields that do not apply to a model or a call are None.

    Attributes:
        loss: the sum of `losses`, scalar.
        logits: the head's scores. `output[0]` is the loss if there is one, else the logits.
        losses: named scalars, already weighted: "mim", "mlm", "itc", "itm", "answers", "choice", "balance".
        itm_logits, itm_labels: (pairs, 2) and (pairs,) of the matching of pairs and hard negatives.
        image_hidden: (B, P, D) image states after the final LayerNorm, [CLS] first, None without an image.
        text_hidden: (B, T, D) text states after the final LayerNorm, None without text.
        router: statistics of the L soft-routed blocks, averaged over the passes: "balance", the unweighted
            load-balancing loss, and the fields of `routing.Routing`, (L, E) for loads and (L,) for the rest; None
            without such blocks.
        hidden_states, attentions: one tensor per block, (B, S, D) and (B, H, S, S), if requested.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    itm_logits: Tensor | None = None
    itm_labels: Tensor | None = None
    image_hidden: Tensor | None = None
    text_hidden: Tensor | None = None
    router: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def logits_per_image(self) -> Tensor | None:
        """transformers' name of the similarities image to text."""
        return self.logits


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Attention computed step by step, the only implementation that returns its weights (B, H, S, S)."""
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class EVEAttention(nn.Module):
    """Joint self-attention over all tokens; queries and values have a bias, keys have none (as in BEiT)."""

    is_causal = False

    def __init__(self, config: EVEConfig, width: int, num_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = width // num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        batch, length, _ = hidden.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = biased(self.qkv, hidden, bias)
        query, key, value = qkv.view(batch, length, 3, -1, self.head_dim).permute(
            2, 0, 3, 1, 4
        )  # each (B, H, S, head_dim)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        output, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.head_dim**-0.5)
        return self.proj(output.reshape(batch, length, -1)), weights


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a whole branch for a sample with probability `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        kept = branch.new_empty(len(branch), 1, 1).bernoulli_(1 - self.rate)
        return branch * (kept / (1 - self.rate))


class EVELayer(GradientCheckpointingLayer):
    """One pre-LN block: joint attention, then the feed-forward of its depth; both with LayerScale and drop path."""

    def __init__(self, config: EVEConfig, index: int):
        super().__init__()
        width = config.hidden_size
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = EVEAttention(config, width, config.num_attention_heads)
        self.attention_scale = nn.Parameter(torch.empty(width))
        deep = {"soft": SoftRouter, "hard": HardRouter, "shared": SharedFeedForward}[config.deep_feed_forward]
        self.feed_forward = (deep if index in config.soft_layers else HardRouter)(config)
        self.feed_forward_scale = nn.Parameter(torch.empty(width))
        self.drop_path = DropPath(config.drop_path_rate * index / max(1, config.num_hidden_layers - 1))

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None, num_image: int, token_mask: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        attended, _ = self.attention(self.attention_norm(hidden), attention_mask)
        hidden = hidden + self.drop_path(self.attention_scale * attended)
        fed, routing = self.feed_forward(hidden, num_image, token_mask)
        return hidden + self.drop_path(self.feed_forward_scale * fed), routing


class EVEPreTrainedModel(PreTrainedModel):
    """What all EVE models share: the configuration, the initialisation, and reading released checkpoints."""

    config: EVEConfig
    config_class = EVEConfig
    base_model_prefix = "eve"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["EVELayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_record_outputs = {"hidden_states": EVELayer, "attentions": EVEAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the parameters of one module by their names, without those of its children."""
        config = self.config
        for name, parameter in module.named_parameters(recurse=False):
            if name in ("cls_token", "position", "type_vector"):
                init.trunc_normal_(parameter, std=config.position_init_range or config.initializer_range)
            elif name == "temperature":
                init.constant_(parameter, config.temperature_init)
            elif name in ("attention_scale", "feed_forward_scale"):
                init.constant_(parameter, config.layer_scale_init)
            elif name.endswith("bias"):
                init.zeros_(parameter)
            elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                init.ones_(parameter)
            elif isinstance(module, nn.Conv2d):
                init.kaiming_normal_(parameter, mode="fan_out")  # std 0.02 would fade over the stem's stages
            else:
                init.trunc_normal_(parameter, std=config.initializer_range)
        for name, buffer in module.named_buffers(recurse=False):  # running statistics of the stem
            init.constant_(buffer, 1.0 if name == "running_var" else 0.0)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path | None, *args: Any, image_size: int | None = None, **kwargs: Any
    ) -> Any:
        """The model in a model folder, a run's folder or a hub repository, as transformers reads it.

        `image_size` interpolates the positions for images of that side in pixels (`resize_images`). It may also be in
        `config`, where the Auto classes put it. All other arguments are those of transformers. Raises CheckpointError
        for a folder of another family.
        """
        path = weights_folder(pretrained_model_name_or_path)
        held = None
        if path is not None and (Path(path) / "config.json").is_file():
            held = read_fields(Path(path), (EVEConfig.model_type,)).get("image_size", EVEConfig.image_size)
        config = kwargs.get("config")
        if isinstance(config, EVEConfig) and held is not None and config.image_size != held:
            image_size = config.image_size if image_size is None else image_size
            kwargs["config"] = config.with_changes(image_size=held)
        path = merged_adapter(path, EVEConfig, kwargs)
        loaded = super().from_pretrained(path, *args, **kwargs)
        refuse_damaged_weights(path, kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if image_size is not None and image_size != model.config.image_size:
            model.resize_images(image_size)
        return loaded

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """Write a model folder, as transformers does, with a checksum in each file (`checksums.py`)."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        write_checksums(self, save_directory, is_main_process, kwargs)

    @torch.no_grad()
    def resize_images(self, image_size: int) -> None:
        """Interpolate the positions for images with a side of `image_size` pixels. Raises ConfigError if that is not a
        multiple of the patch."""
        size = self.config.patch_size
        if image_size < size or image_size % size:
            raise ConfigError(f"image_size {image_size} is not a multiple of patch_size {size}")
        embedding: Any = self.base_model.get_submodule("image_embedding")
        table = embedding.position
        resized = resize_positions(table.detach(), image_size // size, image_size // size)
        embedding.position = nn.Parameter(resized.clone(), requires_grad=table.requires_grad)
        for module in self.modules():
            if isinstance(config := getattr(module, "config", None), EVEConfig):
                config.image_size = image_size

    # Our prefix for the head that the release calls `output.`, if a model has it.
    released_classifier: ClassVar[str | None] = None

    @classmethod
    def from_released(cls, path: str | Path, *, new_head: bool = False, **config_overrides: Any) -> Self:
        """The model in a released checkpoint (`released.py`), in evaluation mode.

        The architecture is inferred from the tensors; `config_overrides` are fields of `EVEConfig`. The weights do not
        contain `num_attention_heads` (`hidden_size / 64` by default). Another `image_size` interpolates the positions.
        Pass `capacity_factor=1.0` for the released routing. With `new_head`, a head that is missing in the checkpoint,
        or has another shape there, is newly initialised.

        Raises:
            CheckpointError: no readable released checkpoint, keys that are missing, unexpected or misshapen, or tensors
                that are quantised or not finite.
            ConfigError: overrides that fit no model.
        """
        released = read_released(path)
        fields = infer_config(released, config_overrides, path)
        given = to_ours(released, cls.released_classifier)
        if (image_size := config_overrides.get("image_size", fields["image_size"])) != fields["image_size"]:
            side = image_size // fields["patch_size"]
            table = given["eve.image_embedding.position"]
            given["eve.image_embedding.position"] = resize_positions(table, side, side)
        model = cls(cls.config_class(**{**fields, "image_size": image_size}))
        if cls.base_model_prefix not in model._modules:  # the backbone itself, whose keys have no prefix
            given = {key.removeprefix("eve."): tensor for key, tensor in given.items() if key.startswith("eve.")}
        missing, unexpected, misshapen = compare(model.state_dict(), given)
        if new_head:
            missing, unexpected, misshapen = (
                [key for key in keys if key.startswith("eve.")] for keys in (missing, unexpected, misshapen)
            )
        refuse_mismatch(path, missing, unexpected, misshapen)
        expected = model.state_dict()
        refuse_odd_tensors(given, expected, path)
        model.load_state_dict(
            {key: tensor for key, tensor in given.items() if key in expected and expected[key].shape == tensor.shape},
            strict=False,
        )
        return model.eval()

    # transformers decides these two by searching the source file of each model; here attention and experts are in one
    # file each for all models.
    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        if requested_attention is None:
            return ATTENTION
        return super().get_correct_attn_implementation(requested_attention, is_init_check)

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        # transformers would choose grouped_mm everywhere. On a CPU the loop over experts is faster: 1.4 times in
        # float32 at widths 192 and 256, and 1.5 times for a masked-signal step of EVE-Base in bfloat16, because it
        # rounds the numbers of rows, for each of which grouped_mm compiles a kernel (`even_rows.py`).
        if requested_experts is None and not torch.accelerator.is_available():
            return "eager"
        if requested_experts == "dense":  # ours, for export
            return "dense"
        return super().get_correct_experts_implementation(requested_experts)


class EVEModel(EVEPreTrainedModel):
    """The backbone: encodes images, text, or both.

    >>> model = EVEModel(EVEConfig.from_preset("eve-tiny"))
    >>> model(input_ids=torch.tensor([[1, 5, 2]])).text_hidden.shape
    torch.Size([1, 3, 192])
    """

    def __init__(self, config: EVEConfig):
        super().__init__(config)
        self.image_embedding = EVEImageEmbedding(config)
        self.text_embedding = EVETextEmbedding(config)
        self.pre_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(EVELayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_embedding.word

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.text_embedding.word = value

    @capture_outputs
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        visible: Tensor | None = None,
        final_norm: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EVEOutput:
        """Encode images, text, or image-text pairs.

        Args:
            pixel_values: (B, C, H, W), whose sides are multiples of the patch; for other sizes than the configured
                one, the positions are interpolated.
            input_ids: (B, T), T at most `max_position_embeddings`.
            attention_mask: (B, T), 1 = real token, 0 = padding, which must be on the right; by default all are real.
            image_mask: (B, N) bool, True = masked, the same number in every row. Masked patches do not enter the
                encoder, and `image_hidden` holds [CLS] and the visible patches in their order. With
                `config.mim_form="encoder"` a mask token replaces each masked patch.
            visible: (B, V) int64, the indices of the patches that `image_mask` leaves visible, if the caller has them;
                the model then need not wait for the mask's values.
            final_norm: False leaves out the final LayerNorm (`EVEConfig.released_eval_features`).
            output_hidden_states: also return every block's states.
            output_attentions: also return every block's attention maps, which need `attn_implementation="eager"`.

        Raises:
            DataError: neither image nor text, or sizes and masks this model cannot take.
            ConfigError: attention maps are requested from an implementation that keeps none.
        """
        if output_attentions and self.config._attn_implementation != "eager":
            raise ConfigError(
                f"attention {self.config._attn_implementation!r} keeps no attention maps; "
                "call model.set_attn_implementation('eager') first"
            )
        check_inputs(pixel_values, input_ids, attention_mask)
        embedded: list[Tensor] = []
        if pixel_values is not None:
            if image_mask is None:
                visible = None
            elif visible is None:
                visible = visible_patches(image_mask)
            embedded.append(self.image_embedding(pixel_values, image_mask, visible))
        num_image = embedded[0].shape[1] if embedded else 0
        token_mask = None
        if input_ids is not None:
            embedded.append(self.text_embedding(input_ids))
            if attention_mask is not None:
                image_is_real = attention_mask.new_ones(input_ids.shape[0], num_image)
                token_mask = torch.cat([image_is_real, attention_mask], dim=1).bool()
        hidden = self.pre_norm(torch.cat(embedded, dim=1))
        key_mask = create_bidirectional_mask(self.config, hidden, token_mask)

        routings = []
        for layer in self.layers:
            hidden, routing = layer(hidden, key_mask, num_image, token_mask)
            if routing is not None:
                routings.append(routing)
        if final_norm:
            hidden = self.norm(hidden)
        return EVEOutput(
            image_hidden=hidden[:, :num_image] if num_image else None,
            text_hidden=hidden[:, num_image:] if input_ids is not None else None,
            router=router_statistics(routings),
        )


def check_inputs(pixel_values: Tensor | None, input_ids: Tensor | None, attention_mask: Tensor | None) -> None:
    """Raise DataError for inputs that no EVE model can take.

    Padding on the left is refused (see `refuse_left_padding`); `EVEProcessor` always pads on the right.
    """
    if pixel_values is None and input_ids is None:
        raise DataError("EVE needs pixel_values, input_ids, or both; it was given neither")
    if pixel_values is not None and pixel_values.dim() != 4:
        raise DataError(f"pixel_values have the shape {tuple(pixel_values.shape)}; give (images, channels, H, W)")
    if input_ids is not None and (input_ids.dim() != 2 or input_ids.shape[1] == 0):
        raise DataError(f"input_ids have the shape {tuple(input_ids.shape)}; give (texts, tokens), at least one token")
    if pixel_values is not None and input_ids is not None and pixel_values.shape[0] != input_ids.shape[0]:
        raise DataError(
            f"pixel_values hold {len(pixel_values)} images, input_ids {len(input_ids)} texts; give one text per image"
        )
    if 0 in (each.shape[0] for each in (pixel_values, input_ids) if each is not None):
        raise DataError("the batch is empty; give at least one image or text")
    if input_ids is None or attention_mask is None:
        return
    if attention_mask.shape != input_ids.shape:
        raise DataError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}; "
            "they must be equal"
        )
    refuse_left_padding(attention_mask)


def router_statistics(routings: list[Routing]) -> dict[str, Tensor] | None:
    """Statistics of the soft-routed blocks of one pass: `balance` is averaged, with gradient; the others are stacked,
    one row per block."""
    if not routings:
        return None
    stacked = {name: torch.stack(values) for name, values in zip(Routing._fields, zip(*routings))}
    return {**stacked, "balance": stacked["balance"].mean()}


def average_router(passes: list[dict[str, Tensor] | None]) -> dict[str, Tensor] | None:
    """Router statistics of several passes of one step, averaged; None when the model has no soft-routed blocks.

    A modality's load and entropy are averaged over the passes that contain its tokens.
    """
    routed = [statistics for statistics in passes if statistics is not None]
    if not routed:
        return None
    averaged = {}
    for name in routed[0]:
        values = torch.stack([statistics[name] for statistics in routed])  # (passes, ...)
        count: Tensor | int = len(routed)
        if name.startswith(("image_", "text_")):
            load = torch.stack([statistics[f"{name.split('_')[0]}_load"] for statistics in routed])
            present = (load.sum(dim=-1) > 0).sum(dim=0).clamp(min=1)  # (L,)
            count = present[:, None] if name.endswith("_load") else present
        averaged[name] = values.mean(dim=0) if isinstance(count, int) else values.sum(dim=0) / count
    return averaged
