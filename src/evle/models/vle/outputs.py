"""What VLE models return.

B batch, P image tokens ([CLS], the patches, and a VCR question's boxes), T text tokens, D fusion width, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from torch import Tensor
from transformers.utils.generic import ModelOutput, can_return_tuple


@dataclass
class VLEOutput(ModelOutput):
    """What every VLE model returns; fields that do not apply to a model or a call are None.

    Attributes:
        loss: the sum of `losses`, scalar.
        logits: the head's scores.
        losses: named scalars, already weighted: "mlm", "itm", "mpc", "pbc", "itc", "answers", "choice".
        image_hidden: (B, P, D) image states after the fusion, [CLS] first. A head that does not read them computes them
            only with `output_hidden_states=True`.
        text_hidden: (B, T, D) text states after the fusion, computed under the same condition.
        pooler_output: (B, 2 D) the first text state and the first image state, each through its pooler, computed under
            the same condition.
        hidden_states: with `output_hidden_states=True`, the states (B, T + P, D) of the text tokens followed by the
            image tokens: the input of the fusion, then the output of each block.
        itm_logits, itm_labels: (pairs, 2) and (pairs,) of pre-training's matching.
        pbc_logits: (B, P - 1, 2) of pre-training's patch-box classification, column 1 = belongs to the text.
        mpc_logits: (B, classes) of pre-training's masked patch-box classification; rows without an object hold 0.
        attentions: by name, one map per layer, if requested: "text" and "image" are the towers' own, such as
            (B, H, T, T) of DeBERTa and (B, H, P, P) of CLIP; "text_self", "image_self", "text_to_image" (B, H, T, P)
            and "image_to_text" (B, H, P, T) are the fusion's.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    image_hidden: Tensor | None = None
    text_hidden: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    itm_logits: Tensor | None = None
    itm_labels: Tensor | None = None
    pbc_logits: Tensor | None = None
    mpc_logits: Tensor | None = None
    attentions: dict[str, tuple[Tensor, ...]] | None = None

    @property
    def image_embeds(self) -> Tensor | None:
        """The released name of `image_hidden`."""
        return self.image_hidden

    @property
    def logits_per_image(self) -> Tensor | None:
        """transformers' name of the similarities image to text."""
        return self.logits

    @property
    def text_embeds(self) -> Tensor | None:
        """The released name of `text_hidden`."""
        return self.text_hidden


Forward = TypeVar("Forward", bound=Callable[..., VLEOutput])


def returns_tuple_if_asked(forward: Forward) -> Forward:
    """A `forward` that also takes `return_dict`, as in transformers: False gives a tuple without the fields that are
    None."""
    return cast(Forward, can_return_tuple(forward))
