"""The pixels of an image in any of Pillow's modes as plain RGB, equally for data, models and inference."""

import numpy as np
from PIL import Image, ImageOps

_ORIENTATION = 0x0112  # the EXIF tag
_BITS = 258  # TIFF's tag of the bits of a value
_PHOTOMETRIC = 262  # TIFF's tag; 0 is white at 0
_STRIP = 1 << 22  # pixels that are converted from 16 or 32 bits at once


def plain(image: Image.Image, keep_alpha: bool = False) -> Image.Image:
    """An image of any mode as RGB; as RGBA when `keep_alpha` and some pixel is not opaque.

    EXIF rotation is applied, transparent parts are laid on white, 16-bit, 32-bit and float images are scaled to 8 bits.
    The image is not changed. Raises ValueError for a float image without any number.
    """
    is_12_bits = is_of_12_bits(image)
    has_white_at_0 = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    is_inverted = has_white_at_0 and image.mode.startswith("I;16")  # images of 8 bits are inverted by Pillow
    image = _with_scaled_transparency(image)
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image, 4095.0 if is_12_bits else 65535.0)
        image = ImageOps.invert(image) if is_inverted and image.mode == "L" else image
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):
            if keep_alpha:
                return image
            white = Image.new("RGB", image.size, (255, 255, 255))
            white.paste(image, mask=alpha)
            return white
    return image.convert("RGB")


def _with_scaled_transparency(image: Image.Image) -> Image.Image:
    """Of a colour PNG of 16 bits per channel Pillow keeps the upper 8, but leaves the transparent colour as it is."""
    colour = image.info.get("transparency")
    tile = getattr(image, "tile", None)  # gone once the image is loaded
    if image.mode == "RGB" and isinstance(colour, tuple) and (max(colour) > 255 or (tile and ";16" in str(tile[0][3]))):
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing about the rotation; the pixels are still good
        return 1


def _eight_bits(image: Image.Image, white: float) -> Image.Image:
    """A 16-bit, 32-bit or float greyscale image as mode L (LA with a transparent value), scaled and not clipped.

    Unsigned 16 bits end at `white`. Other integers count as 8 bits when none is above 255, as 16 bits up to 65535;
    floats as shares when none is above 1. Beyond these the largest value is white. NaN and infinities become black; an
    image of nothing else raises ValueError. A few million pixels are converted at once, to spare memory.
    """
    values = np.asarray(image)
    rows = max(1, _STRIP // max(1, image.width))
    strips = [slice(first, first + rows) for first in range(0, image.height, rows)]
    if image.mode == "F" and not any(np.isfinite(values[strip]).any() for strip in strips):
        raise ValueError("no pixel is a number: all are NaN or infinite")
    top = max((float(_finite(values[strip]).max(initial=0.0)) for strip in strips), default=0.0)
    if not image.mode.startswith("I;16"):
        steps = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((step for step in steps if top <= step), top)
    grey = np.empty(values.shape, np.uint8)
    for strip in strips:
        grey[strip] = _finite(values[strip]).clip(0, white) * (255.0 / white) + 0.5
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(grey)
    result = Image.fromarray(grey)
    result.putalpha(Image.fromarray((values != transparent) * np.uint8(255)))
    return result


def is_of_12_bits(image: Image.Image) -> bool:
    """Whether an image is of a TIFF of 12 bits per value, which Pillow does not scale to 16."""
    return bool(getattr(image, "tag_v2", {}).get(_BITS) == (12,))


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
