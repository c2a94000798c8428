"""The user's own folder: images and one table of captions, or of questions and answers.

    folder/captions.jsonl     {"image": "images/1.jpg", "captions": ["a dog", "a brown dog"], "keywords": ["dog"],
    "split": "train"} folder/questions.csv      image,question,answer

Rows are kept as Arrow arrays, so a million of them take some hundred megabytes; images stay undecoded until asked
for. A Parquet table may hold the images themselves.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evle.data.formats.embedded import EmbeddedImages, embedded_column
from evle.data.formats.table_files import Row, find_table, list_images, read_rows
from evle.data.samples import SPLITS, CaptionSample, ImageSource, VQASample, hashed_split
from evle.errors import ConfigError, DataError, nearest

IMAGE_COLUMNS = ("image", "file_name", "filepath", "path")
EMBEDDED_COLUMNS = ("image", "jpg", "img", "picture")
CAPTION_COLUMNS = ("captions", "caption", "text", "title")
TAG_COLUMNS = ("keywords", "tags")
QUESTION_COLUMNS = ("question",)
ANSWER_COLUMNS = ("answers", "answer")
ID_COLUMNS = ("question_id", "id")

_CHUNK = 20_000  # rows held as Python objects before they become an Arrow batch

_strings = pa.large_list(pa.large_string())
_SCHEMAS = {
    "captions": pa.schema(
        [("image", pa.large_string()), ("captions", _strings), ("tags", _strings), ("match", pa.large_string())]
    ),
    "vqa": pa.schema(
        [
            ("image", pa.large_string()),
            ("key", pa.large_string()),
            ("question", pa.large_string()),
            ("answers", _strings),
            ("answer_type", pa.large_string()),
            ("question_type", pa.large_string()),
        ]
    ),
}


class Folder(Sequence):
    """The samples of one table, read lazily. Made by `folder`.

    `fingerprint` changes with the table's bytes and the options; `skipped` names each row left out for an empty text.
    """

    def __init__(
        self,
        task: str,
        table: pa.Table,
        pictures: Path | EmbeddedImages,
        fingerprint: str,
        skipped: list[str],
        origin: str,
    ):
        self.fingerprint = fingerprint
        self.skipped = skipped
        self._task, self._images, self._origin = task, pictures, origin
        self._columns = {name: table.column(name).combine_chunks() for name in table.column_names}
        if task == "captions":  # rows of one image become one sample
            codes = table.column("image").combine_chunks().dictionary_encode().indices.to_numpy()
            self._rows = np.argsort(codes, kind="stable").astype(np.int32)
            self._starts = np.concatenate([[0], np.cumsum(np.bincount(codes))]) if len(codes) else np.zeros(1, np.int64)

    def __len__(self) -> int:
        return len(self._starts) - 1 if self._task == "captions" else len(self._columns["image"])

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index = int(index) % len(self)
        return self._caption_sample(index) if self._task == "captions" else self._vqa_sample(index)

    def describe(self) -> dict[str, Any]:
        """Plain facts for a report."""
        facts: dict[str, Any] = {"table": self._origin, "samples": len(self)}
        if self._task == "captions":
            facts["captions"] = len(self._columns["captions"].values)
        if self.skipped:
            facts["rows without text"] = len(self.skipped)
        return facts

    def _image(self, name: str) -> ImageSource:
        if isinstance(self._images, Path):
            return str(self._images / name)
        return self._images[int(name.rpartition("#")[2])]

    def _value(self, column: str, row: int) -> Any:
        return self._columns[column][row].as_py()

    def _caption_sample(self, index: int) -> CaptionSample:
        rows = [int(row) for row in self._rows[self._starts[index] : self._starts[index + 1]]]
        image = self._value("image", rows[0])
        captions = tuple(dict.fromkeys(text for row in rows for text in self._value("captions", row)))
        tags = tuple(dict.fromkeys(tag for row in rows for tag in self._value("tags", row)))
        match = self._value("match", rows[0]) or captions[0]
        return CaptionSample(image, self._image(image), captions, tags=tags, match_id=match.casefold())

    def _vqa_sample(self, row: int) -> VQASample:
        return VQASample(
            key=self._value("key", row),
            image=self._image(self._value("image", row)),
            question=self._value("question", row),
            answers=tuple(self._value("answers", row)),
            answer_type=self._value("answer_type", row),
            question_type=self._value("question_type", row),
        )


def folder(
    path: str | os.PathLike,
    task: str = "captions",
    split: str | Sequence[str] | None = None,
    *,
    images: str | None = None,
    image_column: str | None = None,
    caption_column: str | Sequence[str] | None = None,
    tags_column: str | None = None,
    match_column: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    split_column: str | None = "split",
    shares: Sequence[float] = (0.8, 0.1, 0.1),
    captions_from: str | None = None,
    allow_outside: bool = False,
) -> Folder:
    """The samples of a folder (or of a table file named directly): "captions" yields CaptionSample, "vqa" VQASample.

    Columns are found by their usual names (the `*_COLUMNS` above) unless named. `caption_column` may name several:
    their captions follow one another. Rows of one image become one CaptionSample. `match_id` is the first caption,
    or the `match_column`, in folded case. Images lie relative to the table's folder, or to `images`.

    `split`: one split, several, or None for all rows. A table without the column `split_column` (or
    `split_column=None`) is divided by a hash of the image's name into train, val, test of `shares`: every row of a
    image falls into the same split, on every machine. `captions_from="filename"` or `"folder"` makes captions of
    the images' names, or of their subfolders', without a table.

    Rows without any caption (or question) are left out and named in `.skipped`. Raises DataError, with file and line,
    for a broken row, a missing column, an image outside of the folder (unless `allow_outside`); ConfigError for
    options that cannot work.

    A Parquet table may hold the images themselves, as bytes or as Hugging Face's structs of bytes and path, in the
    `image_column` or the first of `EMBEDDED_COLUMNS`: they are read when asked for, and each row is an image.
    """
    base = Path(path)
    columns = Columns(
        image=image_column,
        caption=caption_column,
        tags=tags_column,
        match=match_column,
        question=question_column,
        answer=answer_column,
        split=split_column,
    )
    rows: Iterable[tuple[int, Row | DataError]]
    pictures: Path | EmbeddedImages = base
    digest = hashlib.blake2b(digest_size=8)
    if captions_from is not None:
        if task != "captions":
            raise ConfigError("captions_from makes captions, not questions; give a table with a question column")
        rows, origin = _rows_from_names(base, captions_from), base
        digest.update(repr(rows).encode())
    else:
        origin = find_table(base, _known_task(task))
        held = embedded_column(origin, image_column, EMBEDDED_COLUMNS) if origin.suffix.lower() == ".parquet" else None
        if held is not None:
            pictures, columns = EmbeddedImages([origin], held), columns._replace(image=held)
            rows = pictures.rows()
        else:
            pictures = Path(images) if images is not None else origin.parent
            rows = read_rows(origin)
            with open(origin, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    named = {name: value for name, value in columns._asdict().items() if name != "split"}
    digest.update(repr((task, _as_list(split), named, split_column, tuple(shares), captions_from)).encode())
    inside = pictures if isinstance(pictures, Path) and not allow_outside else None
    return collect(rows, task, split, columns, shares, pictures, inside, str(origin), digest)


class Columns(NamedTuple):
    """The columns of a table by what they hold; None: found by their usual names."""

    image: str | None = None
    caption: str | Sequence[str] | None = None
    tags: str | None = None
    match: str | None = None
    question: str | None = None
    answer: str | None = None
    split: str | None = "split"


def _known_task(task: str) -> str:
    if task not in _SCHEMAS:
        raise ConfigError(f"task={task!r} cannot be read from a folder's table; {nearest(task, _SCHEMAS)}")
    return task


def _as_list(split: str | Sequence[str] | None) -> list[str] | None:
    return [split] if isinstance(split, str) else list(split) if split is not None else None


def collect(
    rows: Iterable[tuple[int, Row | DataError]],
    task: str,
    split: str | Sequence[str] | None,
    columns: Columns,
    shares: Sequence[float],
    pictures: Path | EmbeddedImages,
    inside: Path | None,
    origin: str,
    digest: "hashlib.blake2b",
) -> Folder:
    """The samples that rows make; their images lie in a folder, or inside the table.

    With `inside`, an image outside of that folder is refused. `digest` has taken in what the rows come from and the
    options.
    """
    _known_task(task)
    wanted = _as_list(split)
    if len(shares) != len(SPLITS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"shares={list(shares)} must be three shares (train, val, test) that sum to 1")
    embedded = isinstance(pictures, EmbeddedImages)

    parse = _caption_row if task == "captions" else _question_row
    splits = _SplitFilter(wanted, columns.split, shares)
    skipped: list[str] = []
    batches: list[pa.RecordBatch] = []
    kept: list[Row] = []
    for line, row in rows:
        where = f"{origin}:{line}"
        if isinstance(row, DataError):
            raise row
        image = image_of(row, columns.image, where, inside)
        if not splits.keeps(row, (image.rpartition("#")[0] or image) if embedded else image, where):
            continue
        parsed = parse(row, image, columns, where)
        if parsed is None:
            skipped.append(f"{where}: no {'caption' if task == 'captions' else 'question'} for {image}")
            continue
        if embedded:  # the files themselves are not hashed: gigabytes of images would take minutes
            digest.update(repr(parsed).encode("utf-8", "surrogatepass"))
        kept.append(parsed)
        if len(kept) == _CHUNK:
            batches.append(pa.RecordBatch.from_pylist(kept, schema=_SCHEMAS[task]))
            kept = []
    batches.append(pa.RecordBatch.from_pylist(kept, schema=_SCHEMAS[task]))
    splits.refuse_unknown(origin)
    table = pa.Table.from_batches(batches, schema=_SCHEMAS[task])
    if table.num_rows == 0:
        raise DataError(
            f"{origin}: no usable rows{f' in split {split!r}' if wanted else ''}; `evle data check` says why"
        )
    if task == "vqa" and (twice := first_repeated(table.column("key"))) is not None:
        raise DataError(
            f"{origin}: the id {twice!r} stands twice; every question needs its own, or none: mend the column "
            f"{' or '.join(ID_COLUMNS)}, or leave it out"
        )
    return Folder(task, table, pictures, digest.hexdigest(), skipped, origin)


def first_repeated(column: pa.ChunkedArray) -> str | None:
    """The first value that stands more than once in a column; None where all are different."""
    counts = pc.value_counts(column)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    return repeated[0]["values"].as_py() if len(repeated) else None


def holds_images(path: str | os.PathLike, task: str = "captions") -> bool:
    """Whether the table of a folder is Parquet with the images inside. Raises DataError where there is no table."""
    table = find_table(Path(path), _known_task(task))
    return table.suffix.lower() == ".parquet" and embedded_column(table, None, EMBEDDED_COLUMNS) is not None


def _rows_from_names(root: Path, captions_from: str) -> list[tuple[int, Row | DataError]]:
    if captions_from not in ("filename", "folder"):
        raise ConfigError(f"captions_from={captions_from!r}: {nearest(captions_from, ['filename', 'folder'])}")
    rows: list[tuple[int, Row | DataError]] = []
    for number, name in enumerate(list_images(root), 1):
        inside = PurePosixPath(name)
        words = inside.stem if captions_from == "filename" else inside.parent.name
        rows.append((number, {"image": name, "captions": [words.replace("_", " ").replace("-", " ").strip()]}))
    if not rows:
        raise DataError(f"{root}: no images there")
    return rows


def _column(row: Row, named: str | None, usual: Sequence[str], where: str, what: str = "") -> Any:
    """A row's value in the column `named`, else in the first of the `usual` ones that it has.

    None where there is none; where it is needed, `what` names the option in the error.
    """
    for name in (named,) if named is not None else usual:
        if name in row:
            return row[name]
    if what:
        sought = repr(named) if named is not None else " or ".join(map(repr, usual))
        known = nearest(named or usual[0], map(str, row)) if row else "the row is empty"
        raise DataError(f"{where}: no column {sought}; {known}, and set {what}_column if it has another name")
    return None


def texts_of(value: Any, separators: str = "") -> list[str]:
    """The texts of a cell, empty ones left out.

    A list, a JSON list written as text, one text, or (with `separators`) several in one.

    >>> texts_of('["a dog", "a brown dog"]'), texts_of("dog; animal", ";,"), texts_of(None)
    (['a dog', 'a brown dog'], ['dog', 'animal'], [])
    """
    if value is None:
        return []
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, int | float):
        if value != value:  # NaN, which pandas writes for nothing
            return []
        return [f"{value:g}" if isinstance(value, float) else str(value)]
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                return texts_of(json.loads(value), separators)
            except json.JSONDecodeError:
                pass  # a text that only begins with a bracket
        used = next((mark for mark in separators if mark in value), None)
        return [text.strip() for text in (value.split(used) if used else [value]) if text.strip()]
    if isinstance(value, list | tuple):
        return [text for each in value for text in texts_of(each)]
    raise TypeError(f"{type(value).__name__} is not text")


def _texts(value: Any, where: str, what: str, separators: str = "") -> list[str]:
    try:
        return texts_of(value, separators)
    except TypeError as error:
        raise DataError(f"{where}: {what}: {error}; write a text or a list of texts") from None


def image_of(row: Row, image_column: str | None, where: str, root: Path | None) -> str:
    """The image a row names, relative to the table's folder; with `root`, refused when it lies outside of it."""
    image = _column(row, image_column, IMAGE_COLUMNS, where, "image")
    if not isinstance(image, str) or not image.strip():
        raise DataError(f"{where}: the image must be a file name, not {str(image)[:40]!r}")
    if root is not None and (".." in image or os.path.isabs(image)):
        inside = os.path.normpath(os.path.join(os.path.abspath(root), image))
        if os.path.commonpath([inside, os.path.abspath(root)]) != os.path.abspath(root):
            raise DataError(f"{where}: {image} lies outside of {root}; move it there or set allow_outside=true")
    return image


