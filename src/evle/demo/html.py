"""Results as HTML: images inside the page, bars for scores, maps over images. No file of the server is linked.

The markup is in `results.html`.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

_PAGE = Environment(
    loader=PackageLoader("evle.demo", ""), autoescape=True, trim_blocks=True, undefined=StrictUndefined
).get_template("results.html")
_PARTS: Any = _PAGE.module

LARGEST = 640
"""Longest side, in pixels, of an image in a result."""
SMALLEST = 320
"""Smaller images are enlarged to this size: patches and scenes of few pixels stay sharp."""


def source_of(image: Image.Image, longest: int = LARGEST) -> str:
    """`image` as a data URI, at most `longest` pixels wide and high."""
    image = image.convert("RGB")
    scale = min(1.0, longest / max(image.size))
    if max(image.size) < SMALLEST:
        scale = min(SMALLEST, longest) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def alert(message: str) -> str:
    """A message about what is wrong and how to fix it."""
    return str(_PARTS.alert(message))


def hint(message: str) -> str:
    """What is shown before there is a result."""
    return str(_PARTS.hint(message))


def result(content: str) -> str:
    """A result in HTML, which screen readers announce."""
    return str(_PARTS.result(Markup(content)))


def note(text: str) -> str:
    """A remark in small type."""
    return str(_PARTS.note(text))


def headline(text: str) -> str:
    """The answer in large type."""
    return str(_PARTS.headline(text))


def bars(rows: Sequence[tuple[str, float]], chosen: int | None = 0, title: str = "") -> str:
    """Labels with shares from 0 to 1 as bars; row `chosen` is emphasised."""
    lines = [
        (label, f"{share:.1%}" if share < 0.0995 else f"{share:.0%}", f"{100 * min(max(share, 0.0), 1.0):.1f}%")
        for label, share in rows
    ]
    return str(_PARTS.bars(lines, chosen, title))


def figure(image: Image.Image, caption: str) -> str:
    """One large image with a caption."""
    return str(_PARTS.figure(source_of(image), caption))


def cards(items: Sequence[tuple[Image.Image, str, str]]) -> str:
    """A grid of images, best first, each with a caption and a remark."""
    return str(_PARTS.cards([(source_of(image, 240), caption, remark) for image, caption, remark in items]))


def layers(image: Image.Image, maps: Sequence[tuple[str, Image.Image]], name: str) -> str:
    """An image and words under it: the map of the word that is hovered, focused or chosen covers the image.

    Words are radio buttons called `name`, so that arrow keys move between them; no script is needed.
    """
    return str(_PARTS.layers(source_of(image), [(word, source_of(painted)) for word, painted in maps], name))
