"""EVE's processor: images and text in, the model's tensors out."""

from pathlib import Path
from typing import Self

from transformers import PreTrainedTokenizerBase, ViTImageProcessor
from transformers.image_utils import PILImageResampling

from evle.models.processing import PairProcessor, colour_statistics

HALF = (0.5, 0.5, 0.5)


class EVEProcessor(PairProcessor):
    """An image processor (square, bicubic, mean and deviation 0.5) and any tokenizer.

    `processor(text=..., images=..., padding=True, return_tensors="pt")` gives `pixel_values`, `input_ids` and
    `attention_mask`. `padding`, `truncation` and `max_length` go only to the tokenizer. An image may have any PIL mode.
    """

    def __init__(self, image_processor: ViTImageProcessor, tokenizer: PreTrainedTokenizerBase):
        super().__init__(image_processor, tokenizer)

    @classmethod
    def for_size(cls, image_size: int, tokenizer: PreTrainedTokenizerBase, start: str | Path | None = None) -> Self:
        """The processor of a model for square images with a side of `image_size` pixels [released code: run.py].

        `start` is the folder of the model that it is trained from, whose colour statistics are used.
        """
        mean, std = (colour_statistics(start) if start is not None else None) or (HALF, HALF)
        image_processor = ViTImageProcessor(
            size={"height": image_size, "width": image_size},
            resample=PILImageResampling.BICUBIC,
            image_mean=mean,
            image_std=std,
            do_convert_rgb=True,
        )
        return cls(image_processor, tokenizer)