def captions_of(row: Row, caption_column: str | Sequence[str] | None, where: str) -> list[str]:
    """A row's captions, empty ones left out."""
    names = [caption_column] if caption_column is None or isinstance(caption_column, str) else caption_column
    found = [_texts(_column(row, name, CAPTION_COLUMNS, where, "caption"), where, "caption") for name in names]
    return list(dict.fromkeys(text for texts in found for text in texts))


def question_of(row: Row, question_column: str | None, where: str) -> list[str]:
    """A row's question, or nothing where it is empty."""
    return _texts(_column(row, question_column, QUESTION_COLUMNS, where, "question"), where, "question")


def answers_of(row: Row, answer_column: str | None, where: str) -> list[str]:
    """A row's answers, none where nobody has answered."""
    return _texts(_column(row, answer_column, ANSWER_COLUMNS, where), where, "answer")


def key_of(row: Row, where: str) -> str:
    """What a row calls its question, "" where it has no name for it."""
    key = _column(row, None, ID_COLUMNS, where)
    return "" if key is None else str(key)


def _caption_row(row: Row, image: str, columns: Columns, where: str) -> Row | None:
    captions = captions_of(row, columns.caption, where)
    if not captions:
        return None
    tags = _texts(_column(row, columns.tags, TAG_COLUMNS, where), where, "tags", ";,")
    match = _column(row, columns.match, (), where, "match" if columns.match else "")
    return {"image": image, "captions": captions, "tags": tags, "match": "" if match is None else str(match)}


