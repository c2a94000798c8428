"""VLE's task heads: VQA, matching, masked words, patch-box classification, retrieval and NLVR2.

The first four have the released names and shapes. B batch, G batch gathered over all processes, T text tokens, P image
tokens with [CLS], D width, A answers, V vocabulary.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from evle import objectives
from evle.errors import DataError
from evle.models.classifying import answer_scores, check_two_images, two_layer_classifier
from evle.models.contrast import matching_labels, pair_ids, total_loss
from evle.models.padding import check_text
from evle.models.vle.configuration import VLEConfig
from evle.models.vle.fusion import EVERYTHING, Reads, Stream, key_mask
from evle.models.vle.matching import (
    FusionBatch,
    VLEMatchScore,
    contrast_head,
    match_logits,
    pair_logits,
    pair_negatives,
)
from evle.models.vle.modeling import IMAGE_TYPE, TEXT_TYPE, VLEModel, VLEPreTrainedModel
from evle.models.vle.outputs import VLEOutput, returns_tuple_if_asked
from evle.models.vle.text import word_head, word_head_ties


def masked_word_head(config: VLEConfig) -> nn.Sequential:
    """The head for masked words, under released names: text states (..., D) to the text tower's width, then to logits
    (..., V)."""
    return nn.Sequential(nn.Linear(config.hidden_size, config.text_config.hidden_size), word_head(config.text_config))


class VLEHead(VLEPreTrainedModel):
    """A model with one head: encode, score, loss.

    A subclass declares what its score `reads` from the fusion and the name of its loss (`objective`), and defines
    `score` and `loss`. The default `forward` encodes one image and one text per row.
    """

    reads: ClassVar[Reads] = Reads(pooled=True)
    objective: ClassVar[str]

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vle = VLEModel(config)

    def score(self, encoded: VLEOutput) -> Tensor:
        """The logits, from what the head reads from the fusion."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The scalar loss of `logits`."""
        raise NotImplementedError

    def with_score(self, encoded: VLEOutput, labels: Tensor | None) -> VLEOutput:
        """`encoded` with logits, and with labels also the loss.

        Raises DataError for labels that do not fit the logits.
        """
        logits = self.score(encoded)
        if labels is None:
            return VLEOutput(logits=logits, **encoded)
        losses = {self.objective: self.loss(logits, self.fitting_labels(labels, logits))}
        return VLEOutput(loss=total_loss(losses), logits=logits, losses=losses, **encoded)

    def fitting_labels(self, labels: Tensor, logits: Tensor) -> Tensor:
        """`labels` in the form that `loss` takes: one class index for each row of `logits`."""
        if labels.shape != logits.shape[:-1]:
            raise DataError(
                f"labels have shape {tuple(labels.shape)}, but this model needs {tuple(logits.shape[:-1])}: one class "
                "index for each row of logits"
            )
        return labels.long()

    @returns_tuple_if_asked
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> VLEOutput:
        """The logits of image-text pairs and, with `labels`, the loss. Shapes are given by the class; the other
        arguments are those of `VLEModel`."""
        encoded = self.vle(
            input_ids,
            pixel_values,
            attention_mask,
            token_type_ids,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            reads=self.reads,
        )
        return self.with_score(encoded, labels)


class VLEForVQA(VLEHead):
    """Visual question answering: logits (B, A) over the answers of `config.id2label`, from pooled states.

    `labels` are soft scores in [0, 1], (B, A), or the index of each right answer, (B,) int64. The loss is "answers".
    """

    objective = "answers"

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vqa_classifier = two_layer_classifier(2 * config.hidden_size, len(config.id2label or {}))
        self.post_init()

    def score(self, encoded: VLEOutput) -> Tensor:
        return self.vqa_classifier(encoded.pooler_output)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return objectives.answers(logits, labels)

    def fitting_labels(self, labels: Tensor, logits: Tensor) -> Tensor:
        return answer_scores(labels, logits)


class ScoresPairs:
    """A mixin for models with a match score: scores any pairs of some images and texts."""

    vle: VLEModel
    itm_score: VLEMatchScore

    def itm_logits(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_rows: Tensor | None = None,
        text_rows: Tensor | None = None,
    ) -> Tensor:
        """Image-text pairs -> logits (B, 2), column 1 = match.

        `image_rows` and `text_rows` (B,) int64 give the index of each pair's image and text; an image or text that
        several pairs share is encoded once. By default images and texts are paired row by row.
        """
        return pair_logits(
            self.vle,
            self.itm_score,
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_rows=image_rows,
            text_rows=text_rows,
        )


class VLEForITM(ScoresPairs, VLEHead):
    """Image-text matching: logits (B, 2), column 1 = match. `labels` (B,) are 0 or 1; the loss is "itm"."""

    objective = "itm"

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.itm_score = VLEMatchScore(config)
        self.post_init()

    def score(self, encoded: VLEOutput) -> Tensor:
        return self.itm_score(encoded.pooler_output)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return objectives.itm(logits, labels)


class VLEForMLM(VLEHead):
    """Predicts masked words from the rest of the text and the image: logits (B, T, V).

    `labels` (B, T) hold the original token at masked positions and -100 elsewhere; the loss is "mlm".
    """

    reads = Reads(text=True)
    objective = "mlm"

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.mlm_score = masked_word_head(config)
        self._tied_weights_keys = word_head_ties(self.vle.text_model)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_score.get_submodule("1.predictions.decoder")

    def score(self, encoded: VLEOutput) -> Tensor:
        return self.mlm_score(encoded.text_hidden)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return objectives.mlm(logits, labels)


