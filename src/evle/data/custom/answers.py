"""Answers that a table writes in a way that would be misread: refused, with the cure.

An answer may be the number or the letter of one of several choices, and answers may have weights beside them.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from evle.data.formats.cells import is_blank, number_text, python_value, texts_of
from evle.data.formats.table_files import Row
from evle.errors import DataError
from evle.files import parse_json

CHOICE_LISTS = frozenset(
    {
        *("choices", "options", "candidates", "multiple_choices", "answer_choices", "answer_options"),
        *("choice_list", "choices_list", "option_list", "options_list", "possible_answers"),
    }
)
"""Columns that hold the choices of a question."""
_MAY_BE_CHOICES = frozenset(("multiple_choice", "choice", "option"))
"""Columns that do so where they hold several texts."""

_ONE_CHOICE = re.compile(r"((choice|option|answer|opt|ans)[_ ]?)?([a-d]|[0-4])")
_NUMBER_OR_LETTER = re.compile(r"(?:(?:choice|option|answer|opt|ans)[_ ]?)?\(?([A-Za-z]|\d)\)?[.):]?", re.IGNORECASE)
_MARK = re.compile(r"(?:^|[\s,;])\(?(?:[A-Ha-h]|\d)[.):]\s*")
_LETTERED = re.compile(r"(?:^|[\s(])A[.):]\s*\S.*?[\s(]B[.):]\s*\S", re.DOTALL)
_WEIGHT = re.compile(
    r"(.*_)?(scores?|weights?|counts?|votes?|conf(idences?|s)?|freq(s|uency|uencies)?|occurrences?"
    r"|probs?|probabilit(y|ies)|soft(_?labels?)?)"
)
_NUMBERS = re.compile(r"[\[(]?\s*([-+]?\d[\d.eE+-]*[,;\s]*)+[\])]?")


@lru_cache(4096)
def says_choices(name: str) -> bool:
    """Whether a column holds the choices of a question, or one of them, by its name.

    >>> says_choices("Options"), says_choices("choice_a"), says_choices("B"), says_choices("b_boxes")
    (True, True, True, False)
    """
    form = name.strip().casefold()
    return form in CHOICE_LISTS or form in _MAY_BE_CHOICES or _ONE_CHOICE.fullmatch(form) is not None


@lru_cache(4096)
def says_weights(name: str) -> bool:
    """Whether a column, or a member of a record, holds weights of answers, by its name.

    >>> says_weights("answer_scores"), says_weights("votes"), says_weights("account")
    (True, True, False)
    """
    return _WEIGHT.fullmatch(name.strip().casefold()) is not None


def refuse_misread(row: Row, value: Any, answers: Sequence[str], question: str, where: str) -> None:
    """Raise DataError for the answers of a row, read from the cell `value`, that mean something else: the number or
    letter of a choice, or answers with weights."""
    if answers:
        _refuse_weights(row, value, len(answers), where)
        _refuse_choice(row, answers, question, where)


def _refuse_choice(row: Row, answers: Sequence[str], question: str, where: str) -> None:
    """Raise DataError where the answer is the number or letter of a choice, which is written elsewhere in the row."""
    if not all(_NUMBER_OR_LETTER.fullmatch(answer) for answer in answers):
        return
    choices = _choices(row)
    if not choices and _LETTERED.search(question) and all(map(str.isalpha, answers)):
        choices = [question]
    if choices and not all(answer in choices for answer in answers):
        shown = ", ".join(repr(choice[:20]) for choice in choices[:4])
        raise DataError(
            f"{where}: the answer {answers[0]!r} seems to be the number or letter of a choice ({shown}); write the "
            "text of the right choice"
        )


def _refuse_weights(row: Row, value: Any, num_answers: int, where: str) -> None:
    """Raise DataError where answers have different weights, in a column of their own or in the cell `value` itself."""
    for name, held in row.items():
        if says_weights(name) and _different(_numbers_of(held), num_answers):
            raise _weighted(where, f"the column {name!r}")
    held = _parsed(value)
    if isinstance(held, dict):
        for name, values in held.items():
            if says_weights(str(name)) and _different(values, num_answers):
                raise _weighted(where, f"{name!r} of the answers")
    if not isinstance(held, list | tuple):
        return
    records = [each for each in held if isinstance(each, dict)]
    for name in {str(name) for each in records for name in each if says_weights(str(name))}:
        if _different([each.get(name) for each in records], len(held)):
            raise _weighted(where, f"{name!r} of each answer")


def _choices(row: Row) -> list[str]:
    """The choices of a question, in a list or in a column each; a text that cannot be divided counts as all of them."""
    for name, value in row.items():
        form = name.strip().casefold()
        if form in CHOICE_LISTS and not is_blank(value):
            return _listed(value)
        if form in _MAY_BE_CHOICES and len(set(texts := _listed(value))) > 1:
            return texts
    single = [
        number_text(value).strip()
        for name, value in row.items()
        if _ONE_CHOICE.fullmatch(name.strip().casefold()) and not is_blank(value)
    ]
    return single if len(single) > 1 else []


def _listed(value: Any) -> list[str]:
    held = _parsed(value)
    try:
        texts = list(_leaves(held)) if isinstance(held, dict) else texts_of(held, "\n;|", answers=True)
    except TypeError:
        return [str(value)]
    parts = [part.strip() for text in texts for part in _MARK.sub("\n", text).split("\n") if part.strip()]
    shared = [part.strip(" '\"[](){}") for text in texts for part in text.split(",")]
    return [*parts, *shared] if len(texts) == 1 else texts


def _leaves(value: Any) -> Iterable[str]:
    """The texts in a record of choices, such as {"A": "cat", "B": "dog"} or {"text": [...], "label": [...]}."""
    if isinstance(value, dict):
        text = value.get("text")
        value = text if isinstance(text, list | tuple) else list(value.values())
    return (leaf for each in value for leaf in texts_of(each, answers=True))


def _parsed(value: Any) -> Any:
    """A list or record that is written as a text, as what it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{", "(")):
        try:
            return parse_json(value, "")
        except DataError:
            found = python_value(value)
            return value if found is None else found
    return value


def _numbers_of(value: Any) -> Any:
    """The numbers of a cell: a list, the values of a record, or a text such as "[0.2 0.8]" or "1, 3"."""
    if isinstance(value, str) and _NUMBERS.fullmatch(value.strip()):
        try:
            return [float(each) for each in re.split(r"[,;\s]+", value.strip().strip("[]()").strip(" ,;"))]
        except ValueError:
            return None
    found = _parsed(value)
    return list(found.values()) if isinstance(found, dict) else found


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
