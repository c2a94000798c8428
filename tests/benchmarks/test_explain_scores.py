"""How maps are scored: on the right patches, against a painted-over image, on scenes whose text names one thing."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.explain_scores import cells_of, centred, planted, planted_images, without
from PIL import Image

from evle.data.samples import Box

WORLD = {"size": 96, "max_things": 3, "shapes": 6, "colours": 6, "patterns": False}


def test_a_box_is_the_patches_that_it_covers():
    cells = cells_of(Box(32, 0, 32, 32), (96, 96), 3, "whole")
    assert np.argwhere(cells).tolist() == [[0, 1]]
    assert cells_of(Box(16, 16, 64, 64), (96, 96), 3, "whole").sum() == 9
    assert np.argwhere(cells_of(Box(40, 40, 2, 2), (96, 96), 3, "whole")).tolist() == [[1, 1]]


def test_a_framed_image_has_its_patches_in_the_part_that_is_seen():
    cells = cells_of(Box(48, 0, 32, 32), (128, 96), 3, "centre")
    assert np.argwhere(cells).tolist() == [[0, 1]]


def test_the_centred_map_is_highest_in_the_middle():
    assert centred(3).argmax() == 4
    assert centred(3)[0, 0] == centred(3)[2, 2] == centred(3).min()


@pytest.mark.parametrize(("share", "kept"), [(1 / 9, 8), (4 / 9, 5)])
def test_the_highest_patches_are_painted_in_the_colour_of_the_ground(share, kept):
    image = Image.new("RGB", (90, 90), "white")
    image.paste("red", (1, 1, 89, 89))
    weights = np.arange(9, dtype=float).reshape(3, 3)
    pixels = np.asarray(without(image, weights, share, "whole"))
    middles = pixels[15::30, 15::30].reshape(9, 3)
    assert [tuple(pixel) == (255, 0, 0) for pixel in middles] == [True] * kept + [False] * (9 - kept)


def test_each_text_names_one_thing_of_its_scene():
    samples = list(planted(WORLD, 12, asks=True))
    assert len(samples) == 12
    for sample in samples:
        assert sample.text == f"what colour is the {sample.word}?"
        assert sample.box.label == sample.word
    assert all(each.text.endswith(each.word) for each in planted(WORLD, 4, asks=False))


def test_an_image_of_a_folder_is_in_the_quarter_that_the_box_names():
    images = Path(__file__).parents[2] / "examples" / "images"
    for sample in planted_images(images, 6):
        assert sample.text.split()[-1] == sample.word
        quarter = sample.image.crop((sample.box.x, sample.box.y, sample.box.x + 64, sample.box.y + 64))
        assert sample.image.size == (128, 128)
        assert np.asarray(quarter).min() < 250
