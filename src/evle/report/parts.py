"""What a report is made of: tables, curves, and galleries of pictures."""

from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

Mark = Literal["", "good", "bad"]


@dataclass
class Cell:
    """One picture, one text, or both. `mark` says whether it is right: "good", "bad", or nothing to judge."""

    image: Image.Image | None
    text: str = ""
    mark: Mark = ""


@dataclass
class GalleryRow:
    """Cells that belong together, such as a query and its results."""

    heading: str
    cells: list[Cell]
    note: str = ""


@dataclass
class Gallery:
    """Rows of pictures under one title."""

    title: str
    rows: list[GalleryRow]
    note: str = ""


@dataclass
class Table:
    """Rows of cells: text, numbers, or None where there is nothing to say. Every row is as long as `columns`."""

    title: str
    columns: list[str]
    rows: list[list[Any]]
    note: str = ""


@dataclass
class Curve:
    """Named series of (x, y) points on common axes. A point that is not finite is drawn as a gap."""

    title: str
    x_label: str
    y_label: str
    series: dict[str, list[tuple[float, float]]]
    note: str = ""
