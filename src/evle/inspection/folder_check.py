"""Check the user's own folder before long work, and list every row and image that a run would refuse or leave out.

The table is read by the same code as in a run. Memory holds the rows as Arrow arrays, and about fifty bytes per image.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evle.data.custom.choices import choice_sample
from evle.data.custom.columns import Columns
from evle.data.custom.folder import read_folder
from evle.data.custom.image_folder import ImageFolder
from evle.data.custom.joined import some_joined
from evle.data.custom.table import IMAGE_FIELDS, TableRows, names_split, unusual_splits
from evle.data.formats.delimited import delimited_form
from evle.data.formats.listing import list_folder, other_tables
from evle.data.formats.table_files import find_table, tables_beside
from evle.data.images import odd_values, open_image
from evle.data.samples import SPLITS
from evle.errors import DataError, SampleError
from evle.inspection.findings import DARK, LONG, ODD, OUTSIDE, Findings, is_inside, is_latin, oddity, place_of

NOUNS = {"captions": "captions", "vqa": "questions", "nlvr2": "sentences", "vcr": "questions"}
SHARES = (0.8, 0.1, 0.1)
SPLITS_FROM = {
    "column": "by the table",
    "table": "by the name of the table or its folder",
    "folders": "by the folders of the images",
    "hash": "by a hash of the name, as the table has no split column",
}

_BLOCK = 256  # images decoded together
_Size = tuple[int, int]


@dataclass
class FolderCheck:
    """The result of a check.

    `images` counts different images by name; `texts` counts captions, questions or sentences. `sizes` holds the number
    of images for each (width, height), `splits` for each split. `duplicates` are images with the same bytes, `leaks`
    images in more than one split, `repeated` rows that repeat an earlier one, and `unread` files that no run reads.
    `no_table` is the reason why only the images were checked; `other_tables` are those that are not read here.
    """

    path: str
    table: str
    task: str
    rows: int = 0
    images: int = 0
    texts: int = 0
    unanswered: int = 0
    read_as: str = ""
    not_read: tuple[str, ...] = ()
    splits_from: str = "hash"
    not_latin: float = 0.0
    no_table: str = ""
    splits: dict[str, int] = field(default_factory=dict)
    texts_per_image: dict[int, int] = field(default_factory=dict)
    sizes: Counter[_Size] = field(default_factory=Counter)
    broken_rows: Findings = field(default_factory=lambda: Findings("broken rows", fatal=True))
    unreadable: Findings = field(default_factory=lambda: Findings("unreadable images", fatal=True))
    empty: Findings = field(default_factory=lambda: Findings("rows without text", fatal=True))
    unusual: Findings = field(default_factory=lambda: Findings("unusual names of splits"))
    empty_splits: Findings = field(
        default_factory=lambda: Findings("empty splits, which a run that reads them refuses")
    )
    long: Findings = field(default_factory=lambda: Findings(f"texts of more than {LONG} words"))
    odd: Findings = field(default_factory=lambda: Findings(ODD))
    joined: Findings = field(default_factory=lambda: Findings("texts that may be several; they are read as they are"))
    repeated: Findings = field(default_factory=lambda: Findings("rows that repeat another"))
    contradicting: Findings = field(default_factory=lambda: Findings("rows with another label than an equal row"))
    outside: Findings = field(default_factory=lambda: Findings(OUTSIDE))
    other_form: Findings = field(
        default_factory=lambda: Findings("image names that are not written as their files are; they are read")
    )
    dark: Findings = field(default_factory=lambda: Findings(DARK))
    duplicates: Findings = field(default_factory=lambda: Findings("images with the same bytes"))
    leaks: Findings = field(default_factory=lambda: Findings("images in more than one split"))
    without_row: Findings = field(default_factory=lambda: Findings("images that no row names"))
    other_tables: Findings = field(default_factory=lambda: Findings("other tables, which are not read here"))
    unread: Findings = field(default_factory=lambda: Findings("not read"))

    @property
    def findings(self) -> list[Findings]:
        return [each for each in vars(self).values() if isinstance(each, Findings)]

    @property
    def ok(self) -> bool:
        """Whether every row can be used: nothing broken, unreadable or empty."""
        if self.no_table and self.other_tables.count:
            return False
        return bool(self.images) and not any(each.count for each in self.findings if each.fatal)

    def lines(self, most: int = 20) -> list[str]:
        """The findings as plain lines, at most `most` of each kind."""
        noun = NOUNS[self.task]
        lines = [f"{self.table or self.path}: {self.rows:,} rows, {self.images:,} images, {self.texts:,} {noun}"]
        if self.no_table:
            lines.append(f"only the images were checked: {self.no_table}")
        if self.read_as:
            lines.append(f"read as: {self.read_as}")
        if self.not_read:
            others = ", ".join(self.not_read[:10]) + (", ..." if len(self.not_read) > 10 else "")
            lines.append(f"columns that are not read: {others}")
        if self.unanswered:
            what = "sentences without a label" if self.task == "nlvr2" else "questions without an answer"
            lines.append(f"{what}: {self.unanswered:,}; they can be asked, but not trained on")
        if any(self.splits.values()) and self.table:
            how = SPLITS_FROM[self.splits_from]
            shares = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
            lines.append(f"splits ({how}): {shares} images")
        if self.texts_per_image:
            numbers = sorted(self.texts_per_image)
            mean = sum(number * count for number, count in self.texts_per_image.items()) / max(1, self.images)
            lines.append(f"{noun} per image: {numbers[0]} to {numbers[-1]}, {mean:.1f} on average")
        if self.sizes:
            (width, height), count = self.sizes.most_common(1)[0]
            areas = sorted(self.sizes, key=lambda size: size[0] * size[1])
            (small, low), (large, high) = areas[0], areas[-1]
            lines.append(f"pixels: {small} x {low} to {large} x {high}, most often {width} x {height} ({count:,})")
        if self.texts:
            lines.append(f"not in Latin script: {100 * self.not_latin:.1f} % of the {noun}")
        for each in self.findings:
            lines += each.shown(most)
        return [*lines, self._verdict()]

    def _verdict(self) -> str:
        if self.table and not self.rows:
            return "the table holds no row"
        if self.no_table and self.other_tables.count:
            return "no table is read, so that a run is refused"
        if not self.ok:
            return f"the {'rows' if self.table else 'images'} named above cannot be used"
        if not self.table:
            return f"every {'other ' if self.unread.count else ''}image can be read"
        empty = ", but not every split" if self.empty_splits.count else ""
        return f"every row can be used{empty}"


def check_folder(
    path: str | os.PathLike[str],
    task: str = "captions",
    *,
    image_column: str | None = None,
    caption_column: str | Sequence[str] | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    split_column: str | None = "split",
    caption_separator: str | None = None,
    allow_outside: bool = False,
    num_threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> FolderCheck:
    """Read a folder's whole table and decode each of its images once. Without a table, only the images are checked.

    `progress(done, total)` is called as images are decoded. Raises DataError only if there is nothing to check.
    """
    base = Path(path)
    listing = list_folder(base) if base.is_dir() else None
    try:
        table = find_table(base, task)
    except DataError as error:
        if listing is None or not (listing.images or listing.unread):
            raise
        check = FolderCheck(str(base), "", task, no_table=str(error))
        names = pa.array(listing.images, pa.large_string())
        images, splits, rows = ImageFolder(base, allow_outside=True), None, None
    else:
        check = FolderCheck(str(base), str(table), task)
        if table.suffix.lower() in (".csv", ".tsv"):
            form = delimited_form(table)
            check.read_as = form.description + (f", such as {form.example!r}" if form.example else "")
        columns = Columns(
            image=image_column,
            caption=caption_column,
            question=question_column,
            answer=answer_column,
            split=split_column,
            separator=caption_separator,
        )
        rows = read_folder(
            table,
            task,
            columns,
            allow_outside=allow_outside,
            report=lambda line, error: check.broken_rows.add(str(error)),
        )
        assert isinstance(rows.images, ImageFolder), "a table with images inside is checked as any other source"
        images = rows.images
        names, splits = _look_at_rows(check, rows)
        if listing is not None:
            _name_images_without_row(check, images, listing.images, names)
    if listing is not None:
        tables = other_tables(base)
        for line in listing.unread:
            (check.other_tables if line in tables else check.unread).add(line)
        for name in tables_beside(base, Path(check.table).name if check.table else ""):
            check.other_tables.add(name)
    check.images = len(names)
    sizes = _decode(check, images, names, splits, num_threads, progress)
    if rows is not None and task == "vcr":
        _look_at_boxes(check, rows, names, sizes)
    return check


def _look_at_rows(check: FolderCheck, rows: TableRows) -> tuple[pa.Array, list[tuple[str, ...]]]:
    """Fill in the results for the rows; returns the different images, and the splits of each."""
    usable = rows.usable()
    check.rows, check.splits_from = rows.table.num_rows + rows.num_broken, rows.splits_from
    missing = rows.without_split()
    for line in missing:
        check.broken_rows.add(f"{rows.origin}:{line}: {'; '.join(rows.no_split)}")
    if note := rows.unclear_split:
        check.broken_rows.add(f"{rows.origin}: {note}")
    for row in rows.table.filter(pa.array(~usable)).select(["line", "image"]).to_pylist():
        check.empty.add(f"{rows.origin}:{row['line']}: {row['image']}")
    if note := rows.joined_note:
        check.broken_rows.add(f"{rows.origin}: {note}")
    elif rows.task in ("captions", "vqa") and rows.columns.separator is None:
        noun = "captions" if rows.task == "captions" else "answers"
        for line in some_joined(rows.table.column(noun), noun):
            check.joined.add(f"{rows.origin}: {line}")
    counts = _read_texts(check, rows)
    _name_repeated(check, rows)
    _look_at_answers(check, rows)

    splits = rows.splits(SHARES)
    per_row = Counter(
        {each["values"]: each["counts"] for each in pc.value_counts(splits).to_pylist() if each["values"]}
    )
    for line in unusual_splits(per_row) if rows.splits_from == "column" else ():
        check.unusual.add(line)
    fields = [name for name in IMAGE_FIELDS if name in rows.table.column_names]
    encoded = pa.chunked_array(
        [chunk for name in fields for chunk in rows.table.column(name).chunks], pa.large_string()
    )
    images = encoded.combine_chunks().dictionary_encode()
    codes = images.indices.to_numpy(zero_copy_only=False)
    check.texts_per_image = dict(Counter(np.bincount(codes, np.tile(counts, len(fields))).astype(int).tolist()))

    split_names = list(per_row)
    numbers = pc.index_in(splits, pa.array(split_names, pa.large_string())).to_numpy()
    pairs = np.unique(np.stack([codes, np.tile(np.nan_to_num(numbers, nan=-1).astype(int), len(fields))]), axis=1)
    of_image: list[list[str]] = [[] for _ in range(len(images.dictionary))]
    for code, number in pairs.T.tolist():
        if number >= 0:
            of_image[code].append(split_names[number])
    per_image = Counter(name for each in of_image for name in each)
    by_hash = rows.splits_from == "hash"
    if not by_hash and split_names and not names_split("train", split_names):
        check.empty_splits.add(
            f"train: no row; name the split to train on with data.train.split=NAME (the table's: "
            f"{', '.join(split_names[:5])})"
        )
    expected = SPLITS if by_hash else split_names
    check.splits = {name: per_image[name] for name in expected}
    for name in expected:
        if not per_image[name] and rows.table.num_rows:
            check.empty_splits.add(
                f"{name}: a hash of the names puts no image into it; add a column split or set shares"
            )
    return images.dictionary, [tuple(sorted(each)) for each in of_image]


def _read_texts(check: FolderCheck, rows: TableRows) -> np.ndarray:
    """Fill in the results for the texts; returns the number of texts in each row."""
    counts, not_latin = [], 0
    for line, texts in _texts_of_rows(rows):
        counts.append(len(texts))
        for text in texts:
            if len(text.split()) > LONG:
                check.long.add(f"{rows.origin}:{line}: {len(text.split())} words: {text[:60]}...")
            if odd := oddity(text):
                check.odd.add(f"{rows.origin}:{line}: {odd}: {text[:60]!r}")
            not_latin += not is_latin(text)
    check.texts = sum(counts)
    check.not_latin = not_latin / max(1, check.texts)
    return np.array(counts, np.int64)


def _texts_of_rows(rows: TableRows) -> Iterator[tuple[int, list[str]]]:
    name = {"captions": "captions", "vqa": "question", "nlvr2": "sentence", "vcr": "content"}[rows.task]
    for batch in rows.table.select(["line", name]).to_batches(max_chunksize=10_000):
        for line, value in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist()):
            if rows.task == "vcr":
                yield line, [_question_of(value)] if value else []
            else:
                yield line, value if isinstance(value, list) else [value] if value else []


def _question_of(content: str) -> str:
    return " ".join(str(part) for part in choice_sample("", "", content).question)


def _name_repeated(check: FolderCheck, rows: TableRows) -> None:
    """Report rows that repeat an earlier row, and rows with the key of an earlier one."""
    if not rows.table.num_rows:
        return
    lines = rows.table.column("line").to_numpy()
    if rows.task != "captions":
        splits = rows.splits(SHARES).to_pylist() if rows.splits_from != "hash" else [None] * len(lines)
        keys = np.fromiter(map(hash, zip(_pieces(rows.table.column("key")), splits)), np.int64, len(lines))
        for row, first in _repeats(keys):
            key = rows.table.column("key")[row].as_py()
            check.broken_rows.add(
                f"{rows.origin}:{lines[row]}: duplicate id {key!r}, already used in line {lines[first]}; "
                "make the ids unique"
            )
    repeats = _repeats(_hashes_without(rows.table, ("line", "split", "key")))
    for row, first in repeats:
        check.repeated.add(f"{rows.origin}:{lines[row]}: repeats line {lines[first]}")
    if rows.task == "nlvr2":
        labels = rows.table.column("label").to_pylist()
        for row, first in _repeats(_hashes_without(rows.table, ("line", "split", "key", "label"))):
            if {labels[row], labels[first]} == {True, False}:
                check.contradicting.add(f"{rows.origin}:{lines[row]}: {labels[row]}, and line {lines[first]} otherwise")


def _hashes_without(table: pa.Table, left_out: Sequence[str]) -> np.ndarray:
    """int64 (rows,): a hash of each row without some columns."""
    content = table.drop_columns([name for name in left_out if name in table.column_names])
    hashes = (hash(repr(row)) for batch in content.to_batches(max_chunksize=10_000) for row in batch.to_pylist())
    return np.fromiter(hashes, np.int64, table.num_rows)


def _pieces(column: pa.ChunkedArray) -> Iterator[Any]:
    for chunk in column.chunks:
        for start in range(0, len(chunk), 10_000):
            yield from chunk.slice(start, 10_000).to_pylist()


def _repeats(hashes: np.ndarray) -> list[tuple[int, int]]:
    """(index, index of its first equal) of each value that an earlier one equals, in order."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    origin = first[inverse]
    return [(int(index), int(origin[index])) for index in np.flatnonzero(origin != np.arange(len(hashes)))]


