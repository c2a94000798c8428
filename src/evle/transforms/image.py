"""Images to tensors: the augmentation of EVE's pre-training and fine-tuning, and stronger ones for small collections.

Every random choice comes from the generator handed in, and boxes go through the same geometry as their image. The
order is that of cost: crop and resize first (in torch, which is 1.5 to 4 times as fast as PIL for RGB of 128 to 1000
pixels), then one warp that holds every rotation, shear and shift, then a bend, then one 3x4 matrix that holds every
linear colour change, and last what is not linear.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from evle.transforms.colours import erase, outline, pick_colours, rand_augment_filter, random_ground, recolour, stylize
from evle.transforms.geometry import Geometry, bend_pixels, move_boxes, only_visible, pick_geometry
from evle.transforms.image_config import ImageConfig

RAND_AUGMENT_SHARE = 0.5
"""Each operation that RandAugment picks is carried out this often (X-VLM's implementation, whose operations EVE
uses).
"""

RAND_AUGMENT_OPS = (
    *("identity", "autocontrast", "equalize", "brightness", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
)


def train_image(
    image: Image.Image,
    options: ImageConfig,
    size: int,
    rng: np.random.Generator,
    boxes: Sequence[Sequence[float]] | np.ndarray = (),
) -> tuple[Tensor, np.ndarray]:
    """A random view of `image` (RGB or RGBA) as uint8 (3, size, size), and `boxes` in it.

    `boxes` (N, 4) are left, top, right, bottom in pixels of `image`; they come back as float64 (N, 4) in pixels of
    the output, clipped to it, row by row the same boxes: the bounding box of a turned box, and NaN in the row of a
    box of which less than `MIN_VISIBLE` is left.

    >>> image, rng = Image.new("RGB", (40, 20)), np.random.default_rng(0)
    >>> view, boxes = train_image(image, ImageConfig(), 16, rng, [(0, 0, 40, 20)])
    >>> view.shape, boxes.tolist()
    (torch.Size([3, 16, 16]), [[0.0, 0.0, 16.0, 16.0]])
    """
    ops = _pick_rand_augment(options.rand_augment, rng) if options.rand_augment else []
    geometry = pick_geometry(image.size, options, ops, size, rng)
    if image.mode == "RGB" and options.only_moves:  # the same pixels without the ways back to PIL: a quarter faster
        left, top, width, height = geometry.crop
        pixels = _resize_pixels(_pixels(image)[:, top : top + height, left : left + width], size, size)
        return (pixels.flip(2) if geometry.flipped else pixels.contiguous()), move_boxes(boxes, geometry, size)
    picture = _place(image, geometry, options.background, size, rng)
    if geometry.bend is not None:
        picture = _image(bend_pixels(_pixels(picture), geometry.bend), picture.mode)
    picture = recolour(picture, pick_colours(picture, options, ops, rng))
    for name, magnitude in ops:
        picture = rand_augment_filter(picture, name, magnitude)
    if options.stylize and rng.random() < options.stylize:
        picture = stylize(picture, rng)
    if options.outline and rng.random() < options.outline:
        picture = outline(picture, rng)
    if options.blur and rng.random() < options.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.015) * size))
    if options.erase and rng.random() < options.erase:
        picture = erase(picture, rng)
    return _to_tensor(picture), move_boxes(boxes, geometry, size)


def test_image(image: Image.Image, size: int, *, center_crop: bool = False) -> Tensor:  # noqa: PT028
    """An image as uint8 (3, size, size): bicubic with antialias, transparency on white.

    Squeezed whole into the square (EVE's evaluation), or with `center_crop` its shorter side made `size` and the middle
    kept (CLIP, and so VLE): pixel by pixel what CLIP's image processor takes.
    """
    if image.mode == "RGBA":
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image)
        image = ground
    width, height, left, top = _test_geometry(image.size, size, center_crop)
    pixels = _resize_pixels(_pixels(image.convert("RGB")), width, height)
    return pixels[:, top : top + size, left : left + size].contiguous()


def test_boxes(
    boxes: Sequence[Sequence[float]] | np.ndarray,
    image_size: tuple[int, int],
    size: int,
    *,
    center_crop: bool = False,  # noqa: PT028
) -> np.ndarray:
    """Boxes of an image of `image_size` (width, height) in what `test_image` makes of it, clipped and NaN as in
    `train_image`.

    >>> test_boxes([(10, 0, 20, 10), (0, 0, 10, 20)], (40, 20), 10, center_crop=True).tolist()
    [[0.0, 0.0, 5.0, 5.0], [nan, nan, nan, nan]]
    """
    width, height, left, top = _test_geometry(image_size, size, center_crop)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    scale = np.array([width / image_size[0], height / image_size[1]] * 2)
    moved = boxes * scale - np.array([left, top, left, top])
    return only_visible(moved, moved.clip(0, size))


def framing(image_processor: Any) -> tuple[int, bool]:
    """What an image processor of transformers makes of an image: its side in pixels, and whether it is the middle of
    the image (`test_image`'s `center_crop`) or all of it."""
    if image_processor.do_center_crop:
        return int(image_processor.crop_size["height"]), True
    return int(image_processor.size["height"]), False


# pytest would take them for tests where they are imported


test_image.__test__ = test_boxes.__test__ = False  # type: ignore[attr-defined]


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (..., 3, H, W) to float32 (value / 255 - mean) / std, channel by channel (EVE: mean = std = 0.5)."""
    scale = torch.tensor(std, device=pixels.device, dtype=torch.float32).mul(255.0).reciprocal()[:, None, None]
    shift = (torch.tensor(mean, device=pixels.device) / torch.tensor(std, device=pixels.device))[:, None, None]
    return pixels.to(torch.float32, copy=True).mul_(scale).sub_(shift)


def _pick_rand_augment(pair: tuple[int, float], rng: np.random.Generator) -> list[tuple[str, float]]:
    """The operations to carry out, each with its magnitude from 0 to 1, signed where it has a direction."""
    num_ops, magnitude = pair
    picks = rng.integers(len(RAND_AUGMENT_OPS), size=num_ops)
    done = rng.random(num_ops) < RAND_AUGMENT_SHARE
    signs = rng.choice((-1.0, 1.0), size=num_ops)
    return [
        (RAND_AUGMENT_OPS[pick], sign * magnitude / 10) for pick, is_done, sign in zip(picks, done, signs) if is_done
    ]


def _test_geometry(source: tuple[int, int], size: int, center_crop: bool) -> tuple[int, int, int, int]:
    """To which width and height an image is resized at test, and where in that the square of `size` begins."""
    if not center_crop:
        return size, size, 0, 0
    short = min(source)
    width, height = (size * side // short for side in source)
    return width, height, (width - size) // 2, (height - size) // 2


def _place(image: Image.Image, geometry: Geometry, background: str, size: int, rng: np.random.Generator) -> Image.Image:
    """The image as RGB (size, size), cropped, resized, mirrored, warped, on its background."""
    left, top, width, height = geometry.crop
    x, y, side, _ = geometry.place
    piece = image if geometry.crop == (0, 0, *image.size) else image.crop((left, top, left + width, top + height))
    has_holes = image.mode == "RGBA" or side < size or geometry.warp is not None
    # Premultiplied alpha: transparent pixels must not bleed their hidden colour into the edges.
    piece = piece.convert("RGBA").convert("RGBa") if has_holes else piece.convert("RGB")
    piece = _resize(piece, side, side)
    if geometry.flipped:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if not has_holes:
        return piece
    if side < size:
        canvas = Image.new("RGBa", (size, size))
        canvas.paste(piece, (x, y))
        piece = canvas
    if geometry.warp is not None:
        inverse = np.linalg.inv(geometry.warp)
        terms = (inverse / inverse[2, 2]).ravel()[:8].tolist()
        if terms[6] == terms[7] == 0.0:
            piece = piece.transform((size, size), Image.Transform.AFFINE, terms[:6], Image.Resampling.BILINEAR)
        else:
            piece = piece.transform((size, size), Image.Transform.PERSPECTIVE, terms, Image.Resampling.BILINEAR)
    ground = Image.new("RGB", (size, size), "white") if background == "white" else random_ground(piece, rng)
    piece = piece.convert("RGBA")
    ground.paste(piece, mask=piece)
    return ground


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bicubic with antialias; on uint8, torch gives PIL's values to within one level."""
    if image.size == (width, height):
        return image
    return _image(_resize_pixels(_pixels(image), width, height), image.mode)


def _resize_pixels(pixels: Tensor, width: int, height: int) -> Tensor:
    """uint8 (C, H, W) at another size."""
    if pixels.shape[1:] == (height, width):
        return pixels
    return F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]


def _pixels(image: Image.Image) -> Tensor:
    """An image of several bands as uint8 (C, H, W), in the order of bytes that it has."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _image(pixels: Tensor, mode: str) -> Image.Image:
    """The inverse of `_pixels`."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy(), mode=mode)


def _to_tensor(picture: Image.Image) -> Tensor:
    return _pixels(picture).contiguous()
