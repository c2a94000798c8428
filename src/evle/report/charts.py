"""Curves and intervals as inline SVG, in the colours of the page that shows them.

A long series is drawn as means over neighbours; the numbers stay in the report's JSON.
"""

import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len

from evle.report.parts import Curve, Intervals, Mark

DRAWN_POINTS = 400  # points drawn of one series; longer ones are averaged over neighbours, in the image only
NUM_SERIES_COLOURS = 6  # as many --series-N as report.css names
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # a second sign beside the colour, for readers who cannot tell the colours apart
NOT_FOR_A_PAGE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
CHARACTERS_PER_LINE = 62  # of the name of an interval
LINE, GAP = 13.0, 24.0  # points: the height of a line of a name, and of the interval under it

# Colours that nobody draws with stand for the page's variables and are replaced in the finished drawing.
_TEXT, _MUTED, _BORDER, _GOOD, _BAD, _SURFACE = (f"#fe01{number:02x}" for number in range(6))
_STAND_INS = {
    _TEXT: "var(--text)",
    _MUTED: "var(--muted)",
    _BORDER: "var(--border)",
    _GOOD: "var(--good)",
    _BAD: "var(--bad)",
    _SURFACE: "var(--surface)",
}
_SERIES = {f"#fd01{number:02x}": f"var(--series-{number})" for number in range(NUM_SERIES_COLOURS)}
MARKERS: dict[Mark, tuple[str, str, bool]] = {
    "good": (_GOOD, "o", True),
    "bad": (_BAD, "s", True),
    "": (_MUTED, "o", False),
}
"""By the mark of an interval: its color, the form of its value, and whether that is filled."""


def drawn(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float], int]:
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


def svg(curve: Curve, prefix: str) -> str:
    """The axes and lines as inline SVG in the page's own colours; the legend and title are the page's."""
    from matplotlib.ticker import MaxNLocator

    with _figure(6.4, 3.4) as (figure, axes):
        for i, points in enumerate(curve.series.values()):
            xs, ys, _ = drawn(points)
            dashes = DASHES[i % len(DASHES)]
            axes.plot(
                xs,
                ys,
                color=list(_SERIES)[i % NUM_SERIES_COLOURS],
                linewidth=1.8,
                linestyle=(0, [float(d) / 1.8 for d in dashes.split()]) if dashes else "-",
                marker="o" if len(points) <= 30 else None,
                markersize=3.5,
            )
        if all(float(x).is_integer() for points in curve.series.values() for x, _ in points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # there is no step 1.2
        axes.set_xlabel(curve.x_label)
        axes.set_ylabel(curve.y_label)
        return _drawing(figure, prefix)


def intervals_svg(chart: Intervals, prefix: str) -> str:
    """Each interval as a line with its value as a mark under its name, and a short upright line at what it needs, as
    inline SVG in the page's own colours."""
    names = [_wrapped(row.name) for row in chart.rows]
    heights = [LINE * len(lines) + GAP for lines in names]
    written: dict[
        str, str
    ] = {}  # the drawing has stand-ins for the names: a font that lacks a letter is the browser's business
    with _figure(5.0, sum(heights) / 72 + 0.6) as (figure, axes):
        axes.axvline(0, color=_BORDER, linewidth=1.2)
        top = 0.0
        for row, lines, height in zip(chart.rows, names, heights, strict=True):
            for number, line in enumerate(lines):
                stand_in = f"evle-line-{len(written)}-"
                written[stand_in] = html.escape(NOT_FOR_A_PAGE.sub("\ufffd", line))
                where = axes.get_yaxis_transform()
                text = axes.text(0, top - LINE * number, stand_in, transform=where, va="top")
                text.set_in_layout(False)
            top -= height
            middle, (colour, marker, is_filled) = top + GAP / 2 + 1, MARKERS[row.mark]
            axes.plot([row.low, row.high], [middle] * 2, color=colour, linewidth=2.2)
            axes.plot([row.needs] * 2, [middle - 5, middle + 5], color=_TEXT, linewidth=1.2)
            face = colour if is_filled else _SURFACE
            axes.plot([row.value], [middle], marker, color=colour, markerfacecolor=face, markersize=6)
        axes.set_ylim(top - 4, 2)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(chart.x_label)
        drawing = _drawing(figure, prefix)
    for stand_in, line in written.items():
        drawing = drawing.replace(stand_in, line)
    return drawing


def _wrapped(name: str) -> list[str]:
    """The lines of a name, of which each takes at most the width of so many letters; some letters are two wide."""
    lines = [""]
    for word in name.split() or [""]:
        for part in _parts(word):
            longer = f"{lines[-1]} {part}".strip()
            lines = [*lines[:-1], longer] if cell_len(longer) <= CHARACTERS_PER_LINE else [*lines, part]
    return [line for line in lines if line] or [""]


def _parts(word: str) -> list[str]:
    """A word, or what fits into lines of one that is too long."""
    size = CHARACTERS_PER_LINE // 2 if cell_len(word) > len(word) else CHARACTERS_PER_LINE
    return [word[start : start + size] for start in range(0, len(word), size)] or [word]


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """A matplotlib figure of a size in inches and its axes, in stand-in colours."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "evle",
        "text.parse_math": False,
        "font.size": 10,
        "axes.edgecolor": _MUTED,
        "axes.labelcolor": _MUTED,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "text.color": _TEXT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "path.simplify": False,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=_BORDER, linewidth=0.7)
        axes.set_axisbelow(True)
        yield figure, axes


def _drawing(figure: Any, prefix: str) -> str:
    """A figure as inline SVG in the page's colours and font; `prefix` keeps its ids apart from others of the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(
        r"font-family: [^;\"]*|font: ([0-9.]+px) [^;\"]*", lambda m: f"font-size: {m[1]}" if m[1] else "", drawing
    )
    drawing = re.sub(r'(id="|href="#|url\(#)', lambda m: m[1] + prefix + "-", drawing)  # ids are unique in the page
    for stand_in, colour in (_STAND_INS | _SERIES).items():
        drawing = drawing.replace(stand_in, colour)
    return drawing.strip()
