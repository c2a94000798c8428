"""A report: scores, tables, curves and pictures, with where they come from, as one HTML page, JSON and Markdown.

`report.html` is one file that needs no network, no script and no neighbour: pictures are embedded small, curves are
inline SVG, and the page follows the reader's light or dark scheme. `report.json` holds every number, `report.md` the
tables, `galleries.json` the pictures for other reports. The same report always gives the same bytes: nothing here reads
a clock.

>>> page = Report("A run", summary=["Two numbers."], scores={"accuracy": 61.25}).html()
>>> "61.25" in page
True
"""

import base64
import html
import io
import json
import math
import numbers
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

PICTURE_SIDE = 224  # longest side of an embedded picture, in pixels
DRAWN_POINTS = 400  # points drawn of one series; longer ones are averaged over neighbours, in the picture only
NUM_SERIES_COLOURS = 6  # as many --series-N as report.css names
GALLERIES = "galleries.json"
STYLE_SHEET = Path(__file__).with_name("report.css")
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # a second sign beside the colour, for readers who cannot tell the colours apart

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


@dataclass
class Report:
    """What a run or an evaluation found.

    `scores` is {name: number}, or {row name: {name: number}} to compare several runs. `provenance` says how the numbers
    came about (versions, seed, data hash, command); it may be nested. Numbers that are not finite are shown as such on
    the page and are null in the JSON, which has no other word for them.
    """

    title: str
    summary: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)

    def all_tables(self) -> list[Table]:
        """The scores as the first table, then the tables."""
        return ([_score_table(self.scores)] if self.scores else []) + self.tables

    def write(self, folder: str | Path) -> Path:
        """Write report.html, report.json and report.md into `folder` and return the path of report.html.

        The galleries also go to pictures.json, from where `read_galleries` takes them into another report.

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
        """Every number and text of the report, without pictures, as plain JSON values."""
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
            "provenance": plain(self.provenance),
        }

    def markdown(self) -> str:
        """The report's text, tables and the ends of its curves, for a terminal or a pull request."""
        blocks = [f"# {_md(self.title)}"]
        if self.summary:
            blocks.append("\n".join(f"- {_md(line)}" for line in self.summary))
        tables = self.all_tables() + ([_curve_table(self.curves)] if self.curves else [])
        for table in tables:
            blocks.append(f"## {_md(table.title)}")
            if table.note:
                blocks.append(_md(table.note))
            blocks.append(_markdown_table(table))
        if self.provenance:
            blocks.append("## Provenance")
            blocks.append("\n".join(f"- {_md(name)}: {_md(value)}" for name, value in flatten(self.provenance)))
        return "\n\n".join(blocks) + "\n"

    def html(self) -> str:
        """The whole page as one string."""
        sections = [(table.title, _html_table(table)) for table in self.all_tables()]
        if self.curves:
            charts = "\n".join(_html_curve(curve, f"c{i}") for i, curve in enumerate(self.curves))
            sections.append(("Curves", f'<div class="charts">{charts}</div>'))
        sections += [(gallery.title, _html_gallery(gallery)) for gallery in self.galleries]
        if self.provenance:
            sections.append(("Provenance", _html_provenance(self.provenance)))
        links = "".join(f'<li><a href="#s{i}">{_esc(title)}</a></li>' for i, (title, _) in enumerate(sections))
        contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(sections) > 2 else ""
        summary = "".join(f'<li dir="auto">{_esc(line)}</li>' for line in self.summary)
        body = "\n".join(
            f'<section id="s{i}" aria-labelledby="h{i}">\n'
            f'<h2 id="h{i}" dir="auto">{_esc(title)}</h2>\n{content}\n</section>'
            for i, (title, content) in enumerate(sections)
        )
        return _PAGE.format(
            title=_esc(self.title),
            style=STYLE_SHEET.read_text(encoding="utf-8"),
            summary=f'<ul class="summary">{summary}</ul>' if summary else "",
            contents=contents,
            body=body,
        )


