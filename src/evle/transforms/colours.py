"""Changes of an image's colours and strokes, which move nothing."""

import math

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from evle.transforms.geometry import rotation
from evle.transforms.image_config import STYLES, ImageConfig

WHITE_SHARE = 0.25
"""How often `background="random"` still draws white, so that test images look familiar (our choice)."""

# Luma weights of ITU-R 601, as PIL and torchvision take them for contrast, saturation and grey.
LUMA = np.array([0.299, 0.587, 0.114])
RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)


def random_ground(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """White, one colour, or a smooth blend of 2x2 to 4x4 colours, none of them close to the mean colour of the
    image on it.
    """
    kind = rng.random()
    if kind < WHITE_SHARE:
        return Image.new("RGB", image.size, "white")
    num_colours = 1 if kind < (1 + WHITE_SHARE) / 2 else int(rng.integers(2, 5))
    colours = rng.integers(256, size=(num_colours, num_colours, 3))
    *mean, opacity = mean_colour(image)
    # A black drawing on black would show nothing.
    too_close = np.abs(colours - np.array(mean) * 255 / max(1.0, opacity)).max(-1) < 64
    colours[too_close] = (colours[too_close] + 128) % 256
    return Image.fromarray(colours.astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)


def mean_colour(image: Image.Image) -> np.ndarray:
    return np.array(image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)), dtype=np.float64)


def pick_colours(
    image: Image.Image, options: ImageConfig, ops: list[tuple[str, float]], rng: np.random.Generator
) -> np.ndarray | None:
    """All linear colour changes as one 3x4 matrix on RGB of 0 to 255; None when there are none.

    Brightness, contrast, saturation and hue commute as long as nothing clips, so their order does not matter; unlike
    torchvision, which clips after each, this clips once.
    """
    matrix = np.eye(3, 4)
    brightness, contrast, saturation = options.color_jitter
    if any(options.color_jitter):
        factors = 1 + rng.uniform(-1, 1, 3) * (brightness, contrast, saturation)
        matrix *= factors[0]
        if contrast:
            grey = LUMA @ matrix[:, :3] @ mean_colour(image)
            matrix *= factors[1]
            matrix[:, 3] += (1 - factors[1]) * grey
        matrix = (factors[2] * np.eye(3) + (1 - factors[2]) * LUMA) @ matrix
    if options.hue:
        # A rotation of the chroma plane of YIQ: linear, and it keeps luma, which torchvision's turn in HSV does not.
        turn = rotation(2 * math.pi * rng.uniform(-options.hue, options.hue))[:2, :2]
        matrix = YIQ_TO_RGB @ np.block([[np.eye(1), np.zeros((1, 2))], [np.zeros((2, 1)), turn]]) @ RGB_TO_YIQ @ matrix
    for name, magnitude in ops:
        if name == "brightness":
            matrix *= 0.1 + 1.8 * abs(magnitude)
    if options.grayscale and rng.random() < options.grayscale:
        matrix = np.tile(LUMA, (3, 1)) @ matrix
    return None if np.array_equal(matrix, np.eye(3, 4)) else matrix


def recolour(image: Image.Image, matrix: np.ndarray | None) -> Image.Image:
    return image if matrix is None else image.convert("RGB", matrix=tuple(matrix.ravel().tolist()))


def rand_augment_filter(image: Image.Image, name: str, magnitude: float) -> Image.Image:
    """The operations of RandAugment that are neither a warp nor linear."""
    if name == "autocontrast":
        return ImageOps.autocontrast(image)
    if name == "equalize":
        return ImageOps.equalize(image)
    if name == "sharpness":
        return ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * abs(magnitude))
    return image


def stylize(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    style = STYLES[int(rng.integers(len(STYLES)))]
    if style == "posterize":
        return ImageOps.posterize(image, int(rng.integers(2, 5)))
    if style == "solarize":
        return ImageOps.solarize(image, int(rng.integers(64, 224)))
    return image.filter(ImageFilter.CONTOUR if style == "contour" else ImageFilter.EMBOSS)


def outline(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Flat colours, and dark strokes where they change: 1 to 2 pixels wide at a side of 64, thicker on larger
    images."""
    flat = image.quantize(int(rng.integers(4, 17)), method=Image.Quantize.FASTOCTREE).convert("RGB")
    light = image.convert("L")
    edges = ImageChops.difference(light.filter(ImageFilter.MaxFilter(3)), light.filter(ImageFilter.MinFilter(3)))
    threshold = int(rng.integers(16, 80))
    strokes = edges.point([255 * (value > threshold) for value in range(256)])
    for _ in range(int(rng.integers(2)) + max(0, image.width // 64 - 1)):
        strokes = strokes.filter(ImageFilter.MaxFilter(3))
    flat.paste(tuple(rng.integers(48, size=3).tolist()), mask=strokes)
    return flat


def erase(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = image.size
    area, aspect = width * height * rng.uniform(0.02, 0.25), math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
    w, h = min(width, max(1, round(math.sqrt(area * aspect)))), min(height, max(1, round(math.sqrt(area / aspect))))
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    erased = image.copy()
    erased.paste(tuple(rng.integers(256, size=3).tolist()), (left, top, left + w, top + h))
    return erased
