import base64
import io

import pytest
from PIL import Image

from evle.demo import html

MARKUP = "<script>alert(1)</script>\"'"


@pytest.mark.parametrize(
    "shown",
    [
        html.alert(MARKUP),
        html.hint(MARKUP),
        html.note(MARKUP),
        html.headline(MARKUP),
        html.bars([(MARKUP, 0.5)], title=MARKUP),
        html.figure(Image.new("RGB", (2, 2)), MARKUP),
        html.cards([(Image.new("RGB", (2, 2)), MARKUP, MARKUP)]),
        html.layers(Image.new("RGB", (2, 2)), [(MARKUP, Image.new("RGB", (2, 2)))], "one"),
    ],
)
def test_text_never_becomes_markup(shown):
    assert "<script" not in shown
    assert MARKUP not in shown


def test_images_are_inside_the_page_and_bounded():
    data = html.source_of(Image.new("RGBA", (4000, 10)), 640).removeprefix("data:image/webp;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (640, 2)


def test_bars_show_shares_and_mark_the_choice():
    shown = html.bars([("red", 0.993), ("blue", 0.004)], chosen=1)
    assert "99%" in shown
    assert "0.4%" in shown
    assert shown.index("red") < shown.index("evle-chosen") < shown.index("blue")
