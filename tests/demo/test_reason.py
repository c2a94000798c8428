import pytest
from PIL import Image

pytest.importorskip("gradio")

from evle.data.samples import Box
from evle.demo.tabs.reason import after_click, boxes_of, drawn
from evle.errors import ConfigError, EvleError

TWO = "dog 10 10 20 20\nbig cat 50 50 30 30"


def test_the_list_of_objects_is_read():
    assert boxes_of(TWO) == (Box(10, 10, 20, 20, "dog"), Box(50, 50, 30, 30, "big cat"))
    assert boxes_of("") == ()


@pytest.mark.parametrize(
    ("text", "message"), [("dog 1 2 3 4\n" * 11, "keep 10 or fewer"), ("dog 1 2 3 4 " * 1000, "shorten it")]
)
def test_too_many_objects_are_refused(text, message):
    with pytest.raises(EvleError, match=message):
        boxes_of(text)


def test_two_clicks_draw_a_box_in_any_direction():
    text, question, start = after_click(TWO, "why?", None, (90.0, 5.0))
    assert (text, question, start) == (TWO, "why?", (90.0, 5.0))
    text, question, start = after_click(text, question, start, (80.0, 15.0))
    assert (text.splitlines()[-1], question, start) == ("thing 80 5 10 10", "why?", None)


def test_a_click_in_a_box_names_the_smallest_one_in_the_question():
    inner = TWO + "\neye 15 15 4 4"
    assert after_click(inner, "what is", None, (16.0, 16.0))[1] == "what is [3]"
    assert after_click(inner, "what is", None, (11.0, 11.0))[1] == "what is [1]"


def test_the_first_box_can_be_drawn_on_an_empty_list():
    _, _, start = after_click("", "", None, (1.0, 1.0))
    assert after_click("", "", start, (11.0, 21.0))[0] == "thing 1 1 10 20"


def test_corners_at_one_position_are_refused():
    with pytest.raises(ConfigError, match="opposite corners"):
        after_click(TWO, "", (5.0, 5.0), (6.0, 5.0))


def test_boxes_are_drawn_on_a_copy():
    image = Image.new("RGB", (100, 100), "white")
    shown = drawn(image, boxes_of(TWO), start=(90.0, 10.0))
    assert image.getcolors() == [(10000, (255, 255, 255))]
    assert shown.getpixel((30, 25)) != (255, 255, 255)