def _question_row(row: Row, image: str, columns: Columns, where: str) -> Row | None:
    question = question_of(row, columns.question, where)
    if not question:
        return None
    return {
        "image": image,
        "key": key_of(row, where) or f"{image}#{where.rpartition(':')[2]}",
        "question": question[0],
        "answers": answers_of(row, columns.answer, where),
        "answer_type": str(row.get("answer_type") or ""),
        "question_type": str(row.get("question_type") or ""),
    }


class _SplitFilter:
    """Which rows belong to the wanted splits; remembers the splits seen, for the error when one does not exist."""

    def __init__(self, wanted: list[str] | None, column: str | None, shares: Sequence[float]):
        self.wanted, self.column, self.shares = wanted, column, shares
        self.seen: set[str] = set()
        self.named: bool | None = None

    def keeps(self, row: Row, image: str, where: str) -> bool:
        if self.wanted is None:
            return True
        if self.named is None:
            self.named = self.column is not None and self.column in row
        if self.named:
            if self.column not in row:
                raise DataError(f"{where}: no column {self.column!r}, which the rows above have")
            split = str(row[self.column]).strip()
        else:
            split = hashed_split(image, self.shares)
        self.seen.add(split)
        return split in self.wanted

    def refuse_unknown(self, origin: str) -> None:
        known = self.seen if self.named else set(SPLITS)
        for split in self.wanted or ():
            if split not in known:
                raise DataError(f"{origin}: no split {split!r}; {nearest(split, known)}")
