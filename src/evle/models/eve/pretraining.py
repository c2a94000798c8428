"""EVE's pre-training: masked signal modelling, two forwards a step (EVE, section 3.3); itc and itm for comparison.

The masks arrive as arguments: this file draws nothing but hard negatives.

B batch, N patches, M masked patches or tokens, T text tokens, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from evle import objectives
from evle.errors import ConfigError, DataError
from evle.models.contrast import default_match_ids, total_loss
from evle.models.eve.configuration import EVEConfig
from evle.models.eve.heads import EVEMatchingHead, add_balance, itc_pass, itm_pass, word_head
from evle.models.eve.modeling import (
    EVEAttention,
    EVEModel,
    EVEOutput,
    EVEPreTrainedModel,
    average_router,
    patchify,
    take,
    unpatchify,
)
from evle.models.eve.routing import FeedForward
from evle.models.even_rows import pad_rows


def sincos_positions(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Fixed 2-D positions (rows * columns, width) as MAE: a quarter each of sin and cos of column, then of row."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, device=device, dtype=torch.float32) / (width / 4))
    row = torch.arange(rows, device=device, dtype=torch.float32)[:, None] * frequencies
    column = torch.arange(columns, device=device, dtype=torch.float32)[:, None] * frequencies
    row_part = torch.cat([row.sin(), row.cos()], dim=-1)[:, None].expand(-1, columns, -1)
    column_part = torch.cat([column.sin(), column.cos()], dim=-1)[None].expand(rows, -1, -1)
    return torch.cat([column_part, row_part], dim=-1).reshape(rows * columns, width)


class EVEDecoderLayer(GradientCheckpointingLayer):
    """A plain pre-LN Transformer block of the decoder's width."""

    def __init__(self, config: EVEConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = EVEAttention(config, width, config.decoder_num_heads)
        self.feed_forward_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(width, 4 * width, config.hidden_act)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden))[0]
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))


