"""EVE's pre-training by masked signals, two forward passes per step (EVE, section 3.3); itc and itm for comparison.

The masks are arguments: the only random choice in this file are hard negatives.

B batch, N patches, M masked patches or tokens, T text tokens, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import can_return_tuple

from evle import objectives
from evle.errors import ConfigError, DataError
from evle.models.casts import cast_once
from evle.models.contrast import total_loss
from evle.models.eve.codebook import nearest_codes
from evle.models.eve.configuration import EVEConfig
from evle.models.eve.embedding import patchify, take, unpatchify, visible_patches
from evle.models.eve.heads import Pairs, add_balance, contrast_head, contrast_pairs, match_pairs, word_head
from evle.models.eve.modeling import EVEAttention, EVEModel, EVEOutput, EVEPreTrainedModel, average_router
from evle.models.eve.routing import FeedForward
from evle.models.eve.targets import ImageTeacher, open_teacher
from evle.models.even_rows import pad_rows


def sincos_positions(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Fixed 2-D positions (rows * columns, width) as in MAE: sin and cos of the column, then sin and cos of the row, a
    quarter of the width each."""
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
    """The light decoder of MIM: predicts the targets of masked patches from visible states and mask tokens."""

    def __init__(self, config: EVEConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.layers = nn.ModuleList(EVEDecoderLayer(config) for _ in range(config.decoder_num_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pixels = nn.Linear(width, config.mim_outputs)

    def forward(self, image_hidden: Tensor, order: Tensor, rows: int, columns: int) -> Tensor:
        """`image_hidden` (B, 1 + visible, D), `order` (B, N) patch indices, visible first -> (B, M, outputs per patch).

        The sequence stays in `order`: attention does not depend on it, and each token carries its own position.
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
    """Masked signal modelling: predicts masked patches from the visible ones and the text, and masked words from the
    image and the other words.

    `config.objectives` selects which of "mim", "mlm", "itc", "itm" are minimised; only their parameters exist.
    """

    _tied_weights_keys = {"mlm_head.2.weight": "eve.text_embedding.word.weight"}  # noqa: RUF012
    codebook: Tensor

    def __init__(self, config: EVEConfig):
        if not config.objectives:
            raise ConfigError(
                "EVEForPreTraining has nothing to minimise: name at least one of mim, mlm, itc, itm in objectives"
            )
        super().__init__(config)
        self.eve = EVEModel(config)
        if "mim" in config.objectives:
            if config.mim_form == "decoder":
                self.decoder = EVEPixelDecoder(config)
            else:
                self.mim_head = nn.Linear(config.hidden_size, config.mim_outputs)
            if config.mim_code_width is not None:  # zeros until the task gives the centres (`learn_codes`)
                self.register_buffer("codebook", torch.zeros(config.mim_outputs, config.mim_code_width))
        if "mlm" in config.objectives:
            self.mlm_head = word_head(config, config.vocab_size)
        if "itc" in config.objectives:
            self.contrast = contrast_head(config)
        if "itm" in config.objectives:
            self.matching = nn.Linear(config.hidden_size, 2)
        self.teacher: ImageTeacher | None = None  # opened by the first step that needs it
        self.post_init()

    def get_output_embeddings(self) -> nn.Module | None:
        return self.mlm_head[2] if "mlm" in self.config.objectives else None

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.mlm_head[2] = new_embeddings

    @can_return_tuple
    @cast_once
    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        masked_input_ids: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        match_ids: Tensor | None = None,
        visible: Tensor | None = None,
        masked_tokens: Tensor | None = None,
        match_rows: Tensor | None = None,
    ) -> EVEOutput:
        """The losses of one step; by default two passes, one with the image masked and one with the text.

        Args:
            pixel_values: (B, C, H, W).
            input_ids: (B, T) the complete text.
            attention_mask: (B, T), 1 = real token.
            image_mask: (B, N) bool, True = masked, the same number in every row [mim].
            masked_input_ids: (B, T) the corrupted text [mlm].
            mlm_labels: (B, T) the original token where it was masked, -100 elsewhere [mlm].
            match_ids: (B,) int64, equal for pairs that belong together, -100 for a pair that is left out; by default
                each pair matches only itself [itc, itm].
            visible: (B, V) int64, the patches that `image_mask` leaves visible, in ascending order.
            masked_tokens: (M,) int64, the indices at which the flattened `mlm_labels` are not -100. Without `visible`
                and `masked_tokens`, both are read from the masks, which synchronises with an accelerator.
            match_rows: (N,) int64, the rows that are matched, by default all; those of id -100 have no negative [itm].

        Returns:
            The losses; `logits` (M, V) of masked tokens; ITM's logits and labels; the states of the last masked pass.
        """
        names = self.config.objectives
        losses: dict[str, Tensor] = {}
        passes: list[EVEOutput] = []
        masked: Any = None  # the output of the latest masked pass
        logits = matching = contrast = None
        if "mim" in names:
            if image_mask is None:
                raise DataError("the objective mim needs image_mask, (B, patches) with True for masked ones")
            visible = visible_patches(image_mask) if visible is None else visible
            text = masked_input_ids if self.config.joint_masking else input_ids
            masked = self.eve(pixel_values, text, attention_mask, image_mask, visible, return_dict=True)
            passes.append(masked)
            losses["mim"] = self.mim_loss(masked.image_hidden, pixel_values, image_mask, visible)
        if "mlm" in names:
            if masked_input_ids is None or mlm_labels is None:
                raise DataError("the objective mlm needs masked_input_ids and mlm_labels, (B, T)")
            if masked is None or not self.config.joint_masking:
                masked = self.eve(pixel_values, masked_input_ids, attention_mask, return_dict=True)
                passes.append(masked)
            if masked_tokens is None:
                masked_tokens = (mlm_labels.flatten() != objectives.IGNORE).nonzero().squeeze(1)
            logits = self.word_logits(masked.text_hidden, masked_tokens)
            losses["mlm"] = objectives.mlm(logits, mlm_labels.flatten()[masked_tokens])
        pairs = Pairs.of(pixel_values, input_ids, attention_mask, match_ids)
        if "itc" in names:
            contrast, single = contrast_pairs(self.eve, self.contrast, pairs)
            losses["itc"] = contrast.loss
            passes.extend(single)
            if self.contrast.only_records:
                return EVEOutput(loss=contrast.loss, losses={"itc": contrast.loss})
        if "itm" in names:
            similarities = None if contrast is None else (contrast.image_to_text, contrast.text_to_image)
            matching = match_pairs(self.eve, self.matching, pairs, similarities, rows=match_rows)
            losses["itm"] = objectives.itm(matching.logits, matching.labels)
            passes.extend([] if matching.output is None else [matching.output])
        losses = {name: self.config.weight_of(name) * losses[name] for name in names}
        router = average_router([output.router for output in passes])
        add_balance(losses, router, self.config)
        return EVEOutput(
            loss=total_loss(losses),
            logits=logits,
            losses=losses,
            itm_logits=None if matching is None else matching.logits,
            itm_labels=None if matching is None else matching.labels,
            image_hidden=None if masked is None else masked.image_hidden,
            text_hidden=None if masked is None else masked.text_hidden,
            router=router,
        )

    def word_logits(self, text_hidden: Tensor, masked_tokens: Tensor) -> Tensor:
        """Logits (M, V) of the tokens `masked_tokens` (M,) of the flattened texts (B, T, D).

        Only masked positions are multiplied by the vocabulary, which is the largest matrix of the model.
        """
        states = text_hidden.flatten(0, 1)[masked_tokens]
        logits: Tensor = self.mlm_head(pad_rows(states))
        return logits[: len(states)]

    def predict_masked(self, image_hidden: Tensor, pixel_values: Tensor, order: Tensor, num_visible: int) -> Tensor:
        """Predicted pixels, code logits or features (B, M, ...) of masked patches; `order` (B, N) has visible patches
        first."""
        if self.config.mim_form == "encoder":
            predicted: Tensor = self.mim_head(take(image_hidden[:, 1:], order[:, num_visible:]))
            return predicted
        rows, columns = self._grid(pixel_values)
        predicted = self.decoder(image_hidden, order, rows, columns)
        return predicted

    def mim_loss(self, image_hidden: Tensor, pixel_values: Tensor, image_mask: Tensor, visible: Tensor) -> Tensor:
        """The error of masked patches: squared for pixels (raw, or normalised per patch), squared or one minus the
        cosine for features, cross-entropy for codes."""
        order = image_mask.int().argsort(dim=1, stable=True)
        predicted = self.predict_masked(image_hidden, pixel_values, order, visible.shape[1])
        masked = order[:, visible.shape[1] :]
        if self.config.mim_target == "codes":
            codes = self._targets(pixel_values).gather(1, masked)
            return objectives.choices(predicted.flatten(0, 1), codes.flatten())
        target = take(self._targets(pixel_values), masked)
        if self.config.mim_error == "cosine":
            return objectives.mim_cosine(predicted, target)
        return objectives.mim(
            predicted, objectives.normalize_pixels(target) if self.config.norm_pixel_target else target
        )

    @torch.no_grad()
    def reconstruct(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None, image_mask: Tensor
    ) -> Tensor:
        """Images (B, C, H, W) whose masked patches are predicted by the model and whose visible ones are the original.

        With `norm_pixel_target` the prediction has no brightness or contrast; each patch gets those of the original, as
        in MAE's figures. Raises ConfigError for a model that does not predict pixels.
        """
        if self.config.mim_target != "pixels":
            raise ConfigError(f"this model predicts {self.config.mim_target}, not pixels: there is no image to show")
        size = self.config.patch_size
        visible = visible_patches(image_mask)
        output = self.eve(pixel_values, input_ids, attention_mask, image_mask, visible, return_dict=True)
        order = image_mask.int().argsort(dim=1, stable=True)
        predicted = self.predict_masked(output.image_hidden, pixel_values, order, visible.shape[1]).float()
        masked = order[:, visible.shape[1] :]
        patches = patchify(pixel_values, size).float()
        if self.config.norm_pixel_target:
            original = take(patches, masked)
            predicted = predicted * (original.var(dim=-1, keepdim=True) + 1e-6).sqrt() + original.mean(
                dim=-1, keepdim=True
            )
        filled = patches.scatter(1, masked[..., None].expand_as(predicted), predicted)
        return unpatchify(filled, size, *self._grid(pixel_values))

    def _grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of these images."""
        size = self.config.patch_size
        return pixel_values.shape[2] // size, pixel_values.shape[3] // size

    def _targets(self, pixel_values: Tensor) -> Tensor:
        """What MIM should predict for each patch: (B, N) codes, or (B, N, pixels or features)."""
        config = self.config
        if config.mim_target == "pixels":
            return patchify(pixel_values, config.patch_size)
        if config.mim_teacher is None:
            raise ConfigError(f"mim_target={config.mim_target!r} needs mim_teacher=FOLDER, the model that gives them")
        given = "features" if config.mim_code_width else config.mim_target
        if self.teacher is None:
            teacher = open_teacher(config.mim_teacher, given)
            name = "mim_code_width" if config.mim_code_width else "mim_target_size"
            if teacher.size != (expected := getattr(config, name)):
                raise ConfigError(
                    f"{config.mim_teacher} gives {given} of size {teacher.size}, this model was built for "
                    f"{expected}; set {name}={teacher.size}"
                )
            if config.mim_code_width and not self.codebook.any():
                raise ConfigError(
                    "the codes of MIM are not learned yet: train with evle.train, or copy the centres of the features' "
                    "clusters into model.codebook (evle.models.eve.codebook.fit_codebook)"
                )
            self.teacher = teacher
        targets = self.teacher.targets(pixel_values, *self._grid(pixel_values))
        return nearest_codes(targets, self.codebook) if config.mim_code_width else targets