def text_table(table: Table) -> str:
    """A table for a terminal, numbers to the right.

    >>> print(text_table(Table("", ["score", "chance"], [["accuracy", 25.0], ["R@1", 0.5]])))
    score     chance
    accuracy   25.00
    R@1         0.50
    """
    rows, is_numeric = _columns(table)
    lines = [list(table.columns), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, is_numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def read_galleries(folder: str | Path) -> list[Gallery]:
    """The galleries of the report in `folder`, with pictures of the size that the page shows; none without pictures."""
    path = Path(folder) / GALLERIES
    if not path.is_file():
        return []
    galleries = []
    for gallery in json.loads(path.read_text(encoding="utf-8")):
        rows = []
        for row in gallery["rows"]:
            cells = [Cell(_picture(cell["picture"]), cell["text"], cell["mark"]) for cell in row["cells"]]
            rows.append(GalleryRow(row["heading"], cells, row["note"]))
        galleries.append(Gallery(gallery["title"], rows, gallery["note"]))
    return galleries


def _plain_gallery(gallery: Gallery) -> dict[str, Any]:
    rows = []
    for row in gallery.rows:
        cells = [
            {"picture": picture_uri(cell.image)[0] if cell.image else None, "text": cell.text, "mark": cell.mark}
            for cell in row.cells
        ]
        rows.append({"heading": row.heading, "note": row.note, "cells": cells})
    return {"title": gallery.title, "note": gallery.note, "rows": rows}


def _picture(uri: str | None) -> Image.Image | None:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) if uri else None


def write_whole(path: Path, text: str) -> None:
    """Write `text` beside `path` and move it there, so that `path` never holds half of it. Raises OSError."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """`value` as JSON values: numbers of any library as int or float, not finite ones as None, the unknown as text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    return str(value)


def flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested dict as ("a.b", "value") lines in its own order; lists of plain values on one line."""
    lines: list[tuple[str, str]] = []
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            lines += flatten(value, path + ".")
        elif isinstance(value, list | tuple):
            lines.append((path, ", ".join(_text(item) for item in value) or "none"))
        else:
            lines.append((path, _text(value)))
    return lines


# -------------------------------------------------------------------------------------------------------------- numbers


def is_number(value: Any) -> bool:
    """Whether `value` is a number in any library's scalar type; True and False are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def format_column(values: Sequence[Any]) -> list[str]:
    """The cells of one column as text; where there are fractions all share a number of decimals, so that points align.

    >>> format_column([61.25, 7.0, None, float("nan")])
    ['61.25', '7.00', '–', 'nan']
    >>> format_column([12000, 3])
    ['12,000', '3']
    """
    sizes = [
        abs(float(v))
        for v in values
        if is_number(v) and not isinstance(v, numbers.Integral) and math.isfinite(v) and v != 0
    ]
    is_small = bool(sizes) and min(sizes) < 1e-3
    decimals = 2 if not sizes or max(sizes) >= 10 else 3 if max(sizes) >= 1 else 4

    def cell(value: Any) -> str:
        if not is_number(value):
            return _text(value)
        if isinstance(value, numbers.Integral) and (not sizes or is_small):
            return f"{int(value):,}"
        if not math.isfinite(value):
            return _text(value)
        return f"{float(value):.4g}" if is_small else f"{float(value):,.{decimals}f}"

    return [cell(value) for value in values]


