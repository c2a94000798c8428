"""Curves as inline SVG, in the colours of the page that shows them.

A long series is drawn as means over neighbours; the numbers stay in the report's JSON.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import Any

from evle.report.parts import Curve

DRAWN_POINTS = 400  # points drawn of one series; longer ones are averaged over neighbours, in the image only
NUM_SERIES_COLOURS = 6  # as many --series-N as report.css names
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # a second sign beside the colour, for readers who cannot tell the colours apart


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
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

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
            xs, ys, _ = drawn(points)
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
        if all(float(x).is_integer() for points in curve.series.values() for x, _ in points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # there is no step 1.2
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
