"""EVE's task heads: retrieval, visual question answering, and NLVR2 (EVE, section 4.3; shapes as the released code's).

B batch, G batch gathered over all processes, T text tokens, P image tokens, S = P + T, D width, A answers.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from evle import objectives
from evle.distributed import all_gather
from evle.errors import DataError
from evle.models.contrast import (
    ContrastHead,
    contrast,
    default_match_ids,
    draw_negatives,
    gather_text,
    total_loss,
)
from evle.models.eve.configuration import EVEConfig
from evle.models.eve.modeling import EVEModel, EVEOutput, EVEPreTrainedModel, average_router
from evle.models.eve.routing import activation


def add_balance(losses: dict[str, Tensor], router: dict[str, Tensor] | None, config: EVEConfig) -> None:
    """Enter the weighted load-balancing loss, where the model has experts and its weight is not 0."""
    if router is not None and config.router_aux_loss_coef > 0:
        losses["balance"] = config.router_aux_loss_coef * router["balance"]


class EVEMatchingHead(ContrastHead):
    """What contrast and matching learn: two projections and a temperature (itc), a linear layer of 2 classes (itm)."""

    def __init__(self, config: EVEConfig, itc: bool = True, itm: bool = True):
        width = config.hidden_size
        if itc:
            super().__init__(width, config.projection_dim or width, config.pooling, config.temperature_init)
        else:
            nn.Module.__init__(self)
        if itm:
            self.itm = nn.Linear(width, 2)

    def match(self, text_hidden: Tensor) -> Tensor:
        """Text states (B, T, D) of a joint pass -> logits (B, 2), column 1 = match."""
        return self.itm(text_hidden[:, 0])


def itc_pass(
    eve: EVEModel,
    head: EVEMatchingHead,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    match_ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor, list[EVEOutput]]:
    """Two single-modality passes and their contrast over all processes.

    Returns the loss, the scaled similarities image to text and text to image (B, G), and the two passes' outputs.
    """
    image = eve(pixel_values=pixel_values)
    text = eve(input_ids=input_ids, attention_mask=attention_mask)
    loss, image_to_text, text_to_image = contrast(head, image.image_hidden, text.text_hidden, attention_mask, match_ids)
    return loss, image_to_text, text_to_image, [image, text]


def itm_pass(
    eve: EVEModel,
    head: EVEMatchingHead,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    match_ids: Tensor,
    similarities: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, EVEOutput | None]:
    """The true pairs, each image with a hard negative text, each text with a hard negative image: one pass of 3 B rows.

    Negatives are sampled over all processes by `similarities` (image to text, text to image; each (B, G)), or evenly
    without them. A row that has no negative, because every id is its own, is left out. Returns the logits (pairs, 2),
    their labels (pairs,), and the pass's output, None where there was nothing to pass.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    texts, images, found = draw_negatives(match_ids, similarities)
    with torch.no_grad():
        all_pixels = all_gather(pixel_values)
        all_ids, all_masks = gather_text(input_ids, attention_mask, eve.config.pad_token_id or 0)
        length = all_ids.shape[1] - input_ids.shape[1]
        own_ids = nn.functional.pad(input_ids, (0, length), value=eve.config.pad_token_id or 0)[found]
        own_masks = nn.functional.pad(attention_mask, (0, length), value=0)[found]
        own_pixels = pixel_values[found]
        texts, images = texts[found], images[found]
    if not len(own_ids):
        states = head.itm.weight.new_zeros(0, 1, head.itm.in_features)
        return head.match(states), match_ids.new_zeros(0), None  # a loss of 0 that has a gradient path
    output = eve(
        pixel_values=torch.cat([own_pixels, own_pixels, all_pixels[images]]),
        input_ids=torch.cat([own_ids, all_ids[texts], own_ids]),
        attention_mask=torch.cat([own_masks, all_masks[texts], own_masks]),
    )
    logits = head.match(output.text_hidden)
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(own_ids)] = 1
    return logits, labels, output


