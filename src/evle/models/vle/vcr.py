"""VCR's heads: which of the candidate answers, or rationales, is right?

The release encodes the image anew for every candidate; here it is encoded once, for all candidates of all questions
about it, and text and fusion run over all candidates of a batch at once. Nothing is kept between calls, and labels are
only needed for the loss.

B questions, N images, K candidates (4 in VCR), T text tokens, P patches without [CLS], O objects that a text names,
D width.
"""

import torch
from torch import Tensor

from evle import objectives
from evle.errors import DataError
from evle.models.contrast import total_loss
from evle.models.vle.configuration import VLEConfig
from evle.models.vle.fusion import EVERYTHING, Reads, Stream, key_mask
from evle.models.vle.heads import two_layer_classifier
from evle.models.vle.modeling import IMAGE_TYPE, TEXT_TYPE, VLEModel, VLEOutput, VLEPreTrainedModel


def box_tokens(patch_states: Tensor, box_patches: Tensor) -> Tensor:
    """The mean of the patch states (B, P, D) that each object covers, `box_patches` (B, K, O, P) -> (B, K, O, D).

    An object that covers no patch has the token 0.
    """
    weights = box_patches.to(patch_states.dtype)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.einsum("bkop,bpd->bkod", weights, patch_states)


class VLEForVCR(VLEPreTrainedModel):
    """What both VCR models do; the head is theirs."""

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vle = VLEModel(config)

    def score(self, pooled: Tensor) -> Tensor:
        """Pooled states (B K, 2 D) -> one logit a candidate (B K, 1)."""
        raise NotImplementedError

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        box_patches: Tensor,
        box_token_types: Tensor,
        labels: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        image_rows: Tensor | None = None,
    ) -> VLEOutput:
        """Score the candidates of each question.

        Args:
            pixel_values: (N, C, H, W), by default one image a question, N = B.
            input_ids, attention_mask, token_type_ids: (B, K, T) the candidates' texts; type 0, on the tokens of a named
                object that object's type, from 2 upwards.
            box_patches: (B, K, O, P) bool, the patches that each named object's box covers.
            box_token_types: (B, K, O) the type of each object, the same as on its text tokens; 0 is a padding slot. An
                object whose box covers no patch (it was cropped away) has nothing to show and gets no box token; the
                type stays on its text.
            labels: (B,) the right candidate.
            output_attentions: also return the maps of the fusion, of B K rows.
            output_hidden_states: also return the states.
            image_rows: (B,) int64, the image that each question is about, where several are about one.

        Returns:
            `logits` (B, K), with `labels` the loss, named "choice"; the states, if asked for, are (B, K, 1 + P + O, D)
            and (B, K, T, D).

        Raises:
            DataError: shapes that do not fit each other, or more types than `config.num_token_types`.
        """
        if image_rows is None:
            image_rows = torch.arange(len(pixel_values), device=pixel_values.device)
        self._check(pixel_values, image_rows, input_ids, box_patches, box_token_types, token_type_ids)
        num_candidates = input_ids.shape[1]
        image = self.vle.encode_image(pixel_values)  # (N, 1 + P, D)
        text = self.vle.encode_text(input_ids.flatten(0, 1), attention_mask.flatten(0, 1))
        boxes = box_tokens(image[image_rows, 1:], box_patches).flatten(0, 1)  # (B K, O, D)
        shown = ((box_token_types > 0) & box_patches.any(dim=-1)).flatten(0, 1)  # (B K, O)
        image_mask = torch.cat([shown.new_ones(len(shown), image.shape[1]), shown], dim=1)
        fused = self.vle.fuse(
            Stream(
                self.vle.typed(image, IMAGE_TYPE),
                key_mask(image_mask, image.dtype),
                rows=image_rows.repeat_interleave(num_candidates),
                own=self.vle.typed(boxes, IMAGE_TYPE, box_token_types.flatten(0, 1)),
            ),
            Stream(
                self.vle.typed(text, TEXT_TYPE, token_type_ids.flatten(0, 1)),
                key_mask(attention_mask.flatten(0, 1), text.dtype),
            ),
            EVERYTHING if output_hidden_states else Reads(pooled=True),
            output_attentions,
        )
        assert fused.pooler_output is not None
        logits = self.score(fused.pooler_output).view(-1, num_candidates)
        output = VLEOutput(logits=logits, attentions=fused.attentions, **fused.grouped(num_candidates))
        if labels is not None:
            output.losses = {"choice": objectives.choices(logits, labels)}
            output.loss = total_loss(output.losses)
        return output

    def _check(
        self,
        pixel_values: Tensor,
        image_rows: Tensor,
        input_ids: Tensor,
        box_patches: Tensor,
        box_token_types: Tensor,
        token_type_ids: Tensor,
    ) -> None:
        size = self.config.patch_size
        num_patches = (pixel_values.shape[-2] // size) * (pixel_values.shape[-1] // size)
        expected = (*input_ids.shape[:2], box_token_types.shape[-1], num_patches)
        if len(image_rows) != len(input_ids) or box_patches.shape != expected:
            given = (pixel_values, image_rows, input_ids, box_token_types, box_patches)
            raise DataError(
                "VCR takes pixel_values (N, C, H, W), image_rows (B,) unless N = B, input_ids (B, K, T), "
                f"box_token_types (B, K, O) and box_patches (B, K, O, {num_patches} patches); got "
                + ", ".join(str(tuple(tensor.shape)) for tensor in given)
            )
        highest = max((int(types.max()) for types in (box_token_types, token_type_ids) if types.numel()), default=0)
        if highest >= self.config.num_token_types:
            raise DataError(
                f"a text names objects up to token type {highest}, the model has {self.config.num_token_types} types; "
                f"load it with num_token_types={highest + 1} or more"
            )


class VLEForVCRQ2A(VLEForVCR):
    """VCR, question to answer: the text of a candidate is the question and that answer."""

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vcr_q2a_logit = two_layer_classifier(2 * config.hidden_size, 1)
        self.post_init()

    def score(self, pooled: Tensor) -> Tensor:
        return self.vcr_q2a_logit(pooled)


class VLEForVCRQA2R(VLEForVCR):
    """VCR, answer to rationale: the text of a candidate is the question, the right answer and that rationale."""

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vcr_qa2r_logit = two_layer_classifier(2 * config.hidden_size, 1)
        self.post_init()

    def score(self, pooled: Tensor) -> Tensor:
        return self.vcr_qa2r_logit(pooled)
