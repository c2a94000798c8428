"""Which patches of an image does a phrase describe? (VLE's patch-box classification)"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from evle.data.images import open_image
from evle.data.requests import Images, Texts, pairs
from evle.models.soundness import finite
from evle.models.vle import VLEForPBC
from evle.pipelines.pipeline import UNUSED, Pipeline
from evle.tasks.retrieval import RetrievalTask
from evle.transforms.heatmap import paint
from evle.transforms.image import framing_of


@dataclass(frozen=True)
class Location:
    """Where an image shows what `text` describes.

    `scores` (G, G) float32 are the probabilities that each patch belongs to the text, row by row; `image` is the
    image in its own size, brighter where the probability is higher. The patches cover what the model sees of the
    image: for a released VLE the square in its centre.
    """

    text: str
    scores: Tensor
    image: Image.Image


class LocalisePipeline(Pipeline):
    """The patches of an image that a phrase describes; takes a VLE pre-trained with "pbc", or a `VLEForPBC`.

    >>> LocalisePipeline("runs/vle")("dogs.jpg", "pink tongues")[0].image.save("tongues.png")  # doctest: +SKIP
    """

    models: ClassVar[Mapping[str, type[PreTrainedModel]]] = {"vle": VLEForPBC}
    task_type = RetrievalTask  # it reads an image and a text without boxes

    def __call__(self, images: Images, texts: Texts) -> list[Location]:
        """One `Location` per pair: the same number of images and texts, or one of either for all of the other.

        Raises SampleError for an image that cannot be read.
        """
        sources, listed = pairs(images, texts)
        framing = framing_of(self.processor.image_processor)[1]
        result = []
        for start in range(0, len(listed), self.batch_size):
            batch = listed[start : start + self.batch_size]
            opened = [open_image(source) for source in sources[start : start + self.batch_size]]
            for text, image, scores in zip(batch, opened, self.scores(opened, batch), strict=True):
                result.append(Location(text, scores, paint(image, scores.numpy(), framing=framing)))
        return result

    def scores(self, images: list[Image.Image], texts: list[str]) -> Tensor:
        """Probabilities (B, G, G) float32 on the CPU, of open images and one text for each, in one batch."""
        pixel_values = self.pixel_values([self.task.read_image(image, UNUSED, False, "") for image in images])
        with self.evaluating():
            logits = finite(self.model(pixel_values=pixel_values, **self.tokens(texts)).logits)
        side = pixel_values.shape[-1] // self.model.config.patch_size
        return torch.softmax(logits, dim=-1)[..., 1].unflatten(1, (side, side))