class EVEForRetrieval(EVEPreTrainedModel):
    """Image-text retrieval: contrast of single-modality states (ITC) and matching of joint ones (ITM), weights equal.

    Candidates are ranked by `get_image_features` against `get_text_features`, the best re-ranked by `itm_logits`.
    """

    def __init__(self, config: EVEConfig):
        super().__init__(config)
        self.eve = EVEModel(config)
        self.matching = EVEMatchingHead(config)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Images (B, C, H, W) -> unit vectors (B, projection)."""
        return self.matching.embed_image(
            self.eve(pixel_values=pixel_values, final_norm=self._norms_features()).image_hidden
        )

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Texts (B, T) -> unit vectors (B, projection)."""
        output = self.eve(input_ids=input_ids, attention_mask=attention_mask, final_norm=self._norms_features())
        return self.matching.embed_text(output.text_hidden, attention_mask)

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
        one; by default images and texts pair row by row.
        """
        if image_rows is not None:
            pixel_values = pixel_values[image_rows]
        if text_rows is not None:
            input_ids = input_ids[text_rows]
            attention_mask = None if attention_mask is None else attention_mask[text_rows]
        return self.matching.match(self.eve(pixel_values, input_ids, attention_mask).text_hidden)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        match_ids: Tensor | None = None,
    ) -> EVEOutput:
        """Losses of matching pairs.

        `match_ids` (B,) int64: pairs of equal id belong together, as the captions of one image; by default each pair
        is its own. `config.objective_weights` weighs itc and itm (equal as published); an ITM of weight 0 is not
        computed. `logits` of the output are the scaled similarities image to text (B, G), the states those of the
        single passes.
        """
        ids = default_match_ids(len(input_ids), input_ids.device) if match_ids is None else match_ids
        losses = {}
        pairs = (self.eve, self.matching, pixel_values, input_ids, attention_mask, ids)
        losses["itc"], image_to_text, text_to_image, outputs = itc_pass(*pairs)
        joint = itm_logits = itm_labels = None
        if self.config.weight_of("itm") > 0:
            itm_logits, itm_labels, joint = itm_pass(*pairs, (image_to_text, text_to_image))
            losses["itm"] = objectives.itm(itm_logits, itm_labels)
        losses = {name: self.config.weight_of(name) * loss for name, loss in losses.items()}
        router = average_router([output.router for output in (*outputs, joint) if output is not None])
        add_balance(losses, router, self.config)
        return EVEOutput(
            loss=total_loss(losses),
            losses=losses,
            logits=image_to_text,
            itm_logits=itm_logits,
            itm_labels=itm_labels,
            image_hidden=outputs[0].image_hidden,
            text_hidden=outputs[1].text_hidden,
            router=router,
        )

    def _norms_features(self) -> bool:
        return self.training or not self.config.released_eval_features


class EVEForVQA(EVEPreTrainedModel):
    """Visual question answering: classification of the text [CLS] over `config.id2label`.

    With `config.vqa_slot` the token before [SEP] is classified instead, which is to be [MASK].
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
            else two_layer_classifier(width, 2 * width, config.num_labels)
        )
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EVEOutput:
        """Logits (B, A); with `labels` (B, A), soft scores in [0, 1], also the losses."""
        output = self.eve(
            pixel_values,
            input_ids,
            attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        states = output.text_hidden
        output.logits = self.classifier(self._slot(states, attention_mask) if self.config.vqa_slot else states[:, 0])
        if labels is not None:
            if labels.shape != output.logits.shape:
                raise DataError(
                    f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(output.logits.shape)}; "
                    "labels are one soft score for each answer of config.id2label"
                )
            output.losses = {"answers": objectives.answers(output.logits, labels)}
            if self.config.vqa_balance_loss:
                add_balance(output.losses, output.router, self.config)
            output.loss = total_loss(output.losses)
        return output

    def _slot(self, text_hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The state (B, D) of each text's last token but one."""
        if attention_mask is None:
            return text_hidden[:, -2]
        rows = torch.arange(len(text_hidden), device=text_hidden.device)
        return text_hidden[rows, attention_mask.long().sum(dim=1) - 2]


class EVEForNLVR2(EVEPreTrainedModel):
    """NLVR2: is a statement true of a pair of images? Both image-text pairs go through the model, a head joins them."""

    released_classifier = "head.classifier."

    def __init__(self, config: EVEConfig):
        super().__init__(config)
        self.eve = EVEModel(config)
        self.head = {"plain": EVEPlainPairHead, "bi-attention": EVEBiAttentionHead}[config.nlvr2_head](config)
        self.post_init()

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
        if pixel_values.dim() != 5 or pixel_values.shape[1] != 2:
            raise DataError(
                f"NLVR2 takes pixel_values (B, 2, C, H, W), two images a statement; got {tuple(pixel_values.shape)}"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        passes = [self.eve(images, input_ids, attention_mask) for images in pixel_values.unbind(dim=1)]
        left, right = (torch.cat([output.image_hidden, output.text_hidden], dim=1) for output in passes)
        logits = self.head(left, right, attention_mask)
        router = average_router([output.router for output in passes])
        losses: dict[str, Tensor] = {}
        if labels is not None:
            losses["choice"] = objectives.choices(logits, labels)
            add_balance(losses, router, self.config)
        return EVEOutput(
            loss=total_loss(losses),
            losses=losses or None,
            logits=logits,
            image_hidden=torch.stack([output.image_hidden for output in passes], dim=1),
            text_hidden=torch.stack([output.text_hidden for output in passes], dim=1),
            router=router,
        )


def two_layer_classifier(in_features: int, inner: int, num_classes: int) -> nn.Sequential:
    """The released code's classifier: Linear, LayerNorm, GELU, Linear."""
    return nn.Sequential(nn.Linear(in_features, inner), nn.LayerNorm(inner), nn.GELU(), nn.Linear(inner, num_classes))


def word_head(config: EVEConfig, num_words: int) -> nn.Sequential:
    """A text state -> one logit a word, as masked language modelling has it: Linear, activation, Linear."""
    width = config.hidden_size
    return nn.Sequential(nn.Linear(width, width), activation(config.hidden_act), nn.Linear(width, num_words))


def answers_from_words(tensors: Mapping[str, Tensor], answer_tokens: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The VQA head of a model with `vqa_slot` that answers as its MLM head fills words in.

    `tensors` are those of a pre-trained model (V words, width D); an answer's row is the mean of its tokens' rows. The
    biases are lowered by log A for A answers, as VQA asks of each answer by itself whether it is right. Empty where
    `tensors` hold no MLM head.
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
    """The two text [CLS] states side by side, classified; arguments as `EVEBiAttentionHead`'s."""

    def __init__(self, config: EVEConfig):
        super().__init__()
        self.classifier = two_layer_classifier(2 * config.hidden_size, 2 * config.hidden_size, 2)

    def forward(self, left: Tensor, right: Tensor, attention_mask: Tensor) -> Tensor:
        text = left.shape[1] - attention_mask.shape[1]
        return self.classifier(torch.cat([left[:, text], right[:, text]], dim=-1))


class EVEBiAttentionHead(nn.Module):
    """Each pair attends to the other, both are pooled by attention and classified (UNITER's NLVR2 head)."""

    def __init__(self, config: EVEConfig):
        super().__init__()
        width, dropout = config.hidden_size, 0.1
        self.attn1 = nn.MultiheadAttention(width, config.num_attention_heads, dropout=dropout, batch_first=True)
        self.attn2 = nn.MultiheadAttention(width, config.num_attention_heads, dropout=dropout, batch_first=True)
        self.fc = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(dropout))
        self.pool = nn.Sequential(nn.Linear(width, 1), nn.ReLU())
        self.pool_dropout = nn.Dropout(dropout)
        self.answer = nn.Linear(2 * width, 2)

    def forward(self, left: Tensor, right: Tensor, attention_mask: Tensor) -> Tensor:
        """`left`, `right` (B, S, D), `attention_mask` (B, T) of the text at their end -> (B, 2)."""
        image_mask = attention_mask.new_ones(len(left), left.shape[1] - attention_mask.shape[1])
        padding = torch.cat([image_mask, attention_mask], dim=1) == 0  # (B, S), True = padding
        left_to_right, _ = self.attn1(left, right, right, key_padding_mask=padding, need_weights=False)
        right_to_left, _ = self.attn2(right, left, left, key_padding_mask=padding, need_weights=False)
        left_pooled = self.attention_pool(self.fc(torch.cat([left_to_right, left], dim=-1)), padding)
        right_pooled = self.attention_pool(self.fc(torch.cat([right_to_left, right], dim=-1)), padding)
        return self.answer(torch.cat([left_pooled, right_pooled], dim=-1))

    def attention_pool(self, states: Tensor, padding: Tensor) -> Tensor:
        """States (B, S, D) averaged by learned weights over real tokens -> (B, D)."""
        scores = self.pool(states).squeeze(-1).float().masked_fill(padding, float("-inf"))
        weights = self.pool_dropout(scores.softmax(dim=-1)).to(states.dtype)
        return (weights[:, None] @ states).squeeze(1)
