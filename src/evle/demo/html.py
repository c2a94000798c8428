"""Results as HTML: images inside the page, bars for scores, maps over images. No file of the server is linked."""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

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
    return f'<div class="evle-alert" role="alert">{escape(message)}</div>'


def hint(message: str) -> str:
    """What stands where a result will be."""
    return f'<div class="evle-hint">{escape(message)}</div>'


def result(content: str) -> str:
    """A result, which screen readers announce."""
    return f'<div class="evle-result" role="status">{content}</div>'


def note(text: str) -> str:
    """A remark in small type."""
    return f'<div class="evle-note">{escape(text)}</div>'


def headline(text: str) -> str:
    """The answer in large type."""
    return f'<div class="evle-answer">{escape(text)}</div>'


def bars(rows: Sequence[tuple[str, float]], chosen: int | None = 0, title: str = "") -> str:
    """Labels with shares from 0 to 1 as bars; row `chosen` stands out."""
    lines = []
    for index, (label, share) in enumerate(rows):
        mark = ' class="evle-chosen"' if index == chosen else ""
        percent = f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"
        lines.append(
            f'<li{mark}><span class="evle-label">{escape(label)}</span><span class="evle-share">{percent}</span>'
            f'<span class="evle-bar"><span style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></span></span></li>'
        )
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f'{heading}<ol class="evle-bars">{"".join(lines)}</ol>'


def figure(image: Image.Image, caption: str) -> str:
    """One large image with a caption."""
    return (
        f'<figure class="evle-figure"><img src="{source_of(image)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def cards(items: Sequence[tuple[Image.Image, str, str]]) -> str:
    """A grid of images, best first, each with a caption and a remark."""
    shown = [
        f'<li><img src="{source_of(image, 240)}" alt="{escape(caption)}"><div><b>{rank}</b> {escape(caption)}</div>'
        f"{note(remark)}</li>"
        for rank, (image, caption, remark) in enumerate(items, 1)
    ]
    return f'<ol class="evle-cards">{"".join(shown)}</ol>'


def layers(image: Image.Image, maps: Sequence[tuple[str, Image.Image]], name: str) -> str:
    """An image and words under it: the map of the word that is hovered, focused or chosen covers the image.

    Words are radio buttons called `name`, so that arrow keys move between them; no script is needed.
    """
    words = "".join(
        f'<label><input type="radio" name="{escape(name)}"{" checked" if index == 0 else ""}>'
        f'<span>{escape(word)}</span><img src="{source_of(painted)}" alt="map of {escape(word)}"></label>'
        for index, (word, painted) in enumerate(maps)
    )
    return (
        f'<fieldset class="evle-layers"><img class="evle-base" src="{source_of(image)}" alt="the image">'
        f'<div class="evle-words">{words}</div></fieldset>'
    )
