"""A page on which the words of a text show their maps over an image, by hovering or choosing; it needs no script."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from evle.report.page import image_uri, template

SIDE = 512
"""Longest side of the image, in pixels."""


def maps_page(
    *,
    title: str,
    image: Image.Image,
    layers: Sequence[tuple[str, Image.Image, float]],
    unit: str,
    about: str,
    answer: str = "",
    score: float = 0.0,
) -> str:
    """The page as one string. `layers` are words, the image under their map, and the largest value of the map in
    `unit`; the first is shown at once. `answer` is what the model answered, with its probability `score`."""
    ratio = SIDE / max(image.size)
    size = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    base, width, height = image_uri(image.resize(size, Image.Resampling.BICUBIC), SIDE)
    shown: list[dict[str, Any]] = [
        {"name": name, "image": image_uri(painted, SIDE)[0], "most": f"{most:.3g}"} for name, painted, most in layers
    ]
    return template("maps.html", "maps.css").render(
        title=title,
        base=base,
        width=width,
        height=height,
        layers=shown,
        unit=unit,
        about=about,
        answer=answer,
        score=f"{score:.1%}",
    )
