"""Images to tensors: the augmentation of EVE's pre-training and fine-tuning, and stronger ones for small collections.

Every random choice comes from the given generator, and boxes go through the same geometry as their image. The order
follows the cost: first crop and resize (in torch, which is 1.5 to 4 times as fast as PIL for RGB images of 128 to 1000
pixels), then one warp for all rotations, shears and shifts, then a bend, then one 3x4 matrix for all linear colour
changes, and last the changes that are not linear.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.image_utils import SizeDict

from evle.proportions import small_enough_to_pad, without_far_ends
from evle.transforms.colours import erase, outline, pick_colours, rand_augment_filter, random_ground, recolour, stylize
from evle.transforms.framing import seen_region, test_geometry
from evle.transforms.geometry import Geometry, bend_pixels, move_boxes, only_visible, pick_geometry
from evle.transforms.image_config import Framing, ImageConfig

RAND_AUGMENT_SHARE = 0.5
"""The probability that an operation which RandAugment picks is applied (X-VLM's implementation, which EVE uses)."""

RAND_AUGMENT_GREY = (128, 128, 128)
"""The colour of areas that RandAugment's geometric operations expose, as released."""

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

    `boxes` (N, 4) are left, top, right, bottom in pixels of `image`. They are returned as float64 (N, 4) in pixels of
    the output, in the same order and clipped: the bounding box of a rotated box, and NaN in the row of a box of which
    less than `MIN_VISIBLE` remains.

    >>> image, rng = Image.new("RGB", (40, 20)), np.random.default_rng(0)
    >>> view, boxes = train_image(image, ImageConfig(), 16, rng, [(0, 0, 40, 20)])
    >>> view.shape, boxes.tolist()
    (torch.Size([3, 16, 16]), [[0.0, 0.0, 16.0, 16.0]])
    """
    if options.framing in ("pad", "centre"):
        image, boxes = _framed(image, options.framing, boxes, clear=options.background != "white")
    ops = _pick_rand_augment(options.rand_augment, rng) if options.rand_augment else []
    geometry = pick_geometry(image.size, options, ops, size, rng)
    if image.mode == "RGB" and options.only_moves:  # the same pixels, a quarter faster
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
    if options.erase and rng.random() < options.erase:
        picture = erase(picture, rng)
    return _to_tensor(picture), move_boxes(boxes, geometry, size)


def test_image(image: Image.Image, size: int, *, framing: Framing = "whole") -> Tensor:  # noqa: PT028
    """An image as uint8 (3, size, size): bicubic with antialias, transparency on white.

    "whole" squeezes the image into the square (EVE's evaluation), "pad" first extends it to a square with white, and
    "centre" resizes its shorter side to `size` and keeps the middle, pixel by pixel as CLIP's image processor.
    """
    if image.mode == "RGBA":
        image = _on_white(image)
    if framing == "pad":
        image, _ = _framed(image.convert("RGB"), "pad", ())
    if framing == "centre":
        image = without_far_ends(image)
    width, height, left, top = test_geometry(image.size, size, framing)
    pixels = _resize_pixels(_pixels(image.convert("RGB")), width, height)
    return pixels[:, top : top + size, left : left + size].contiguous()


def test_boxes(
    boxes: Sequence[Sequence[float]] | np.ndarray,
    image_size: tuple[int, int],
    size: int,
    *,
    framing: Framing = "whole",  # noqa: PT028
) -> np.ndarray:
    """Boxes of an image of `image_size` (width, height) in the output of `test_image`, clipped and NaN as in
    `train_image`.

    >>> test_boxes([(10, 0, 20, 10), (0, 0, 10, 20)], (40, 20), 10, framing="centre").tolist()
    [[0.0, 0.0, 5.0, 5.0], [nan, nan, nan, nan]]
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if framing == "pad":
        left, top, right, bottom = seen_region(image_size, "pad")
        boxes, image_size = boxes - np.array([left, top, left, top]), (right - left, bottom - top)
    width, height, left, top = test_geometry(image_size, size, framing)
    scale = np.array([width / image_size[0], height / image_size[1]] * 2)
    moved = boxes * scale - np.array([left, top, left, top])
    return only_visible(moved, moved.clip(0, size))


def framing_of(image_processor: Any) -> tuple[int, Framing]:
    """The side in pixels that an image processor of transformers gives an image, and which part of the image it keeps.

    A processor that only resizes the shorter side is treated as a square of that side that holds the whole image.
    """
    if getattr(image_processor, "do_center_crop", False):
        return int(image_processor.crop_size["height"]), "centre"
    size = image_processor.size
    side = next(size[name] for name in ("height", "shortest_edge", "longest_edge") if size.get(name))
    return int(side), "pad" if getattr(image_processor, "framing", None) == "pad" else "whole"


def set_framing(image_processor: Any, framing: Framing) -> None:
    """Make an image processor of transformers, and the files saved from it, frame images with `framing`."""
    side, _ = framing_of(image_processor)
    square = {"height": side, "width": side}
    is_centre = framing == "centre"
    image_processor.size = SizeDict(shortest_edge=side) if is_centre else SizeDict(**square)
    image_processor.crop_size = SizeDict(**square)
    image_processor.do_center_crop = is_centre
    image_processor.framing = framing


# pytest would collect these two as tests where they are imported
test_image.__test__ = test_boxes.__test__ = False  # type: ignore[attr-defined]


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (..., 3, H, W) to float32 (value / 255 - mean) / std, channel by channel (EVE: mean = std = 0.5)."""
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), pixels.device)
    return pixels.to(torch.float32, copy=True).mul_(scale).sub_(shift)


@cache
def _scale_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept on the device: copying them there for every batch would let the host wait."""
    deviation = torch.tensor(std)
    scale, shift = deviation.mul(255.0).reciprocal(), torch.tensor(mean) / deviation
    return scale[:, None, None].to(device), shift[:, None, None].to(device)


def _pick_rand_augment(pair: tuple[int, float], rng: np.random.Generator) -> list[tuple[str, float]]:
    """The operations to apply, each with its magnitude from 0 to 1 and a random sign."""
    num_ops, magnitude = pair
    picks = rng.integers(len(RAND_AUGMENT_OPS), size=num_ops)
    done = rng.random(num_ops) < RAND_AUGMENT_SHARE
    signs = rng.choice((-1.0, 1.0), size=num_ops)
    return [
        (RAND_AUGMENT_OPS[pick], sign * magnitude / 10) for pick, is_done, sign in zip(picks, done, signs) if is_done
    ]


def _framed(
    image: Image.Image, framing: Framing, boxes: Sequence[Sequence[float]] | np.ndarray, *, clear: bool = False
) -> tuple[Image.Image, np.ndarray]:
    """The region of an image that the model sees, and boxes in its pixels. Padding is white in an opaque image, and
    transparent in any other or if `clear`. A very long image is made smaller first (see `small_enough_to_pad`)."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if framing == "pad":
        width, height = image.size
        image = small_enough_to_pad(image)
        boxes = boxes * np.array([image.width / width, image.height / height] * 2)
    region = seen_region(image.size, framing)
    left, top = region[:2]
    if framing == "pad" and (clear or image.mode == "RGBA"):
        framed = image.convert("RGBA").crop(region)
    elif framing == "pad":
        framed = Image.new(image.mode, (region[2] - left, region[3] - top), "white")
        framed.paste(image, (-left, -top))
    else:
        framed = image.crop(region)
    return framed, boxes - np.array([left, top, left, top])


def _on_white(image: Image.Image) -> Image.Image:
    """An RGBA image as RGB, transparency on white."""
    ground = Image.new("RGB", image.size, "white")
    ground.paste(image, mask=image)
    return ground


def _place(image: Image.Image, geometry: Geometry, background: str, size: int, rng: np.random.Generator) -> Image.Image:
    """The image as RGB (size, size): cropped, resized, mirrored and warped, on its background."""
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
    if geometry.grey:  # the background fills holes before the warp, and grey what the warp exposes
        piece = _on_ground(piece, background, rng).convert("RGBA").convert("RGBa")
    if geometry.warp is not None:
        terms = np.linalg.inv(geometry.warp).ravel()[:6].tolist()
        piece = piece.transform((size, size), Image.Transform.AFFINE, terms, Image.Resampling.BILINEAR)
    if geometry.grey:
        return _paste(piece, Image.new("RGB", piece.size, RAND_AUGMENT_GREY))
    return _on_ground(piece, background, rng)


def _on_ground(piece: Image.Image, background: str, rng: np.random.Generator) -> Image.Image:
    """An image with holes (RGBa) on white or on a random background."""
    return _paste(piece, Image.new("RGB", piece.size, "white") if background == "white" else random_ground(piece, rng))


def _paste(piece: Image.Image, ground: Image.Image) -> Image.Image:
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
