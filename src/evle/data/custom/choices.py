"""The user's own questions in the form of VCR: an image with objects, a question, four answers and four rationales.

Texts name objects by their index, from 0: as in VCR's files `["Why", "is", [0], "smiling", "?"]`, or in one text
"Why is [0] smiling?". An object is `{"label": "person", "box": [x1, y1, x2, y2]}` in pixels of the image.
"""

import json
import math
import re
from typing import Any

from evle.data.formats.cells import MAX_CHARACTERS, is_null, number_text, python_value
from evle.data.samples import Box, Tagged, VCRSample
from evle.errors import DataError
from evle.files import parse_json

CHOICE_COLUMNS = (
    "objects", "question", "answer_choices", "answer_label", "rationale_choices", "rationale_label", "annot_id",
)  # fmt: skip
CHOICES = 4
MAX_OBJECTS = 1000
SHARES = 1.5
"""Boxes that all end within so many pixels are no boxes in pixels."""

_AS_LIST = '[0] for the object 0, and "0" for the word'
_TAGS = re.compile(r"\[\s*(\d{1,4}(?:\s*,\s*\d{1,4})*)\s*\]")


def choice_content(values: dict[str, Any], where: str) -> str:
    """Objects, question, choices and labels of a row as one JSON text, "" for a row without a question.

    `rationale_choices` may be left out. Raises DataError, at `where`, for objects, choices or labels that do not fit.
    """
    if is_null(values["question"]):
        return ""
    objects = [_object(each, where) for each in _list(values["objects"], where, "objects")]
    if len(objects) > MAX_OBJECTS:
        raise DataError(f"{where}: {len(objects):,} objects are more than the limit of {MAX_OBJECTS:,}; leave some out")
    if objects and all(max(x + width, y + height) <= SHARES for x, y, width, height, _ in objects):
        raise DataError(
            f"{where}: the boxes {objects[0][:4]}, ... seem to be shares of the image's sides; write them in pixels"
        )
    content: dict[str, Any] = {"objects": objects}
    content["question"] = _tagged(_parsed(values["question"], where), len(objects), where, "question")
    for kind in ("answer", "rationale"):
        choices = _list(values[f"{kind}_choices"], where, f"{kind}_choices")
        if len(choices) != CHOICES and (choices or kind == "answer"):
            raise DataError(f"{where}: {len(choices)} {kind}_choices instead of {CHOICES}; write four")
        content[f"{kind}_choices"] = [_tagged(each, len(objects), where, f"{kind}_choices") for each in choices]
        content[f"{kind}_label"] = _label(values[f"{kind}_label"], where, f"{kind}_label")
    return json.dumps(content)


def choice_sample(key: str, image: Any, content: str) -> VCRSample:
    """The sample of fields that `choice_content` wrote."""
    fields = json.loads(content)
    return VCRSample(
        key=key,
        image=image,
        objects=tuple(Box(*each) for each in fields["objects"]),
        question=_frozen(fields["question"]),
        answer_choices=tuple(map(_frozen, fields["answer_choices"])),
        rationale_choices=tuple(map(_frozen, fields["rationale_choices"])),
        answer_label=fields["answer_label"],
        rationale_label=fields["rationale_label"],
    )


def _frozen(parts: list[Any]) -> Tagged:
    return tuple(part if isinstance(part, str) else tuple(part) for part in parts)


def _parsed(value: Any, where: str) -> Any:
    """A list that a CSV holds as JSON, or as Python writes it, as the list."""
    if isinstance(value, str) and value.lstrip().startswith(("[[", '["', "[{", "['")):
        return _written(value, where)
    return value


def _written(text: str, where: str) -> Any:
    found = python_value(text)
    return parse_json(text, where) if found is None else found


def _list(value: Any, where: str, name: str) -> list[Any]:
    if is_null(value):
        return []
    found = _written(value, f"{where}: {name}") if isinstance(value, str) else value
    if not isinstance(found, list | tuple):
        raise DataError(f"{where}: {name} must be a list, not {str(found)[:40]!r}")
    return list(found)


def _object(value: Any, where: str) -> tuple[float, float, float, float, str]:
    """An object's x, y, width, height and label."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: an object must be {{label, box: [x1, y1, x2, y2]}}, not {str(value)[:40]!r}")
    try:
        if value.get("box") is not None:
            x1, y1, x2, y2 = map(float, value["box"])
            box = (x1, y1, x2 - x1, y2 - y1)
        else:
            box = tuple(float(value[name]) for name in ("x", "y", "width", "height"))  # type: ignore[assignment]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DataError(
            f"{where}: an object needs a box [x1, y1, x2, y2], or x, y, width and height; it is {str(value)[:60]!r}"
        ) from None
    if not all(map(math.isfinite, box)) or box[2] <= 0 or box[3] <= 0:
        raise DataError(f"{where}: the box {value.get('box', box)} has no area; write its corners as x1 < x2, y1 < y2")
    label = value.get("label")
    if not isinstance(label, str) or not label.strip():
        raise DataError(f"{where}: an object without a label, {str(value)[:60]!r}; name its class, such as person")
    return (*box, label.strip())


def _tagged(value: Any, num_objects: int, where: str, name: str) -> list[str | list[int]]:
    """A text as words and lists of object indices."""
    value = _parsed(value, where)
    parts: list[str | list[int]] = []
    if isinstance(value, str):
        if len(value) > MAX_CHARACTERS:
            raise DataError(f"{where}: {name}: {len(value):,} characters are more than the limit of {MAX_CHARACTERS:,}")
        pieces = _TAGS.split(value)  # text, numbers, text, ...
        for words, numbers in zip(pieces[::2], [*pieces[1::2], ""]):
            parts += words.split()
            if numbers:
                parts.append([int(number) for number in numbers.split(",")])
    elif isinstance(value, list | tuple):
        if (bare := next((part for part in value if is_bare_reference(part, num_objects)), None)) is not None:
            raise DataError(f"{where}: {name} holds {bare!r}, a bare number or a reference as a text; write {_AS_LIST}")
        parts = [list(part) if isinstance(part, list | tuple) else number_text(part) for part in value]
    else:
        raise DataError(
            f"{where}: {name}: {str(value)[:40]!r} is no text; write a text or a list of words and [objects]"
        )
    for part in parts:
        for number in part if isinstance(part, list) else ():
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < num_objects:
                raise DataError(f"{where}: {name} names the object {number!r}, and there are {num_objects} from 0 on")
    if not any(part if isinstance(part, list) else part.strip() for part in parts):
        raise DataError(f"{where}: {name}: an empty text; write what it says")
    return parts


def is_bare_reference(part: Any, num_objects: int) -> bool:
    """Whether a part of a list of words is the index of an object that lost its brackets, or has them as a text.

    >>> is_bare_reference(0, 2), is_bare_reference("[0]", 2), is_bare_reference(7, 2), is_bare_reference("0", 2)
    (True, True, False, False)
    """
    if isinstance(part, str):
        return _TAGS.search(part) is not None
    return isinstance(part, int | float) and part in range(num_objects)


def _label(value: Any, where: str, name: str) -> int | None:
    if is_null(value):
        return None
    text = number_text(value).strip()
    if isinstance(value, bool) or text not in map(str, range(CHOICES)):
        raise DataError(f"{where}: {name} {str(value)[:40]!r} is not one of 0 to {CHOICES - 1}")
    return int(text)
