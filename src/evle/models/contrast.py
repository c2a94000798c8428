"""Image-text contrast over all processes, and the hard negatives drawn from it: shared by both families.

B batch, G batch gathered over all processes, P image tokens, T text tokens, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from evle import objectives
from evle.distributed import all_gather, rank, world_size
from evle.errors import DataError


def total_loss(losses: dict[str, Tensor]) -> Tensor | None:
    """The sum of named losses, None if there are none."""
    return torch.stack(list(losses.values())).sum() if losses else None


class Contrast(NamedTuple):
    """The ITC loss, and the similarities (B, G) in both directions, divided by the temperature."""

    loss: Tensor
    image_to_text: Tensor
    text_to_image: Tensor


class Embedded(NamedTuple):
    """Unit vectors (B, projection) of images and texts, and the match ids (B,) of their pairs."""

    image: Tensor
    text: Tensor
    match_ids: Tensor

    def gathered(self) -> "Embedded":
        """The rows of all processes."""
        return Embedded(*map(all_gather, self))

    def detached(self) -> "Embedded":
        return Embedded(*(each.detach() for each in self))

    @classmethod
    def joined(cls, parts: Sequence["Embedded"]) -> "Embedded":
        return cls(*(torch.cat(each) for each in zip(*parts, strict=True)))


def compare(own: Embedded, others: Embedded, temperature: Tensor) -> Contrast:
    """Contrast of `own` rows with `others`, which hold them; pairs of id -100 are left out of the loss."""
    image_to_text = own.image @ others.text.T / temperature
    text_to_image = own.text @ others.image.T / temperature
    # Masks keep the shapes fixed: indexing would read the number of remaining pairs, which waits for an accelerator.
    left_out, lowest = others.match_ids == objectives.IGNORE, torch.finfo(image_to_text.dtype).min
    rows, columns = (each.masked_fill(left_out, lowest) for each in (image_to_text, text_to_image))
    loss = objectives.itc(rows, columns, objectives.match_targets(own.match_ids, others.match_ids))
    return Contrast(loss, image_to_text, text_to_image)


class StepContrast:
    """The embeddings of all micro-batches of a step, with which contrast compares the rows of each of them (cached
    gradients: Gao et al. 2021, https://arxiv.org/abs/2101.06983).

    A first pass records the embeddings without gradients. In the second pass, each micro-batch puts its own embeddings,
    with their gradients, in the place of the recorded ones and computes the loss of the whole step. The gradients of
    all micro-batches add up to those of one large batch, as long as both passes draw the same random numbers.
    """

    def __init__(self) -> None:
        self._own: list[Embedded] = []
        self._all: list[Embedded] = []
        self._index = 0
        self._weight = 1.0
        self.is_recording = True

    def choose(self, index: int, weight: float) -> None:
        """Begin the second pass of micro-batch `index`; its gradient, but not its loss, is multiplied by `weight`."""
        self.is_recording, self._index, self._weight = False, index, weight

    def loss(self, own: Embedded, gathered: Embedded, temperature: Tensor) -> Tensor:
        """The ITC loss of all rows of the step. While it is recording, 0."""
        if self.is_recording:
            self._own.append(own.detached())
            self._all.append(gathered.detached())
            return own.image.new_zeros(())
        index = self._index
        rows = Embedded.joined([*self._own[:index], own, *self._own[index + 1 :]])
        columns = Embedded.joined([*self._all[:index], gathered, *self._all[index + 1 :]])
        # Every micro-batch computes the whole loss, but an embedding's gradient once and the temperature's each time.
        loss = compare(rows, columns, _scaled_gradient(temperature, 1 / len(self._own))).loss
        return _scaled_gradient(loss, self._weight)


class PastContrast:
    """The embeddings of the last `size` pairs that earlier steps saw, as further columns of contrast.

    They are those of slightly older weights, which change little from step to step, and get no gradient.
    """

    def __init__(self, size: int):
        self.size = size
        self.rows: Embedded | None = None

    def loss(self, own: Embedded, gathered: Embedded, temperature: Tensor) -> Tensor:
        """The ITC loss of `own` rows against those of this step and of the past; the step then joins the past."""
        others = gathered if self.rows is None else Embedded.joined([gathered, self.rows])
        loss = compare(own, others, temperature).loss
        self.rows = Embedded(*(each[: self.size] for each in others.detached()))
        return loss


def _scaled_gradient(value: Tensor, factor: float) -> Tensor:
    """`value` itself, through which gradients are multiplied by `factor`."""
    return value.detach() + (value - value.detach()) * factor


class ContrastHead(nn.Module):
    """The parameters of contrast: one projection per modality and a temperature.

    `pooling` selects what is projected: "cls", the first token of each modality, or "mean", the means of the patch
    states and of the real text tokens. While a step has several micro-batches, `step` holds what they
    share; while training remembers earlier steps, `past` holds these; otherwise they are None.
    """

    def __init__(self, width: int, dimension: int, pooling: str, temperature_init: float):
        super().__init__()
        self.pooling = pooling
        self.image_projection = nn.Linear(width, dimension, bias=False)
        self.text_projection = nn.Linear(width, dimension, bias=False)
        self.temperature = nn.Parameter(torch.tensor(temperature_init))
        self.step: StepContrast | None = None
        self.past: PastContrast | None = None

    @property
    def only_records(self) -> bool:
        """Whether this pass is for the embeddings alone, so that a model may stop after contrast."""
        return self.step is not None and self.step.is_recording

    def forward(
        self, image_hidden: Tensor, text_hidden: Tensor, attention_mask: Tensor | None, match_ids: Tensor
    ) -> Contrast:
        """ITC of single-modality states (B, P, D) and (B, T, D) over all processes; pairs of id -100 are left out.

        There may be several texts in a row for each image, the same number for all; `match_ids` are then the texts',
        and the similarities are between all texts and the image of each of them.

        With `step`, the loss is over all micro-batches of the step, and the similarities over this one; with `past`,
        the loss is also over pairs of earlier steps.
        """
        dtype = self.temperature.dtype
        with torch.autocast(image_hidden.device.type, enabled=False):
            image_embeds = self.embed_image(image_hidden.to(dtype))
            text_embeds = self.embed_text(text_hidden.to(dtype), attention_mask)
            image_embeds = image_embeds.repeat_interleave(len(text_embeds) // len(image_embeds), dim=0)
            temperature = self.clamped_temperature()
            own = Embedded(image_embeds, text_embeds, match_ids)
            gathered = own.gathered()
            contrast = compare(own, gathered, temperature)
            if self.step is not None:
                contrast = contrast._replace(loss=self.step.loss(own, gathered, temperature))
            elif self.past is not None:
                contrast = contrast._replace(loss=self.past.loss(own, gathered, temperature))
        return contrast

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

    def similarities(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Unit vectors (B, projection) and (N, projection) -> similarities (B, N) divided by the temperature."""
        return image_embeds @ text_embeds.T / self.clamped_temperature()

    def clamped_temperature(self) -> Tensor:
        """The temperature, clamped to [0.001, 0.5]; the gradient ignores the clamp, so that the temperature can return
        into the range."""
        value = self.temperature.float()
        return value.clamp(0.001, 0.5).detach() + (value - value.detach())


def default_match_ids(num_rows: int, device: torch.device) -> Tensor:
    """Ids with which every pair matches only itself, over all processes."""
    return torch.arange(num_rows, device=device) + rank() * 2**32


def pair_ids(
    pixel_values: Tensor, input_ids: Tensor, match_ids: Tensor | None = None, itm_weight: float = 0.0
) -> Tensor:
    """The match ids (N,) of the texts (N, T) of a batch of images (B, C, H, W), `match_ids` if given; by default every
    image matches its own texts alone.

    Each image has one text or, without matching (`itm_weight` 0), the same number of texts in a row. Raises DataError.
    """
    images, texts = len(pixel_values), len(input_ids)
    if not images or texts % images or texts < images:
        raise DataError(
            f"pixel_values hold {images} images, input_ids {texts} texts; pair each image with one text, or for "
            "contrast alone with the same number of texts"
        )
    if texts > images and itm_weight > 0:
        raise DataError(
            f"{texts} texts for {images} images: matching (ITM) takes one text for each image; set "
            "objective_weights.itm=0 to train contrast alone"
        )
    if match_ids is not None:
        if len(match_ids) != texts:
            raise DataError(f"{len(match_ids)} match_ids for {texts} texts; give one to each text")
        return match_ids
    return default_match_ids(images, input_ids.device).repeat_interleave(texts // images)


class Negatives(NamedTuple):
    """For each image the row of a text, and for each text the row of an image, that do not belong to it.

    All fields are (B,); rows are counted over all processes. `exists` is False for a row without any negative, whose
    other two entries are then meaningless.
    """

    texts: Tensor
    images: Tensor
    exists: Tensor


@torch.no_grad()
def draw_negatives(
    match_ids: Tensor, similarities: tuple[Tensor, Tensor] | None, wrong_texts: Tensor | None = None
) -> Negatives:
    """Draw hard negatives from the rows of all processes.

    They are drawn by `similarities` (image to text, text to image; each (B, G)), or uniformly without them. A row of id
    -100, whose text may describe any image, neither gets a negative nor is used as one. `wrong_texts` (B,), rows of
    this process, are taken instead of drawn texts.
    """
    all_ids = all_gather(match_ids)
    excluded = match_ids[:, None] == all_ids[None, :]
    excluded |= (match_ids == objectives.IGNORE)[:, None] | (all_ids == objectives.IGNORE)[None, :]
    if similarities is None:
        similarities = (torch.zeros_like(excluded, dtype=torch.float32),) * 2
    texts, exists = objectives.sample_hard_negatives(similarities[0], excluded)
    images, _ = objectives.sample_hard_negatives(similarities[1], excluded)
    if wrong_texts is not None:
        owners = all_gather(torch.full_like(match_ids, rank()))  # processes may have different numbers of rows
        texts = wrong_texts + (owners < rank()).sum()
    return Negatives(texts, images, exists)


def matching_labels(exists: Tensor) -> Tensor:
    """ITM labels (3 N,) int64: N true pairs, then their 2 N negatives; -100 for a pair whose negatives do not exist.

    `exists` is (N,) bool.
    """
    labels = torch.cat([torch.ones_like(exists), torch.zeros_like(exists.repeat(2))]).long()
    return labels.masked_fill(~exists.repeat(3), objectives.IGNORE)


def gather_text(input_ids: Tensor, attention_mask: Tensor, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Texts (B, T) of all processes, padded to the longest."""
    if world_size() == 1:
        return input_ids, attention_mask
    length = int(all_gather(torch.tensor([input_ids.shape[1]], device=input_ids.device)).max())
    padding = (0, length - input_ids.shape[1])
    padded_ids = nn.functional.pad(input_ids, padding, value=pad_token_id)
    return all_gather(padded_ids), all_gather(nn.functional.pad(attention_mask, padding, value=0))
