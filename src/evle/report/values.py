"""Numbers of any library as JSON values and as words; columns whose points align.

>>> format_column([61.25, 7.0, None])
['61.25', '7.00', '–']
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

from evle.report.parts import Table


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
            lines.append((path, ", ".join(in_words(item) for item in value) or "none"))
        else:
            lines.append((path, in_words(value)))
    return lines


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
            return in_words(value)
        if isinstance(value, numbers.Integral) and (not sizes or is_small):
            return f"{int(value):,}"
        if not math.isfinite(value):
            return in_words(value)
        return f"{float(value):.4g}" if is_small else f"{float(value):,.{decimals}f}"

    return [cell(value) for value in values]


def in_words(value: Any) -> str:
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


def text_columns(table: Table) -> tuple[list[list[str]], list[bool]]:
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
