"""The page: tables, curves and galleries as HTML that needs no network, no script and no neighbour.

page.html is the Jinja template, which escapes every text; this file prepares what it shows. Images are embedded small
and enlarged by a click, curves are inline SVG, and the page follows the reader's light or dark scheme.
"""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, Template
from markupsafe import Markup
from PIL import Image

from evle.report.charts import DASHES, NOT_FOR_A_PAGE, NUM_SERIES_COLOURS, drawn, intervals_svg, svg
from evle.report.parts import IMAGE_SIDE, Cell, Curve, Gallery, Intervals, Table, shrunk
from evle.report.values import flatten, in_words, text_columns

HERE = Path(__file__).parent


@cache
def template(name: str, *styles: str) -> Template:
    """The template `name` of this folder, which knows as `style` the rules of report.css and then those of `styles`."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    rules = "".join((HERE / style).read_text(encoding="utf-8") for style in ("report.css", *styles))
    return environment.get_template(name, globals={"style": Markup(rules)})


def _visible(value: Any) -> Any:
    """A text in which a character that no page may hold (a lone surrogate, a control code) is a replacement sign."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return NOT_FOR_A_PAGE.sub("\ufffd", value)
    return value


def image_uri(image: Image.Image, side: int = IMAGE_SIDE) -> tuple[str, int, int]:
    """`image` shrunk to at most `side` pixels as a WebP data URI, with its width and height; `image` stays as it is."""
    image = shrunk(image, side)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), image.width, image.height


def page(
    title: str,
    summary: Sequence[str],
    tables: Sequence[Table],
    curves: Sequence[Curve],
    galleries: Sequence[Gallery],
    provenance: dict[str, Any],
    links: Sequence[tuple[str, str]] = (),
    intervals: Sequence[Intervals] = (),
) -> str:
    """The whole page as one string. `links` are names and paths of other pages, relative to this one."""
    sections: list[dict[str, Any]] = [
        {"title": chart.title, "kind": "curves", "view": [_intervals(chart, f"i{number}")]}
        for number, chart in enumerate(intervals)
    ]
    sections += [{"title": table.title, "kind": "table", "view": _table(table)} for table in tables if not table.folded]
    if curves:
        views = [_curve(curve, f"c{number}") for number, curve in enumerate(curves)]
        sections.append({"title": "Curves", "kind": "curves", "view": views})
    sections += [
        {"title": gallery.title, "kind": "gallery", "view": _gallery(gallery, f"g{number}")}
        for number, gallery in enumerate(galleries)
    ]
    sections += [{"title": table.title, "kind": "table", "view": _table(table)} for table in tables if table.folded]
    if provenance:
        sections.append({"title": "Provenance", "kind": "provenance", "view": flatten(provenance)})
    return template("page.html").render(
        title=title,
        summary=summary,
        links=[(name, quote(target)) for name, target in links],
        sections=sections,
    )


def _table(table: Table) -> dict[str, Any]:
    rows, is_numeric = text_columns(table)
    return {
        "title": table.title,
        "note": table.note,
        "columns": table.columns,
        "rows": rows,
        "is_numeric": is_numeric,
        "folded": table.folded,
    }


def _curve(curve: Curve, prefix: str) -> dict[str, Any]:
    strides = [drawn(points)[2] for points in curve.series.values()]
    words, legend = [], []
    for number, (name, points) in enumerate(curve.series.items()):
        ys = [y for _, y in points if math.isfinite(y)]
        words.append(f"{name} from {in_words(ys[0])} to {in_words(ys[-1])}" if ys else f"{name} has no points")
        legend.append({"name": name, "dashes": DASHES[number % len(DASHES)], "colour": number % NUM_SERIES_COLOURS})
    averaged = (
        f"Each drawn point is the mean of up to {max(strides)} neighbours." if max(strides, default=1) > 1 else ""
    )
    return {
        "title": curve.title,
        "legend": legend,
        "label": f"{curve.title}: {curve.y_label} over {curve.x_label}; " + "; ".join(words),
        "drawing": Markup(svg(curve, prefix)) if curve.series else "",
        "note": " ".join(filter(None, (averaged, curve.note))),
    }


def _intervals(chart: Intervals, prefix: str) -> dict[str, Any]:
    words = [
        f"{row.name}: {in_words(row.value)}, from {in_words(row.low)} to {in_words(row.high)}, {chart.marks[row.mark]}"
        for row in chart.rows
    ]
    marks = [{"name": name, "mark": mark} for mark, name in chart.marks.items()]
    return {
        "marks": marks,
        "label": "; ".join(words),
        "drawing": Markup(intervals_svg(chart, prefix)) if chart.rows else "",
        "note": chart.note,
    }


def _gallery(gallery: Gallery, prefix: str) -> dict[str, Any]:
    rows = [
        {
            "id": f"{prefix}r{number}",
            "heading": row.heading,
            "note": row.note,
            "cells": list(_cells(row.cells, row.heading, f"{prefix}r{number}")),
        }
        for number, row in enumerate(gallery.rows)
    ]
    return {"note": gallery.note, "rows": rows}


def _cells(cells: Sequence[Cell], heading: str, row_id: str) -> Iterator[dict[str, Any]]:
    for number, cell in enumerate(cells, 1):
        about, line, judged = cell.text.rpartition("\n")
        view: dict[str, Any] = {"about": about + line, "text": judged, "mark": cell.mark, "image": "", "row_id": row_id}
        if cell.image is not None:
            view["image"], view["width"], view["height"] = image_uri(cell.image)
            view["id"] = f"{row_id}i{number}"
            view["alt"] = f"Image {number} of {len(cells)}" + (f" for {heading}" if heading else "")
        view["kinds"] = " ".join(filter(None, (cell.mark, "" if view["image"] else "words")))
        yield view
