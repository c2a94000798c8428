"""Images of extreme proportions, made small enough to be framed in bounded memory."""

from PIL import Image

THINNEST = 64
"""Of an image whose sides differ by a larger factor, only the middle is resized before it is cut to a square."""
LARGEST_PADDED = 6_000
"""The most pixels of the longer side of an image that is padded to a square."""


def without_far_ends(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than `THINNEST` times as long as wide, for a framing that keeps the middle
    square: resizing all of it could take gigabytes."""
    left, top = (max(0, side - THINNEST * min(image.size)) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top)) if left or top else image


def small_enough_to_pad(image: Image.Image) -> Image.Image:
    """An image whose longer side has at most `LARGEST_PADDED` pixels: a square of a longer one could take gigabytes."""
    factor = -(-max(image.size) // LARGEST_PADDED)
    return image.reduce(factor) if factor > 1 else image
