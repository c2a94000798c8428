"""Image-text contrast over all processes, and the hard negatives drawn from it: shared by both families.

B batch, G batch gathered over all processes, P image tokens, T text tokens, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from evle import objectives
from evle.distributed import all_gather, rank, world_size


def total_loss(losses: dict[str, Tensor]) -> Tensor | None:
    """The sum of named losses, None when there is none."""
    return torch.stack(list(losses.values())).sum() if losses else None


class Contrast(NamedTuple):
    """The ITC loss, and the similarities (B, G) in both directions, divided by the temperature."""

    loss: Tensor
    image_to_text: Tensor
    text_to_image: Tensor


class ContrastHead(nn.Module):
    """The parameters of contrast: one projection per modality and a temperature.

    `pooling` says what is projected: "cls", the first token of each modality, or "mean", the mean of the patch states
    and of the real text tokens.
    """

    def __init__(self, width: int, dimension: int, pooling: str, temperature_init: float):
        super().__init__()
        self.pooling = pooling
        self.image_projection = nn.Linear(width, dimension, bias=False)
        self.text_projection = nn.Linear(width, dimension, bias=False)
        self.temperature = nn.Parameter(torch.tensor(temperature_init))

    def forward(
        self, image_hidden: Tensor, text_hidden: Tensor, attention_mask: Tensor | None, match_ids: Tensor
    ) -> Contrast:
        """ITC of single-modality states (B, P, D) and (B, T, D) over all processes; pairs of id -100 are left out."""
        dtype = self.temperature.dtype
        with torch.autocast(image_hidden.device.type, enabled=False):
            image_embeds = self.embed_image(image_hidden.to(dtype))
            text_embeds = self.embed_text(text_hidden.to(dtype), attention_mask)
            temperature = self.clamped_temperature()
            image_to_text = image_embeds @ all_gather(text_embeds).T / temperature
            text_to_image = text_embeds @ all_gather(image_embeds).T / temperature
        all_ids = all_gather(match_ids)
        rows, columns = match_ids != objectives.IGNORE, all_ids != objectives.IGNORE
        targets = objectives.match_targets(match_ids[rows], all_ids[columns])
        loss = objectives.itc(image_to_text[rows][:, columns], text_to_image[rows][:, columns], targets)
        return Contrast(loss, image_to_text, text_to_image)

    def embed_image(self, image_hidden: Tensor) -> Tensor:
        """Image states (B, P, D) -> unit vectors (B, projection), float32."""
        pooled = image_hidden[:, 1:].mean(dim=1) if self.pooling == "mean" else image_hidden[:, 0]
        return nn.functional.normalize(self.image_projection(pooled).float(), dim=-1)

    def embed_text(self, text_hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Text states (B, T, D), their mask (B, T) -> unit vectors (B, projection), float32."""
        if self.pooling == "cls":
            pooled = text_hidden[:, 0]
        elif attention_mask is None:
            pooled = text_hidden.mean(dim=1)
        else:
            real = attention_mask[..., None].to(text_hidden.dtype)
            pooled = (text_hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        return nn.functional.normalize(self.text_projection(pooled).float(), dim=-1)

    def clamped_temperature(self) -> Tensor:
        """The temperature within [0.001, 0.5]; the gradient ignores the clamp, so that it can return into the range."""
        value = self.temperature.float()
        return value.clamp(0.001, 0.5).detach() + (value - value.detach())


def default_match_ids(num_rows: int, device: torch.device) -> Tensor:
    """Ids under which every pair matches itself alone, on every process."""
    return torch.arange(num_rows, device=device) + rank() * 2**32


class Negatives(NamedTuple):
    """The rows, of all processes, of a text for each image and an image for each text that do not belong to it.

    All fields are (B,). `exists` is False for a row without any negative; its other two entries mean nothing.
    """

    texts: Tensor
    images: Tensor
    exists: Tensor


@torch.no_grad()
def draw_negatives(match_ids: Tensor, similarities: tuple[Tensor, Tensor] | None) -> Negatives:
    """Hard negatives of all processes' rows.

    They are drawn by `similarities` (image to text, text to image; each (B, G)), or evenly without them. A row of id
    -100, whose text may describe any image, neither has a negative nor is one.
    """
    all_ids = all_gather(match_ids)
    excluded = match_ids[:, None] == all_ids[None, :]
    excluded |= (match_ids == objectives.IGNORE)[:, None] | (all_ids == objectives.IGNORE)[None, :]
    if similarities is None:
        similarities = (torch.zeros_like(excluded, dtype=torch.float32),) * 2
    texts, exists = objectives.sample_hard_negatives(similarities[0], excluded)
    images, _ = objectives.sample_hard_negatives(similarities[1], excluded)
    return Negatives(texts, images, exists)


def gather_text(input_ids: Tensor, attention_mask: Tensor, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Texts (B, T) of all processes, padded to the longest."""
    if world_size() == 1:
        return input_ids, attention_mask
    length = int(all_gather(torch.tensor([input_ids.shape[1]], device=input_ids.device)).max())
    padding = (0, length - input_ids.shape[1])
    padded_ids = nn.functional.pad(input_ids, padding, value=pad_token_id)
    return all_gather(padded_ids), all_gather(nn.functional.pad(attention_mask, padding, value=0))
