"""What the columns of a user's table hold: one row becomes the fields of one caption, question, pair or choice.

Columns are known by their usual names, in any case, or by the names that the user gives. Reading a table and
checking it use these functions, so that neither accepts what the other refuses.
"""

import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from evle.data.custom.answers import refuse_misread, says_choices, says_weights
from evle.data.custom.choices import CHOICE_COLUMNS, choice_content
from evle.data.custom.image_folder import ImageFolder
from evle.data.custom.split_hints import may_divide
from evle.data.formats.cells import is_blank, number_text, says_something, separated, texts_of
from evle.data.formats.delimited import FILE_ENDING, ShortRow
from evle.data.formats.table_files import Row
from evle.errors import DataError, nearest

IMAGE_COLUMNS = ("image", "file_name", "filepath", "path", "filename", "image_path", "img_path")
EMBEDDED_COLUMNS = ("image", "jpg", "img", "picture")
CAPTION_COLUMNS = ("captions", "caption", "sentences", "text", "title")
TAG_COLUMNS = ("keywords", "tags")
QUESTION_COLUMNS = ("question",)
ANSWER_COLUMNS = ("answers", "answer", "multiple_choice_answer")
TYPE_COLUMNS = ("answer_type", "question_type")
ID_COLUMNS = ("question_id", "id")
PAIR_COLUMNS = ("images",)
LEFT_COLUMNS = ("left", "image_left", "left_image", "image1", "image_1")
RIGHT_COLUMNS = ("right", "image_right", "right_image", "image2", "image_2")
SENTENCE_COLUMNS = ("sentence", "statement", "text")
LABEL_COLUMNS = ("label",)
PAIR_ID_COLUMNS = ("identifier", "id")
SET_COLUMNS = ("set_id",)

MAX_NAME = 4096
"""Characters of an image's name at most, as of a path in Linux."""

_SHORT_NUMBER = re.compile(r"-?\d(?:\.\d+)?[eE]\+\d{1,3}")
"""100000 as R writes it, 1e+05, and 7024521 as a spreadsheet shows it, 7.02E+06."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]{200,}={0,2}")

TRUE_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
"""How a label of a pair may be written, in any case."""


class Columns(NamedTuple):
    """The columns of a table by what they hold; None: the usual names."""

    image: str | None = None
    caption: str | Sequence[str] | None = None
    tags: str | Sequence[str] | None = None
    match: str | None = None
    question: str | None = None
    answer: str | None = None
    split: str | None = "split"
    separator: str | None = None
    """What stands between several captions, or answers, in one text; "" for nothing, None where it is not known."""

    @property
    def given(self) -> list[str]:
        """The names that the user gives."""
        given = [each for each in self[:-1] if isinstance(each, str)]
        return given + [name for each in (self.caption, self.tags) if not isinstance(each, str) for name in each or ()]

    def wanted(self, name: str) -> bool:
        """Whether a column is read at all."""
        return name in self.given or self.is_usual(name) or may_divide(name) or says_choices(name) or says_weights(name)

    @staticmethod
    def is_usual(name: str) -> bool:
        """Whether a column is read for its name, whatever the task."""
        return name.strip().casefold() in _USUAL


_USUAL = frozenset(
    (
        *IMAGE_COLUMNS, *EMBEDDED_COLUMNS, *CAPTION_COLUMNS, *TAG_COLUMNS, *QUESTION_COLUMNS, *ANSWER_COLUMNS,
        *TYPE_COLUMNS, *ID_COLUMNS, *PAIR_COLUMNS, *LEFT_COLUMNS, *RIGHT_COLUMNS, *SENTENCE_COLUMNS, *LABEL_COLUMNS,
        *PAIR_ID_COLUMNS, *SET_COLUMNS, *CHOICE_COLUMNS, "split",
    )
)  # fmt: skip


OF_TASK: dict[str, tuple[str, ...]] = {
    "captions": (*IMAGE_COLUMNS, *CAPTION_COLUMNS, *TAG_COLUMNS),
    "vqa": (*IMAGE_COLUMNS, *QUESTION_COLUMNS, *ANSWER_COLUMNS, *TYPE_COLUMNS, *ID_COLUMNS),
    "nlvr2": (
        *PAIR_COLUMNS, *LEFT_COLUMNS, *RIGHT_COLUMNS, *SENTENCE_COLUMNS, *LABEL_COLUMNS, *PAIR_ID_COLUMNS, *SET_COLUMNS,
    ),
    "vcr": (*IMAGE_COLUMNS, *CHOICE_COLUMNS, *ID_COLUMNS),
}  # fmt: skip
"""The usual columns that are read for each task, beside the split."""

TEXT_FIELD = {"captions": "captions", "vqa": "question", "nlvr2": "sentence", "vcr": "content"}
"""The field that a row of each task cannot do without."""


def fields_of(task: str, row: Row, columns: Columns, images: ImageFolder | None, where: str) -> Row:
    """The fields of one row for a task: its image, key and texts; where it has no text, `TEXT_FIELD[task]` is empty.

    With `images` None, the image is inside the table, and its column holds a text instead. Raises DataError,
    at `where`, for a row that cannot be used.
    """
    return _FIELDS[task](row, columns, images, where)


def value_of(row: Row, named: str | None, usual: Sequence[str], where: str = "", what: str = "") -> Any:
    """The value in the column `named`, or the first of the `usual` columns that holds one; None where none does.

    Raises DataError where no such column exists and `what` names the option for it, and where two columns whose names
    differ in case alone hold different values.
    """
    names = present_columns(tuple(row), named, tuple(usual))
    for number, name in enumerate(names):
        if not is_blank(row[name]):
            twin = names[number + 1] if number + 1 < len(names) else name
            alike = twin.strip().casefold() == name.strip().casefold()
            if alike and not is_blank(row[twin]) and row[twin] != row[name]:
                raise DataError(f"{where}: the columns {name!r} and {twin!r} differ in case alone; remove one of them")
            return row[name]
    if names or not what:
        return None
    if isinstance(row, ShortRow):
        raise DataError(f"{where}: {row.note}")
    sought = repr(named) if named is not None else " or ".join(map(repr, usual[:4]))
    known = nearest(named or usual[0], map(str, row)) if row else "the row is empty"
    raise DataError(f"{where}: no column {sought}; {known}, and set {what}_column if it has another name")


@lru_cache(4096)
def present_columns(names: tuple[str, ...], named: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that may hold a value: the one `named`, or the usual ones in their order, whatever their case."""
    if named is not None:
        return (named,) if named in names else ()
    by_form: dict[str, list[str]] = {}
    for name in names:
        if isinstance(name, str):
            by_form.setdefault(name.strip().casefold(), []).append(name)
    return tuple(each for name in usual for each in sorted(by_form.get(name, []), key=lambda each: each != name))


