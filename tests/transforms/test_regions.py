"""Boxes and patches: hand-drawn cases on grids of 2 and 4, and the way there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evle.transforms.regions import box_patches, patch_cover, related_patches, touched_patches


def test_any_overlap_counts_by_default_and_half_a_patch_on_request():
    """A grid of 4 on 64 pixels; the box covers columns 8 to 40, rows 0 to 16: half of patch 0, all of 1, half of 2."""
    box = [(8, 0, 40, 16)]
    assert patch_cover(box, (64, 64), 4)[0, :4].tolist() == [0.5, 1.0, 0.5, 0.0]
    assert box_patches(box, (64, 64), 4)[0].nonzero()[0].tolist() == [0, 1, 2]
    assert box_patches(box, (64, 64), 4, min_cover=0.5)[0].nonzero()[0].tolist() == [1]


def test_a_box_that_ends_at_a_patchs_edge_does_not_touch_the_next():
    assert box_patches([(0, 0, 16, 16)], (64, 64), 4)[0].nonzero()[0].tolist() == [0]


def test_the_released_mapping_goes_from_corner_to_corner():
    """A grid of 4 on 96 x 64 pixels, patches of 24 x 16. A box that ends at an edge has the next patch as well, one
    without area the patch it lies in; outside of the image there is nothing."""
    boxes = [(0, 0, 24, 15), (24, 16, 48, 32), (30, 20, 30, 20), (-9, -9, 5, 5), (90, 60, 200, 99), (96, 0, 120, 9)]
    found = [row.nonzero()[0].tolist() for row in touched_patches(boxes, (96, 64), 4)]
    assert found == [[0, 1], [5, 6, 9, 10], [5], [0], [15], []]
    assert touched_patches([], (96, 64), 4).shape == (0, 16)


def test_the_grid_is_stretched_over_images_that_are_not_square():
    assert patch_cover([(0, 0, 50, 10)], (100, 20), 2).tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_what_lies_outside_or_is_gone_covers_nothing():
    boxes = [(-50, -50, 8, 8), (70, 70, 90, 90), (np.nan,) * 4, (30, 30, 20, 20)]
    cover = patch_cover(boxes, (64, 64), 2)
    assert cover[0].tolist() == [1 / 16, 0, 0, 0]
    assert not cover[1:].any()


def test_no_boxes_cover_nothing():
    assert box_patches([], (64, 64), 4).shape == (0, 16)


@given(
    left=st.floats(0, 60),
    top=st.floats(0, 60),
    width=st.floats(0.5, 64),
    height=st.floats(0.5, 64),
    grid=st.integers(1, 8),
)
def test_the_cover_adds_up_to_the_boxs_area(left, top, width, height, grid):
    right, bottom = min(64, left + width), min(64, top + height)
    cover = patch_cover([(left, top, right, bottom)], (64, 64), grid)
    assert cover.min() >= 0
    assert cover.max() <= 1 + 1e-9
    assert cover.sum() * (64 / grid) ** 2 == pytest.approx((right - left) * (bottom - top))
    assert box_patches([(left, top, right, bottom)], (64, 64), grid).any()


def test_related_patches_are_the_union_of_the_boxes_and_never_leave_one_out():
    """A grid of 4 on 64 pixels: all of patch 5; a sliver of patch 0, all that its box has; a box that is gone."""
    boxes = [(16, 16, 32, 32), (0, 0, 3, 16), (np.nan,) * 4]
    assert related_patches(boxes, (64, 64), 4).nonzero()[0].tolist() == [0, 5]
    assert related_patches([(8, 0, 40, 16)], (64, 64), 4).nonzero()[0].tolist() == [1]  # half a patch is not more
    assert not related_patches([], (64, 64), 4).any()
