"""Pairs of images and texts and their negatives, as contrast and matching of VLE need them.

VLE's towers read one modality each, so a pair's states serve every pairing they are drawn into: only the fusion runs
once a pair. B pairs, N of them with a negative, P image tokens, T text tokens, D width.
"""

import torch
from torch import Tensor, nn

from evle.distributed import all_gather, world_size
from evle.models.contrast import ContrastHead, draw_negatives, gather_text
from evle.models.vle.configuration import VLEConfig
from evle.models.vle.modeling import Fused, VLEModel


def contrast_head(config: VLEConfig) -> ContrastHead:
    """The projections of the towers' states, already at the fusion's width."""
    width = config.hidden_size
    return ContrastHead(width, config.projection_dim or width, config.pooling, config.temperature_init)


class VLEMatchScore(nn.Module):
    """The pooled states (B, 2 D) to logits (B, 2), column 1 = match."""

    def __init__(self, config: VLEConfig):
        super().__init__()
        self.fc = nn.Linear(2 * config.hidden_size, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.fc(pooled)


class FusionBatch:
    """Rows of several purposes, collected by name and fused in one pass."""

    def __init__(self, vle: VLEModel):
        self.vle = vle
        self.parts: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, name: str, image: Tensor, text: Tensor, mask: Tensor) -> None:
        """Image states (N, P, D), text states (N, T, D) and their mask (N, T); T may differ between purposes."""
        self.parts[name] = (image, text, mask)

    def run(self) -> dict[str, Fused]:
        """Each purpose's states and pooled states after the fusion, with its own T; nothing for no purpose."""
        if not self.parts:
            return {}
        length = max(text.shape[1] for _, text, _ in self.parts.values())
        output = self.vle.fuse(
            torch.cat([image for image, _, _ in self.parts.values()]),
            torch.cat([nn.functional.pad(t, (0, 0, 0, length - t.shape[1])) for _, t, _ in self.parts.values()]),
            torch.cat([nn.functional.pad(mask, (0, length - mask.shape[1])) for _, _, mask in self.parts.values()]),
        )
        sizes = [len(image) for image, _, _ in self.parts.values()]
        split = zip(
            *(states.split(sizes) for states in (output.image_hidden, output.text_hidden, output.pooler_output)),
            strict=True,
        )
        return {
            name: Fused(image, text[:, : own.shape[1]], pooled)
            for (name, (_, own, _)), (image, text, pooled) in zip(self.parts.items(), split, strict=True)
        }


def matching_rows(
    vle: VLEModel,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    image: Tensor,
    text: Tensor,
    match_ids: Tensor,
    similarities: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mismatched pairs of ITM, ready for the fusion: each image with another's text, each text with another image.

    `image` (B, P, D) and `text` (B, T, D) are the towers' states of the pairs; what is drawn of the own process takes
    them as they are. What may come from other processes is encoded here, from their gathered inputs.

    Returns image states, text states and text masks of 2 N rows, and which pairs have a negative at all (B,), N of
    them; T may have grown to the longest text of all processes.
    """
    texts, images, found = draw_negatives(match_ids, similarities)
    texts, images = texts[found], images[found]
    if world_size() == 1:
        other_text, other_mask, other_image = text[texts], attention_mask[texts], image[images]
    else:
        all_ids, all_masks = gather_text(input_ids, attention_mask, vle.config.pad_token_id or 0)
        all_pixels = all_gather(pixel_values)
        other_mask = all_masks[texts]
        other_text, other_image = vle.encode_text(all_ids[texts], other_mask), vle.encode_image(all_pixels[images])
    missing = other_mask.shape[1] - attention_mask.shape[1]
    own_text = nn.functional.pad(text[found], (0, 0, 0, missing))
    own_mask = nn.functional.pad(attention_mask[found], (0, missing))
    return (
        torch.cat([image[found], other_image]),
        torch.cat([other_text, own_text]),
        torch.cat([other_mask, own_mask]),
        found,
    )


def match_logits(score: VLEMatchScore, fused: dict[str, Fused], found: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (3 N, 2) and labels (3 N,) of the true pairs that have a negative, `found` (B,), and their negatives."""
    positives, negatives = fused["pairs"].pooler_output, fused["negatives"].pooler_output
    logits = score(torch.cat([positives[found], negatives]))
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(logits) - len(negatives)] = 1
    return logits, labels