class VLEForPBC(VLEHead):
    """Patch-box classification: logits (B, P - 1, 2) of the patches row by row, column 1 = belongs to the text.

    `labels` (B, P - 1) are 1, 0 or -100 (ignored); the loss is "pbc".
    """

    reads = Reads(image=True)
    objective = "pbc"

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.pbc_classifier = two_layer_classifier(config.hidden_size, 2)
        self.post_init()

    def score(self, encoded: VLEOutput) -> Tensor:
        states: Any = encoded.image_hidden
        return self.pbc_classifier(states[:, 1:])

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return objectives.pbc(logits, labels)


class VLEForNLVR2(VLEHead):
    """NLVR2: is a statement true for a pair of images? Logits (B, 2), column 1 = true.

    Each image is fused with the text, and the two pooled states are concatenated and classified (METER). The text is
    encoded once. `labels` (B,) are 0 or 1; the loss is "choice".
    """

    objective = "choice"

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        width = 2 * config.hidden_size
        self.nlvr2_classifier = nn.Sequential(
            nn.Linear(2 * width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, 2)
        )
        self.post_init()

    def score(self, encoded: VLEOutput) -> Tensor:
        pooled: Any = encoded.pooler_output
        return self.nlvr2_classifier(pooled.flatten(1))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return objectives.choices(logits, labels)

    @returns_tuple_if_asked
    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> VLEOutput:
        """`pixel_values` (B, 2, C, H, W) and `input_ids` (B, T) to logits. The states of the output, if requested, have
        the two images as their second dimension: (B, 2, P, D) and (B, 2, T, D)."""
        check_two_images(pixel_values)
        image, text = self.vle.encode_image(pixel_values.flatten(0, 1)), self.vle.encode_text(input_ids, attention_mask)
        statements = torch.arange(input_ids.shape[0], device=input_ids.device).repeat_interleave(2)
        mask = None if attention_mask is None else key_mask(attention_mask[statements], text.dtype)
        fused = self.vle.fuse(
            Stream(self.vle.typed(image, IMAGE_TYPE)),
            Stream(self.vle.typed(text, TEXT_TYPE), mask, rows=statements),
            EVERYTHING if output_hidden_states else self.reads,
            output_hidden_states=output_hidden_states,
        )
        return self.with_score(VLEOutput(**fused.grouped(2)), labels)


class VLEForRetrieval(ScoresPairs, VLEPreTrainedModel):
    """Image-text retrieval: contrast of the towers' states (ITC) and matching after the fusion (ITM), weights equal.

    Candidates are ranked by `get_image_features` against `get_text_features`, the best re-ranked by `itm_logits`.
    """

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vle = VLEModel(config)
        self.contrast = contrast_head(config)
        self.itm_score = VLEMatchScore(config)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Images (B, C, H, W) -> unit vectors (B, projection)."""
        return self.contrast.embed_image(self.vle.encode_image(pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Texts (B, T) -> unit vectors (B, projection)."""
        return self.contrast.embed_text(self.vle.encode_text(input_ids, attention_mask), attention_mask)

    @returns_tuple_if_asked
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        match_ids: Tensor | None = None,
        return_loss: bool = True,
        wrong_texts: Tensor | None = None,
    ) -> VLEOutput:
        """Losses of matching pairs.

        `match_ids` (B,) int64: pairs with equal ids belong together, such as the captions of one image; by default each
        image matches only its own texts. For contrast alone there may be several texts in a row for each image, the
        same number for all; the ids are then the texts'. `config.objective_weights` weights itc and itm; an ITM of
        weight 0 is not computed. The output's `logits` are the scaled similarities from image to text (B, G). Nothing
        else is computed without `return_loss`, or in evaluation mode if the numbers of images and texts differ, as in
        zero-shot classification. The towers run once: negatives reuse their states. `wrong_texts` (B,) int64 is the row
        of the text that matching pairs with each image as a negative; by default it is drawn by similarity.
        """
        check_text(input_ids, attention_mask)
        if pixel_values.shape[0] != input_ids.shape[0] and not self.training and match_ids is None:
            texts = self.get_text_features(input_ids, attention_mask)
            return VLEOutput(logits=self.contrast.similarities(self.get_image_features(pixel_values), texts))
        ids = pair_ids(pixel_values, input_ids, match_ids, self.config.weight_of("itm") if return_loss else 0.0)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        image, text = self.vle.encode_image(pixel_values), self.vle.encode_text(input_ids, mask)
        losses = {}
        losses["itc"], image_to_text, text_to_image = self.contrast(image, text, mask, ids)
        if not return_loss:
            return VLEOutput(logits=image_to_text)
        if self.contrast.only_records:
            return VLEOutput(loss=losses["itc"], losses=losses)
        itm_logits = itm_labels = None
        if self.config.weight_of("itm") > 0:
            batch = FusionBatch(self.vle)
            images, texts = batch.add_images(image), batch.add_texts(text, mask)
            batch.pair("pairs", images, texts, Reads(pooled=True))
            exists = pair_negatives(
                batch,
                pixel_values=pixel_values,
                input_ids=input_ids,
                attention_mask=mask,
                images=images,
                texts=texts,
                match_ids=ids,
                similarities=(image_to_text, text_to_image),
                wrong_texts=wrong_texts,
            )
            itm_logits, itm_labels = match_logits(self.itm_score, batch.run()), matching_labels(exists)
            losses["itm"] = objectives.itm(itm_logits, itm_labels)
        losses = {name: self.config.weight_of(name) * loss for name, loss in losses.items()}
        return VLEOutput(
            loss=total_loss(losses),
            logits=image_to_text,
            losses=losses,
            itm_logits=itm_logits,
            itm_labels=itm_labels,
        )
