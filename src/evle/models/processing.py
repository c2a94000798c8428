"""The parent of both families' processors: converts images of any kind to RGB, and saves files without the settings of
the last call."""

import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageOps
from transformers import BatchFeature, PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import ImageInput

from evle.models.folders import local_folder
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
        image = upright_rgb(image)
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


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB: EXIF rotation is applied, transparency is composed on white, and 16 bits, 32 bits
    and floats are scaled to 8 bits."""
    white_of_16_bits = 4095.0 if getattr(image, "tag_v2", {}).get(258) == (12,) else 65535.0  # a TIFF's bits of a value
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # As in `evle.data.images.open_image`, which models may not import: floats up to 1 are fractions; beyond 16
        # bits, the largest value is white.
        values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
        top = float(values.max(initial=0))
        steps = {"F": (1.0, 255.0, 65535.0), "I": (255.0, 65535.0)}.get(image.mode, (white_of_16_bits,))
        white = next((step for step in steps if top <= step), top)
        image = Image.fromarray((values.clip(0, white) * (255.0 / white) + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