def _text(value: Any) -> str:
    """One value as a reader would write it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isnan(number):
            return "nan"
        if math.isinf(number):
            return "∞" if number > 0 else "−∞"
        return f"{number:.6g}"
    return str(value)


def _score_table(scores: dict[str, Any]) -> Table:
    """Scores as a table: one line a score, or one line a run when the values are dicts themselves."""
    if not all(isinstance(value, dict) for value in scores.values()):
        return Table(
            "Scores", ["score", "value"], [[name, _text(v) if isinstance(v, dict) else v] for name, v in scores.items()]
        )
    names = list(dict.fromkeys(name for row in scores.values() for name in row))
    return Table("Scores", ["", *names], [[run, *(row.get(name) for name in names)] for run, row in scores.items()])


def _curve_table(curves: Iterable[Curve]) -> Table:
    """First, last, lowest and highest value of every series."""
    rows: list[list[Any]] = []
    for curve in curves:
        for name, points in curve.series.items():
            ys = [y for _, y in points if math.isfinite(y)]
            ends = [ys[0], ys[-1], min(ys), max(ys)] if ys else [None] * 4
            rows.append([curve.title, name, len(points), *ends])
    return Table("Curves", ["curve", "series", "points", "first", "last", "lowest", "highest"], rows)


def _columns(table: Table) -> tuple[list[list[str]], list[bool]]:
    """The rows of a table as text, and for each column whether it holds numbers (and is aligned right)."""
    for row in table.rows:
        assert len(row) == len(table.columns), (
            f"table {table.title!r}: {len(row)} cells under {len(table.columns)} columns"
        )
    if not table.rows:
        return [], [False] * len(table.columns)
    columns = list(zip(*table.rows, strict=True))
    is_numeric = [any(map(is_number, c)) and all(v is None or is_number(v) for v in c) for c in columns]
    return [list(row) for row in zip(*map(format_column, columns), strict=True)], is_numeric


# ------------------------------------------------------------------------------------------------------------- Markdown


def _md(text: str) -> str:
    return re.sub(r"([\\|<*`])", r"\\\1", " ".join(str(text).split()))


def _markdown_table(table: Table) -> str:
    rows, is_numeric = _columns(table)
    lines = [[_md(name) for name in table.columns], ["---:" if numeric else "---" for numeric in is_numeric]]
    lines += [[_md(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ----------------------------------------------------------------------------------------------------------------- HTML


def _esc(text: Any) -> str:
    """Escaped text; a character that no page may hold (a lone surrogate, a control code) becomes a replacement sign."""
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", str(text)), quote=True)


def _note(note: str) -> str:
    return f'<p class="note" dir="auto">{_esc(note)}</p>\n' if note else ""


def _html_table(table: Table) -> str:
    rows, is_numeric = _columns(table)
    kinds = [' class="number"' if numeric else "" for numeric in is_numeric]
    head = "".join(f'<th scope="col"{kind}>{_esc(name)}</th>' for name, kind in zip(table.columns, kinds, strict=True))
    lines = []
    for row in rows:
        cells = [f'<td{kind} dir="auto">{_esc(cell)}</td>' for cell, kind in zip(row, kinds, strict=True)]
        if cells and not is_numeric[0]:
            cells[0] = f'<th scope="row" dir="auto">{_esc(row[0])}</th>'
        lines.append("<tr>" + "".join(cells) + "</tr>")
    body = "\n".join(lines) or f'<tr><td colspan="{len(table.columns)}" class="empty">nothing to show</td></tr>'
    return (
        f"{_note(table.note)}"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_esc(table.title)}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _html_provenance(provenance: dict[str, Any]) -> str:
    lines = flatten(provenance)
    items = "\n".join(f'<dt>{_esc(name)}</dt><dd dir="auto">{_esc(value)}</dd>' for name, value in lines)
    is_open = " open" if len(lines) <= 16 else ""
    heading = f"<summary>How these numbers came about ({len(lines)} facts)</summary>"
    return f"<details{is_open}>{heading}\n<dl>\n{items}\n</dl></details>"


def picture_uri(image: Image.Image, side: int = PICTURE_SIDE) -> tuple[str, int, int]:
    """`image` shrunk to at most `side` pixels as a WebP data URI, with its width and height; `image` stays as it is."""
    if image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if max(image.size) > side:
        scale = side / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), image.width, image.height


_MARKS: dict[str, str] = {
    "": "",
    "good": '<span class="mark" aria-hidden="true">✓</span><span class="unseen">right: </span>',
    "bad": '<span class="mark" aria-hidden="true">✗</span><span class="unseen">wrong: </span>',
}


def _html_cell(cell: Cell, alt: str) -> str:
    picture = ""
    if cell.image is not None:
        uri, width, height = picture_uri(cell.image)
        picture = (
            f'<img src="{uri}" width="{width}" height="{height}" alt="{_esc(alt)}" loading="lazy" decoding="async">'
        )
    caption = (
        f'<figcaption dir="auto">{_MARKS[cell.mark]}{_esc(cell.text)}</figcaption>' if cell.text or cell.mark else ""
    )
    kinds = " ".join(kind for kind in (cell.mark, "" if picture else "words") if kind)
    return f'<li><figure class="{kinds}">{picture}{caption}</figure></li>'


def _html_gallery(gallery: Gallery) -> str:
    parts = [_note(gallery.note)]
    for row in gallery.rows:
        heading = f'<h3 dir="auto">{_esc(row.heading)}</h3>\n' if row.heading else ""
        cells = "\n".join(
            _html_cell(cell, f"Picture {i} of {len(row.cells)}" + (f" for {row.heading}" if row.heading else ""))
            for i, cell in enumerate(row.cells, 1)
        )
        content = f'<ul class="grid">\n{cells}\n</ul>' if row.cells else '<p class="empty">nothing to show</p>'
        parts.append(f'<div class="row">{heading}{_note(row.note)}{content}</div>')
    return "\n".join(parts) if gallery.rows else parts[0] + '<p class="empty">nothing to show</p>'


# --------------------------------------------------------------------------------------------------------------- curves


def _drawn(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float], int]:
    """At most DRAWN_POINTS points, each the mean of `stride` neighbours; a mean over anything not finite is a gap."""
    stride = max(1, math.ceil(len(points) / DRAWN_POINTS))
    xs, ys = [], []
    for start in range(0, len(points), stride):
        bucket = [(float(x), float(y)) for x, y in points[start : start + stride]]
        x = sum(x for x, _ in bucket) / len(bucket)
        y = sum(y for _, y in bucket) / len(bucket)
        xs.append(x if math.isfinite(x) else math.nan)
        ys.append(y if math.isfinite(y) else math.nan)
    return xs, ys, stride


def _html_curve(curve: Curve, prefix: str) -> str:
    strides = [_drawn(points)[2] for points in curve.series.values()]
    legend, words = [], []
    for i, (name, points) in enumerate(curve.series.items()):
        ys = [y for _, y in points if math.isfinite(y)]
        words.append(f"{name} from {_text(ys[0])} to {_text(ys[-1])}" if ys else f"{name} has no points")
        line = (
            f'<svg width="26" height="8" aria-hidden="true"><line x1="1" y1="4" x2="25" y2="4" stroke-width="2.5" '
            f'stroke-dasharray="{DASHES[i % len(DASHES)]}" '
            f'style="stroke: var(--series-{i % NUM_SERIES_COLOURS})"/></svg>'
        )
        legend.append(f'<li dir="auto">{line} {_esc(name)}</li>')
    caption = f'<figcaption dir="auto">{_esc(curve.title)}</figcaption>'
    if not curve.series:
        return f'<figure class="chart">{caption}<p class="empty">nothing to show</p></figure>'
    note = " ".join(
        ([f"Each drawn point is the mean of up to {max(strides)} neighbours."] if max(strides) > 1 else [])
        + ([curve.note] if curve.note else [])
    )
    label = f"{curve.title}: {curve.y_label} over {curve.x_label}; " + "; ".join(words)
    return (
        f'<figure class="chart">{caption}'
        f'<ul class="legend">{"".join(legend)}</ul>'
        f'<div role="img" aria-label="{_esc(label)}">{_svg(curve, prefix)}</div>{_note(note)}</figure>'
    )


def _svg(curve: Curve, prefix: str) -> str:
    """The axes and lines as inline SVG in the page's own colours; the legend and title are the page's."""
    import matplotlib
    from matplotlib.figure import Figure

    # Colours that nobody draws with stand for the page's variables and are replaced in the finished drawing.
    stand_ins = {"#fe0101": "var(--text)", "#fe0102": "var(--muted)", "#fe0103": "var(--border)"}
    series = {f"#fd01{i:02x}": f"var(--series-{i})" for i in range(NUM_SERIES_COLOURS)}
    text, muted, border = stand_ins
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "evle",
        "text.parse_math": False,
        "font.size": 10,
        "axes.edgecolor": muted,
        "axes.labelcolor": muted,
        "xtick.color": muted,
        "ytick.color": muted,
        "text.color": text,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "path.simplify": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=border, linewidth=0.7)
        axes.set_axisbelow(True)
        for i, points in enumerate(curve.series.values()):
            xs, ys, _ = _drawn(points)
            dashes = DASHES[i % len(DASHES)]
            axes.plot(
                xs,
                ys,
                color=list(series)[i % NUM_SERIES_COLOURS],
                linewidth=1.8,
                linestyle=(0, [float(d) / 1.8 for d in dashes.split()]) if dashes else "-",
                marker="o" if len(points) <= 30 else None,
                markersize=3.5,
            )
        axes.set_xlabel(curve.x_label)
        axes.set_ylabel(curve.y_label)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(
        r"font-family: [^;\"]*|font: ([0-9.]+px) [^;\"]*", lambda m: f"font-size: {m[1]}" if m[1] else "", drawing
    )
    drawing = re.sub(r'(id="|href="#|url\(#)', lambda m: m[1] + prefix + "-", drawing)  # ids are unique in the page
    for stand_in, colour in (stand_ins | series).items():
        drawing = drawing.replace(stand_in, colour)
    return drawing.strip()


# ----------------------------------------------------------------------------------------------------------------- page

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1 dir="auto">{title}</h1>
{summary}
{contents}
</header>
<main>
{body}
</main>
<footer>Written by evle.</footer>
</body>
</html>
"""
