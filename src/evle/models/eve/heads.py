"""EVE's task heads: retrieval, visual question answering, and NLVR2 (EVE, section 4.3; shapes as in the released code).

B batch, G batch gathered over all processes, T text tokens, P image tokens, S = P + T, D width, A answers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers.utils.generic import can_return_tuple

from evle import objectives
from evle.distributed import all_gather, world_size
from evle.errors import DataError
from evle.models.attention import attend
from evle.models.casts import cast_once
from evle.models.classifying import answer_scores, check_two_images, two_layer_classifier
from evle.models.contrast import (
    Contrast,
    ContrastHead,
    default_match_ids,
    draw_negatives,
    gather_text,
    matching_labels,
    pair_ids,
    total_loss,
)
from evle.models.eve.configuration import EVEConfig
from evle.models.eve.modeling import EVEModel, EVEOutput, EVEPreTrainedModel, average_router
from evle.models.eve.routing import activation
from evle.models.plain import float_dtype


def add_balance(losses: dict[str, Tensor], router: dict[str, Tensor] | None, config: EVEConfig) -> None:
    """Add the weighted load-balancing loss to `losses` if the model has experts and its weight is not 0."""
    if router is not None and config.router_aux_loss_coef > 0:
        losses["balance"] = config.router_aux_loss_coef * router["balance"]


class Pairs(NamedTuple):
    """The image-text pairs of one step: images (B, C, H, W), texts (B, T), their mask, and their match ids (B,)."""

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor | None
    match_ids: Tensor

    @classmethod
    def of(
        cls, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None, match_ids: Tensor | None
    ) -> Self:
        """The pairs of a batch; without `match_ids`, each pair matches only itself."""
        if match_ids is None:
            match_ids = default_match_ids(len(input_ids), input_ids.device)
        return cls(pixel_values, input_ids, attention_mask, match_ids)


def contrast_pairs(eve: EVEModel, head: ContrastHead, pairs: Pairs) -> tuple[Contrast, list[EVEOutput]]:
    """Two single-modality passes; returns their contrast over all processes and the outputs of both passes."""
    image = eve(pixel_values=pairs.pixel_values, return_dict=True)
    text = eve(input_ids=pairs.input_ids, attention_mask=pairs.attention_mask, return_dict=True)
    return head(image.image_hidden, text.text_hidden, pairs.attention_mask, pairs.match_ids), [image, text]


class Matching(NamedTuple):
    """Logits (pairs, 2) and labels (pairs,) of matching, and the output of its joint pass (None without pairs)."""

    logits: Tensor
    labels: Tensor
    output: EVEOutput | None


def match_pairs(
    eve: EVEModel,
    head: nn.Module,
    pairs: Pairs,
    similarities: tuple[Tensor, Tensor] | None = None,
    wrong_texts: Tensor | None = None,
    rows: Tensor | None = None,
) -> Matching:
    """Match the true pairs, each image with a hard negative text, and each text with a hard negative image, in one
    pass of 3 N rows.

    Negatives are sampled over all processes by `similarities` (image to text, text to image; each (B, G)), or uniformly
    without them, except the texts that `wrong_texts` (B,) gives. `rows` (N,) are the pairs that are matched; by default
    all. The labels of a row without a negative, because every id equals its own, are -100. A process of several that
    has no row matches one whose labels are all -100.
    """
    input_ids, pad = pairs.input_ids, eve.config.pad_token_id or 0
    attention_mask = torch.ones_like(input_ids) if pairs.attention_mask is None else pairs.attention_mask
    texts, images, exists = draw_negatives(pairs.match_ids, similarities, wrong_texts)
    with torch.no_grad():
        all_pixels = all_gather(pairs.pixel_values)
        all_ids, all_masks = gather_text(input_ids, attention_mask, pad)
        length = all_ids.shape[1] - input_ids.shape[1]
        own_ids = padded_ids = nn.functional.pad(input_ids, (0, length), value=pad)
        own_masks = padded_masks = nn.functional.pad(attention_mask, (0, length), value=0)
        own_pixels = pairs.pixel_values
        if rows is not None:
            own_ids, own_masks, own_pixels = own_ids[rows], own_masks[rows], own_pixels[rows]
            texts, images, exists = texts[rows], images[rows], exists[rows]
    is_matched = len(own_ids) > 0
    if not is_matched and world_size() > 1:
        # All processes must run the layers, whose weights or experts may be divided: match a row that does not count.
        own_ids, own_masks, own_pixels = padded_ids[:1], padded_masks[:1], pairs.pixel_values[:1]
        texts = images = own_ids.new_zeros(1)
        exists = torch.zeros(1, dtype=torch.bool, device=own_ids.device)
    elif not is_matched:
        states = torch.zeros(0, eve.config.hidden_size, dtype=float_dtype(head), device=input_ids.device)
        return Matching(head(states), pairs.match_ids.new_zeros(0), None)  # a loss of 0 that has a gradient path
    output = eve(
        pixel_values=torch.cat([own_pixels, own_pixels, all_pixels[images]]),
        input_ids=torch.cat([own_ids, all_ids[texts], own_ids]),
        attention_mask=torch.cat([own_masks, all_masks[texts], own_masks]),
        return_dict=True,
    )
    return Matching(head(output.text_hidden[:, 0]), matching_labels(exists), output if is_matched else None)


def contrast_head(config: EVEConfig) -> ContrastHead:
    """The projections and the temperature of ITC."""
    width = config.hidden_size
    return ContrastHead(width, config.projection_dim or width, config.pooling, config.temperature_init)


class EVEForRetrieval(EVEPreTrainedModel):
    """Image-text retrieval: contrast of single-modality states (ITC) and matching of joint ones (ITM), weights equal.

    Candidates are ranked by `get_image_features` against `get_text_features`, the best re-ranked by `itm_logits`.
    """

    def __init__(self, config: EVEConfig):
        super().__init__(config)
        self.eve = EVEModel(config)
        self.contrast = contrast_head(config)
        self.matching = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Images (B, C, H, W) -> unit vectors (B, projection)."""
        output = self.eve(pixel_values=pixel_values, final_norm=self._norms_features(), return_dict=True)
        return self.contrast.embed_image(output.image_hidden)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Texts (B, T) -> unit vectors (B, projection)."""
        output = self.eve(
            input_ids=input_ids, attention_mask=attention_mask, final_norm=self._norms_features(), return_dict=True
        )
        return self.contrast.embed_text(output.text_hidden, attention_mask)

    def itm_logits(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_rows: Tensor | None = None,
        text_rows: Tensor | None = None,
    ) -> Tensor:
        """Image-text pairs -> logits (B, 2), column 1 = match.

        `image_rows` and `text_rows` (B,) int64 give the index of each pair's image and text, so that several pairs can
        share one. By default images and texts are paired row by row.
        """
        if image_rows is not None:
            pixel_values = pixel_values[image_rows]
        if text_rows is not None:
            input_ids = input_ids[text_rows]
            attention_mask = None if attention_mask is None else attention_mask[text_rows]
        output = self.eve(pixel_values, input_ids, attention_mask, return_dict=True)
        logits: Tensor = self.matching(output.text_hidden[:, 0])
        return logits

    @can_return_tuple
    @cast_once
    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        match_ids: Tensor | None = None,
        return_loss: bool = True,
        wrong_texts: Tensor | None = None,
    ) -> EVEOutput:
        """Similarities of pairs, and the losses of contrast and matching.

        Args:
            pixel_values: (B, C, H, W).
            input_ids: (B, T).
            attention_mask: (B, T), 1 = real token.
            match_ids: (B,) int64; pairs with equal ids belong together, such as the captions of one image. By default
                each image matches only its own texts. For contrast alone there may be several texts in a row for each
                image, the same number for all; the ids are then the texts'.
            return_loss: False leaves out the losses and the joint pass of matching.
            wrong_texts: (B,) int64, the row of the text that matching pairs with each image as a negative. By default
                it is drawn by similarity.

        `config.objective_weights` weights itc and itm (equally, as published); an ITM of weight 0 is not computed. The
        output's `logits` are the scaled similarities from image to text (B, G), and its states are those of the
        single-modality passes. In evaluation mode, the numbers of images and texts may differ, as in zero-shot
        classification; then only the similarities are computed.
        """
        if len(pixel_values) != len(input_ids) and not self.training and match_ids is None:
            texts = self.get_text_features(input_ids, attention_mask)
            return EVEOutput(logits=self.contrast.similarities(self.get_image_features(pixel_values), texts))
        itm_weight = self.config.weight_of("itm") if return_loss else 0.0
        ids = pair_ids(pixel_values, input_ids, match_ids, itm_weight)
        pairs = Pairs(pixel_values, input_ids, attention_mask, ids)
        contrast, (image, text) = contrast_pairs(self.eve, self.contrast, pairs)
        losses: dict[str, Tensor] = {"itc": contrast.loss} if return_loss else {}
        if self.contrast.only_records:
            return EVEOutput(loss=contrast.loss, losses=losses)
        matching = None
        if return_loss and self.config.weight_of("itm") > 0:
            similarities = contrast.image_to_text, contrast.text_to_image
            matching = match_pairs(self.eve, self.matching, pairs, similarities, wrong_texts)
            losses["itm"] = objectives.itm(matching.logits, matching.labels)
        losses = {name: self.config.weight_of(name) * loss for name, loss in losses.items()}
        joint = None if matching is None else matching.output
        router = average_router([output.router for output in (image, text, joint) if output is not None])
        if return_loss:
            add_balance(losses, router, self.config)
        return EVEOutput(
            loss=total_loss(losses),
            logits=contrast.image_to_text,
            losses=losses or None,
            itm_logits=None if matching is None else matching.logits,
            itm_labels=None if matching is None else matching.labels,
            image_hidden=image.image_hidden,
            text_hidden=text.text_hidden,
            router=router,
        )

    def _norms_features(self) -> bool:
        return self.training or not self.config.released_eval_features


class EVEForVQA(EVEPreTrainedModel):
    """Visual question answering: classification of the text [CLS] over `config.id2label`.

    With `config.vqa_slot` the token before [SEP] is classified instead, which must be [MASK].
    """

    released_classifier = "classifier."

    def __init__(self, config: EVEConfig):
        super().__init__(config)
        self.eve = EVEModel(config)
        assert config.num_labels is not None, "transformers gives every configuration id2label"
        width = config.hidden_size
        self.classifier = (
            word_head(config, config.num_labels)
            if config.vqa_slot
            else two_layer_classifier(width, config.num_labels, inner=2 * width)
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EVEOutput:
        """Logits (B, A); with `labels`, also the losses.

        `labels` are soft scores (B, A) in [0, 1], or the index (B,) int64 of the one right answer.
        """
        output = self.eve(
            pixel_values,
            input_ids,
            attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        states = output.text_hidden
        logits = self.classifier(self._slot(states, attention_mask) if self.config.vqa_slot else states[:, 0])
        losses: dict[str, Tensor] = {}
        if labels is not None:
            losses["answers"] = objectives.answers(logits, answer_scores(labels, logits))
            if self.config.vqa_balance_loss:
                add_balance(losses, output.router, self.config)
        return EVEOutput(
            loss=total_loss(losses),
            logits=logits,
            losses=losses or None,
            image_hidden=output.image_hidden,
            text_hidden=states,
            router=output.router,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def _slot(self, text_hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The state (B, D) of each text's last token but one."""
        if text_hidden.shape[1] < 2:
            raise DataError("config.vqa_slot reads the last token but one; a question needs at least 2 tokens")
        if attention_mask is None:
            return text_hidden[:, -2]
        rows = torch.arange(text_hidden.shape[0], device=text_hidden.device)
        return text_hidden[rows, (attention_mask.long().sum(dim=1) - 2).clamp(min=0)]


