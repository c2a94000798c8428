"""The page: tables, curves and galleries as HTML that needs no network, no script and no neighbour.

Images are embedded small, curves are inline SVG, and the page follows the reader's light or dark scheme.
"""

import base64
import html
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from evle.report.charts import DASHES, NUM_SERIES_COLOURS, drawn, svg
from evle.report.parts import IMAGE_SIDE, Cell, Curve, Gallery, Table, shrunk
from evle.report.values import flatten, in_words, text_columns

STYLE_SHEET = Path(__file__).with_name("report.css")


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


def _esc(text: Any) -> str:
    """Escaped text; a character that no page may hold (a lone surrogate, a control code) becomes a replacement sign."""
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", str(text)), quote=True)


def _note(note: str) -> str:
    return f'<p class="note" dir="auto">{_esc(note)}</p>\n' if note else ""


def _html_table(table: Table) -> str:
    rows, is_numeric = text_columns(table)
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


def image_uri(image: Image.Image, side: int = IMAGE_SIDE) -> tuple[str, int, int]:
    """`image` shrunk to at most `side` pixels as a WebP data URI, with its width and height; `image` stays as it is."""
    image = shrunk(image, side)
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
        uri, width, height = image_uri(cell.image)
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
            _html_cell(cell, f"Image {i} of {len(row.cells)}" + (f" for {row.heading}" if row.heading else ""))
            for i, cell in enumerate(row.cells, 1)
        )
        content = f'<ul class="grid">\n{cells}\n</ul>' if row.cells else '<p class="empty">nothing to show</p>'
        parts.append(f'<div class="row">{heading}{_note(row.note)}{content}</div>')
    return "\n".join(parts) if gallery.rows else parts[0] + '<p class="empty">nothing to show</p>'


def _html_curve(curve: Curve, prefix: str) -> str:
    strides = [drawn(points)[2] for points in curve.series.values()]
    legend, words = [], []
    for i, (name, points) in enumerate(curve.series.items()):
        ys = [y for _, y in points if math.isfinite(y)]
        words.append(f"{name} from {in_words(ys[0])} to {in_words(ys[-1])}" if ys else f"{name} has no points")
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
        f'<div role="img" aria-label="{_esc(label)}">{svg(curve, prefix)}</div>{_note(note)}</figure>'
    )


def page(
    title: str,
    summary: Sequence[str],
    tables: Sequence[Table],
    curves: Sequence[Curve],
    galleries: Sequence[Gallery],
    provenance: dict[str, Any],
) -> str:
    """The whole page as one string."""
    sections = [(table.title, _html_table(table)) for table in tables]
    if curves:
        charts = "\n".join(_html_curve(curve, f"c{i}") for i, curve in enumerate(curves))
        sections.append(("Curves", f'<div class="charts">{charts}</div>'))
    sections += [(gallery.title, _html_gallery(gallery)) for gallery in galleries]
    if provenance:
        sections.append(("Provenance", _html_provenance(provenance)))
    links = "".join(f'<li><a href="#s{i}">{_esc(title)}</a></li>' for i, (title, _) in enumerate(sections))
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(sections) > 2 else ""
    lines = "".join(f'<li dir="auto">{_esc(line)}</li>' for line in summary)
    body = "\n".join(
        f'<section id="s{i}" aria-labelledby="h{i}">\n'
        f'<h2 id="h{i}" dir="auto">{_esc(title)}</h2>\n{content}\n</section>'
        for i, (title, content) in enumerate(sections)
    )
    return _PAGE.format(
        title=_esc(title),
        style=STYLE_SHEET.read_text(encoding="utf-8"),
        summary=f'<ul class="summary">{lines}</ul>' if summary else "",
        contents=contents,
        body=body,
    )
