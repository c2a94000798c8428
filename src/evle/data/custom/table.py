"""All rows of a user's table in Arrow arrays, with the split of each: what a run and a check both start from.

A million rows take some hundred megabytes. Broken rows are reported to the caller, who stops or goes through them all.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evle.data.custom.columns import (
    ANSWER_COLUMNS,
    EMBEDDED_COLUMNS,
    LABEL_COLUMNS,
    OF_TASK,
    TEXT_FIELD,
    Columns,
    fields_of,
    has_column,
    passed_over,
    value_of,
)
from evle.data.custom.image_folder import ImageFolder, loose_form
from evle.data.custom.joined import joined_note
from evle.data.custom.split_hints import (
    SPLIT_WORDS,
    ColumnHints,
    files_named_after_splits,
    split_of_table,
    splits_of_folders,
)
from evle.data.formats.cells import is_null, number_text
from evle.data.formats.embedded import EmbeddedImages
from evle.data.formats.table_files import Row
from evle.data.samples import SPLITS, hashed_split
from evle.errors import ConfigError, DataError, SampleError, nearest

SPLIT_NAMES = {**SPLIT_WORDS, "validation": ("validation", "val", "valid", "dev")}
"""What a split may be called in the data, by what a recipe calls it; other than that, only the case may differ."""
ONE_FORM = {word: split for split, words in SPLIT_WORDS.items() for word in words if word != "dev"}
"""Words for a split whose rows belong together; dev may be a split of its own."""

_CHUNK = 20_000  # rows held as Python objects before they become an Arrow batch
_NAMED_COLUMNS = 1000  # different columns that are remembered of JSON lines

_text, _texts = pa.large_string(), pa.large_list(pa.large_string())
_ROW = [("line", pa.int64()), ("split", pa.large_string()), ("image", _text)]
SCHEMAS = {
    "captions": pa.schema([*_ROW, ("captions", _texts), ("tags", _texts), ("match", _text)]),
    "vqa": pa.schema(
        [
            *_ROW,
            ("key", _text),
            ("question", _text),
            ("answers", _texts),
            ("answer_type", _text),
            ("question_type", _text),
        ]
    ),
    "nlvr2": pa.schema(
        [*_ROW, ("second_image", _text), ("key", _text), ("sentence", _text), ("label", pa.bool_()), ("set_id", _text)]
    ),
    "vcr": pa.schema([*_ROW, ("key", _text), ("content", _text)]),
}
IMAGE_FIELDS = ("image", "second_image")


@dataclass
class TableRows:
    """The rows of one table that are not broken, in order.

    `names` are the columns of the table, `num_broken` counts the rows that were reported. A row whose column `split` is
    null names none; `by_column` says whether the table has such a column at all.
    """

    task: str
    origin: str
    table: pa.Table
    images: ImageFolder | EmbeddedImages
    columns: Columns
    names: tuple[str, ...]
    num_broken: int = 0
    split_note: str = ""
    """What other columns say of the splits, "" for nothing."""
    split_of_all: str | None = None
    """The split of all rows, where the name of the table or of its folder says it."""
    digest: "hashlib.blake2b" = field(default_factory=lambda: hashlib.blake2b(digest_size=8))

    @property
    def by_column(self) -> bool:
        """Whether the table says the split of its rows."""
        return has_split_column(self.names, self.columns)

    @property
    def columns_not_read(self) -> tuple[str, ...]:
        """The columns of the table that are not read for the task."""
        usual, given = {*OF_TASK[self.task], "split"}, self.columns.given
        if isinstance(self.images, EmbeddedImages):
            usual.update(EMBEDDED_COLUMNS)
        return tuple(name for name in self.names if name not in given and name.strip().casefold() not in usual)

    @property
    def columns_passed_over(self) -> tuple[str, ...]:
        """The columns that could be read for the task, and are not because another one of their kind holds a value."""
        return passed_over(self.names, self.task, self.columns, isinstance(self.images, EmbeddedImages))

    @property
    def answers_note(self) -> str:
        """What is wrong where no row can have an answer or a label, "" for nothing."""
        usual = {"vqa": ANSWER_COLUMNS, "nlvr2": LABEL_COLUMNS, "vcr": ("answer_label",)}.get(self.task)
        named = self.columns.answer if self.task != "vcr" else None
        if usual is None or has_column(self.names, named, usual):
            return ""
        cure = "rename" if self.task == "vcr" else "set answer_column to"
        sought = repr(named) if named else " or ".join(map(repr, usual[:2]))
        return f"no column {sought}; {cure} the one that holds them (the table has {', '.join(self.names[:20])})"

    @property
    def joined_note(self) -> str:
        """What is unclear where most captions (or answers) look like several ones in one text, or like the words of
        one; "" for nothing."""
        if self.task not in ("captions", "vqa") or self.columns.separator is not None:
            return ""
        noun = "captions" if self.task == "captions" else "answers"
        return joined_note(self.table.column(noun), noun)

    def usable(self) -> np.ndarray:
        """bool (rows,): whether each row has a text."""
        column = self.table.column(TEXT_FIELD[self.task])
        if self.task == "captions":
            return pc.greater(pc.list_value_length(column), 0).to_numpy()
        return pc.greater(pc.binary_length(column), 0).to_numpy()

    def without_split(self) -> np.ndarray:
        """int64 (n,): the lines of rows that name no split where others do."""
        if self.splits_from not in ("column", "folders"):
            return np.zeros(0, np.int64)
        return self.table.column("line").filter(pc.is_null(self.splits((1.0, 0.0, 0.0)))).to_numpy()

    @property
    def splits_from(self) -> str:
        """What says the split of each row: "column", "table" or "folders" for their names, else "hash"."""
        if self.by_column:
            return "column"
        if self.columns.split != "split":
            return "hash"
        return "table" if self.split_of_all else "folders" if self._of_folders is not None else "hash"

    @property
    def unclear_split(self) -> str:
        """What is unclear to a run that reads a split, "" for nothing."""
        if self.columns.split is None or self.splits_from != "hash":
            return ""
        return self.split_note or files_named_after_splits(self.table.column("image"))

    @cached_property
    def _of_folders(self) -> pa.ChunkedArray | None:
        lefts = splits_of_folders(self.table.column("image"))
        if lefts is None or "second_image" not in self.table.column_names:
            return lefts
        rights = splits_of_folders(self.table.column("second_image"))
        return lefts if rights is not None and rights.equals(lefts) else None

    def splits(self, shares: Sequence[float]) -> pa.ChunkedArray:
        """The split of each row: as `splits_from` says, a hash being that of the image's name."""
        match self.splits_from:
            case "column":
                return self.table.column("split")
            case "table":
                return pa.chunked_array([pa.array([self.split_of_all] * self.table.num_rows, pa.large_string())])
            case "folders":
                assert self._of_folders is not None
                return self._of_folders
        names, codes = _encoded(self.table.column("image"))
        if self.task == "nlvr2":
            codes = self._first_linked(codes)
        keys: Iterable[str] = _values(names)
        if isinstance(self.images, EmbeddedImages):
            keys = self._identities(keys)
        parts = (hashed_split(key, shares) for key in keys)
        return pa.chunked_array([pa.array(parts, pa.large_string()).take(pa.array(codes))], pa.large_string())

    def _identities(self, names: Iterable[str]) -> Iterator[str]:
        """What rows of one image inside of the table share: its path, or where it has none the hash of its bytes."""
        assert isinstance(self.images, EmbeddedImages)
        digests: list[str] = []
        for name in names:
            path, _, number = name.rpartition("#")
            if not path and not digests:
                digests = self.images.digests()
            yield path or digests[int(number)]

    def _first_linked(self, lefts: np.ndarray) -> np.ndarray:
        """For each pair the left image that stands for all pairs which share images with it, in any number of steps."""
        both = pa.chunked_array([*self.table.column("image").chunks, *self.table.column("second_image").chunks], _text)
        codes = _encoded(both)[1]
        firsts = list(range(int(codes.max(initial=-1)) + 1))

        def first_of(code: int) -> int:
            while firsts[code] != code:
                firsts[code] = firsts[firsts[code]]
                code = firsts[code]
            return code

        count = len(lefts)
        for left, right in zip(codes[:count].tolist(), codes[count:].tolist()):
            one, other = first_of(left), first_of(right)
            firsts[max(one, other)] = min(one, other)
        groups = np.array([first_of(code) for code in codes[:count].tolist()], np.int64)
        _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
        return lefts[first[inverse]]

    @property
    def no_split(self) -> tuple[str, str]:
        """What is wrong with the rows of `without_split`, and the cure."""
        if self.splits_from == "folders":
            return "not in a folder train, val or test, while other images are", "add a column `split`"
        cure = f"fill in the column {self.columns.split!r}, remove it, or set split_column=null"
        return "no split, while other rows name one", cure

    def rows_of(self, split: str | Sequence[str] | None, shares: Sequence[float]) -> pa.Table:
        """The rows of one or several splits, all of them for None.

        Raises DataError for a split that does not exist or holds no row, and for rows that name none.
        """
        wanted = as_list(split)
        if wanted is None:
            return self.table
        if self.unclear_split:
            raise DataError(f"{self.origin}: {self.unclear_split}")
        if len(lines := self.without_split()):
            some = ", ".join(str(line) for line in lines[:5]) + (", ..." if len(lines) > 5 else "")
            count = f"{len(lines):,} row{'s' if len(lines) > 1 else ''}"
            raise DataError(f"{self.origin}:{lines[0]}: {self.no_split[0]} ({count}: {some}); {self.no_split[1]}")
        splits = self.splits(shares)
        counts = {each["values"]: each["counts"] for each in pc.value_counts(splits).to_pylist()}
        if by_hash := self.splits_from == "hash":
            counts = {name: counts.get(name, 0) for name in SPLITS}
        meant = {_one_form(split_named(each, list(counts), self.origin)) for each in wanted}
        names = [name for name in counts if name is not None and _one_form(name) in meant]
        if by_hash and self.table.num_rows and not any(counts[name] for name in names):
            shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            raise DataError(
                f"{self.origin}: the split {wanted[0]!r} is empty: a hash of the images' names puts no row into it "
                f"({shown}); add a column `split`, or set other shares"
            )
        return self.table.filter(pc.is_in(splits, pa.array(names, pa.large_string())))


