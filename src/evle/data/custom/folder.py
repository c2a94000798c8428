"""The user's own folder: images and one table of captions, questions, pairs, or choices.

    folder/captions.jsonl    {"image": "images/1.jpg", "captions": ["a dog", "a brown dog"], "split": "train"}
    folder/questions.csv     image,question,answer
    folder/pairs.jsonl       {"left": "1.jpg", "right": "2.jpg", "sentence": "both show a dog", "label": true}
    folder/choices.jsonl     {"image": "1.jpg", "objects": [...], "question": "Why is [0] smiling?", ...}

Rows are kept as Arrow arrays, so that a million of them take some hundred megabytes; images stay undecoded until they
are asked for. A Parquet table may hold the images themselves.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evle.data.custom.choices import choice_sample
from evle.data.custom.columns import EMBEDDED_COLUMNS, TEXT_FIELD, Columns
from evle.data.custom.image_folder import ImageFolder
from evle.data.custom.table import IMAGE_FIELDS, SCHEMAS, TableRows, as_list, checked_shares, first_repeated, read_table
from evle.data.formats.delimited import delimited_form
from evle.data.formats.embedded import EmbeddedImages, embedded_column
from evle.data.formats.listing import list_folder
from evle.data.formats.table_files import Row, find_table, read_rows
from evle.data.samples import CaptionSample, ImageSource, MadeSamples, NLVR2Sample, Sample, VCRSample, VQASample
from evle.errors import ConfigError, DataError, nearest

logger = logging.getLogger(__name__)

NAMED = 1000
"""Rows without text that are named; the others are counted."""


class Folder(MadeSamples):
    """The samples of one table, read lazily. Returned by `folder`.

    `fingerprint` changes with the table's bytes and the options; `skipped` names the first rows that were left out for
    an empty text, `num_skipped` counts all of them; `refused` says what is unclear to a run that reads a split.
    """

    def __init__(self, rows: TableRows, table: pa.Table, fingerprint: str, facts: dict[str, Any]):
        self.fingerprint, self._facts, self._task, self._images = fingerprint, facts, rows.task, rows.images
        chosen = TableRows(rows.task, rows.origin, table, rows.images, rows.columns, rows.names)
        usable = chosen.usable()
        self.num_skipped = int((~usable).sum())
        self.refused = [f"{rows.origin}: {note}"] if (note := rows.unclear_split) else []
        self.skipped = [_skipped_line(rows, row) for row in table.filter(pa.array(~usable)).slice(0, NAMED).to_pylist()]
        table = table.filter(pa.array(usable)).drop_columns(["line", "split"])
        self._columns = {name: table.column(name).combine_chunks() for name in table.column_names}
        if self._task == "captions":  # rows of one image become one sample
            codes = self._columns["image"].dictionary_encode().indices.to_numpy(zero_copy_only=False)
            self._rows = np.argsort(codes, kind="stable").astype(np.int32)
            self._starts = np.concatenate([[0], np.cumsum(np.bincount(codes))]) if len(codes) else np.zeros(1, np.int64)

    def __len__(self) -> int:
        return len(self._starts) - 1 if self._task == "captions" else len(self._columns["image"])

    def at(self, index: int) -> Any:
        return _SAMPLES[self._task](self, index)

    def describe(self) -> dict[str, Any]:
        """Plain facts for a report."""
        facts: dict[str, Any] = {**self._facts, "samples": len(self)}
        if self._task == "captions":
            facts["captions"] = len(self._columns["captions"].values)
        if self.num_skipped:
            facts["rows without text"] = self.num_skipped
        return facts

    def texts(self, index: int) -> list[str]:
        """The captions and tags, the question, or the sentence of a sample; its image is not looked at."""
        if self._task == "captions":
            rows = self._rows[self._starts[index] : self._starts[index + 1]].tolist()
            return [
                text
                for column in ("captions", "tags")
                for text in dict.fromkeys(each for row in rows for each in self._value(column, row))
            ]
        return [self._value(TEXT_FIELD[self._task], index)]

    def image_files(self) -> pa.Array:
        """The files of all images, by their names alone; empty where the images are inside a table."""
        kind = pa.large_string()
        if not isinstance(self._images, ImageFolder):
            return pa.array([], kind)
        root = pa.scalar(os.path.join(os.path.realpath(self._images.root), ""), kind)
        columns = [self._columns[name].unique() for name in IMAGE_FIELDS if name in self._columns]
        return pc.binary_join_element_wise(root, pa.concat_arrays(columns), pa.scalar("", kind))

    def _image(self, name: str) -> ImageSource:
        if isinstance(self._images, ImageFolder):
            return self._images.path_of(name)
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

    def _pair_sample(self, row: int) -> NLVR2Sample:
        left, right = (self._image(self._value(name, row)) for name in ("image", "second_image"))
        return NLVR2Sample(
            key=self._value("key", row),
            images=(left, right),
            sentence=self._value("sentence", row),
            label=self._value("label", row),
            set_id=self._value("set_id", row),
        )

    def _choice_sample(self, row: int) -> VCRSample:
        return choice_sample(
            self._value("key", row), self._image(self._value("image", row)), self._value("content", row)
        )


_SAMPLES: dict[str, Callable[[Folder, int], Sample]] = {
    "captions": Folder._caption_sample,
    "vqa": Folder._vqa_sample,
    "nlvr2": Folder._pair_sample,
    "vcr": Folder._choice_sample,
}


def _skipped_line(rows: TableRows, row: Row) -> str:
    noun = {"captions": "caption", "vqa": "question", "nlvr2": "sentence", "vcr": "question"}[rows.task]
    return f"{rows.origin}:{row['line']}: no {noun} for {row['image']}"


def folder(
    path: str | os.PathLike[str],
    task: str = "captions",
    split: str | Sequence[str] | None = None,
    *,
    images: str | None = None,
    image_column: str | None = None,
    caption_column: str | Sequence[str] | None = None,
    tags_column: str | Sequence[str] | None = None,
    match_column: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    split_column: str | None = "split",
    caption_separator: str | None = None,
    shares: Sequence[float] = (0.8, 0.1, 0.1),
    captions_from: str | None = None,
    allow_outside: bool = False,
) -> Folder:
    """The samples of a folder, or of a table file: "captions" yields CaptionSample, "vqa" VQASample, "nlvr2"
    NLVR2Sample, "vcr" VCRSample.

    Columns are found by their usual names (`evle.data.custom.columns`), in any case, unless they are named here; of
    nlvr2, `caption_column` names the sentence and `answer_column` the label. `caption_column` and `tags_column` may
    name several: their texts follow one another. `caption_separator` is what stands between several captions in one
    text, such as "|"; without it, a table in which most captions hold one is refused. Rows of one image become one
    CaptionSample, however its name is spelled. `match_id` is the first caption, or the `match_column`, in folded case.
    Image names are relative to the table's folder, or to `images`.

    `split`: one split, several, or None for all rows. A table without the column `split_column` (or with
    `split_column=None`) is divided by a hash of the image's name into train, val, test of `shares`: all rows of an
    image fall into the same split, on every machine; so do all pairs that share images. `captions_from="filename"` or
    `"folder"` makes captions of the names of the images, or of their subfolders, without a table.

    Rows without any caption (question, sentence) are left out and named in `.skipped`. Raises DataError, with file and
    line, for a broken row, a missing column, rows without a split where others name one, an empty split, an image
    outside of the folder (unless `allow_outside`); ConfigError for options that cannot work.

    A Parquet table may hold the images themselves, as bytes or as Hugging Face's structs of bytes and path, in the
    `image_column` or the first of `EMBEDDED_COLUMNS`: they are read when asked for, and each row is an image.
    """
    columns = Columns(
        image=image_column,
        caption=caption_column,
        tags=tags_column,
        match=match_column,
        question=question_column,
        answer=answer_column,
        split=split_column,
        separator=caption_separator,
    )
    checked_shares(shares)
    rows = read_folder(path, task, columns, images, captions_from, allow_outside)
    return samples_of(rows, split, shares, (captions_from,))


def read_folder(
    path: str | os.PathLike[str],
    task: str,
    columns: Columns,
    images: str | None = None,
    captions_from: str | None = None,
    allow_outside: bool = False,
    report: Callable[[int, DataError], None] | None = None,
) -> TableRows:
    """All rows of a folder's table. `report` gets broken rows; without it, the first one is raised."""
    base = Path(path)
    digest = hashlib.blake2b(digest_size=8)
    rows: Iterable[tuple[int, Row | DataError]]
    source: ImageFolder | EmbeddedImages = ImageFolder(base, allow_outside)
    if captions_from is not None:
        if task != "captions":
            raise ConfigError("captions_from makes captions, not questions; give a table with a question column")
        names, origin = _rows_from_names(base, captions_from), base
        rows = names
        digest.update(repr(names).encode("utf-8", "surrogatepass"))
    else:
        origin = find_table(base, known_task(task))
        held = embedded_column(origin, columns.image, EMBEDDED_COLUMNS) if origin.suffix.lower() == ".parquet" else None
        if held is not None and task in ("captions", "vqa", "vcr"):
            source, columns = EmbeddedImages([origin], held), columns._replace(image=held)
            rows = source.rows(columns.wanted)
        else:
            source = ImageFolder(images if images is not None else origin.parent, allow_outside)
            rows = read_rows(origin, columns.wanted)
            with open(origin, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    result = read_table(rows, task, columns, source, str(origin), report=report or _raise)
    result.digest = digest
    return result


def _raise(line: int, error: DataError) -> None:
    raise error


def samples_of(
    rows: TableRows, split: str | Sequence[str] | None, shares: Sequence[float], options: tuple[Any, ...] = ()
) -> Folder:
    """The samples of the rows of one or several splits (all of them for None). Raises DataError where there are none.

    `options` are what the fingerprint depends on beside the columns.
    """
    if note := rows.joined_note:
        raise DataError(f"{rows.origin}: {note}")
    digest, wanted = rows.digest.copy(), as_list(split)
    table = rows.rows_of(split, shares)
    named = {name: value for name, value in rows.columns._asdict().items() if name not in ("split", "separator")}
    options += () if rows.columns.separator is None else (rows.columns.separator,)
    digest.update(repr((rows.task, wanted, named, rows.columns.split, tuple(shares), *options)).encode())
    if isinstance(rows.images, EmbeddedImages):  # hashing gigabytes of images would take minutes
        _hash_rows(digest, table)
    samples = Folder(rows, table, digest.hexdigest(), _facts(rows))
    if not len(samples):
        about = f"; the first: {samples.skipped[0]}" if samples.skipped else ""
        raise DataError(f"{rows.origin}: no usable rows{f' in split {split!r}' if wanted else ''}{about}")
    if rows.task != "captions" and (twice := first_repeated(table.column("key"))) is not None:
        raise DataError(
            f"{rows.origin}: the id {twice!r} is duplicated; give each row its own, or leave the column of ids out"
        )
    return samples


def _hash_rows(digest: "hashlib.blake2b", table: pa.Table) -> None:
    for batch in table.drop_columns(["line", "split"]).to_batches():
        for row in batch.to_pylist():
            digest.update(repr(row).encode("utf-8", "surrogatepass"))


def _facts(rows: TableRows) -> dict[str, Any]:
    facts = {"table": rows.origin}
    path = Path(rows.origin)
    if path.suffix.lower() in (".csv", ".tsv") and (form := delimited_form(path).description):
        facts["read as"] = form
    if note := rows.answers_note:
        facts["answers"] = note
    return facts


def known_task(task: str) -> str:
    """`task`, if a folder's table can be read for it. Raises ConfigError."""
    if task not in SCHEMAS:
        raise ConfigError(f"task={task!r} cannot be read from a folder's table; {nearest(task, SCHEMAS)}")
    return task


def holds_images(path: str | os.PathLike[str], task: str = "captions") -> bool:
    """Whether the table of a folder is Parquet with the images inside. Raises DataError where there is no table."""
    table = find_table(Path(path), known_task(task))
    return table.suffix.lower() == ".parquet" and embedded_column(table, None, EMBEDDED_COLUMNS) is not None


def _rows_from_names(root: Path, captions_from: str) -> list[tuple[int, Row | DataError]]:
    if captions_from not in ("filename", "folder"):
        raise ConfigError(f"captions_from={captions_from!r}: {nearest(captions_from, ['filename', 'folder'])}")
    rows: list[tuple[int, Row | DataError]] = []
    listing = list_folder(root)
    for line in listing.unread:
        logger.warning("%s: not read: %s", root, line)
    for number, name in enumerate(listing.images, 1):
        inside = PurePosixPath(name)
        words = inside.stem if captions_from == "filename" else inside.parent.name
        rows.append((number, {"image": name, "captions": [words.replace("_", " ").replace("-", " ").strip()]}))
    if not rows:
        raise DataError(f"{root}: no images there")
    return rows
