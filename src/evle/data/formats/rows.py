"""Samples from the rows of an Arrow table, each built when it is asked for: a million rows take some hundred MB."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from evle.data.samples import MadeSamples, Sample

Row = dict[str, Any]

_CHUNK = 20_000  # rows held as Python objects before they become an Arrow batch


class Rows(MadeSamples):
    """The samples that `make` (picklable) makes of each row of `table`.

    `facts` is what a report says of them beside their number; `skipped` names the rows that were left out, all
    `num_skipped` of them or the first.
    """

    def __init__(
        self,
        table: pa.Table,
        make: Callable[[Row], Sample],
        *,
        fingerprint: str,
        facts: dict[str, Any],
        skipped: Sequence[str] = (),
        num_skipped: int | None = None,
    ):
        self.fingerprint = fingerprint
        self.skipped = list(skipped)
        self.num_skipped = len(self.skipped) if num_skipped is None else num_skipped
        self._make, self._facts = make, facts
        self._columns = {name: table.column(name).combine_chunks() for name in table.column_names}
        self._length = table.num_rows

    def __len__(self) -> int:
        return self._length

    def at(self, index: int) -> Any:
        return self._make(self.row(index))

    def row(self, index: int) -> Row:
        """The row of a sample, as the table holds it."""
        return {name: column[index].as_py() for name, column in self._columns.items()}

    def describe(self) -> dict[str, Any]:
        """Plain facts for a report."""
        facts = {**self._facts, "samples": len(self)}
        if self.num_skipped:
            facts["rows left out"] = self.num_skipped
        return facts


def table_of(rows: Iterable[Row], schema: pa.Schema) -> pa.Table:
    """An Arrow table of rows that may come from a generator: a few thousand are in memory as Python objects.

    >>> table_of(({"n": n} for n in range(3)), pa.schema([("n", pa.int64())])).num_rows
    3
    """
    rest, batches = iter(rows), []
    while chunk := list(islice(rest, _CHUNK)):
        batches.append(pa.RecordBatch.from_pylist(chunk, schema=schema))
    return pa.Table.from_batches(batches, schema=schema)


def fingerprint(files: Iterable[str | os.PathLike[str]], options: Any = None) -> str:
    """A hash of what files hold and of the options they are read with."""
    digest = hashlib.blake2b(repr(options).encode(), digest_size=8)
    for name in files:
        with open(name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
