import io

import numpy as np
import pytest
from PIL import Image

from demo_models import bomb

pytest.importorskip("gradio")

from evle.demo.parts import image_input, image_of, on_page, text_of
from evle.errors import ConfigError, SampleError


def nan() -> bytes:
    """A TIFF without a number."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((3, 4), np.nan, np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [bomb(), b"", b"not an image", nan()], ids=["bomb", "empty", "text", "nan"])
def test_a_bad_image_is_named_without_the_servers_folder(content, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(SampleError, match=r"^photo\.png: .*; choose another image$") as caught:
        image_of(str(path))
    assert str(tmp_path) not in str(caught.value)


def test_an_image_input_hands_over_the_path_without_opening_the_file():
    class Payload:
        path = "/uploads/bomb.png"

    component = image_input("Image")
    assert component.preprocess(Payload()) == "/uploads/bomb.png"
    assert component.preprocess(None) is None


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), (" \n", "is empty"), ("a" * 100_000, "100,000 characters; shorten it")]
)
def test_a_bad_text_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        text_of(text, "question")


def test_no_image_is_an_error_that_says_how_to_give_one():
    with pytest.raises(ConfigError, match="there is no left image; upload"):
        image_of(None, "left image")


def test_an_error_of_the_user_is_shown_and_escaped():
    def handler() -> str:
        raise ConfigError("no <b> here")

    assert "no &lt;b&gt; here" in on_page(handler)()


def test_a_fault_of_ours_is_logged_and_does_not_show_its_details(caplog):
    def handler() -> str:
        raise ZeroDivisionError("secret detail")

    shown = on_page(handler)()
    assert "something went wrong" in shown
    assert "secret" not in shown
    assert "secret detail" in caplog.text
