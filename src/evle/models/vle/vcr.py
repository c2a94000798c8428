"""VCR's heads: which of the candidate answers, or rationales, is right?

The release encodes the image again for every candidate. Here it is encoded once for all candidates of all questions
about it (`config.vcr_shares_image`), and the text tower and the fusion process all candidates of a batch at once.
Nothing is kept between calls, and labels are needed only for the loss.

B questions, N images, K candidates (4 in VCR), T text tokens, P patches without [CLS], O objects that a text names,
D width.
"""

from typing import Any

import torch
from torch import Tensor

from evle import objectives
from evle.errors import DataError
from evle.models.classifying import two_layer_classifier
from evle.models.vle.configuration import VLEConfig
from evle.models.vle.fusion import EVERYTHING, Stream, key_mask
from evle.models.vle.heads import VLEHead
from evle.models.vle.modeling import IMAGE_TYPE, TEXT_TYPE, mean_states
from evle.models.vle.outputs import VLEOutput, returns_tuple_if_asked


class VLEForVCR(VLEHead):
    """The parent of both VCR models, each of which has its own classifier, `candidate_logit`.

    Logits are (B, K); `labels` (B,) are the indices of the right candidates, and the loss is "choice".
    `config.vcr_token_types` and `config.vcr_box_tokens` switch off the two ways in which a text points at objects.
    """

    objective = "choice"

    def candidate_logit(self, pooled: Tensor) -> Tensor:
        """Pooled states (B, K, 2 D) -> one logit per candidate (B, K, 1)."""
        raise NotImplementedError

    def score(self, encoded: VLEOutput) -> Tensor:
        pooled: Any = encoded.pooler_output
        return self.candidate_logit(pooled).squeeze(-1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return objectives.choices(logits, labels)

    @returns_tuple_if_asked
    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
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
            input_ids, attention_mask, token_type_ids: (B, K, T) the candidates' texts. Types are 0, or for tokens that
                name an object, the type of that object, from 2 upwards.
            pixel_values: (N, C, H, W), by default one image per question, N = B.
            box_patches: (B, K, O, P) bool, the patches that each named object's box covers.
            box_token_types: (B, K, O) the type of each object, the same as that of its text tokens; 0 is padding. An
                object whose box covers no patch (because it was cropped away) gets no box token; its text tokens keep
                their type.
            labels: (B,) the index of the right candidate.
            output_attentions: also return the maps of the fusion, with B K rows.
            output_hidden_states: also return the states.
            image_rows: (B,) int64, the index of each question's image, if several questions share an image.

        Returns:
            `logits` (B, K) and, with `labels`, the loss. The states, if requested, are (B, K, 1 + P + O, D) and
            (B, K, T, D).

        Raises:
            DataError: shapes that do not fit each other, or more types than `config.num_token_types`.
        """
        if image_rows is None:
            image_rows = torch.arange(pixel_values.shape[0], device=pixel_values.device)
        self._check(pixel_values, image_rows, input_ids, box_patches, box_token_types, token_type_ids)
        num_candidates = input_ids.shape[1]
        rows = image_rows.repeat_interleave(num_candidates)  # (B K,) the image states of each candidate
        if not self.config.vcr_shares_image:
            pixel_values, rows = pixel_values[rows], torch.arange(len(rows), device=rows.device)
        image = self.vle.encode_image(pixel_values)  # (N, 1 + P, D)
        text = self.vle.encode_text(input_ids.flatten(0, 1), attention_mask.flatten(0, 1))
        text_types = token_type_ids.flatten(0, 1) if self.config.vcr_token_types else None
        fused = self.vle.fuse(
            self._image_stream(image, rows, box_patches, box_token_types),
            Stream(
                self.vle.typed(text, TEXT_TYPE, text_types),
                key_mask(attention_mask.flatten(0, 1), text.dtype),
            ),
            EVERYTHING if output_hidden_states else self.reads,
            output_attentions,
            output_hidden_states,
        )
        return self.with_score(VLEOutput(attentions=fused.attentions, **fused.grouped(num_candidates)), labels)

    def _image_stream(self, image: Tensor, rows: Tensor, box_patches: Tensor, box_token_types: Tensor) -> Stream:
        """Image states (N, 1 + P, D), of which candidate b sees those of rows[b], (B K,), followed by the box tokens of
        its objects."""
        if not self.config.vcr_box_tokens:
            return Stream(self.vle.typed(image, IMAGE_TYPE), rows=rows)
        of_question = image[rows[:: box_patches.shape[1]], 1:]  # all candidates of a question have the same image
        boxes = mean_states(of_question, box_patches).flatten(0, 1)  # (B K, O, D)
        shown = ((box_token_types > 0) & box_patches.any(dim=-1)).flatten(0, 1)  # (B K, O)
        mask = torch.cat([shown.new_ones(shown.shape[0], image.shape[1]), shown], dim=1)
        box_types = box_token_types.flatten(0, 1) if self.config.vcr_token_types else None
        return Stream(
            self.vle.typed(image, IMAGE_TYPE),
            key_mask(mask, image.dtype),
            rows=rows,
            own=self.vle.typed(boxes, IMAGE_TYPE, box_types),
        )

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
        if image_rows.shape[0] != input_ids.shape[0] or box_patches.shape != expected:
            given = (pixel_values, image_rows, input_ids, box_token_types, box_patches)
            raise DataError(
                "VCR takes pixel_values (N, C, H, W), image_rows (B,) unless N = B, input_ids (B, K, T), "
                f"box_token_types (B, K, O) and box_patches (B, K, O, {num_patches} patches); got "
                + ", ".join(str(tuple(tensor.shape)) for tensor in given)
            )
        if not objectives.is_eager_cpu(input_ids.device):
            return  # what follows reads values, which a graph does not have and an accelerator would be waited for
        highest = max((int(types.max()) for types in (box_token_types, token_type_ids) if types.numel()), default=0)
        if self.config.vcr_token_types and highest >= self.config.num_token_types:
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

    def candidate_logit(self, pooled: Tensor) -> Tensor:
        return self.vcr_q2a_logit(pooled)


class VLEForVCRQA2R(VLEForVCR):
    """VCR, answer to rationale: the text of a candidate is the question, the right answer and that rationale."""

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vcr_qa2r_logit = two_layer_classifier(2 * config.hidden_size, 1)
        self.post_init()

    def candidate_logit(self, pooled: Tensor) -> Tensor:
        return self.vcr_qa2r_logit(pooled)
