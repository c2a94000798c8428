"""Boxes and patches: which patches of an image's grid a box covers, and which boxes a set of patches forms.

Legend: N boxes as left, top, right, bottom in pixels; G patches per side; P = G * G patches in reading order, without
[CLS]. Boxes must be in the geometry of the pixels that the patches are cut from; `evle.transforms.image.train_image`
transforms them.
"""

from collections.abc import Sequence

import numpy as np


def patch_cover(
    boxes: Sequence[Sequence[float]] | np.ndarray, image_size: tuple[float, float], grid: int
) -> np.ndarray:
    """float (N, P): the share of each patch that each box covers, from 0 to 1.

    `image_size` is (width, height) in the boxes' pixels. Parts of a box outside of it do not count, and a box that is
    not visible (NaN) covers nothing.

    >>> patch_cover([(0, 0, 8, 16)], image_size=(32, 32), grid=2).tolist()
    [[0.5, 0.0, 0.0, 0.0]]
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    width, height = image_size
    units = np.nan_to_num(boxes * grid / np.array([width, height, width, height]))
    edges = np.arange(grid)
    # Overlap of [left, right] with the column [c, c + 1], and of [top, bottom] with each row.
    columns = (np.minimum(units[:, 2:3], edges + 1) - np.maximum(units[:, 0:1], edges)).clip(0)
    rows = (np.minimum(units[:, 3:4], edges + 1) - np.maximum(units[:, 1:2], edges)).clip(0)
    return (rows[:, :, None] * columns[:, None, :]).reshape(len(boxes), grid * grid)


def box_patches(
    boxes: Sequence[Sequence[float]] | np.ndarray,
    image_size: tuple[float, float],
    grid: int,
    *,
    min_cover: float = 0.0,
) -> np.ndarray:
    """bool (N, P): True where a box covers more than `min_cover` of a patch.

    With 0 any overlap counts, so that a box of any size has a patch. That is right for masking an object (MPC) and for
    the token of a box (VCR), where no part of the object may stay visible or be left out. For labels (PBC) half a patch
    is a fairer rule, but small boxes may then have no patch at all.
    """
    return patch_cover(boxes, image_size, grid) > min_cover


def touched_patches(
    boxes: Sequence[Sequence[float]] | np.ndarray, image_size: tuple[float, float], grid: int
) -> np.ndarray:
    """bool (N, P): True from the patch with a box's upper left corner to the patch with its lower right corner.

    Unlike `box_patches`, a box that ends at the edge of a patch also covers the next patch, and a box without area
    covers the patch that contains it. VLE's released code maps boxes this way.

    >>> touched_patches([(0, 0, 16, 8)], image_size=(32, 32), grid=2).tolist()
    [[True, True, False, False]]
    """
    width, height = image_size
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    places = boxes // (np.array([width, height, width, height]) / grid)
    edges = np.arange(grid)
    columns = (places[:, 0:1] <= edges) & (edges <= places[:, 2:3])
    rows = (places[:, 1:2] <= edges) & (edges <= places[:, 3:4])
    return (rows[:, :, None] & columns[:, None, :]).reshape(len(boxes), grid * grid)


def related_patches(
    boxes: Sequence[Sequence[float]] | np.ndarray,
    image_size: tuple[float, float],
    grid: int,
    *,
    min_cover: float = 0.5,
) -> np.ndarray:
    """bool (P,): the patches of which any box covers more than `min_cover`; a box too small for that has the patch that
    it covers most.

    >>> related_patches([(0, 0, 30, 10), (40, 40, 44, 44)], (64, 64), 4).nonzero()[0].tolist()
    [0, 1, 10]
    """
    cover = patch_cover(boxes, image_size, grid)
    related = cover > min_cover
    small = ~related.any(axis=1) & (cover.max(axis=1, initial=0.0) > 0)
    related[small, cover[small].argmax(axis=1)] = True
    return np.asarray(related.any(axis=0))
