"""Images in the style of NLVR: every statement is true of one image and untrue of another; words alone tell nothing."""

import pickle

import numpy as np
import pytest

from evle.data.synthetic.boxes import BOX, COLOURS, HEIGHT, MOST, boxes
from evle.errors import ConfigError
from evle.inspection.blindness import blind_accuracy


def test_two_samples_share_a_statement_that_is_true_of_the_first_alone():
    samples = boxes(count=60)
    for first, second in zip(samples[::2], samples[1::2], strict=True):
        assert first.question == second.question
        assert first.set_id == second.set_id
        assert (first.answers, second.answers) == (("true",), ("false",))
        assert first.image.boxes != second.image.boxes
    assert len({sample.question.split(" with ")[0] for sample in samples}) > 5


def test_a_statement_holds_of_what_it_says():
    """Judged from the words and the items, for the forms that name a kind."""
    for sample in boxes(count=400):
        words = sample.question
        items = [item for box in sample.image.boxes for item in box]
        if words.startswith("there is a") and words.count(" ") <= 4 and "box" not in words and "tower" not in words:
            names = words.removeprefix("there is an ").removeprefix("there is a ").split()
            shown = any(all(name in (item.colour, item.shape, "item") for name in names) for item in items)
            assert sample.answers == ("true" if shown else "false",), words


def test_items_stay_in_their_boxes_and_apart():
    for sample in boxes(count=100):
        for box in sample.image.boxes:
            assert 1 <= len(box) <= MOST
            for item in box:
                assert 0 <= item.x <= BOX - item.size
                assert 0 <= item.y <= HEIGHT - item.size


def test_an_image_shows_three_grey_boxes_and_the_colours_of_its_items():
    sample = boxes(count=2, size=400)[0]
    pixels = np.asarray(sample.image.draw())
    assert pixels.shape == (400, 400, 3)
    shown = {tuple(colour) for colour in pixels.reshape(-1, 3)}
    assert (211, 211, 211) in shown
    for item in (item for box in sample.image.boxes for item in box):
        assert COLOURS[item.colour] in shown


def test_words_alone_tell_nothing():
    found = blind_accuracy(boxes(count=1000), boxes(split="test", count=400))
    assert found.blind["statement"] == pytest.approx(50, abs=1)


def test_samples_are_the_same_every_time_and_travel_to_workers():
    samples = boxes(count=10)
    assert pickle.loads(pickle.dumps(samples))[7] == boxes(count=10)[7]
    assert boxes(split="val", count=10)[7] != samples[7]


def test_what_cannot_work_is_refused():
    for options, message in (
        ({"task": "nlvr2"}, "holds vqa"),
        ({"split": "dev"}, "does not exist"),
        ({"size": 8}, "48"),
    ):
        with pytest.raises(ConfigError, match=message):
            boxes(**options)