class EVEForNLVR2(EVEPreTrainedModel):
    """NLVR2: is a statement true for a pair of images? The head compares the states of both image-text pairs."""

    released_classifier = "head.classifier."

    def __init__(self, config: EVEConfig):
        super().__init__(config)
        self.eve = EVEModel(config)
        self.head = {"plain": EVEPlainPairHead, "bi-attention": EVEBiAttentionHead}[config.nlvr2_head](config)
        self.post_init()

    @can_return_tuple
    @cast_once
    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> EVEOutput:
        """`pixel_values` (B, 2, C, H, W) -> logits (B, 2), column 1 = true; with `labels` (B,), 0 or 1, also losses.

        The states of the output are (B, 2, P, D) and (B, 2, T, D).
        """
        check_two_images(pixel_values)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        passes = [
            self.eve(images, input_ids, attention_mask, return_dict=True) for images in pixel_values.unbind(dim=1)
        ]
        left, right = (torch.cat([output.image_hidden, output.text_hidden], dim=1) for output in passes)
        logits = self.head(left, right, attention_mask)
        router = average_router([output.router for output in passes])
        losses: dict[str, Tensor] = {}
        if labels is not None:
            losses["choice"] = objectives.choices(logits, labels)
            add_balance(losses, router, self.config)
        return EVEOutput(
            loss=total_loss(losses),
            logits=logits,
            losses=losses or None,
            image_hidden=torch.stack([output.image_hidden for output in passes], dim=1),
            text_hidden=torch.stack([output.text_hidden for output in passes], dim=1),
            router=router,
        )