def has_column(names: Sequence[str], named: str | None, usual: Sequence[str]) -> bool:
    """Whether a table has the column `named`, or one of the `usual` ones."""
    return bool(present_columns(tuple(names), named, tuple(usual)))


def passed_over(names: Sequence[str], task: str, columns: Columns, is_embedded: bool) -> tuple[str, ...]:
    """The columns that are usual for a task, and are read at most where another one, which comes first, is blank."""
    kinds: dict[str, list[tuple[str | Sequence[str] | None, Sequence[str]]]] = {
        "captions": [(columns.caption, CAPTION_COLUMNS)],
        "vqa": [(columns.question, QUESTION_COLUMNS), (columns.answer, ANSWER_COLUMNS)],
    }
    images = EMBEDDED_COLUMNS if is_embedded else IMAGE_COLUMNS
    kind_of_image = [] if task == "nlvr2" else [(columns.image, images)]
    spare: list[str] = []
    for named, usual in [*kind_of_image, *kinds.get(task, [])]:
        present = present_columns(tuple(names), None, tuple(usual))
        read = [named] if isinstance(named, str) else present[:1] if named is None else named
        spare += [name for name in present if name not in read]
    return tuple(spare)


def image_of(row: Row, image_column: str | None, where: str, images: ImageFolder | None) -> str:
    """The name of a row's image (see `ImageFolder.name_of`). Raises DataError where it names none.

    Of several usual columns the one counts that holds a name with an ending: `image` may be a number beside
    `file_name`, and `filepath` the folder of `filename`.
    """
    value = value_of(row, image_column, IMAGE_COLUMNS, where, "image")
    if image_column is None and isinstance(value, str | int | float) and not FILE_ENDING.search(str(value)):
        for name in present_columns(tuple(row), None, IMAGE_COLUMNS):
            if isinstance(row[name], str) and FILE_ENDING.search(row[name].strip()):
                is_folder = _is_folder_of(row, value, name)
                value = f"{str(value).strip().rstrip('/')}/{row[name].strip()}" if is_folder else row[name]
                break
    return _image_name(value, where, images)


