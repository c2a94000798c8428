"""VLE's processor: pictures and text in, the model's tensors out."""

from typing import Any, Self, cast

from PIL import Image
from transformers import BatchFeature, CLIPImageProcessor, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_utils import ImageInput

from evle.models.pictures import upright_rgb


class VLEProcessor(ProcessorMixin):
    """An image processor of CLIP's kind (shortest edge, centre crop, bicubic, CLIP's statistics) and any tokenizer.

    `processor(text=..., images=..., padding=True, return_tensors="pt")` gives `pixel_values`, `input_ids` and
    `attention_mask`. Options are routed to whom they belong, so `padding`, `truncation` and `max_length` never reach
    the image processor. A picture may have any PIL mode.
    """

    def __init__(self, image_processor: CLIPImageProcessor, tokenizer: PreTrainedTokenizerBase):
        super().__init__(image_processor, tokenizer)

    @classmethod
    def for_size(cls, image_size: int, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The processor of a model that takes square images of `image_size` pixels a side."""
        return cls(
            CLIPImageProcessor(
                size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
            ),
            tokenizer,
        )

    def __call__(
        self, images: ImageInput | None = None, text: str | list[str] | None = None, **options: Any
    ) -> BatchFeature:
        """Encode pictures, texts or both; `options` are transformers' (`padding`, `return_tensors`, ...)."""
        if isinstance(images, Image.Image):
            images = upright_rgb(images)
        elif isinstance(images, list | tuple):
            images = cast(
                ImageInput, [upright_rgb(image) if isinstance(image, Image.Image) else image for image in images]
            )
        return super().__call__(images=images, text=text, return_mm_token_type_ids=False, **options)
