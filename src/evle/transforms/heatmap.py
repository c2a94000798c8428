"""A map over patches shown on its image: bright where the map is high, dim where it is low.

Legend: G patches per side of what the model sees of the image.
"""

import numpy as np
from PIL import Image

from evle.transforms.geometry import seen_region
from evle.transforms.image_config import Framing

DIMMEST = 0.25
"""Brightness left where the map is 0: enough to see what is there."""


def paint(image: Image.Image, weights: np.ndarray, *, framing: Framing, smooth: bool = False) -> Image.Image:
    """`image` as RGB in its own size, each patch as bright as its weight.

    `weights` (G, G) from 0 to 1, row by row, cover the part of the image that the model saw with `framing`; everything
    else has weight 0. `smooth` blends from patch to patch.

    >>> white, weights = Image.new("RGB", (2, 2), "white"), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> paint(white, weights, framing="whole").getpixel((1, 0))
    (64, 64, 64)
    """
    left, top, right, bottom = seen_region(image.size, framing)
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    patches = Image.fromarray(weights.astype(np.float32)).resize((right - left, bottom - top), method)
    whole = patches.crop((-left, -top, image.width - left, image.height - top))  # outside of the patches: 0
    brightness = DIMMEST + (1 - DIMMEST) * np.asarray(whole).clip(0, 1)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) * brightness[..., None]
    return Image.fromarray((pixels + 0.5).astype(np.uint8))
