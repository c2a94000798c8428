"""The text tower: any text encoder of transformers, and its head for masked words.

DeBERTa-v2 and v3 (arXiv 2006.03654, 2111.09543), the published text towers of VLE, have no fused attention in
transformers; here they have. DeBERTa adds two terms that depend on the distance to the score of query i and key j:
`q_i . K_r(i - j)` and `k_j . Q_r(i - j)`. SDPA takes their sum as an additive mask.

B batch, T tokens, H heads, d width of a head, D width, R rows of the table of relative positions.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Encoder,
    DebertaV2Layer,
    DisentangledSelfAttention,
    LegacyDebertaV2OnlyMLMHead,
    make_log_bucket_position,
)

from evle.errors import ConfigError
from evle.models.attention import attend
from evle.models.vle.vision import build_tower


def shift(scores: Tensor, length: int) -> Tensor:
    """Scores (..., T, 2 T) of each row for the distances -(T - 1) to T -> (..., T, T), with the distance j - i at
    (i, j).

    The window of row i starts at column T - 1 - i, one element earlier in each row, which in memory is a fixed stride.
    """
    flat = scores.flatten(-2)[..., length - 1 : length - 1 + length * (2 * length - 1)]
    return flat.unflatten(-1, (length, 2 * length - 1))[..., :length]


class FusedDisentangledSelfAttention(DisentangledSelfAttention):
    """The stock module's parameters and arithmetic, with attention by SDPA unless maps are requested.

    The stock module projects all R relative positions and scores every token against them. This one uses only the 2 T
    positions that occur in a text of T tokens, and arranges them by a stride instead of a gather. The output of a
    padding token is 0, as in the released code; in the current stock module it is the mean of all tokens. Real tokens
    see neither.
    """

    def __init__(self, config: DebertaV2Config):
        super().__init__(config)
        self.config = config

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """States (B, T, D), `attention_mask` (B, 1, T, T), `rel_embeddings` (R, D) -> states (B, T, D) and, if
        requested, maps (B, H, T, T)."""
        assert query_states is None, "VLE has no enhanced mask decoder"
        allowed = attention_mask.bool()  # (B, 1, T, T)
        real = allowed.any(dim=-1, keepdim=True)  # (B, 1, T, 1)
        if output_attentions or self.config._attn_implementation == "eager":
            context, maps = super().forward(
                hidden_states, attention_mask, output_attentions, None, relative_pos, rel_embeddings
            )
            return context * real[:, 0], None if maps is None else maps * real
        query, key, value = (
            self.heads(projection(hidden_states)) for projection in (self.query_proj, self.key_proj, self.value_proj)
        )
        terms = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        scale = (self.attention_head_size * terms) ** -0.5
        if self.relative_attention and terms > 1:
            assert rel_embeddings is not None
            mask = self.position_bias(query, key, self.pos_dropout(rel_embeddings)) * scale
        else:
            mask = query.new_zeros(1)
        # The lowest number, instead of minus infinity, keeps a padding query finite, for which all keys are masked.
        mask = mask.masked_fill(~allowed, torch.finfo(mask.dtype).min)
        dropout = self.dropout.p if self.training else 0.0
        context = attend(query, key, value, mask, dropout, scale)
        return (context * real).transpose(1, 2).flatten(2), None

    def heads(self, states: Tensor) -> Tensor:
        """(..., T, D) -> (..., H, T, d)."""
        return states.unflatten(-1, (self.num_attention_heads, -1)).transpose(-2, -3)

    def position_bias(self, query: Tensor, key: Tensor, table: Tensor) -> Tensor:
        """Queries and keys (B, H, T, d) and the table (R, D) -> the position terms of the scores, (B, H, T, T)."""
        length = query.shape[-2]
        # The row of every distance i - j from -(T - 1) to T; the last one only completes the stride of `shift`.
        distances = torch.arange(1 - length, length + 1, device=query.device)
        if self.position_buckets > 0:
            distances = make_log_bucket_position(distances, self.position_buckets, self.max_relative_positions).long()
        rows = (distances + self.pos_ebd_size).clamp(0, 2 * self.pos_ebd_size - 1)
        table = table[rows]  # (2 T, D)
        project_key = self.key_proj if self.share_att_key else getattr(self, "pos_key_proj", None)
        project_query = self.query_proj if self.share_att_key else getattr(self, "pos_query_proj", None)
        bias: Tensor | None = None
        if "c2p" in self.pos_att_type:
            assert project_key is not None
            # j - i ascends along a row, so i - j descends.
            position_key = self.heads(project_key(table.flip(0).roll(-1, 0)))  # (H, 2 T, d)
            bias = shift(query @ position_key.transpose(-1, -2), length)
        if "p2c" in self.pos_att_type:
            assert project_query is not None
            position_query = self.heads(project_query(table))
            from_keys = shift(key @ position_query.transpose(-1, -2), length).transpose(-1, -2)
            bias = from_keys if bias is None else bias + from_keys
        assert bias is not None
        return bias


class OffloadableEncoder(DebertaV2Encoder):
    """The stock encoder, but it calls its table of relative positions, so that offloading can fetch it."""

    def get_rel_embedding(self) -> Tensor | None:
        if not self.relative_attention:
            return None
        table = self.rel_embeddings
        # An offloaded table is on no device; accelerate moves the indices to where it fetches the table.
        device = None if table.weight.is_meta else table.weight.device
        rows = table(torch.arange(table.num_embeddings, device=device))
        return self.LayerNorm(rows) if "layer_norm" in self.norm_rel_ebd else rows


class VLETextTower(DebertaV2Model):
    """transformers' DeBERTa-v2 with `FusedDisentangledSelfAttention` in every layer; the same parameters by name."""

    _supports_sdpa = True

    def __init__(self, config: DebertaV2Config):
        super().__init__(config)
        self.encoder.__class__ = OffloadableEncoder
        for layer in self.encoder.layer:
            assert isinstance(layer, DebertaV2Layer)
            layer.attention.self = FusedDisentangledSelfAttention(config)
        self.post_init()


