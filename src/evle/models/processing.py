"""The parent of both families' processors: converts images of any kind to RGB, and saves files without the settings of
the last call."""

import logging
from pathlib import Path
from typing import Any, cast

from PIL import Image
from transformers import BatchFeature, PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import ImageInput

from evle.errors import SampleError
from evle.models.folders import local_folder
from evle.pixels import plain
from evle.proportions import small_enough_to_pad, without_far_ends

logger = logging.getLogger(__name__)


def colour_statistics(path: str | Path) -> tuple[list[float], list[float]] | None:
    """The mean and standard deviation of colours, from 0 to 1, with which the image encoder in a folder or on the hub
    was trained; None, with a warning, if its files do not state them."""
    folder = local_folder(path)
    try:
        fields, _ = ImageProcessingMixin.get_image_processor_dict(str(folder))
    except OSError:
        fields = {}
    fields = fields.get("image_processor", fields)  # of a whole processor
    if "image_mean" not in fields:  # timm has them in its config.json
        timm_fields = PreTrainedConfig.get_config_dict(folder)[0].get("pretrained_cfg") or {}
        fields = {f"image_{name}": timm_fields[name] for name in ("mean", "std") if name in timm_fields}
    if "image_mean" not in fields or "image_std" not in fields:
        logger.warning("%s: has no image_mean and image_std; using the usual ones", path)
        return None
    if not fields.get("do_normalize", True):
        return [0.0] * 3, [1.0] * 3
    scale = 255.0 * fields.get("rescale_factor", 1 / 255)  # some encoders read values from 0 to 2
    mean, std = ([value / scale for value in fields[name]] for name in ("image_mean", "image_std"))
    return mean, std


class PairProcessor(ProcessorMixin):
    """An image processor and a tokenizer, for images, texts or both."""

    def __call__(
        self, images: ImageInput | None = None, text: str | list[str] | None = None, **options: Any
    ) -> BatchFeature:
        """Encode images, texts or both; `options` are those of transformers (`padding`, `return_tensors`, ...).

        Texts are padded on the right, whatever the tokenizer's setting, because the models read a text's first token.
        """
        options.setdefault("padding_side", "right")
        if isinstance(images, Image.Image):
            images = self._framed(images)
        elif isinstance(images, list | tuple):
            images = cast(
                ImageInput, [self._framed(image) if isinstance(image, Image.Image) else image for image in images]
            )
        return super().__call__(images=images, text=text, return_mm_token_type_ids=False, **options)

    def _framed(self, image: Image.Image) -> Image.Image:
        """An image as RGB, on a white square if the model was trained with `image.framing=pad`."""
        try:
            image = plain(image)
        except ValueError as error:
            name = getattr(image, "filename", "") or f"image in memory ({image.mode}, {image.width} x {image.height})"
            raise SampleError(f"{name}: damaged image ({error}); replace it or leave it out") from None
        if getattr(self.image_processor, "do_center_crop", False):
            return without_far_ends(image)
        if getattr(self.image_processor, "framing", None) != "pad":
            return image
        image = small_enough_to_pad(image)
        side = max(image.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(image, ((side - image.width + 1) // 2, (side - image.height + 1) // 2))
        return square

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **options: Any) -> Any:
        """Write the processor's files, as transformers does.

        A tokenizer remembers how its last call truncated and padded. These settings are reset first; otherwise they
        would become the defaults of the saved tokenizer.
        """
        if isinstance(self.tokenizer, PreTrainedTokenizerFast):
            self.tokenizer.backend_tokenizer.no_truncation()
            self.tokenizer.backend_tokenizer.no_padding()
        return super().save_pretrained(save_directory, push_to_hub, **options)
