"""Attention through torch's fused kernels or spelled out as two batched products, whichever is faster.

B batch, H heads, Q queries, K keys, d a head's width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import sdpa_mask

ATTENTION = "evle_sdpa"
"""The name of `attend` among transformers' attention implementations."""
FEW_SCORES = 90 * 90
"""Scores of one head, up to which spelled-out attention in float32 on a CPU is as fast as the fused one."""
SCORE_BYTES = 64 * 2**20
"""Memory of the scores that exist at a time where no gradient is needed."""


class _Choice:
    only_fused = False


@contextmanager
def only_fused_attention() -> Iterator[None]:
    """Within it, attention is computed as on an accelerator, for measuring on a CPU what a step keeps there."""
    _Choice.only_fused = True
    try:
        yield
    finally:
        _Choice.only_fused = False


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """`scaled_dot_product_attention`: queries (B, H, Q, d), keys and values (B, H, K, d) -> (B, H, Q, d).

    On a CPU torch's fused kernel multiplies bfloat16 at the rate of float32, a third of what a matrix product reaches,
    and slower still in its backward pass. Two batched products are faster there: the forward 1.5 to 1.7 times, forward
    and backward 1.8 to 2 times, for 60 to 941 tokens (one core of a Zen 4, torch 2.14). Their scores are rounded to
    bfloat16, and where gradients are needed the weights are kept for the backward pass.
    """
    if _is_spelled_out(query, key):
        return spelled_out(query, key, value, mask, dropout, query.shape[-1] ** -0.5 if scale is None else scale)
    return F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)


def _is_spelled_out(query: Tensor, key: Tensor) -> bool:
    if query.device.type != "cpu" or _Choice.only_fused:
        return False
    if query.dtype == torch.bfloat16:
        return True
    if torch.compiler.is_compiling():  # a graph of any length: its number of tokens decides nothing
        return False
    return query.dtype == torch.float32 and query.shape[2] * key.shape[2] <= FEW_SCORES


def spelled_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scale: float) -> Tensor:
    """`attend` by two batched products, a few samples at a time where no gradient is needed."""
    batch, heads, length, _ = query.shape
    if mask is not None:
        mask = _additive(mask, query.dtype).expand(batch, heads, -1, -1)
    rows = max(1, SCORE_BYTES // (heads * length * key.shape[2] * query.element_size()))
    with torch.autocast("cpu", enabled=False):  # autocast would convert float32 to bfloat16
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or rows >= batch:
            return _two_products(query, key, value, mask, dropout=dropout, scale=scale)
        whole = (query, key, value) if mask is None else (query, key, value, mask)
        parts = zip(*(each.split(rows) for each in whole), strict=True)
        return torch.cat([_two_products(*part, dropout=dropout, scale=scale) for part in parts])


def _two_products(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *, dropout: float, scale: float
) -> Tensor:
    """`bias` is (B, H, 1 or Q, K)."""
    batch_and_heads = query.shape[:2]
    query, key, value = (each.flatten(0, 1) for each in (query, key, value))
    bias = query.new_zeros(1, 1, 1) if bias is None else bias.flatten(0, 1)
    weights = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale).softmax(dim=-1)  # (B * H, Q, K)
    if dropout > 0:
        weights = F.dropout(weights, dropout)
    return torch.bmm(weights, value).unflatten(0, batch_and_heads)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of bools (True = attend) or numbers as finite numbers: a query all of whose keys are masked has no NaN."""
    least = torch.finfo(dtype).min
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, least)
    return mask if mask.dtype == dtype else mask.clamp(min=least).to(dtype)


def _interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`attend` with the signature of transformers: returns (B, Q, H, d), and no map."""
    context = attend(query, key, value, attention_mask, dropout, scaling)
    return context.transpose(1, 2).contiguous(), None


def _mask(*, q_length: int, **given: Any) -> Tensor | None:
    """The mask of padding keys, (B, 1, 1, K) bool: it is the same for all queries."""
    return sdpa_mask(q_length=1, **given)


AttentionInterface.register(ATTENTION, _interface)
AttentionMaskInterface.register(ATTENTION, _mask)


def prefer_attend(config: PreTrainedConfig) -> None:
    """Make a stock module that is built from `config` call `attend` instead of transformers' own SDPA."""
    if config._attn_implementation in (None, "sdpa"):  # None: not chosen yet
        config._attn_implementation = ATTENTION
