"""VLE's fusion: blocks of two layers, one per stream, that attend to their own stream and then to the other one.

Linear layers act on each token separately; only attention combines tokens. This allows two savings that change no
result: inputs that several rows share are projected once (`Stream`), and the last block computes only what is read
(`Reads`). In the extreme, that is one query, which needs no projected keys and values at all
(`FusionSelfAttention.answer_one`). Module names are those of the released checkpoints.

B rows (pairs), N distinct inputs of a stream, S and R tokens of a stream and of the stream that it reads, A query
tokens, D fusion width, H heads, d width of a head.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from evle.models.attention import attend
from evle.models.plain import is_plain
from evle.models.vle.configuration import VLEConfig


class Stream(NamedTuple):
    """The tokens of one modality, S in each of B rows.

    If rows share an input, as the candidates of a question share an image, `states` holds each input once and `rows`
    gives the index of each row's input. Tokens that belong to a single row, such as the boxes of a candidate, follow in
    `own`.

    Attributes:
        states: (N, S, D), or fewer than S tokens if `own` has the rest.
        mask: (B, 1, 1, S) from `key_mask`; None if all tokens are real.
        rows: (B,) int64 indices into N; None means one input per row, N = B.
        own: (B, tokens, D).
    """

    states: Tensor
    mask: Tensor | None = None
    rows: Tensor | None = None
    own: Tensor | None = None

    def through(self, layer: Callable[[Tensor], Tensor]) -> Tensor:
        """A token-wise `layer` on the whole stream, (B, S, its width), computed once for shared inputs."""
        found = layer(self.states)
        if self.rows is not None:
            found = found.index_select(0, self.rows)
        return found if self.own is None else torch.cat([found, layer(self.own)], dim=1)

    def whole(self) -> Tensor:
        """The states row by row, (B, S, D)."""
        return self.through(lambda states: states)

    def part(self, start: int, end: int) -> "Stream":
        """The rows from `start` to before `end`."""
        mask, own = (None if each is None else each[start:end] for each in (self.mask, self.own))
        if self.rows is None:
            return Stream(self.states[start:end], mask, None, own)
        return Stream(self.states, mask, self.rows[start:end], own)

    def first(self) -> "Stream":
        """The first token of each row."""
        return Stream(self.whole()[:, :1])


class Reads(NamedTuple):
    """What a caller reads from the fusion; the last block computes nothing else.

    Attributes:
        image: the states of all image tokens.
        text: the states of all text tokens.
        pooled: the first state of each stream, pooled.
    """

    image: bool = False
    text: bool = False
    pooled: bool = False


EVERYTHING = Reads(image=True, text=True, pooled=True)


class Fused(NamedTuple):
    """The fusion's output for pairs, with the fields of `VLEOutput`. What was not read is None."""

    image_hidden: Tensor | None
    text_hidden: Tensor | None
    pooler_output: Tensor | None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: dict[str, tuple[Tensor, ...]] | None = None

    def grouped(self, size: int) -> dict[str, Any]:
        """The states by name, with `size` rows as a dimension: (B / size, size, tokens, D)."""
        named = {
            "image_hidden": self.image_hidden,
            "text_hidden": self.text_hidden,
            "pooler_output": self.pooler_output,
        }
        grouped: dict[str, Any] = {
            name: None if each is None else each.unflatten(0, (-1, size)) for name, each in named.items()
        }
        if self.hidden_states is not None:
            grouped["hidden_states"] = tuple(each.unflatten(0, (-1, size)) for each in self.hidden_states)
        return grouped


