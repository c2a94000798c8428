"""A map over patches shown on its image: by brightness, or in colour.

Legend: G patches per side of what the model sees of the image.
"""

import numpy as np
from PIL import Image

from evle.transforms.framing import seen_region
from evle.transforms.image_config import Framing

DIMMEST = 0.25
"""Brightness where the map is 0: enough to recognise the image."""

SCALE = ("#000004", "#320a5e", "#781c6d", "#bc3754", "#ed6925", "#fbb61a", "#fcffa4")
"""The colours of 0 to 1, evenly spaced: matplotlib's "inferno", which is readable in grey and by the colour-blind."""

OPACITY = (0.45, 0.75)
"""How far the colours cover the image where the map is 0, and where it is 1."""


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


def heat(image: Image.Image, weights: np.ndarray, *, framing: Framing, side: int = 512) -> Image.Image:
    """`image` in grey under the colours of SCALE, at most `side` pixels wide and high; arguments as those of `paint`.

    What the model did not see is grey and dim.

    >>> heat(Image.new("RGB", (2, 2), "white"), np.array([[1.0, 0.0], [0.0, 0.0]]), framing="whole").size
    (512, 512)
    """
    ratio = side / max(image.size)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC), dtype=np.float32)[..., None]
    left, top, right, bottom = seen_region(size, framing)
    patches = Image.fromarray(weights.astype(np.float32)).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    area = (-left, -top, size[0] - left, size[1] - top)
    values = np.asarray(patches.crop(area)).clip(0, 1)
    seen = np.asarray(Image.new("L", patches.size, 1).crop(area), dtype=bool)[..., None]
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in SCALE], dtype=np.float32)
    at = np.linspace(0, 1, len(SCALE))
    colours = np.stack([np.interp(values, at, stops[:, channel]) for channel in range(3)], axis=-1)
    opacity = (OPACITY[0] + (OPACITY[1] - OPACITY[0]) * values)[..., None]
    shown = np.where(seen, (1 - opacity) * grey + opacity * colours, DIMMEST * grey)
    return Image.fromarray((shown + 0.5).astype(np.uint8))
