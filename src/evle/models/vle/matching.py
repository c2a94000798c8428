"""Pairs of images and texts and their negatives, for VLE's contrast and matching.

Each of VLE's towers reads one modality, so the states of an image or text can be reused in every pair: only the fusion
runs once per pair. B pairs, N of them with a negative, P image tokens, T text tokens, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from evle.distributed import all_gather, world_size
from evle.errors import DataError
from evle.models.contrast import ContrastHead, draw_negatives, gather_text
from evle.models.vle.configuration import VLEConfig
from evle.models.vle.fusion import Fused, Reads, Stream, key_mask
from evle.models.vle.modeling import IMAGE_TYPE, TEXT_TYPE, VLEModel


def contrast_head(config: VLEConfig) -> ContrastHead:
    """The projections of the towers' states, which already have the fusion's width."""
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
    """Pairs for several purposes, fused in one pass.

    Images and texts get numbers, and a pair consists of two numbers, so an image or text of several pairs is held once.
    """

    def __init__(self, vle: VLEModel):
        self.vle = vle
        self.images: list[Tensor] = []
        self.texts: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.pairs: dict[str, tuple[Tensor, Tensor, Reads]] = {}

    def add_images(self, states: Tensor) -> Tensor:
        """Image states (N, P, D); returns their numbers (N,)."""
        self.images.append(states)
        return _last_numbers(self.images)

    def add_texts(self, states: Tensor, mask: Tensor) -> Tensor:
        """Text states (N, T, D) and their mask (N, T), of any T; returns their numbers (N,)."""
        self.texts.append(states)
        self.masks.append(mask)
        return _last_numbers(self.texts)

    def pair(self, name: str, images: Tensor, texts: Tensor, reads: Reads) -> None:
        """Add pairs of image and text numbers for the purpose `name`, which `reads` the given parts of the fusion."""
        self.pairs[name] = (images, texts, reads)

    def run(self) -> dict[str, Fused]:
        """The states of each purpose after the fusion; T is the length of the longest text. Empty without pairs."""
        if not self.pairs:
            return {}
        length = max(mask.shape[1] for mask in self.masks)
        mask = torch.cat([nn.functional.pad(each, (0, length - each.shape[1])) for each in self.masks])
        states = torch.cat([nn.functional.pad(each, (0, 0, 0, length - each.shape[1])) for each in self.texts])
        image_rows, text_rows = (torch.cat(each) for each in list(zip(*self.pairs.values(), strict=True))[:2])
        image, text, _ = self.vle.mix(
            Stream(self.vle.typed(torch.cat(self.images), IMAGE_TYPE), rows=image_rows),
            Stream(self.vle.typed(states, TEXT_TYPE), key_mask(mask[text_rows], states.dtype), text_rows),
        )
        fused, start = {}, 0
        for name, (images, _, reads) in self.pairs.items():
            end = start + images.shape[0]
            fused[name], _ = self.vle.read(image.part(start, end), text.part(start, end), reads)
            start = end
        return fused


def _last_numbers(batches: list[Tensor]) -> Tensor:
    """The numbers of the rows of the last batch, when the rows of all batches are counted one after the other."""
    end = sum(each.shape[0] for each in batches)
    return torch.arange(end - batches[-1].shape[0], end, device=batches[-1].device)


def pair_negatives(
    batch: FusionBatch,
    *,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    images: Tensor,
    texts: Tensor,
    match_ids: Tensor,
    similarities: tuple[Tensor, Tensor] | None,
    wrong_texts: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Add the mismatched pairs of ITM, under "negatives": each image with the text of another pair, then each text with
    the image of another pair.

    `images` and `texts` (B,) are the numbers of the true pairs in `batch`. Negatives from this process reuse the states
    there; those from other processes are encoded here, from their gathered inputs. `wrong_texts` (B,), rows of this
    process, are taken instead of texts drawn by `similarities`. `rows` (N,) are the true pairs that get negatives; by
    default all.

    Returns whether such a pair has a negative, (N,) bool: if not, its two mismatched pairs mean nothing.
    """
    drawn_texts, drawn_images, exists = draw_negatives(match_ids, similarities, wrong_texts)
    own_images, own_texts = images, texts
    if rows is not None:
        drawn_texts, drawn_images, exists = drawn_texts[rows], drawn_images[rows], exists[rows]
        own_images, own_texts = images[rows], texts[rows]
    if world_size() == 1:
        other_texts, other_images = texts[drawn_texts], images[drawn_images]
    else:
        all_ids, all_masks = gather_text(input_ids, attention_mask, batch.vle.config.pad_token_id or 0)
        all_pixels = all_gather(pixel_values)
        mask = all_masks[drawn_texts]
        other_texts = batch.add_texts(batch.vle.encode_text(all_ids[drawn_texts], mask), mask)
        other_images = batch.add_images(batch.vle.encode_image(all_pixels[drawn_images]))
    batch.pair(
        "negatives",
        torch.cat([own_images, other_images]),
        torch.cat([other_texts, own_texts]),
        Reads(pooled=True),
    )
    return exists


def pair_logits(
    vle: VLEModel,
    score: VLEMatchScore,
    *,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    image_rows: Tensor | None,
    text_rows: Tensor | None,
) -> Tensor:
    """Match logits (B, 2) of the pairs given by `image_rows` and `text_rows` (B,); by default images and texts are
    paired row by row. Each image and text is encoded once; the fusion runs once per pair.

    Raises DataError for unequal numbers.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    batch = FusionBatch(vle)
    images = batch.add_images(vle.encode_image(pixel_values))
    texts = batch.add_texts(vle.encode_text(input_ids, mask), mask)
    images = images if image_rows is None else images[image_rows]
    texts = texts if text_rows is None else texts[text_rows]
    if images.shape[0] != texts.shape[0]:
        raise DataError(f"{len(images)} images and {len(texts)} texts do not make pairs; give the same number of both")
    batch.pair("pairs", images, texts, Reads(pooled=True))
    return score(batch.run()["pairs"].pooler_output)


def match_logits(score: VLEMatchScore, fused: dict[str, Fused], rows: Tensor | None = None) -> Tensor:
    """Logits (3 N, 2) of the true pairs `rows` (N,), by default all, and of their negatives."""
    positives: Any = fused["pairs"].pooler_output
    negatives: Any = fused["negatives"].pooler_output
    return score(torch.cat([positives if rows is None else positives[rows], negatives]))
