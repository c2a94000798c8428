"""The side on which texts are padded. Both families read a text's first token for the whole, so it must be real."""

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