def as_list(split: str | Sequence[str] | None) -> list[str] | None:
    """The splits that are asked for, None for all rows."""
    return [split] if isinstance(split, str) else list(split) if split is not None else None


def split_named(wanted: str, names: Sequence[str], origin: str) -> str:
    """The split of the data that is meant by `wanted`: its own name, else another usual one. Raises DataError."""
    for name in SPLIT_NAMES.get(wanted, (wanted,)):
        if name in names:
            return name
    same = [name for name in names if name.casefold() in SPLIT_NAMES.get(wanted, (wanted.casefold(),))]
    if len({_one_form(name) for name in same}) == 1:
        return same[0]
    raise DataError(f"{origin}: no split {wanted!r}; {nearest(wanted, names)}")


def names_split(wanted: str, names: Sequence[str]) -> bool:
    """Whether one of the names means the split `wanted`.

    >>> names_split("train", ["Training", "val"]), names_split("train", ["0", "1"])
    (True, False)
    """
    try:
        return bool(split_named(wanted, names, ""))
    except DataError:
        return False


def _one_form(name: str) -> str:
    """One name for the spellings of a split: "Val" and "validation" are one; "dev" may be another split beside them."""
    form = name.strip().casefold()
    return ONE_FORM.get(form, form)


def has_split_column(names: Sequence[str], columns: Columns) -> bool:
    """Whether a table with these columns says the split of its rows."""
    if columns.split is None:
        return False
    return has_column(names, *_split_column(columns))