class EVEPixelDecoder(nn.Module):
    """The light decoder of MIM: encoder states of visible patches and mask tokens in, pixels of masked patches out."""

    def __init__(self, config: EVEConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.layers = nn.ModuleList(EVEDecoderLayer(config) for _ in range(config.decoder_num_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pixels = nn.Linear(width, config.num_channels * config.patch_size**2)

    def forward(self, image_hidden: Tensor, order: Tensor, rows: int, columns: int) -> Tensor:
        """`image_hidden` (B, 1 + visible, D), `order` (B, N) patch indices, visible first -> (B, M, pixels a patch).

        The sequence stays in `order`: attention does not mind, and each token carries its own position.
        """
        tokens = self.embed(image_hidden)
        num_visible = tokens.shape[1] - 1
        positions = sincos_positions(rows, columns, tokens.shape[-1], tokens.device).to(tokens.dtype)[order]
        visible = tokens[:, 1:] + positions[:, :num_visible]
        masked = self.mask_token.to(tokens.dtype) + positions[:, num_visible:]
        hidden = torch.cat([tokens[:, :1], visible, masked], dim=1)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.pixels(self.norm(hidden[:, 1 + num_visible :]))


class EVEForPreTraining(EVEPreTrainedModel):
    """Masked signal modelling: masked pixels from visible ones and the text, masked words from the image and the rest.

    `config.objectives` says which of "mim", "mlm", "itc", "itm" are minimised; only their parameters exist.
    """

    _tied_weights_keys = {"mlm_head.2.weight": "eve.text_embedding.word.weight"}  # noqa: RUF012

    def __init__(self, config: EVEConfig):
        if not config.objectives:
            raise ConfigError(
                "EVEForPreTraining has nothing to minimise: name at least one of mim, mlm, itc, itm in objectives"
            )
        super().__init__(config)
        self.eve = EVEModel(config)
        if "mim" in config.objectives:
            self.decoder = EVEPixelDecoder(config)
        if "mlm" in config.objectives:
            self.mlm_head = word_head(config, config.vocab_size)
        if {"itc", "itm"} & set(config.objectives):
            self.matching = EVEMatchingHead(config, itc="itc" in config.objectives, itm="itm" in config.objectives)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EVEPixelDecoder):
            init.trunc_normal_(module.mask_token, std=self.config.initializer_range)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.mlm_head[2] if "mlm" in self.config.objectives else None

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        masked_input_ids: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        match_ids: Tensor | None = None,
    ) -> EVEOutput:
        """The losses of one step; by default two passes, one with the image masked and one with the text.

        Args:
            pixel_values: (B, C, H, W).
            input_ids: (B, T) the complete text.
            attention_mask: (B, T), 1 = real token.
            image_mask: (B, N) bool, True = masked, as many in every row [mim].
            masked_input_ids: (B, T) the corrupted text [mlm].
            mlm_labels: (B, T) the original token where it was masked, -100 elsewhere [mlm].
            match_ids: (B,) int64, equal where pairs belong together, -100 where a pair takes no part; each its own by
                default [itc, itm].

        Returns:
            losses by objective; `logits` (M, V) of the masked tokens in the order of `mlm_labels`; `itm_logits` and
            `itm_labels`; the states of the MLM pass, or of the MIM pass without one.
        """
        config, names = self.config, set(self.config.objectives)
        losses: dict[str, Tensor] = {}
        passes: list[EVEOutput] = []
        logits = itm_logits = itm_labels = None
        last: Any = None  # the output of the latest masked pass
        if "mim" in names:
            if image_mask is None:
                raise DataError("the objective mim needs image_mask, (B, patches) with True for masked ones")
            text = masked_input_ids if config.joint_masking else input_ids
            last = self.eve(pixel_values, text, attention_mask, image_mask=image_mask)
            passes.append(last)
            losses["mim"] = self.mim_loss(last.image_hidden, pixel_values, image_mask)
        if "mlm" in names:
            if masked_input_ids is None or mlm_labels is None:
                raise DataError("the objective mlm needs masked_input_ids and mlm_labels, (B, T)")
            if not config.joint_masking:
                last = self.eve(pixel_values, masked_input_ids, attention_mask)
                passes.append(last)
            # Only masked positions meet the vocabulary: it is the largest matrix of the model.
            chosen = mlm_labels != objectives.IGNORE
            masked = last.text_hidden[chosen]
            logits = self.mlm_head(pad_rows(masked))[: len(masked)]
            losses["mlm"] = objectives.mlm(logits, mlm_labels[chosen])
        if names & {"itc", "itm"}:
            ids = default_match_ids(len(input_ids), input_ids.device) if match_ids is None else match_ids
            pairs = (self.eve, self.matching, pixel_values, input_ids, attention_mask, ids)
            similarities = None
            if "itc" in names:
                losses["itc"], *directions, singles = itc_pass(*pairs)
                similarities = (directions[0], directions[1])
                passes.extend(singles)
            if "itm" in names:
                itm_logits, itm_labels, joint = itm_pass(*pairs, similarities)
                losses["itm"] = objectives.itm(itm_logits, itm_labels)
                passes.extend([] if joint is None else [joint])
        losses = {name: config.weight_of(name) * losses[name] for name in config.objectives}
        router = average_router([output.router for output in passes])
        add_balance(losses, router, config)
        return EVEOutput(
            loss=total_loss(losses),
            losses=losses,
            logits=logits,
            itm_logits=itm_logits,
            itm_labels=itm_labels,
            image_hidden=None if last is None else last.image_hidden,
            text_hidden=None if last is None else last.text_hidden,
            router=router,
        )

    def decode(self, image_hidden: Tensor, pixel_values: Tensor, image_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted pixels (B, M, pixels a patch) of masked patches, and the order (B, N) of patches, masked last."""
        size = self.config.patch_size
        rows, columns = pixel_values.shape[2] // size, pixel_values.shape[3] // size
        order = image_mask.int().argsort(dim=1, stable=True)
        return self.decoder(image_hidden, order, rows, columns), order

    def mim_loss(self, image_hidden: Tensor, pixel_values: Tensor, image_mask: Tensor) -> Tensor:
        """Mean squared error of the masked patches' pixels, raw or normalised a patch (`norm_pixel_target`)."""
        predicted, order = self.decode(image_hidden, pixel_values, image_mask)
        masked = order[:, order.shape[1] - predicted.shape[1] :]
        target = take(patchify(pixel_values, self.config.patch_size), masked)
        return objectives.mim(
            predicted, objectives.normalize_pixels(target) if self.config.norm_pixel_target else target
        )

    @torch.no_grad()
    def reconstruct(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None, image_mask: Tensor
    ) -> Tensor:
        """Images (B, C, H, W) whose masked patches are the model's prediction and whose visible ones are given.

        With `norm_pixel_target` the prediction has no brightness or contrast of its own; each patch gets those of the
        original, as in MAE's images.
        """
        size = self.config.patch_size
        output = self.eve(pixel_values, input_ids, attention_mask, image_mask=image_mask)
        predicted, order = self.decode(output.image_hidden, pixel_values, image_mask)
        masked = order[:, order.shape[1] - predicted.shape[1] :]
        patches = patchify(pixel_values, size).float()
        predicted = predicted.float()
        if self.config.norm_pixel_target:
            original = take(patches, masked)
            predicted = predicted * (original.var(dim=-1, keepdim=True) + 1e-6).sqrt() + original.mean(
                dim=-1, keepdim=True
            )
        filled = patches.scatter(1, masked[..., None].expand_as(predicted), predicted)
        return unpatchify(filled, size, pixel_values.shape[2] // size, pixel_values.shape[3] // size)
