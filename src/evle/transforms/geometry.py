"""The geometry of augmentation: framing, crop, flip, position and warp, and boxes through the same geometry."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evle.transforms.image_config import ImageConfig, Range

MIN_VISIBLE = 0.25
"""A box of which less than this share stays in the image counts as not visible (our choice; no paper states it)."""

SHEAR, TURN, SHIFT = 0.3, 30.0, 10.0
"""RandAugment at magnitude 10, as released: shear, rotation in degrees, shift in pixels (X-VLM's `randaugment.py`)."""


class Geometry(NamedTuple):
    """How an image is mapped to the output: its `crop` (left, top, width, height) fills the region `place`, mirrored if
    `flipped`. Then the output is warped by the 3x3 matrix `warp` and bent by the shifts `bend` (None: not bent).

    `bend` (2, n, n) holds the shifts x and y of n x n points over the output, in halves of its side: each point shows
    what was at that distance from it. With `grey`, a warp exposes grey instead of the background.
    """

    crop: tuple[int, int, int, int]
    place: tuple[int, int, int, int]
    flipped: bool
    warp: np.ndarray | None
    bend: np.ndarray | None = None
    grey: bool = False


def pick_geometry(
    source: tuple[int, int], options: ImageConfig, ops: list[tuple[str, float]], size: int, rng: np.random.Generator
) -> Geometry:
    """Draw the geometry that maps a framed image of `source` (width, height) to an output of `size`, including the
    geometric operations among RandAugment's `ops`."""
    own = source[0] / source[1] if options.framing == "whole" else 1.0
    crop = pick_crop(*source, options.scale, (options.ratio[0] * own, options.ratio[1] * own), rng)
    if options.scale == (1.0, 1.0):  # whatever its proportions
        crop = (0, 0, *source)
    flipped = bool(rng.random() < options.flip)
    place = (0, 0, size, size)
    if options.pad_scale != (1.0, 1.0):
        side = max(1, round(size * rng.uniform(*options.pad_scale)))
        place = (int(rng.integers(size - side + 1)), int(rng.integers(size - side + 1)), side, side)

    warp = np.eye(3)
    if options.rotate:
        warp = rotation(math.radians(rng.uniform(-options.rotate, options.rotate))) @ warp
    if options.shear:
        warp = matrix(x_by_y=math.tan(math.radians(rng.uniform(-options.shear, options.shear)))) @ warp
    bend = None
    if options.bend:
        points = int(rng.integers(3, 6))
        bend = rng.normal(scale=options.bend * rng.random(), size=(2, points, points))
    if not np.array_equal(warp, np.eye(3)):
        warp = _about_the_middle(warp, size)
    augmented = _rand_augment_warp(ops, size)
    warp = augmented @ warp
    is_moved = not np.array_equal(warp, np.eye(3))
    return Geometry(
        crop, place, flipped, warp if is_moved else None, bend, grey=not np.array_equal(augmented, np.eye(3))
    )


def _about_the_middle(warp: np.ndarray, size: int) -> np.ndarray:
    """A warp in coordinates from -1 to 1 around the middle, in pixels of an output of `size`."""
    half = size / 2
    pixels = np.array([[half, 0, half], [0, half, half], [0, 0, 1]])
    return pixels @ warp @ np.linalg.inv(pixels)


def _rand_augment_warp(ops: list[tuple[str, float]], size: int) -> np.ndarray:
    """RandAugment's geometric operations as one matrix in pixels, as released: they shear around the top left corner,
    rotate around the middle, and shift by pixels, whatever the size."""
    warp = np.eye(3)
    for name, magnitude in ops:
        if name == "shear_x":
            warp = matrix(x_by_y=SHEAR * magnitude) @ warp
        elif name == "shear_y":
            warp = matrix(y_by_x=SHEAR * magnitude) @ warp
        elif name == "translate_x":
            warp = matrix(shift_x=SHIFT * magnitude) @ warp
        elif name == "translate_y":
            warp = matrix(shift_y=SHIFT * magnitude) @ warp
        elif name == "rotate":
            warp = _about_the_middle(rotation(math.radians(TURN * magnitude)), size) @ warp
    return warp


def pick_crop(
    width: int, height: int, scale: Range, ratio: Range, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Left, top, width, height as torchvision's RandomResizedCrop draws them: ten attempts, then the largest crop from
    the middle whose ratio is allowed."""
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return (width - w) // 2, (height - h) // 2, w, h


def matrix(*, x_by_y: float = 0.0, y_by_x: float = 0.0, shift_x: float = 0.0, shift_y: float = 0.0) -> np.ndarray:
    return np.array([[1.0, x_by_y, shift_x], [y_by_x, 1.0, shift_y], [0.0, 0.0, 1.0]])


def rotation(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def bend_shifts(bend: np.ndarray, size: int) -> Tensor:
    """`Geometry.bend` for every pixel of an output of `size`: (2, size, size), smooth between its points."""
    shifts = torch.from_numpy(bend.astype(np.float32))
    return F.interpolate(shifts[None], (size, size), mode="bicubic", align_corners=True)[0]


def bend_pixels(pixels: Tensor, bend: np.ndarray) -> Tensor:
    """uint8 (C, size, size), bent; the edge is repeated outside of the image."""
    size = pixels.shape[-1]
    line = torch.linspace(-1, 1, size)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy")) + bend_shifts(bend, size)  # (2, size, size), x and y
    grid = grid.permute(1, 2, 0)[None]
    bent = F.grid_sample(pixels[None].float(), grid, align_corners=True, padding_mode="border")
    return bent[0].round().to(torch.uint8)


def _bend_outlines(xs: np.ndarray, ys: np.ndarray, bend: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the corners (N, 4) of boxes and of the middles of their edges in a bent output: x and y, (N, 8)
    each."""
    corners = np.stack(
        [np.concatenate([each, (each + np.roll(each, -1, axis=1)) / 2], axis=1) for each in (xs, ys)], -1
    )
    half = (size - 1) / 2
    goals = torch.from_numpy(corners.astype(np.float32)) / half - 1  # (N, 8, 2), -1 to 1
    shifts = bend_shifts(bend, size)[None]
    points = goals
    for _ in range(8):  # a point shows what was at point + shift: the new position of a corner is a fixed point
        moved = F.grid_sample(shifts, points[None], align_corners=True, padding_mode="border")[0].permute(1, 2, 0)
        points = goals - moved
    bent = ((points + 1) * half).double().numpy()
    return bent[..., 0], bent[..., 1]


def move_boxes(boxes: Sequence[Sequence[float]] | np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
    """`boxes` (N, 4) of a framed image in its output of `size`, clipped; NaN in the row of a box that is not
    visible."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if not len(boxes):
        return boxes
    left, top, width, height = geometry.crop
    x, y, side, _ = geometry.place
    xs = x + (boxes[:, [0, 2, 2, 0]] - left) * side / width  # (N, 4 corners)
    ys = y + (boxes[:, [1, 1, 3, 3]] - top) * side / height
    if geometry.flipped:
        xs = 2 * x + side - xs
    # What the crop cuts off never reaches the output, even where padding leaves room for it.
    whole = area(bounds(xs, ys))
    xs, ys = xs.clip(x, x + side), ys.clip(y, y + side)
    kept = area(bounds(xs, ys)) / np.maximum(whole, 1e-9)
    if geometry.warp is not None:
        corners = np.stack([xs, ys, np.ones_like(xs)], axis=-1) @ geometry.warp.T
        xs, ys = corners[..., 0], corners[..., 1]
    if geometry.bend is not None:
        xs, ys = _bend_outlines(xs, ys, geometry.bend, size)
    warped = bounds(xs, ys)
    moved = warped.clip(0, size)
    kept *= area(moved) / np.maximum(area(warped), 1e-9)
    moved[kept < MIN_VISIBLE] = np.nan
    return moved


def only_visible(whole: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The boxes `kept`, which are the remaining parts of those in `whole`; NaN if less than `MIN_VISIBLE` remains."""
    kept[area(kept) < MIN_VISIBLE * np.maximum(area(whole), 1e-9)] = np.nan
    return kept


def bounds(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    return np.stack([xs.min(1), ys.min(1), xs.max(1), ys.max(1)], axis=1)


def area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
