"""Images inside Arrow and Parquet tables, read one at a time (Apache Arrow IPC stream and Parquet formats).

A column of them holds bytes, or, as the Hugging Face `datasets` library writes it, structs of `bytes` and `path`. An
Arrow file is memory-mapped: an image costs what it weighs. Of a Parquet file a whole row group is decoded for each
image, and the last few groups are kept.
"""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evle.data.formats.parquet_rows import (
    bounded_rows,
    class_names,
    named_classes,
    parquet_batches,
    refuse_large_groups,
    refuse_repeated_columns,
)
from evle.errors import DataError, SampleError, in_one_line

MAX_GROUP_BYTES = 1 << 30
"""A Parquet file with a larger row group of images is refused: each data worker would hold several in memory."""

_GROUPS = 4  # row groups kept by each process
_CHUNK = 10_000  # rows read at once
_IMAGES = 64  # images read at once


@dataclass(frozen=True, slots=True)
class Cell:
    """One image of a table, read when asked for. `stamp` tells the file from another of its name."""

    file: str
    column: str
    row: int
    stamp: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.file}, row {self.row + 1}"

    def read(self) -> bytes:
        """The encoded image. Raises SampleError where there is none."""
        try:
            column, row = _column_with(self.file, self.stamp, self.column, self.row)
            value = column[row].as_py()
        except (pa.ArrowException, OSError, IndexError) as error:
            raise SampleError(f"{self}: cannot be read ({' '.join(str(error).split())})") from None
        content = value.get("bytes") if isinstance(value, dict) else value
        if not content:
            only = f", only the path {value['path']}" if isinstance(value, dict) and value.get("path") else ""
            raise SampleError(f"{self}: no image inside the table{only}; save_to_disk embeds images")
        return content


class EmbeddedImages(Sequence[Any]):
    """The images in the column `column` of Arrow or Parquet files, row after row over all the files.

    Raises DataError for a file that cannot be read, or whose row groups are too large.
    """

    def __init__(self, files: Sequence[str | os.PathLike[str]], column: str):
        self.files, self.column = [os.fspath(file) for file in files], column
        self._stamps = [_stamp(file) for file in self.files]
        self._ends = list(accumulate(map(_num_rows, self.files)))
        for file in self.files:
            _refuse_large_groups(file, column)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: Any) -> Any:
        number = bisect_right(self._ends, row)
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        first = self._ends[number - 1] if number else 0
        return Cell(self.files[number], self.column, row - first, self._stamps[number])

    def digests(self) -> list[str]:
        """A hash of each image's bytes, "" where there are none. All images are read."""
        found: list[str] = []
        for file in self.files:
            first = len(found)
            try:
                for batch in _batches(file, self.column):
                    for value in batch.to_pylist():
                        content = value.get("bytes") if isinstance(value, dict) else value
                        found.append(hashlib.blake2b(content, digest_size=12).hexdigest() if content else "")
            except (pa.ArrowException, OSError) as error:
                raise _damaged(file, len(found) - first, error) from None
        return found

    def rows(
        self, wanted: Callable[[str], bool] = lambda name: True
    ) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
        """(number from 1, row) of every row, with a text "PATH#NUMBER" instead of its image.

        No image is read; other columns of bytes are left out, and those that are not `wanted` are None.
        """
        before = 0
        for file, end in zip(self.files, self._ends):
            schema = _schema(file)
            blank: dict[str, Any] = dict.fromkeys(each.name for each in schema if not _holds_bytes(each.type))
            classes = class_names(schema)
            number = 0
            for row in _read_rows(file, self.column, wanted):
                number += 1
                if isinstance(row, DataError):
                    yield before + number, row
                    continue
                held = row.get(self.column)
                path = (held.get("path") if isinstance(held, dict) else None) or ""
                named = named_classes(row, classes)
                yield before + number, {**blank, **named, self.column: f"{path}#{before + number - 1}"}
            before = end


def _read_rows(file: str, column: str, wanted: Callable[[str], bool]) -> Iterator[dict[str, Any] | DataError]:
    """The rows of a file without its images. Raises DataError where the file is damaged."""
    number = 0
    try:
        for batch in _light_batches(file, column, wanted):
            for row in bounded_rows(batch, file, number):
                number += 1
                yield row
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, number, error) from None


def _damaged(file: str, number: int, error: Exception) -> DataError:
    return DataError(f"{file}: cannot be read after row {number:,} ({in_one_line(error)}); write or fetch it again")


