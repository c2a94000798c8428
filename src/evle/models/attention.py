"""Attention through torch's fused kernels, where these are faster.

B batch, H heads, Q queries, K keys, d a head's width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

ATTENTION = "evle_sdpa"
"""The name of `attend` among transformers' attention implementations."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """`scaled_dot_product_attention`: queries (B, H, Q, d), keys and values (B, H, K, d) -> (B, H, Q, d).

    For training on a CPU in bfloat16 it computes in float32, because the fused backward in bfloat16 is slow: 36 ms
    instead of 3 for 64 x 4 x 20 x 32, and 86 instead of 32 for 8 x 12 x 197 x 64 (one core of a Sapphire Rapids, torch
    2.14).
    """
    learns = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if not (learns and query.device.type == "cpu" and query.dtype == torch.bfloat16):
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)
    with torch.autocast("cpu", enabled=False):  # autocast would convert them back to bfloat16
        wide_mask = mask if mask is None or mask.dtype == torch.bool else mask.float()
        context = F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), wide_mask, dropout, scale=scale
        )
    return context.to(query.dtype)


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


AttentionInterface.register(ATTENTION, _interface)


def prefer_attend(config: PreTrainedConfig) -> None:
    """Make a stock module that is built from `config` call `attend` instead of transformers' own SDPA."""
    if config._attn_implementation in (None, "sdpa"):  # None: not chosen yet
        config._attn_implementation = ATTENTION
