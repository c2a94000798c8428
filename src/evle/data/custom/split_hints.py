"""What says the split of a row in a table without the column `split`: names of files and folders, and other columns.

A table called train.csv beside test.csv, or inside of a folder `train` beside `test`, holds the rows of that split, and
images in folders `train` and `test` belong to these. A column such as `partition`, `fold` or `is_train` is not obeyed
unless it is named as `split_column`, but a table that has one is not divided in another way either.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from evle.data.formats.cells import is_null, number_text
from evle.data.formats.table_files import TABLE_SUFFIXES

SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""The splits by the words for them in the names of files and folders."""
FLAGS = re.compile(
    r"(is_?)?(train|val|valid|validation|test)(ing)?(_?(flag|set))?|is_?(train|val|valid|validation|test)\w*"
    r"|k?_?folds?(_?(id|number))?|cv_?fold|(data|dataset)?_?(split|partition)(_?(name|id|type))?|train_?(val_?)?test"
    r"|evaluation_?status|(is_?)?(holdout|held_?out)(_?set)?"
)
"""Names of columns, in lower case, that divide a table whatever their values are."""
WORDS = frozenset(word for words in SPLIT_WORDS.values() for word in words) | {
    *("trainval", "restval", "eval", "evaluation", "holdout", "heldout", "publictest", "privatetest"),
    *("query", "gallery"),
}
"""A column with no other values than these, and with one for training, divides a table."""

NAMES = frozenset(
    {"subset", "set", "usage", "phase", "tvt", "stage", "mode", "dataset", "source", "group", "part", "role", "purpose"}
)
"""Usual names of such columns, in which a Parquet table is looked at."""

MOST = 30
"""Different values of a column that are remembered; a column with more is no column of splits."""

_SPLIT_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_SHORT = {"tr": "train", "trn": "train", "va": "val", "vl": "val", "te": "test", "tst": "test", "ts": "test"}
_BESIDE = r"(?:(?:images?|imgs?|photos?|pics?|data|set|split|files?|frames?|jpe?g|png|coco|flickr|vg)[^a-z/]*)*"
_FOLDER = r"(?i)(?:^|/)[^a-z/]*{beside}(?:{words})[^a-z/]*{beside}/"
"""A folder of a split: its word alone, or with numbers and words for images."""
_FILE = r"(?i)(?:^|/)(?:coco[^a-z/]+)?(?:{words})(?:[^a-z/][^/]*)?$"
"""A file whose name begins with the word of a split."""


def may_divide(name: str) -> bool:
    """Whether a column may say the split of each row, by its name.

    >>> may_divide("is_train"), may_divide("fold"), may_divide("subset"), may_divide("caption")
    (True, True, True, False)
    """
    form = name.strip().casefold()
    return form in NAMES or FLAGS.fullmatch(form) is not None


def split_of_table(table: Path) -> str | None:
    """The split that a table's name, or its folder's, says, if one beside it says another; None where none does."""
    own = _split_of_name(table.stem)
    if own is not None and any(_split_of_name(name) not in (own, None) for name in _tables_beside(table)):
        return own
    folder = table.absolute().parent
    own = _SPLIT_OF_WORD.get(folder.name.casefold())
    if own is None:
        return None
    beside = (each.name.casefold() for each in folder.parent.iterdir() if each.is_dir())
    return own if any(_SPLIT_OF_WORD.get(name, own) != own for name in beside) else None


def splits_of_folders(images: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The split of each image by a folder in its name, null where none says it; None unless two splits have a folder.

    One of the two must be train.
    """
    found: dict[str, pa.ChunkedArray] = {}
    for split, words in SPLIT_WORDS.items():
        is_inside = pc.match_substring_regex(images, _FOLDER.format(words="|".join(words), beside=_BESIDE))
        if pc.any(is_inside).as_py():
            found[split] = is_inside
    if len(found) < 2 or "train" not in found:
        return None
    result = pa.chunked_array([pa.nulls(len(images), pa.large_string())])
    for split, is_inside in found.items():
        result = pc.if_else(is_inside, pa.scalar(split, pa.large_string()), result)
    return result


def files_named_after_splits(images: pa.ChunkedArray) -> str:
    """What is unclear where the names of images begin with words of train and of another split, "" for nothing."""
    found = {}
    for split, words in SPLIT_WORDS.items():
        named = images.filter(pc.match_substring_regex(images, _FILE.format(words="|".join(words))))
        if len(named):
            found[split] = str(named[0].as_py())
    if len(found) < 2 or "train" not in found:
        return ""
    return (
        f"the images are named after splits ({', '.join(found.values())}), and no column says the split; add a column "
        "`split`, or set split_column=null to divide the rows by a hash of the images' names"
    )


def splits_in_names(names: Iterable[str]) -> dict[str, str]:
    """The splits that names of files say, each with the first name that does.

    >>> splits_in_names(["cc-train-0000", "cc-train-0001", "val/0000", "0001"])
    {'train': 'cc-train-0000', 'val': 'val/0000'}
    """
    found: dict[str, str] = {}
    for name in names:
        if (split := _split_of_name(name)) is not None:
            found.setdefault(split, name)
    return found


class ColumnHints:
    """Collects the values of the columns that may say the split of each row."""

    def __init__(self) -> None:
        self._values: dict[str, set[str]] = {}

    def add(self, names: Iterable[str]) -> None:
        """Watch more columns from the next row on."""
        for name in names:
            self._values.setdefault(name, set())

    def look_at(self, row: dict[str, Any]) -> None:
        """Remember the values of a row, until a column has too many, or lists."""
        for name, values in list(self._values.items()):
            value = row.get(name)
            if isinstance(value, str | int | float):
                if not is_null(value):
                    values.add(number_text(value).strip().casefold()[:40])
            elif value is not None:
                del self._values[name]
            if len(values) > MOST:
                del self._values[name]

    def note(self, split_column: str) -> str:
        """What is unclear in a table without `split_column`, "" for nothing."""
        for name, values in self._values.items():
            if len(values) < 2:
                continue
            words = {re.sub(r"[\s_-]", "", value) for value in values}
            known = words <= WORDS and bool(words & {"train", "training", "trainval"})
            said = {_SHORT.get(value) or _split_of_name(value) for value in values}
            known |= None not in said and "train" in said and len(said) > 1
            if known or FLAGS.fullmatch(name.strip().casefold()):
                shown = ", ".join(sorted(values)[:4]) + (", ..." if len(values) > 4 else "")
                return (
                    f"no column {split_column!r}, but {name!r} holds {shown}; set split_column={name} to take the "
                    "splits from it, or split_column=null to divide the rows by a hash of the images' names"
                )
        return ""


def _split_of_name(name: str) -> str | None:
    """The split of which a table's name has a word; None for none, or several."""
    words = re.split(r"[^a-z]+", name.casefold())
    found = {_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD}
    return found.pop() if len(found) == 1 else None


def _tables_beside(table: Path) -> list[str]:
    files = table.absolute().parent.iterdir()
    return [each.stem for each in files if each.suffix.lower() in TABLE_SUFFIXES and each.name != table.name]