def embedded_column(file: str | os.PathLike[str], named: str | None, usual: Sequence[str]) -> str | None:
    """The column of a table that holds images: `named`, or the first of the `usual` names; None where there is none.

    Raises DataError for a file that cannot be read.
    """
    schema = _schema(os.fspath(file))
    holding = [each.name for each in schema if _holds_bytes(each.type)]
    if named is not None:
        return named if named in holding else None
    return next((name for form in usual for name in holding if name.strip().casefold() == form), None)


def table_columns(file: str | os.PathLike[str]) -> list[str]:
    """The names of the columns of an Arrow or Parquet file."""
    return list(_schema(os.fspath(file)).names)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _stamp(file: str) -> str:
    state = os.stat(file)
    return f"{state.st_size}-{state.st_mtime_ns}"


def _is_parquet(file: str) -> bool:
    return file.lower().endswith(".parquet")


def _schema(file: str) -> pa.Schema:
    try:
        return pq.read_schema(file) if _is_parquet(file) else _arrow_table(file, _stamp(file)).schema
    except (pa.ArrowException, OSError) as error:
        form = "Parquet" if _is_parquet(file) else "Arrow"
        raise DataError(f"{file}: not a readable {form} file ({in_one_line(error)}); write it again") from None


def _num_rows(file: str) -> int:
    return pq.read_metadata(file).num_rows if _is_parquet(file) else _arrow_table(file, _stamp(file)).num_rows


def _refuse_large_groups(file: str, column: str) -> None:
    if not _is_parquet(file):
        return
    metadata = pq.read_metadata(file)
    for group in range(metadata.num_row_groups):
        parts = [metadata.row_group(group).column(index) for index in range(metadata.num_columns)]
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)
        if size > MAX_GROUP_BYTES:
            raise DataError(
                f"{file}: a row group holds {size >> 20:,} MB of images, and reading one image means reading "
                "all of it; write the file again with row_group_size=100"
            )


def _light_batches(file: str, column: str, wanted: Callable[[str], bool]) -> Iterator[pa.RecordBatch]:
    """The wanted columns of the file's rows without bytes; of `column` the path alone."""
    schema = _schema(file)
    refuse_repeated_columns(file, schema.names)
    names = [each.name for each in schema if not _holds_bytes(each.type) and wanted(each.name)]
    inside = schema.field(column).type
    has_path = pa.types.is_struct(inside) and any(
        inside.field(index).name == "path" for index in range(inside.num_fields)
    )
    if _is_parquet(file):
        refuse_large_groups(file, names)
        yield from parquet_batches(file, [*names, *([f"{column}.path"] if has_path else [])])
        return
    for batch in _arrow_table(file, _stamp(file)).to_batches(max_chunksize=_CHUNK):
        light = batch.select(names)
        if has_path:
            light = light.append_column(
                column, pa.StructArray.from_arrays([batch.column(column).field("path")], names=["path"])
            )
        yield light


def _batches(file: str, column: str) -> Iterator[pa.Array]:
    """A column in parts of a few rows."""
    if _is_parquet(file):
        with pq.ParquetFile(file) as parquet:
            for group in range(parquet.num_row_groups):  # of a damaged group, the groups before it are read
                for batch in parquet.iter_batches(_IMAGES, row_groups=[group], columns=[column]):
                    yield batch.column(0)
        return
    for batch in _arrow_table(file, _stamp(file)).select([column]).to_batches(max_chunksize=_IMAGES):
        yield batch.column(0)


def _column_with(file: str, stamp: str, column: str, row: int) -> tuple[pa.ChunkedArray, int]:
    """An array that holds the cell, and the cell's index in it."""
    if not _is_parquet(file):
        return _arrow_table(file, stamp).column(column), row
    ends = _group_ends(file, stamp)
    group = bisect_right(ends, row)
    return _row_group(file, stamp, group, column), row - (ends[group - 1] if group else 0)


@lru_cache(64)
def _arrow_table(file: str, stamp: str) -> pa.Table:
    """A memory-mapped Arrow file: the stream that `datasets` writes, or the random-access form."""
    source = pa.memory_map(file)
    try:
        return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_file(source).read_all()


@lru_cache(256)
def _group_ends(file: str, stamp: str) -> list[int]:
    metadata = pq.read_metadata(file)
    return list(accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))


@lru_cache(_GROUPS)
def _row_group(file: str, stamp: str, group: int, column: str) -> pa.ChunkedArray:
    return pq.ParquetFile(file).read_row_group(group, columns=[column]).column(column)