def text_tower(config: Any) -> PreTrainedModel:
    """The encoder that a configuration describes, with random weights."""
    return VLETextTower(config) if isinstance(config, DebertaV2Config) else build_tower(config)


class WordPredictions(nn.Module):
    """States (..., D) to logits (..., V), as in BERT: dense, activation, LayerNorm, and the word embeddings."""

    def __init__(self, config: Any):
        super().__init__()
        width = getattr(config, "embedding_size", config.hidden_size)
        activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", "gelu")
        eps: float = config.norm_eps if hasattr(config, "norm_eps") else config.layer_norm_eps
        self.dense = nn.Linear(config.hidden_size, width)
        self.activation = ACT2FN[activation]
        self.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.decoder = nn.Linear(width, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(self.LayerNorm(self.activation(self.dense(states))))


class WordHead(nn.Module):
    """`WordPredictions` under the name that DeBERTa's head gives them."""

    def __init__(self, config: Any):
        super().__init__()
        self.predictions = WordPredictions(config)

    def forward(self, states: Tensor) -> Tensor:
        return self.predictions(states)


class KnownTexts:
    """The states of the texts that a frozen tower has read, so that it reads each text once, and without dropout.

    They are held in memory: T x width numbers per text, without padding. Each call reads the token ids, for which it
    waits for an accelerator.
    """

    def __init__(self, tower: PreTrainedModel):
        self.tower = tower
        self._states: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts (B, T), padded on the right -> states (B, T, D), 0 at the padding."""
        lengths = attention_mask.sum(dim=1).tolist()
        texts = [tuple(row[:length]) for row, length in zip(input_ids.tolist(), lengths, strict=True)]
        new = {text: row for row, text in enumerate(texts) if text not in self._states}
        if new:
            rows = torch.tensor(list(new.values()), device=input_ids.device)
            was_training = self.tower.training
            self.tower.eval()
            states = self.tower(input_ids[rows], attention_mask=attention_mask[rows]).last_hidden_state
            self.tower.train(was_training)
            for text, row in zip(new, states, strict=True):
                self._states[text] = row[: len(text)].clone()
        padded = nn.utils.rnn.pad_sequence([self._states[text] for text in texts], batch_first=True)
        return nn.functional.pad(padded, (0, 0, 0, input_ids.shape[1] - padded.shape[1]))


def start_in_text_space(model: nn.Module) -> None:
    """Make the projections of the text states the identity, except loaded ones. Raises ConfigError if one of them
    changes their width."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("text_projection_layer", "text_projection")):
            if module.in_features != module.out_features:
                raise ConfigError(
                    "text_projection_init='identity' needs hidden_size and projection_dim of the text tower's width; a "
                    f"projection is from {module.in_features} to {module.out_features}"
                )
            init.eye_(module.weight)


def word_head(config: Any) -> nn.Module:
    """The head for masked words, for states with the text tower's width."""
    return LegacyDebertaV2OnlyMLMHead(config) if isinstance(config, DebertaV2Config) else WordHead(config)


def word_head_ties(tower: PreTrainedModel) -> dict[str, str]:
    """The shared tensors of a `word_head`: its decoder is the tower's word embedding, and its bias has two names."""
    words = tower.get_input_embeddings()
    name = next(name for name, module in tower.named_modules() if module is words)
    return {
        "mlm_score.1.predictions.decoder.weight": f"vle.text_model.{name}.weight",
        "mlm_score.1.predictions.decoder.bias": "mlm_score.1.predictions.bias",
    }