def _split_column(columns: Columns) -> tuple[str | None, tuple[str, ...]]:
    return (None, ("split",)) if columns.split == "split" else (columns.split, ())


def checked_shares(shares: Sequence[float]) -> None:
    """Raises ConfigError unless these are three shares of one whole."""
    if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"shares={list(shares)} must be three shares (train, val, test) that sum to 1")


def read_table(
    rows: Iterable[tuple[int, Row | DataError]],
    task: str,
    columns: Columns,
    images: ImageFolder | EmbeddedImages,
    origin: str,
    *,
    report: Callable[[int, DataError], None],
) -> TableRows:
    """The rows of a table for one task; `report(line, error)` is called for each broken row, and may raise."""
    names: dict[str, None] = {}
    broken = 0
    hints, given = ColumnHints(), columns.given
    folder = images if isinstance(images, ImageFolder) else None

    def parsed() -> Iterator[Row]:
        nonlocal broken
        shapes: set[tuple[str, ...]] = set()
        for line, row in rows:
            try:
                if isinstance(row, DataError):
                    raise row
                if len(names) < _NAMED_COLUMNS and (shape := tuple(row)) not in shapes:
                    shapes.add(shape)
                    names.update(dict.fromkeys(map(str, row)))
                    hints.add(each for each in map(str, row) if not columns.is_usual(each) and each not in given)
                hints.look_at(row)
                fields = fields_of(task, row, columns, folder, f"{origin}:{line}")
                fields["line"], fields["split"] = line, _split_of(row, columns)
                yield fields
            except DataError as error:
                broken += 1
                report(line, error)

    batches, rest = [], parsed()
    while chunk := list(islice(rest, _CHUNK)):
        batches.append(pa.RecordBatch.from_pylist(chunk, schema=SCHEMAS[task]))
    note = hints.note(columns.split or "split")
    if names and columns.split not in (None, "split") and not has_split_column(tuple(names), columns):
        note = f"no column {columns.split!r}; {nearest(str(columns.split), names)}, and set split_column to it"
    table = pa.Table.from_batches(batches, schema=SCHEMAS[task])
    if folder is not None:
        table = _one_name_per_file(table, folder)
    own = split_of_table(Path(origin)) if os.path.isfile(origin) else None
    return TableRows(task, origin, table, images, columns, tuple(names), broken, note, own)


