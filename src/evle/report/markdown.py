"""A report's tables as plain text: for a terminal, and as Markdown."""

import re

from evle.report.parts import Table
from evle.report.values import text_columns
from evle.terminal import printable


def text_table(table: Table) -> str:
    """A table for a terminal, numbers to the right.

    >>> print(text_table(Table("", ["score", "chance"], [["accuracy", 25.0], ["R@1", 0.5]])))
    score     chance
    accuracy   25.00
    R@1         0.50
    """
    rows, is_numeric = text_columns(table)
    lines = [list(table.columns), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, is_numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def escaped(text: str) -> str:
    """A text on one line in which nothing acts as Markdown: no markup, no image, no link, not even a bare address.

    >>> print(escaped("![x](http://a.b) *c*"))
    \\!\\[x\\](http\\://a.b) \\*c\\*
    """
    text = re.sub(r"([\\|<>*`\[\]!_~])", r"\\\1", " ".join(printable(str(text)).split()))
    return re.sub(r"(?i)\bwww\.", r"www\\.", text.replace("://", r"\://"))


def markdown_table(table: Table) -> str:
    """The rows of a table, without its title and note."""
    rows, is_numeric = text_columns(table)
    lines = [[escaped(name) for name in table.columns], ["---:" if numeric else "---" for numeric in is_numeric]]
    lines += [[escaped(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
