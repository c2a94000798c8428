"""The rows of a Parquet table in bounded memory: texts stay dictionaries until their rows are asked for.

A file of a few kilobytes can stand for gigabytes, as a text that a million rows share is stored once.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evle.errors import DataError, in_one_line

MAX_CHUNK_BYTES = 1 << 30
"""A table with more bytes of one column in one row group is refused."""
MAX_GROUP_ROWS = 20_000_000
"""So is one with more rows in one row group."""
MAX_BLOCK_BYTES = 32 << 20
"""Bytes of text that become Python objects at once."""

_CHUNK = 5_000  # rows that become Python objects at once


def read_parquet(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """(number from 1, row) of each row; columns that are not `wanted` are None, and are not read.

    A row that cannot be read is a DataError. Raises DataError for a file that is no Parquet, has two columns of one
    name, or whose row groups are too large.
    """
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
        refuse_repeated_columns(file, schema.names)
        names = [each.name for each in schema if wanted(each.name)]
        refuse_large_groups(file, names)
        blank: dict[str, Any] = dict.fromkeys(schema.names)
        classes = class_names(schema)
        number = 0
        for batch in parquet_batches(file, names):
            for row in bounded_rows(batch, f"{file}", number):
                number += 1
                yield number, row if isinstance(row, DataError) else {**blank, **named_classes(row, classes)}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file ({in_one_line(error)}); write it again") from None


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names behind the numbers of each column that `datasets` calls a ClassLabel, from the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        labels = {name: each for name, each in features.items() if each.get("_type") == "ClassLabel"}
        return {name: list(map(str, each["names"])) for name, each in labels.items() if each.get("names")}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def named_classes(row: dict[str, Any], classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A row with the names of its classes instead of their numbers; -1 stands for none."""
    if not classes:
        return row
    found = dict(row)
    for name, names in classes.items():
        value = row.get(name)
        if isinstance(value, int) and -1 <= value < len(names):
            found[name] = names[value] if value >= 0 else None
    return found


def refuse_repeated_columns(file: str | Path, names: list[str]) -> None:
    """Raises DataError where two columns of a table have one name."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{file}: the column {repeated[0]!r} appears twice; rename or remove one of them")


def refuse_large_groups(file: str | Path, names: list[str]) -> None:
    """Raises DataError where one text column of one row group is too large to be read at once."""
    metadata = pq.read_metadata(file)
    for group in range(metadata.num_row_groups):
        if metadata.row_group(group).num_rows > MAX_GROUP_ROWS:
            raise DataError(
                f"{file}: {metadata.row_group(group).num_rows:,} rows in one row group are more than the limit of "
                f"{MAX_GROUP_ROWS:,}; write the file again with row_group_size=100_000"
            )
        chunks = (metadata.row_group(group).column(index) for index in range(metadata.num_columns))
        for chunk in chunks:
            if chunk.path_in_schema.split(".")[0] in names and chunk.total_uncompressed_size > MAX_CHUNK_BYTES:
                size = chunk.total_uncompressed_size >> 20
                raise DataError(
                    f"{file}: the column {chunk.path_in_schema!r} holds {size:,} MB in one row group; write the file "
                    "again with a smaller row_group_size"
                )


def parquet_batches(file: str | Path, names: list[str]) -> Iterator[pa.RecordBatch]:
    """The columns `names` (or members of them, such as image.path) in batches, texts as dictionaries."""
    texts = []
    with pq.ParquetFile(file) as parquet:
        for index in range(len(parquet.schema)):
            column = parquet.schema.column(index)
            if column.physical_type == "BYTE_ARRAY" and (column.path.split(".")[0] in names or column.path in names):
                texts.append(column.path)
    with pq.ParquetFile(file, read_dictionary=texts) as parquet:
        for group in range(parquet.num_row_groups):  # one batch each, or every batch would hold the whole dictionary
            rows = parquet.metadata.row_group(group).num_rows
            yield from parquet.iter_batches(max(1, rows), row_groups=[group], columns=names)


def bounded_rows(batch: pa.RecordBatch, where: str, number: int) -> Iterator[dict[str, Any] | DataError]:
    """The rows of a batch as Python objects, at most MAX_BLOCK_BYTES of text at once; `number` rows came before.

    A row that Python cannot hold is a DataError.
    """
    for part in _parts(batch):
        yield from _rows(part, where, number)
        number += part.num_rows


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in slices of at most _CHUNK rows and MAX_BLOCK_BYTES of text, or of one row."""
    sizes = sum((_text_bytes(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64))
    first, total = 0, 0
    for row, size in enumerate(sizes.tolist()):
        if row > first and (total + size > MAX_BLOCK_BYTES or row - first == _CHUNK):
            yield batch.slice(first, row - first)
            first, total = row, 0
        total += size
    if batch.num_rows > first:
        yield batch.slice(first)


def _text_bytes(array: pa.Array) -> np.ndarray:
    """The bytes of text in each row of an array, int64 (rows,)."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return pc.fill_null(pc.take(_lengths(array.dictionary), array.indices), 0).to_numpy(zero_copy_only=False)
    if pa.types.is_struct(kind):
        members = (_text_bytes(array.field(index)) for index in range(kind.num_fields))
        return sum(members, np.zeros(len(array), np.int64))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        ends = np.concatenate([[0], np.cumsum(_text_bytes(array.values), dtype=np.int64)])
        offsets = array.offsets.to_numpy(zero_copy_only=False)
        return ends[offsets[1:]] - ends[offsets[:-1]]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pc.fill_null(_lengths(array), 0).to_numpy(zero_copy_only=False)
    return np.zeros(len(array), np.int64)


def _lengths(array: pa.Array) -> pa.Array:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if any(is_kind(array.type) for is_kind in kinds):
        return pc.cast(pc.binary_length(array), pa.int64())
    return pa.array(np.zeros(len(array), np.int64))


def _rows(part: pa.RecordBatch, where: str, number: int) -> list[dict[str, Any] | DataError]:
    try:
        return part.to_pylist()
    except (ValueError, OverflowError, ArithmeticError, pa.ArrowException) as error:
        if part.num_rows == 1:  # such as bytes that are not UTF-8, or a date that Python cannot hold
            reason = in_one_line(error)
            return [DataError(f"{where}:{number + 1}: a value that cannot be read ({reason}); correct the row")]
        rows = (part.slice(index, 1) for index in range(part.num_rows))
        return [each for index, row in enumerate(rows) for each in _rows(row, where, number + index)]
