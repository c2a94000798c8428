"""Answers that a table writes in a way that would be misread: refused, with the cure.

An answer may be the number or the letter of one of several choices, and answers may have weights beside them.
"""

import re
from collections.abc import Sequence
from typing import Any

from evle.data.formats.cells import texts_of
from evle.data.formats.table_files import Row
from evle.errors import DataError
from evle.files import parse_json

CHOICE_LISTS = ("choices", "options", "multiple_choices", "answer_choices", "candidates", "answer_options")
"""Columns that hold the choices of a question."""
WEIGHT_LISTS = (
    "scores",
    "weights",
    "counts",
    "votes",
    "confidences",
    "answer_scores",
    "answer_weights",
    "answer_counts",
)
"""Columns with one number per answer."""
WEIGHTS = ("score", "weight", "count", "votes", "confidence", "frequency")
"""Members of a record of one answer that are its weight."""

_ONE_CHOICE = re.compile(r"((choice|option|answer|opt|ans)[_ ]?)?([a-d]|[0-4])")
_NUMBER_OR_LETTER = re.compile(r"\(?([A-Za-z]|\d)\)?[.)]?")


def refuse_choice(row: Row, answers: Sequence[str], where: str) -> None:
    """Raise DataError where the answer is the number or letter of a choice, which is written elsewhere in the row."""
    if not all(_NUMBER_OR_LETTER.fullmatch(answer) for answer in answers):
        return
    choices = _choices(row)
    if len(choices) > 1 and not all(answer in choices for answer in answers):
        shown = ", ".join(repr(choice[:20]) for choice in choices[:4])
        raise DataError(
            f"{where}: the answer {answers[0]!r} seems to be the number or letter of a choice ({shown}); write the "
            "text of the right choice"
        )


def refuse_weights(row: Row, value: Any, num_answers: int, where: str) -> None:
    """Raise DataError where answers have different weights, in a column of their own or in the cell `value` itself."""
    for name, held in row.items():
        if name.strip().casefold() in WEIGHT_LISTS and _different(_parsed(held), num_answers):
            raise _weighted(where, f"the column {name!r}")
    held = _parsed(value)
    if not isinstance(held, list | tuple) or len(held) < 2:
        return
    if all(isinstance(each, dict) for each in held):
        for name in WEIGHTS:
            if _different([each.get(name) for each in held], len(held)):
                raise _weighted(where, f"{name!r} of each answer")
    pairs = [each for each in held if isinstance(each, list | tuple) and len(each) == 2]
    if len(pairs) == len(held) and all(isinstance(one, str) and _is_number(other) for one, other in pairs):
        raise _weighted(where, "the number beside each answer")


def _choices(row: Row) -> list[str]:
    """The choices of a question, in a list or in a column each."""
    for name, value in row.items():
        if name.strip().casefold() in CHOICE_LISTS:
            try:
                return texts_of(value, ";|")
            except TypeError:
                return []
    single = [str(value).strip() for name, value in row.items() if _ONE_CHOICE.fullmatch(name.strip().casefold())]
    return single if len(single) > 1 else []


def _parsed(value: Any) -> Any:
    """A list that is written as a text, as the list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return parse_json(value, "")
        except DataError:
            return value
    return value


def _different(values: Any, count: int) -> bool:
    """Whether these are `count` numbers, not all equal."""
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(map(_is_number, values))
        and len({*values}) > 1
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _weighted(where: str, what: str) -> DataError:
    return DataError(
        f"{where}: {what} weighs the answers, and weights are not read; repeat each answer as often as it was given, "
        "or remove the weights"
    )
