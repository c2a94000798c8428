"""Texts that no model can read, above all those padded on the left: the first token is read for the whole text."""

import torch
from torch import Tensor

from evle.errors import DataError


def refuse_left_padding(attention_mask: Tensor) -> None:
    """Raise DataError where a text (..., T) is padded on the left: a model reads its first token.

    An accelerator is not waited for. There the check is an assertion on the device, which fails at the next
    synchronisation.
    """
    if torch.compiler.is_compiling():
        return
    real = attention_mask != 0
    is_right = (real[..., 0] | ~real.any(dim=-1)).all()
    message = "a text is padded on the left, and its first token is read; set padding_side='right' on the tokenizer"
    if attention_mask.device.type != "cpu":
        torch._assert_async(is_right, message)
    elif not bool(is_right):
        raise DataError(message)


def check_text(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Raise DataError for texts that no model can read correctly: no token ids, no tokens, a mask that does not fit, or
    padding on the left, before the token that represents the whole text."""
    if input_ids.is_floating_point():
        raise DataError("input_ids hold floating-point numbers; the order is model(input_ids, pixel_values, ...)")
    if input_ids.dim() < 2 or not input_ids.shape[-1]:
        raise DataError(f"input_ids have shape {tuple(input_ids.shape)}; give (B, T) token ids, T at least 1")
    if attention_mask is None:
        return
    if attention_mask.shape != input_ids.shape:
        raise DataError(
            f"attention_mask has shape {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)}; give one "
            "mask value per token"
        )
    refuse_left_padding(attention_mask)
