"""Which images of an index a search may return: those of a folder, of a time, or with a value in a column."""

import json
import math
import operator
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from evle.data.requests import as_texts
from evle.errors import ConfigError, nearest

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
    "~": lambda value, part: str(part).lower() in str(value).lower(),
}
SIGNS = tuple("=<>!~")
"""What operators are made of; no value begins with one."""
CONDITION = re.compile(r"\s*([^!<>=~]+?)\s*(!=|>=|<=|==|=|>|<|~)\s*(.*?)\s*")


@dataclass(frozen=True)
class Filter:
    """Conditions that all must hold.

    `folder` is a path relative to the index's root. `since` and `until` (dates or texts, both included, local time)
    apply to the time at which a file was last changed. `where` is one condition, or many, on columns of the table that
    the index was built from, such as "year>=2019", "author=Ann" or "caption~dog" (contains). Values that are numbers on
    both sides are compared as numbers, others as text; a text such as "n/a" is neither more nor less than a number. A
    row without the column fails its condition. Of a list, and of an image that several rows name, one value that fits
    is enough.

    >>> Filter(where=("year>=2019",)).mask(pa.table({"fields": ['{"year": 2020}', '{"year": 3}', ""]})).tolist()
    [True, False, False]
    """

    folder: str | os.PathLike[str] = ""
    since: str | date = ""
    until: str | date = ""
    where: str | Iterable[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.folder, str | os.PathLike):
            raise ConfigError(f"folder={self.folder!r} is not a path; give one relative to the index's root")
        for name in ("since", "until"):
            object.__setattr__(self, name, _day(name, getattr(self, name)))
        # Read once: an iterator would be at its end when the rows are compared, and let every image pass.
        object.__setattr__(self, "where", tuple(as_texts(self.where)))  # type: ignore[arg-type]
        for condition in self.where:
            _parse(condition)

    def __bool__(self) -> bool:
        return bool(self.folder or self.since or self.until or self.where)

    def refuse_unknown(self, columns: Sequence[str]) -> None:
        """Raise ConfigError for a condition on a column that no image has."""
        for name in (_parse(condition)[0] for condition in self.where):
            if name not in columns:
                raise ConfigError(f"where: no image has a column {name!r}; {nearest(name, columns)}")

    def mask(self, table: pa.Table) -> np.ndarray:
        """Which rows of a shard's images pass, booleans (rows,)."""
        mask = np.ones(table.num_rows, dtype=bool)
        if (folder := posixpath.normpath(os.fspath(self.folder).strip("/"))) != ".":
            mask &= np.array([path.startswith(os.fsencode(folder + "/")) for path in table["path"].to_pylist()], bool)
        if self.since:
            mask &= table["mtime"].to_numpy() >= _begins(str(self.since))
        if self.until:
            mask &= table["mtime"].to_numpy() < _begins(str(self.until), later=1)
        if self.where:
            conditions = [_parse(condition) for condition in self.where]
            for row in np.flatnonzero(mask):
                fields = json.loads(table["fields"][int(row)].as_py() or "{}")
                mask[row] = all(_holds(fields, *condition) for condition in conditions)
        return mask


def _day(name: str, value: str | date) -> str:
    """A day as 2024-12-31, "" for none."""
    if not value:
        return ""
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise ConfigError(f"{name}={str(value)!r} is not a date; write it as 2024-12-31") from None


def _begins(day: str, later: int = 0) -> float:
    """When a day, or the one `later` days after it, begins, in ns; infinite for years that no clock counts."""
    first = date.fromisoformat(day)
    try:
        return datetime.combine(first + timedelta(later), time()).timestamp() * 1e9
    except (ValueError, OverflowError):
        return math.inf if first.year > 1970 else -math.inf


def _parse(condition: str) -> tuple[str, str, str]:
    match = CONDITION.fullmatch(condition)
    if match is None:
        raise ConfigError(f"where={condition!r} is not a condition; write COLUMN=VALUE, with {' '.join(OPERATORS)}")
    if match.group(3)[:1] in SIGNS:
        raise ConfigError(
            f"where={condition!r}: {match.group(2)}{match.group(3)[0]} is no operator; use one of {' '.join(OPERATORS)}"
        )
    return match.group(1), match.group(2), match.group(3)


def _holds(fields: dict[str, Any], column: str, symbol: str, wanted: str) -> bool:
    if column not in fields:
        return False
    values = fields[column] if isinstance(fields[column], list) else [fields[column]]
    return any(_compare(value, symbol, wanted) for value in values)


def _compare(value: Any, symbol: str, wanted: str) -> bool:
    text = str(value)
    if symbol != "~" and _is_number(wanted):
        if _is_number(value):
            return OPERATORS[symbol](float(value), float(wanted))
        if symbol not in ("=", "==", "!=") and not text[:1].isdigit():  # "n/a" is no more and no less; a date is
            return False
    return OPERATORS[symbol](text, wanted)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