def _is_folder_of(row: Row, value: Any, name: str) -> bool:
    """Whether `value` is in a column for paths, and the column `name` for file names, as in Karpathy's splits."""
    paths = [each for each in row if row[each] is value and each.strip().casefold() in ("filepath", "path")]
    return bool(paths) and name.strip().casefold() in ("filename", "file_name") and "/" not in row[name]


def _image_name(value: Any, where: str, images: ImageFolder | None) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: the image must be a file name, not {str(value)[:40]!r}")
    if value.startswith("data:") or len(value) > MAX_NAME or _BASE64.fullmatch(value):
        raise DataError(
            f"{where}: the image is not a file name but {len(value):,} characters ({value[:20]}...), as of an image in "
            "base64; write the images to files, or into Parquet or shards"
        )
    return value if images is None else images.name_of(value, where)


def cell_texts(value: Any, where: str, what: str, separators: str = "") -> list[str]:
    """The texts of a cell. Raises DataError, at `where`, for a value that holds no text."""
    try:
        return texts_of(value, separators, answers=what == "answer")
    except TypeError as error:
        raise DataError(f"{where}: {what}: {error}; write a text or a list of texts") from None


def captions_of(row: Row, columns: Columns, where: str) -> list[str]:
    """A row's captions, without those of punctuation alone; of the usual columns, those of the first that has any."""
    found = _captions_of(row, columns.caption, where)
    found = separated(found, columns.separator)
    return list(dict.fromkeys(filter(says_something, found)))


def _captions_of(row: Row, caption_column: str | Sequence[str] | None, where: str) -> list[str]:
    if caption_column is not None:
        names = [caption_column] if isinstance(caption_column, str) else caption_column
        values = [value_of(row, name, (), where, "caption") for name in names]
        texts = [text for value in values for text in cell_texts(value, where, "caption")]
        return texts
    value_of(row, None, CAPTION_COLUMNS, where, "caption")
    return _first_texts(row, None, CAPTION_COLUMNS, where, "caption", says_something)


def _first_texts(
    row: Row, named: str | None, usual: Sequence[str], where: str, what: str, keep: Callable[[str], bool] = bool
) -> list[str]:
    """The texts to `keep` of the column `named`, or of the first of the `usual` columns that has any."""
    for name in present_columns(tuple(row), named, tuple(usual)):
        if texts := list(filter(keep, cell_texts(row[name], where, what))):
            return texts
    return []


def tags_of(row: Row, tags_column: str | Sequence[str] | None, where: str) -> list[str]:
    """A row's keywords: those of the first usual column that has any, or of all columns that are named."""
    if tags_column is None or isinstance(tags_column, str):
        return cell_texts(value_of(row, tags_column, TAG_COLUMNS, where), where, "tags", ";,")
    values = [value_of(row, name, (), where, "tags") for name in tags_column]
    return list(dict.fromkeys(text for value in values for text in cell_texts(value, where, "tags", ";,")))


def question_of(row: Row, question_column: str | None, where: str) -> list[str]:
    """A row's question, or nothing where it is empty."""
    value = value_of(row, question_column, QUESTION_COLUMNS, where, "question")
    return list(filter(says_something, cell_texts(value, where, "question")))


def answers_of(row: Row, columns: Columns, question: str, where: str) -> list[str]:
    """A row's answers to its question, none where nobody has answered."""
    value = value_of(row, columns.answer, ANSWER_COLUMNS, where, "answer" if columns.answer is not None else "")
    texts = separated(_first_texts(row, columns.answer, ANSWER_COLUMNS, where, "answer"), columns.separator)
    texts = list(map(_all_digits, texts))
    refuse_misread(row, value, texts, question, where)
    return texts


def _all_digits(text: str) -> str:
    """A whole number in all its digits where R wrote it in short form.

    >>> _all_digits("1e+05"), _all_digits("1.5e+00"), _all_digits("1e5")
    ('100000', '1.5e+00', '1e5')
    """
    if _SHORT_NUMBER.fullmatch(text) and (number := float(text)).is_integer():
        return number_text(number)
    return text