def _split_of(row: Row, columns: Columns) -> str | None:
    if columns.split is None:
        return None
    value = value_of(row, *_split_column(columns))
    return None if value is None else number_text(value).strip() or None


def _one_name_per_file(table: pa.Table, folder: ImageFolder) -> pa.Table:
    """The table with one name for each image where names differ in case or ending only and mean the same file."""
    present = [name for name in IMAGE_FIELDS if name in table.column_names]
    distinct = pc.unique(pa.chunked_array([chunk for name in present for chunk in table.column(name).chunks], _text))
    hashes = np.fromiter((hash(loose_form(name)) for name in _values(distinct)), np.int64, len(distinct))
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    doubtful = np.flatnonzero(counts[inverse] > 1)
    if not len(doubtful):
        return table
    renamed: dict[str, str] = {}
    for name in _values(distinct.take(pa.array(doubtful))):
        try:
            found = folder.file_of(name)
        except SampleError:  # the image's own error, when it is opened
            continue
        if found is not None and found != name:
            renamed[name] = found
    if not renamed:
        return table
    for name in present:
        names, codes = _encoded(table.column(name))
        texts = pa.array((renamed.get(each, each) for each in _values(names)), _text)
        table = table.set_column(table.column_names.index(name), name, texts.take(pa.array(codes)))
    return table


def _encoded(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """(distinct values in order of appearance, the index of each row's value)."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks() if encoded.num_chunks else pa.array([], _text).dictionary_encode()
    return encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False)


def _values(array: pa.Array) -> Iterator[Any]:
    """The values as Python objects, a few thousand of them in memory."""
    for first in range(0, len(array), _CHUNK):
        yield from array.slice(first, _CHUNK).to_pylist()


def first_repeated(column: pa.ChunkedArray) -> str | None:
    """The first value that appears more than once in a column; None where all are different."""
    counts = pc.value_counts(column)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    return repeated[0]["values"].as_py() if len(repeated) else None


def unusual_splits(counts: Counter[str]) -> list[str]:
    """Names of splits that look like mistakes: numbers, words for no value, and the rarer of two names that mean the
    same split.

    >>> unusual_splits(Counter({"train": 8, "Train": 1, "3": 1, "val": 4, "dev": 4, "none": 1}))
    ["'3' (1 row)", "'Train' (1 row)", "'dev' (4 rows)", "'none' (1 row)"]
    """
    odd = [name for name in counts if not any(map(str.isalpha, name)) or is_null(name.upper()) or is_null(name.lower())]
    usual: dict[str, str] = {}
    for name, _ in counts.most_common():
        form = name.casefold()
        meant = next((split for split, names in SPLIT_NAMES.items() if form in names), form)
        odd += [name] if usual.setdefault(meant, name) != name else []
    return [f"{name!r} ({counts[name]:,} row{'s' if counts[name] > 1 else ''})" for name in sorted(set(odd))]
