"""VLE's task heads: VQA, matching, masked words, patch-box classification, retrieval and NLVR2.

The first four have the released names and shapes. B batch, G batch gathered over all processes, T text tokens, P image
tokens with [CLS], D width, A answers, V vocabulary.
"""

import torch
from torch import Tensor, nn
from transformers.models.deberta_v2.modeling_deberta_v2 import LegacyDebertaV2OnlyMLMHead

from evle import objectives
from evle.errors import DataError
from evle.models.contrast import default_match_ids, total_loss
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
from evle.models.vle.modeling import IMAGE_TYPE, TEXT_TYPE, VLEModel, VLEOutput, VLEPreTrainedModel


def two_layer_classifier(in_features: int, num_classes: int) -> nn.Sequential:
    """The released code's classifier: Linear, LayerNorm, GELU, Linear."""
    return nn.Sequential(
        nn.Linear(in_features, in_features), nn.LayerNorm(in_features), nn.GELU(), nn.Linear(in_features, num_classes)
    )


def masked_word_head(config: VLEConfig) -> nn.Sequential:
    """Text states (..., D) to logits (..., V): to DeBERTa's width, then its MLM head, under their released names."""
    return nn.Sequential(
        nn.Linear(config.hidden_size, config.text_config.hidden_size), LegacyDebertaV2OnlyMLMHead(config.text_config)
    )


TIED_WORD_HEAD = {
    "mlm_score.1.predictions.decoder.weight": "vle.text_model.embeddings.word_embeddings.weight",
    "mlm_score.1.predictions.decoder.bias": "mlm_score.1.predictions.bias",
}
"""The decoder of `masked_word_head` is the word embedding; its bias has two names."""


class VLEForVQA(VLEPreTrainedModel):
    """Visual question answering: classification of the pooled states over `config.id2label`."""

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vle = VLEModel(config)
        assert config.num_labels is not None, "transformers gives every configuration id2label"
        self.vqa_classifier = two_layer_classifier(2 * config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> VLEOutput:
        """Logits (B, A); with `labels` (B, A), soft scores in [0, 1], also the loss, named "answers"."""
        reads = EVERYTHING if output_hidden_states else Reads(pooled=True)
        output = self.vle(pixel_values, input_ids, attention_mask, token_type_ids, output_attentions, reads)
        output.logits = self.vqa_classifier(output.pooler_output)
        if labels is not None:
            if labels.shape != output.logits.shape:
                raise DataError(
                    f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(output.logits.shape)}; "
                    "labels are one soft score for each answer of config.id2label"
                )
            output.losses = {"answers": objectives.answers(output.logits, labels)}
            output.loss = total_loss(output.losses)
        return output