def word_head(config: EVEConfig, num_words: int) -> nn.Sequential:
    """A text state -> one logit per word, as for masked language modelling: Linear, activation, Linear."""
    width = config.hidden_size
    return nn.Sequential(nn.Linear(width, width), activation(config.hidden_act), nn.Linear(width, num_words))


def answers_from_words(tensors: Mapping[str, Tensor], answer_tokens: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The initial VQA head of a model with `vqa_slot`: it answers with the words that the MLM head would fill in.

    `tensors` are those of a pre-trained model (V words, width D). An answer's row is the mean of its tokens' rows. The
    biases are lowered by log A for A answers, because VQA decides for each answer separately whether it is right. The
    result is empty if `tensors` hold no MLM head.
    """
    words = tensors.get("mlm_head.2.weight", tensors.get("eve.text_embedding.word.weight"))
    if words is None or "mlm_head.0.weight" not in tensors:
        return {}
    bias = tensors["mlm_head.2.bias"]
    rows = [torch.tensor(tokens, dtype=torch.long) for tokens in answer_tokens]
    return {
        "classifier.0.weight": tensors["mlm_head.0.weight"],
        "classifier.0.bias": tensors["mlm_head.0.bias"],
        "classifier.2.weight": torch.stack([words[row].mean(dim=0) for row in rows]),
        "classifier.2.bias": torch.stack([bias[row].mean() for row in rows]) - math.log(len(rows)),
    }


class EVEPlainPairHead(nn.Module):
    """A classifier of the two concatenated text [CLS] states; its arguments are those of `EVEBiAttentionHead`."""

    def __init__(self, config: EVEConfig):
        super().__init__()
        self.classifier = two_layer_classifier(2 * config.hidden_size, 2)

    def forward(self, left: Tensor, right: Tensor, attention_mask: Tensor) -> Tensor:
        text = left.shape[1] - attention_mask.shape[1]
        return self.classifier(torch.cat([left[:, text], right[:, text]], dim=-1))


class PairAttention(nn.Module):
    """Multi-head attention of one pair's states to the other's, as torch's `nn.MultiheadAttention` computes it.

    Its projections are modules that are called. torch's implementation reads their weights directly, and so skips
    adapters, offloading and hooks.
    """

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, asking: Tensor, answering: Tensor, padding: Tensor) -> Tensor:
        """`asking` and `answering` (B, S, D), `padding` (B, S) of the answering side, True = padding -> (B, S, D)."""
        query, key, value = (
            states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for states in (self.query(asking), self.key(answering), self.value(answering))
        )  # each (B, H, S, D / H)
        mask = ~padding[:, None, None]
        context = attend(query, key, value, mask, self.dropout if self.training else 0.0)
        output: Tensor = self.out_proj(context.transpose(1, 2).flatten(2))
        return output


class EVEBiAttentionHead(nn.Module):
    """Each pair attends to the other; both are then pooled by attention and classified (UNITER's NLVR2 head)."""

    def __init__(self, config: EVEConfig):
        super().__init__()
        width, dropout = config.hidden_size, 0.1
        self.attn1 = PairAttention(width, config.num_attention_heads, dropout)
        self.attn2 = PairAttention(width, config.num_attention_heads, dropout)
        self.fc = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(dropout))
        self.pool = nn.Sequential(nn.Linear(width, 1), nn.ReLU())
        self.pool_dropout = nn.Dropout(dropout)
        self.answer = nn.Linear(2 * width, 2)

    def forward(self, left: Tensor, right: Tensor, attention_mask: Tensor) -> Tensor:
        """`left`, `right` (B, S, D), `attention_mask` (B, T) of the text at their end -> (B, 2)."""
        image_mask = attention_mask.new_ones(left.shape[0], left.shape[1] - attention_mask.shape[1])
        padding = torch.cat([image_mask, attention_mask], dim=1) == 0  # (B, S), True = padding
        left_to_right = self.attn1(left, right, padding)
        right_to_left = self.attn2(right, left, padding)
        left_pooled = self.attention_pool(self.fc(torch.cat([left_to_right, left], dim=-1)), padding)
        right_pooled = self.attention_pool(self.fc(torch.cat([right_to_left, right], dim=-1)), padding)
        logits: Tensor = self.answer(torch.cat([left_pooled, right_pooled], dim=-1))
        return logits

    def attention_pool(self, states: Tensor, padding: Tensor) -> Tensor:
        """States (B, S, D) averaged by learned weights over real tokens -> (B, D)."""
        scores = self.pool(states).squeeze(-1).float().masked_fill(padding, float("-inf"))
        weights = self.pool_dropout(scores.softmax(dim=-1)).to(states.dtype)
        return (weights[:, None] @ states).squeeze(1)