def _look_at_answers(check: FolderCheck, rows: TableRows) -> None:
    if rows.task == "vqa":
        answers = pc.list_value_length(rows.table.column("answers")).to_numpy()
        check.unanswered = int((answers[rows.usable()] == 0).sum())
    elif rows.task == "nlvr2":
        check.unanswered = rows.table.column("label").null_count
    others = rows.columns_not_read
    check.not_read = (*rows.columns_passed_over, *others)
    if rows.answers_note and (others or rows.columns.answer):
        check.broken_rows.add(f"{rows.origin}: {rows.answers_note}")


def _name_images_without_row(check: FolderCheck, folder: ImageFolder, listed: list[str], named: pa.Array) -> None:
    inside = os.path.relpath(folder.root, check.path) if os.path.isdir(check.path) else "."
    if inside != ".":
        return
    known = {
        hash(name.casefold())
        for start in range(0, len(named), 10_000)
        for name in named[start : start + 10_000].to_pylist()
    }
    for name in listed:
        form = folder.name_of(name, "").casefold()
        if not {hash(form), hash(os.path.splitext(form)[0])} & known:  # a row may leave the ending out
            check.without_row.add(name)


def _decode(
    check: FolderCheck,
    folder: ImageFolder,
    names: pa.Array,
    splits: list[tuple[str, ...]] | None,
    num_threads: int,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Fill in the results for the images; returns their sizes, int64 (N, 2), 0 where an image cannot be read."""
    sizes = np.zeros((len(names), 2), np.int64)
    contents = np.zeros(len(names), np.int64)
    every = (name for start in range(0, len(names), _BLOCK) for name in names[start : start + _BLOCK].to_pylist())
    for index, look in enumerate(_looks(folder, every, num_threads)):
        if look.error:
            check.unreadable.add(look.error)
            contents[index] = -index - 1
        else:
            check.sizes[look.size] += 1
            sizes[index] = look.size
            contents[index] = look.content
        if look.other_form:
            check.other_form.add(look.other_form)
        if look.dark:
            check.dark.add(f"{look.name}: {look.dark}")
        if splits is not None and len(splits[index]) > 1:
            check.leaks.add(f"{look.name}: in {' and '.join(splits[index])}")
        if progress is not None:
            progress(index + 1, len(names))
    for index, first in _repeats(contents):
        name, other = names[index].as_py(), names[first].as_py()
        check.duplicates.add(f"{name} = {other}")
        if splits is not None and splits[index] != splits[first]:
            check.leaks.add(f"{name} = {other}: in {' and '.join(sorted({*splits[index], *splits[first]}))}")
    return sizes


def _look_at_boxes(check: FolderCheck, rows: TableRows, names: pa.Array, sizes: np.ndarray) -> None:
    """Report the boxes of objects that are outside of their image."""
    numbers = pc.index_in(rows.table.column("image"), names).to_pylist()
    for number, row in zip(numbers, rows.table.select(["line", "content"]).to_pylist()):
        size = tuple(sizes[number].tolist())
        if not row["content"] or not all(size):
            continue
        for box in choice_sample("", "", row["content"]).objects:
            if not is_inside(box, size):
                check.outside.add(f"{rows.origin}:{row['line']}: {place_of(box, size)}")


@dataclass(frozen=True)
class _Look:
    """The result of decoding one image: its size and a hash of its bytes, or an error."""

    name: str
    size: _Size = (0, 0)
    content: int = 0
    error: str = ""
    other_form: str = ""
    dark: str = ""


def _looks(folder: ImageFolder, names: Iterable[str], num_threads: int) -> Iterator[_Look]:
    """The result for each image, in order. A few hundred are decoded at a time, so that memory stays small."""

    def look(name: str) -> _Look:
        other_form = ""
        try:
            path = folder.path_of(name)
            if path != os.path.join(folder.root, name):
                other_form = f"{name} is {os.path.relpath(path, folder.root)}"
            if not os.path.lexists(path):
                raise SampleError(f"{path}: no such file; correct the row or add the image{folder.hint_for(name)}")
            image = open_image(path)
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).digest()
            content, dark = int.from_bytes(digest, "big") >> 1, odd_values(path, image)
            return _Look(name, image.size, content, other_form=other_form, dark=dark)
        except SampleError as error:
            return _Look(name, error=str(error), other_form=other_form)

    rest = iter(names)
    with ThreadPoolExecutor(num_threads) as pool:
        while block := list(islice(rest, _BLOCK)):
            yield from pool.map(look, block)