def key_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask (B, S), 1 or True = real, as (B, 1, 1, S) to add to attention scores; None stays None."""
    if mask is None:
        return None
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return added.masked_fill(~mask.bool(), torch.finfo(dtype).min)[:, None, None]


class FusionSelfAttention(nn.Module):
    """Attention of one stream to itself or to the other; the released names say "self" for both."""

    def __init__(self, config: VLEConfig):
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.num_heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, asking: Stream, source: Stream, keep_map: bool) -> tuple[Tensor, Tensor | None]:
        """A queries from `asking` attend to R tokens of `source` -> (B, A, D) and, if requested, the map
        (B, H, A, R)."""
        one = asking.states.shape[1] == 1 and asking.own is None
        if one and not keep_map and is_plain(self.key) and is_plain(self.value):
            return self.answer_one(asking, source), None
        query, key, value = (
            stream.through(projection).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for stream, projection in ((asking, self.query), (source, self.key), (source, self.value))
        )  # each (B, H, A or R, d)
        dropout = self.dropout_rate if self.training else 0.0
        mask = None if source.mask is None else source.mask.to(query.dtype)
        if not keep_map and self.config._attn_implementation != "eager":
            return attend(query, key, value, mask, dropout).transpose(1, 2).flatten(2), None
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = (scores if mask is None else scores + mask).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        context = F.dropout(weights, dropout) @ value
        return context.transpose(1, 2).flatten(2), weights

    def answer_one(self, asking: Stream, source: Stream) -> Tensor:
        """`forward` for one query per row, (B, 1, D), without projecting the R tokens of `source`.

        A score is q . (K x + k) = (q K) . x + q . k, and an output sum_x w_x (V x + v) = V (sum_x w_x x) + v sum_x w_x.
        So the query is multiplied by the keys' weights, and the values' weights are applied to the weighted sum. (With
        dropout, the weights w_x do not add up to 1.) That costs D (D + H R) products instead of R D D.
        """
        states = source.whole()  # (B, R, D)
        query = asking.through(self.query).squeeze(1).unflatten(-1, (self.num_heads, -1))  # (B, H, d)
        key, key_bias, value, value_bias = (
            parameter.unflatten(0, (self.num_heads, -1))  # (H, d, D) and (H, d)
            for layer in (self.key, self.value)
            for parameter in (layer.weight, layer.bias)
        )
        through_key = torch.einsum("bhd,hdw->bhw", query, key)  # (B, H, D)
        scores = through_key @ states.transpose(1, 2) + (query * key_bias).sum(dim=-1, keepdim=True)  # (B, H, R)
        scores = scores * query.shape[-1] ** -0.5
        if source.mask is not None:
            scores = scores + source.mask[:, 0].to(scores.dtype)
        weights = F.dropout(scores.softmax(dim=-1, dtype=torch.float32), self.dropout_rate, self.training)
        weights = weights.to(query.dtype)
        context = torch.einsum("bhw,hdw->bhd", weights @ states, value) + weights.sum(dim=-1, keepdim=True) * value_bias
        return context.flatten(1).unsqueeze(1)


class FusionResidual(nn.Module):
    """Linear, dropout, and the residual sum, normalised (post-LN)."""

    def __init__(self, config: VLEConfig, in_features: int):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, branch: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(branch)) + before)


class FusionAttention(nn.Module):
    """Attention and its residual."""

    def __init__(self, config: VLEConfig):
        super().__init__()
        self.self = FusionSelfAttention(config)
        self.output = FusionResidual(config, config.hidden_size)

    def forward(self, asking: Stream, source: Stream, keep_map: bool) -> tuple[Tensor, Tensor | None]:
        context, weights = self.self(asking, source, keep_map)
        return self.output(context, asking.whole()), weights


class FusionIntermediate(nn.Module):
    """The widening half of the feed-forward."""

    def __init__(self, config: VLEConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))


class VLEFusionLayer(GradientCheckpointingLayer):
    """One stream's half of a block: self-attention, attention to the other stream, feed-forward; post-LN as in BERT."""

    def __init__(self, config: VLEConfig):
        super().__init__()
        self.attention = FusionAttention(config)
        self.crossattention = FusionAttention(config)
        self.intermediate = FusionIntermediate(config)
        self.output = FusionResidual(config, config.intermediate_size)

    def forward(
        self, asking: Stream, own: Stream, other: Stream, keep_maps: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The tokens `asking`, all or some of the stream `own`, after this layer, (B, A, D), and, if requested, the
        maps of both attentions."""
        hidden, self_map = self.attention(asking, own, keep_maps)
        hidden, cross_map = self.crossattention(Stream(hidden), other, keep_maps)
        return self.output(self.intermediate(hidden), hidden), self_map, cross_map


class VLEPooler(nn.Module):
    """The first token through a linear layer and tanh."""

    def __init__(self, config: VLEConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden[:, 0]))
