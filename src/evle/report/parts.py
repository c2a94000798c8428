"""What a report is made of: tables, curves, intervals, and galleries of images."""

from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

Mark = Literal["", "good", "bad"]

IMAGE_SIDE = 384  # longest side of a report's image, in pixels


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """`image` as RGB or RGBA with at most `side` pixels; `image` stays as it is."""
    if image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if max(image.size) > side:
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return image


@dataclass
class Cell:
    """One image, one text, or both. `mark` says whether the text's last line is right: "good", "bad", or neither.

    The image is held as small as the page shows it: dozens of photographs in full would not fit in memory.
    """

    image: Image.Image | None
    text: str = ""
    mark: Mark = ""

    def __post_init__(self) -> None:
        if self.image is not None:
            self.image = shrunk(self.image, IMAGE_SIDE)


@dataclass
class GalleryRow:
    """Cells that belong together, such as a query and its results."""

    heading: str
    cells: list[Cell]
    note: str = ""


@dataclass
class Gallery:
    """Rows of images under one title."""

    title: str
    rows: list[GalleryRow]
    note: str = ""


@dataclass
class Table:
    """Rows of cells: text, numbers, or None for an empty cell. Every row is as long as `columns`.

    A `folded` table (a log) is at the end of the page, and opens by a click.
    """

    title: str
    columns: list[str]
    rows: list[list[Any]]
    note: str = ""
    folded: bool = False


@dataclass
class Curve:
    """Named series of (x, y) points on common axes. A point that is not finite is drawn as a gap."""

    title: str
    x_label: str
    y_label: str
    series: dict[str, list[tuple[float, float]]]
    note: str = ""


@dataclass
class Interval:
    """A number with its interval, and the one that it is compared with: `mark` says whether it is above it for certain
    ("good"), below it ("bad"), or neither."""

    name: str
    value: float
    low: float
    high: float
    needs: float
    mark: Mark = ""


@dataclass
class Intervals:
    """Numbers of one unit with their intervals, one under the other. `marks` says in words what each mark means."""

    title: str
    x_label: str
    rows: list[Interval]
    marks: dict[Mark, str]
    note: str = ""
