"""Maps over patches on images: where they lie, and how bright they make what is there."""

import numpy as np
from PIL import Image

from evle.transforms.framing import seen_region
from evle.transforms.heatmap import DIMMEST, paint

WHITE = Image.new("RGB", (40, 20), "white")
DIM = round(255 * DIMMEST)


def test_weights_lie_over_the_whole_image_row_by_row():
    painted = np.asarray(paint(WHITE, np.array([[1.0, 0.0], [0.5, 0.0]]), framing="whole"))[..., 0]
    assert painted.shape == (20, 40)
    assert (painted[:10, :20] == 255).all()
    assert (painted[:, 20:] == DIM).all()
    # 0.25 + 0.75 * 0.5 of white
    assert (painted[10:, :20] == round(255 * 0.625)).all()


def test_a_cropped_image_has_its_patches_in_the_middle_square():
    painted = np.asarray(paint(WHITE, np.ones((2, 2)), framing="centre"))[..., 0]
    assert (painted[:, 10:30] == 255).all()
    assert (painted[:, :10] == DIM).all()
    assert (painted[:, 30:] == DIM).all()
    assert seen_region((20, 41), "centre") == (0, 10, 20, 30)


def test_a_padded_image_has_patches_beyond_its_edges():
    """40 x 20 on a square of 40: the upper and the lower quarter of the patches lie outside of the image."""
    weights = np.array([[1.0] * 4, [0.0] * 4, [1.0] * 4, [1.0] * 4])
    painted = np.asarray(paint(WHITE, weights, framing="pad"))[..., 0]
    assert (painted[:10] == DIM).all()
    assert (painted[10:] == 255).all()


def test_smooth_painting_goes_gently_from_patch_to_patch():
    weights = np.array([[1.0, 0.0], [1.0, 0.0]])
    row = np.asarray(paint(WHITE, weights, framing="whole", smooth=True))[10, :, 0].astype(int)
    assert row[0] == 255
    assert row[-1] == DIM
    assert (np.diff(row) <= 0).all()
    assert np.abs(np.diff(row)).max() < 40


def test_a_map_of_noughts_and_weights_beyond_one_are_painted_within_the_image():
    image = Image.new("RGB", (8, 8), (200, 100, 0))
    assert paint(image, np.zeros((2, 2)), framing="whole").getpixel((0, 0)) == (50, 25, 0)
    assert paint(image, np.full((2, 2), 3.0), framing="whole").getpixel((0, 0)) == (200, 100, 0)
