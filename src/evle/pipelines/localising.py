"""Which patches of an image does a phrase speak of? (VLE's patch-box classification)"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from evle.data.images import open_image
from evle.models.vle import VLEForPBC
from evle.pipelines.pipeline import Images, Pipeline, Texts, pairs
from evle.transforms.heatmap import paint
from evle.transforms.image import framing_of


@dataclass(frozen=True)
class Location:
    """Where an image shows what `text` says.

    `scores` (G, G) float32 are the probabilities that each patch belongs to the text, row by row; `image` is the
    image in its own size, the brighter the surer. The patches lie over what the model sees of the image, for VLE
    the square in its middle.
    """

    text: str
    scores: Tensor
    image: Image.Image


class LocalisePipeline(Pipeline):
    """The patches of an image that a phrase speaks of; takes what VLE pre-trained with "pbc", or a `VLEForPBC`.

    >>> LocalisePipeline("runs/vle")("dogs.jpg", "pink tongues")[0].image.save("tongues.png")  # doctest: +SKIP
    """

    models: ClassVar[Mapping[str, type[PreTrainedModel]]] = {"vle": VLEForPBC}

    def __call__(self, images: Images, texts: Texts) -> list[Location]:
        """One `Location` a pair: as many images as texts, or one of either for all of the other.

        Raises SampleError for an image that cannot be read.
        """
        sources, listed = pairs(images, texts)
        framing = framing_of(self.processor.image_processor)[1]
        found = []
        for start in range(0, len(listed), self.batch_size):
            asked = listed[start : start + self.batch_size]
            pictures = [open_image(source) for source in sources[start : start + self.batch_size]]
            for text, picture, scores in zip(asked, pictures, self.scores(pictures, asked), strict=True):
                painted = paint(picture, scores.numpy(), framing=framing)
                found.append(Location(text, scores, painted))
        return found

    def scores(self, pictures: list[Image.Image], texts: list[str]) -> Tensor:
        """Probabilities (B, G, G) float32 on the CPU, of open images and a text each, in one batch."""
        pixel_values = self.pixel_values([self.frame(picture) for picture in pictures])
        with self.evaluating():
            logits: Tensor = self.model(pixel_values=pixel_values, **self.tokens(texts)).logits.float()
        side = pixel_values.shape[-1] // self.model.config.patch_size
        return torch.softmax(logits, dim=-1)[..., 1].cpu().unflatten(1, (side, side))
