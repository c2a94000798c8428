"""A report: scores, tables, curves and images, with where they come from, as one HTML page, JSON and Markdown.

`report.html` is the page, `report.json` holds every number, `report.md` the tables, `galleries.json` the images for
other reports. The same report always gives the same bytes: nothing here reads a clock.

>>> page = Report("A run", summary=["Two numbers."], scores={"accuracy": 61.25}).html()
>>> "61.25" in page
True
"""

import base64
import io
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from evle.errors import DataError
from evle.files import read_json, write_whole
from evle.report.markdown import escaped, markdown_table
from evle.report.page import image_uri, page
from evle.report.parts import Cell, Curve, Gallery, GalleryRow, Intervals, Table
from evle.report.values import flatten, in_words, plain

GALLERIES = "galleries.json"


@dataclass
class Report:
    """The results of a run or an evaluation.

    `scores` is {name: number}, or {column: {name: number}} for several columns: data sets, chance, runs. `provenance`
    documents how the numbers came about (versions, seed, data hash, command); it may be nested. `links` are names and
    relative paths of other pages. Numbers that are not finite are shown as such on the page and are null in the JSON.
    """

    title: str
    summary: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    links: list[tuple[str, str]] = field(default_factory=list)
    intervals: list[Intervals] = field(default_factory=list)

    def all_tables(self) -> list[Table]:
        """The scores as the first table, then the tables."""
        return ([_score_table(self.scores)] if self.scores else []) + self.tables

    def write(self, folder: str | Path) -> Path:
        """Write report.html, report.json and report.md into `folder` and return the path of report.html.

        Galleries also go to galleries.json, from where `read_galleries` takes them into another report.

        The folder is made when missing. Each file is put in place whole, so a reader never meets half a report.
        Raises OSError, as on a full disk.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(
            folder / "report.json", json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )
        write_whole(folder / "report.md", self.markdown())
        if self.galleries:
            write_whole(folder / GALLERIES, json.dumps([_plain_gallery(each) for each in self.galleries]) + "\n")
        write_whole(folder / "report.html", self.html())
        return folder / "report.html"

    def to_json(self) -> dict[str, Any]:
        """Every number and text of the report, without images, as plain JSON values."""
        return {
            "title": self.title,
            "summary": list(self.summary),
            "scores": plain(self.scores),
            "tables": [
                {"title": t.title, "columns": list(t.columns), "rows": plain(t.rows), "note": t.note}
                for t in self.tables
            ],
            "curves": [
                {
                    "title": c.title,
                    "x_label": c.x_label,
                    "y_label": c.y_label,
                    "series": plain(c.series),
                    "note": c.note,
                }
                for c in self.curves
            ],
            "intervals": [plain(asdict(chart)) for chart in self.intervals],
            "provenance": plain(self.provenance),
        }

    def markdown(self) -> str:
        """The report's text, tables and the ends of its curves, for a terminal or a pull request."""
        blocks = [f"# {escaped(self.title)}"]
        if self.summary:
            blocks.append("\n".join(f"- {escaped(line)}" for line in self.summary))
        tables = self.all_tables() + ([_curve_table(self.curves)] if self.curves else [])
        for table in tables:
            blocks.append(f"## {escaped(table.title)}")
            if table.note:
                blocks.append(escaped(table.note))
            blocks.append(markdown_table(table))
        if self.provenance:
            blocks.append("## Provenance")
            blocks.append("\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in flatten(self.provenance)))
        return "\n\n".join(blocks) + "\n"

    def html(self) -> str:
        """The whole page as one string."""
        return page(
            self.title,
            self.summary,
            self.all_tables(),
            self.curves,
            self.galleries,
            self.provenance,
            self.links,
            self.intervals,
        )


def read_galleries(folder: str | Path) -> list[Gallery]:
    """The galleries of the report in `folder`, with images of the size that the page shows; none without images."""
    path = Path(folder) / GALLERIES
    if not path.is_file():
        return []
    galleries = []
    for gallery in read_json(path, kind=list):
        try:
            rows = []
            for row in gallery["rows"]:
                cells = [Cell(_image(cell["image"]), cell["text"], cell["mark"]) for cell in row["cells"]]
                rows.append(GalleryRow(row["heading"], cells, row["note"]))
            galleries.append(Gallery(gallery["title"], rows, gallery["note"]))
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(f"{path}: no galleries of a report ({error!r:.100}); write the report again") from None
    return galleries


def _plain_gallery(gallery: Gallery) -> dict[str, Any]:
    rows = []
    for row in gallery.rows:
        cells = [
            {"image": image_uri(cell.image)[0] if cell.image else None, "text": cell.text, "mark": cell.mark}
            for cell in row.cells
        ]
        rows.append({"heading": row.heading, "note": row.note, "cells": cells})
    return {"title": gallery.title, "note": gallery.note, "rows": rows}


def _image(uri: str | None) -> Image.Image | None:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) if uri else None


def _score_table(scores: dict[str, Any]) -> Table:
    """Scores as a table with one row per score; a column for each name whose value is a dict itself."""
    if not all(isinstance(value, dict) for value in scores.values()):
        return Table(
            "Scores",
            ["score", "value"],
            [[name, in_words(v) if isinstance(v, dict) else v] for name, v in scores.items()],
        )
    names = list(dict.fromkeys(name for column in scores.values() for name in column))
    rows = [[name, *(column.get(name) for column in scores.values())] for name in names]
    return Table("Scores", ["score", *scores], rows)


def _curve_table(curves: Iterable[Curve]) -> Table:
    """First, last, lowest and highest value of every series."""
    rows: list[list[Any]] = []
    for curve in curves:
        for name, points in curve.series.items():
            ys = [y for _, y in points if math.isfinite(y)]
            ends = [ys[0], ys[-1], min(ys), max(ys)] if ys else [None] * 4
            rows.append([curve.title, name, len(points), *ends])
    return Table("Curves", ["curve", "series", "points", "first", "last", "lowest", "highest"], rows)
