"""Questions about objects as people type them."""

import pytest
from PIL import Image

from evle.data.samples import Box
from evle.errors import SampleError
from evle.pipelines.typed import check_inside, typed_boxes, typed_sample, typed_text, written_boxes

TWO = ["dog 10 10 20 20", "big cat 50 50 30 30"]


def test_objects_are_read_as_they_are_written():
    assert typed_boxes(TWO) == (Box(10, 10, 20, 20, "dog"), Box(50, 50, 30, 30, "big cat"))
    assert written_boxes(typed_boxes(TWO)) == "\n".join(TWO)
    assert typed_boxes(["", "  "]) == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dog", "object 1 is 'dog'"),
        ("dog 1 2 3", "a name and four numbers"),
        ("dog 1 2 3 nan", "above 0"),
        ("dog 1 2 3 inf", "above 0"),
        ("dog 1 2 0 4", "above 0"),
        ("dog -1 2 3 4", "above 0"),
        ("dog 1 2 three 4", "four numbers"),
    ],
)
def test_a_wrong_object_is_named(line, message):
    with pytest.raises(SampleError, match=message):
        typed_boxes([line])


def test_too_many_objects_are_refused():
    with pytest.raises(SampleError, match="there are 3 objects; keep 2 or fewer"):
        typed_boxes(["dog 1 2 3 4"] * 3, most=2)


def test_a_box_outside_of_the_image_is_named():
    with pytest.raises(SampleError, match="object 2 begins at 50, 50, outside of the image of 40 x 40"):
        check_inside(typed_boxes(TWO), Image.new("RGB", (40, 40)))


def test_tags_are_read_inside_of_words():
    assert typed_text("is [1]'s dog near [2]?", 2) == ("is", (0,), "'s", "dog", "near", (1,), "?")


@pytest.mark.parametrize("tag", ["[0]", "[3]", "[999999]"])
def test_a_tag_without_its_object_is_named(tag):
    with pytest.raises(SampleError, match="names no object; there are 2"):
        typed_text(f"why is {tag} here", 2)


def test_a_sample_holds_what_was_typed():
    sample = typed_sample(b"", typed_boxes(TWO), "is [2] big?", ["yes", "no, [1] is"], right=1)
    assert sample.question == ("is", (1,), "big?")
    assert sample.answer_choices == (("yes",), ("no,", (0,), "is"))
    assert (sample.rationale_choices, sample.answer_label) == ((), 1)