def _key(row: Row, usual: Sequence[str], where: str) -> str:
    key = value_of(row, None, usual)
    text = "" if key is None else number_text(key).strip()
    if "E" in text and _SHORT_NUMBER.fullmatch(text):
        raise DataError(f"{where}: the id {text!r} lacks digits, as a spreadsheet writes a number; write all digits")
    return _all_digits(text)


def _caption_fields(row: Row, columns: Columns, images: ImageFolder | None, where: str) -> Row:
    image = image_of(row, columns.image, where, images)
    captions = captions_of(row, columns, where)
    tags = tags_of(row, columns.tags, where)
    match = value_of(row, columns.match, (), where, "match" if columns.match else "")
    return {"image": image, "captions": captions, "tags": tags, "match": "" if match is None else number_text(match)}


def _question_fields(row: Row, columns: Columns, images: ImageFolder | None, where: str) -> Row:
    image = image_of(row, columns.image, where, images)
    question = question_of(row, columns.question, where)
    if len(question) > 1:
        raise DataError(f"{where}: the question holds {len(question)} texts; write one row for each question")
    return {
        "image": image,
        "key": _key(row, ID_COLUMNS, where) or f"{image}#{where.rpartition(':')[2]}",
        "question": question[0] if question else "",
        "answers": answers_of(row, columns, question[0] if question else "", where),
        "answer_type": number_text(value_of(row, None, ("answer_type",)) or ""),
        "question_type": number_text(value_of(row, None, ("question_type",)) or ""),
    }


def _pair_fields(row: Row, columns: Columns, images: ImageFolder | None, where: str) -> Row:
    pair = value_of(row, columns.image, PAIR_COLUMNS)
    if pair is None and has_column(tuple(row), None, PAIR_COLUMNS) and not has_column(tuple(row), None, LEFT_COLUMNS):
        names = []
    elif pair is None:
        sides = (LEFT_COLUMNS, RIGHT_COLUMNS)
        names = [value_of(row, None, usual, where, "image") for usual in sides]
    else:
        names = cell_texts(pair, where, "images") if isinstance(pair, str) else _both(pair)
    if len(names) != 2:
        raise DataError(f"{where}: {len(names)} images instead of two; name them in `images`, or `left` and `right`")
    left, right = (_image_name(name, where, images) for name in names)
    named = columns.caption if isinstance(columns.caption, str) else None
    value_of(row, named, SENTENCE_COLUMNS, where, "caption")
    sentences = _first_texts(row, named, SENTENCE_COLUMNS, where, "sentence", says_something)
    if len(sentences) > 1:
        raise DataError(f"{where}: the sentence holds {len(sentences)} texts; write one row for each sentence")
    sentence = sentences[0] if sentences else ""
    return {
        "image": left,
        "second_image": right,
        "key": _key(row, PAIR_ID_COLUMNS, where) or f"{left}#{where.rpartition(':')[2]}",
        "sentence": sentence,
        "label": _pair_label(value_of(row, columns.answer, LABEL_COLUMNS), where),
        "set_id": _key(row, SET_COLUMNS, where) or sentence.casefold(),
    }


def _both(pair: Any) -> list[Any]:
    """The two images of a cell that is a list, or a record such as {"left": ..., "right": ...}."""
    if isinstance(pair, dict):
        return [value_of(pair, None, usual) for usual in (LEFT_COLUMNS, RIGHT_COLUMNS)]
    return list(pair) if isinstance(pair, list | tuple) else [pair]


def _pair_label(value: Any, where: str) -> bool | None:
    if value is None:
        return None
    word = number_text(value).strip().casefold()
    if word not in TRUE_WORDS:
        raise DataError(f"{where}: the label {str(value)[:40]!r} is neither true nor false; write one of them")
    return TRUE_WORDS[word]


def _choice_fields(row: Row, columns: Columns, images: ImageFolder | None, where: str) -> Row:
    image = image_of(row, columns.image, where, images)
    needed = ("question", "answer_choices")
    values = {name: value_of(row, None, (name,), where, name if name in needed else "") for name in CHOICE_COLUMNS}
    key = _key(row, ("annot_id", *ID_COLUMNS), where) or f"{image}#{where.rpartition(':')[2]}"
    return {"image": image, "key": key, "content": choice_content(values, where)}


_FIELDS: dict[str, Callable[[Row, Columns, ImageFolder | None, str], Row]] = {
    "captions": _caption_fields,
    "vqa": _question_fields,
    "nlvr2": _pair_fields,
    "vcr": _choice_fields,
}
