"""A map over patches shown on its image: bright where the map is high, dim where it is low.

Legend: G patches a side of what the model sees of the image.
"""

import numpy as np
from PIL import Image

DIMMEST = 0.25
"""Brightness left where the map is 0: enough to see what is there."""


def paint(image: Image.Image, weights: np.ndarray, *, center_crop: bool, smooth: bool = False) -> Image.Image:
    """`image` as RGB in its own size, each patch as bright as its weight.

    `weights` (G, G) from 0 to 1, row by row. The patches lie over the whole image, or with `center_crop` over the
    square in its middle that the model saw; what it did not see counts as 0. `smooth` blends from patch to patch.

    >>> paint(Image.new("RGB", (2, 2), "white"), np.array([[1.0, 0.0], [0.0, 1.0]]), center_crop=False).getpixel((1, 0))
    (64, 64, 64)
    """
    left, top, right, bottom = seen_region(image.size, center_crop)
    side = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    patches = Image.fromarray(weights.astype(np.float32)).resize((right - left, bottom - top), side)
    whole = np.zeros((image.height, image.width), dtype=np.float32)
    whole[top:bottom, left:right] = np.asarray(patches).clip(0, 1)
    brightness = DIMMEST + (1 - DIMMEST) * whole
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) * brightness[..., None]
    return Image.fromarray((pixels + 0.5).astype(np.uint8))


def seen_region(size: tuple[int, int], center_crop: bool) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what a model sees of an image of `size` (width, height): all, or the middle square.

    >>> seen_region((40, 20), center_crop=True)
    (10, 0, 30, 20)
    """
    width, height = size
    if not center_crop:
        return 0, 0, width, height
    short = min(size)
    left, top = (width - short) // 2, (height - short) // 2
    return left, top, left + short, top + short