class ScoresPairs:
    """What both models with a match score share: it of any pairs of some images and texts."""

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

        `image_rows` and `text_rows` (B,) int64 name the image and the text of each pair, where several pairs share
        one, which is then encoded once; by default images and texts pair row by row.
        """
        pairs = (pixel_values, input_ids, attention_mask, image_rows, text_rows)
        return pair_logits(self.vle, self.itm_score, *pairs)


class VLEForITM(ScoresPairs, VLEPreTrainedModel):
    """Image-text matching: do image and text belong together?"""

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vle = VLEModel(config)
        self.itm_score = VLEMatchScore(config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> VLEOutput:
        """Logits (B, 2), column 1 = match; with `labels` (B,), 0 or 1, also the loss, named "itm"."""
        reads = EVERYTHING if output_hidden_states else Reads(pooled=True)
        output = self.vle(pixel_values, input_ids, attention_mask, token_type_ids, output_attentions, reads)
        output.logits = self.itm_score(output.pooler_output)
        if labels is not None:
            output.losses = {"itm": objectives.itm(output.logits, labels)}
            output.loss = total_loss(output.losses)
        return output


class VLEForMLM(VLEPreTrainedModel):
    """Masked words, from the rest of the text and the image."""

    _tied_weights_keys = TIED_WORD_HEAD

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vle = VLEModel(config)
        self.mlm_score = masked_word_head(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_score.get_submodule("1.predictions.decoder")

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> VLEOutput:
        """Logits (B, T, V); with `labels` (B, T), the token to find or -100, also the loss, named "mlm"."""
        reads = EVERYTHING if output_hidden_states else Reads(text=True)
        output = self.vle(pixel_values, input_ids, attention_mask, token_type_ids, output_attentions, reads)
        output.logits = self.mlm_score(output.text_hidden)
        if labels is not None:
            output.losses = {"mlm": objectives.mlm(output.logits, labels)}
            output.loss = total_loss(output.losses)
        return output


class VLEForPBC(VLEPreTrainedModel):
    """Patch-box classification: which patches belong to the text?"""

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vle = VLEModel(config)
        self.pbc_classifier = two_layer_classifier(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> VLEOutput:
        """Logits (B, P - 1, 2) of the patches row by row, column 1 = belongs to the text.

        With `labels` (B, P - 1) of 1, 0 or -100 (not asked), also the loss, named "pbc".
        """
        reads = EVERYTHING if output_hidden_states else Reads(image=True)
        output = self.vle(pixel_values, input_ids, attention_mask, token_type_ids, output_attentions, reads)
        output.logits = self.pbc_classifier(output.image_hidden[:, 1:])
        if labels is not None:
            output.losses = {"pbc": objectives.pbc(output.logits, labels)}
            output.loss = total_loss(output.losses)
        return output


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

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        match_ids: Tensor | None = None,
    ) -> VLEOutput:
        """Losses of matching pairs.

        `match_ids` (B,) int64: pairs of equal id belong together, as the captions of one image; by default each pair
        is its own. `config.objective_weights` weighs itc and itm; an ITM of weight 0 is not computed. `logits` of the
        output are the scaled similarities image to text (B, G). The towers run once: negatives reuse their states.
        """
        ids = default_match_ids(len(input_ids), input_ids.device) if match_ids is None else match_ids
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        image, text = self.vle.encode_image(pixel_values), self.vle.encode_text(input_ids, mask)
        losses = {}
        losses["itc"], image_to_text, text_to_image = self.contrast(image, text, mask, ids)
        output = VLEOutput(logits=image_to_text)
        if self.config.weight_of("itm") > 0:
            batch = FusionBatch(self.vle)
            images, texts = batch.add_images(image), batch.add_texts(text, mask)
            batch.pair("pairs", images, texts, Reads(pooled=True))
            pair = (pixel_values, input_ids, mask, images, texts)
            found = pair_negatives(batch, *pair, ids, (image_to_text, text_to_image))
            fused = batch.run()
            logits, labels = match_logits(self.itm_score, fused, found)
            output.itm_logits, output.itm_labels = logits, labels
            losses["itm"] = objectives.itm(logits, labels)
        output.losses = {name: self.config.weight_of(name) * loss for name, loss in losses.items()}
        output.loss = total_loss(output.losses)
        return output


class VLEForNLVR2(VLEPreTrainedModel):
    """NLVR2: is a statement true of a pair of images?

    Each image is fused with the text, and the two pooled states, side by side, are classified (METER). The text is read
    once.
    """

    def __init__(self, config: VLEConfig):
        super().__init__(config)
        self.vle = VLEModel(config)
        width = 2 * config.hidden_size
        self.nlvr2_classifier = nn.Sequential(
            nn.Linear(2 * width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, 2)
        )
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> VLEOutput:
        """`pixel_values` (B, 2, C, H, W) -> logits (B, 2), column 1 = true; with `labels` (B,), 0 or 1, also the loss,
        named "choice".

        The states of the output, if asked for, are (B, 2, P, D) and (B, 2, T, D).
        """
        if pixel_values.dim() != 5 or pixel_values.shape[1] != 2:
            raise DataError(
                f"NLVR2 takes pixel_values (B, 2, C, H, W), two images a statement; got {tuple(pixel_values.shape)}"
            )
        image, text = self.vle.encode_image(pixel_values.flatten(0, 1)), self.vle.encode_text(input_ids, attention_mask)
        statements = torch.arange(len(input_ids), device=input_ids.device).repeat_interleave(2)
        mask = None if attention_mask is None else key_mask(attention_mask[statements], text.dtype)
        fused = self.vle.fuse(
            Stream(self.vle.typed(image, IMAGE_TYPE)),
            Stream(self.vle.typed(text, TEXT_TYPE), mask, rows=statements),
            EVERYTHING if output_hidden_states else Reads(pooled=True),
        )
        assert fused.pooler_output is not None
        logits = self.nlvr2_classifier(fused.pooler_output.view(len(input_ids), -1))
        output = VLEOutput(logits=logits, **fused.grouped(2))
        if labels is not None:
            output.losses = {"choice": objectives.choices(logits, labels)}
            output.loss = total_loss(output.losses)
        return output
