"""The files of an image index: vectors and the images they belong to, in shards that are added and replaced whole.

    INDEX/index.json           which model, which root, which shards count and their checksums (it commits a change)
    INDEX/shards/NAME.npy      up to SHARD_ROWS unit vectors (rows, D), float16 or float32, memory-mapped when read
    INDEX/shards/NAME.arrow    their images: path relative to the root, size, time of change, hash, the table's columns
    INDEX/.lock                held by the one process that changes the index

A change writes new shards, then index.json. The shards of the state before it are kept until the next change, so that
a reader who has just opened index.json finds them.
"""

import json
import logging
import os
import secrets
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import filelock
import numpy as np
import pyarrow as pa

from evle.errors import DataError
from evle.files import checksum, read_json, write_whole
from evle.storage import is_url, local, url_of

logger = logging.getLogger(__name__)

FORMAT = 2
SHARD_ROWS = 16384
DTYPES = {"float16": np.float16, "float32": np.float32}
COLUMNS = pa.schema(
    [
        ("path", pa.binary()),
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("digest", pa.string()),
        ("fields", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One indexed image: path relative to the root, size in bytes, time of change in ns, and hash of the file.

    `fields` holds the columns of the user's table as JSON, "" without a table.
    """

    path: str
    size: int
    mtime: int
    digest: str = ""
    fields: str = ""

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """An entry from its row in a shard, whose path is in bytes, as file names need not be UTF-8."""
        return cls(**{**row, "path": os.fsdecode(row["path"])})

    def row(self) -> dict[str, Any]:
        """The entry as a row of a shard."""
        return {**asdict(self), "path": os.fsencode(self.path)}


@dataclass(frozen=True)
class Place:
    """A path remembered by itself and as seen from the index, so that both may move together; or a URL."""

    path: str
    from_index: str

    @classmethod
    def of(cls, target: Path, index: Path) -> Self:
        return cls(url_of(target) or str(target.resolve()), os.path.relpath(target.resolve(), index.resolve()))

    def seen_from(self, index: Path) -> Path:
        """The path relative to where the index is now, or the remembered path where nothing is there."""
        if is_url(self.path):
            return local(self.path, "inputs")
        beside = Path(os.path.normpath(index.resolve() / self.from_index))
        return beside if beside.exists() else Path(self.path)


@dataclass(frozen=True)
class Facts:
    """What holds for the whole index. `model` is None for one that was given in memory."""

    root: Place
    model: Place | None
    fingerprint: str
    dimension: int
    dtype: str
    model_name: str = ""


@dataclass(frozen=True)
class Shard:
    """One shard as index.json lists it, with the SHA-256 of both of its files."""

    name: str
    rows: int
    vectors: str
    entries: str


class StaleError(Exception):
    """A shard is gone because another process has changed the index: read index.json again."""


@dataclass(frozen=True)
class Store:
    """One state of an index. A change returns the next state; vectors stay on the disk until they are read."""

    path: Path
    facts: Facts
    shards: tuple[Shard, ...] = ()
    stamp: tuple[int, ...] = ()
    """What the file system reports of index.json, to notice a change by another process."""
    opened: dict[str, tuple[np.ndarray, pa.Table]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read index.json. Raises DataError where `path` is not an index, or a damaged one."""
        file = path / "index.json"
        if not file.is_file():
            raise DataError(
                f"{path} is not an index (no index.json); make one with `evle index FOLDER -o {path} --model RUN`"
            )
        stamp = stamp_of(path)
        header = read_json(file, kind=dict)
        try:
            number = header.pop("format")
            if number != FORMAT:
                raise DataError(
                    f"{file}: format {str(number)[:20]}, but this version reads {FORMAT}; delete {path} and build the "
                    "index again"
                )
            shards = tuple(Shard(**shard) for shard in header.pop("shards"))
            root, model = header.pop("root"), header.pop("model")
            facts = Facts(root=Place(**root), model=model and Place(**model), **header)
            for shard in shards:
                if not (isinstance(shard.rows, int) and shard.rows > 0 and Path(shard.name).name == shard.name):
                    raise ValueError(f"shard {str(shard.name)[:40]!r} of {str(shard.rows)[:20]} rows")
            if len({shard.name for shard in shards}) < len(shards):
                raise ValueError("a shard is listed twice")
            if facts.dtype not in DTYPES or not isinstance(facts.dimension, int) or facts.dimension < 1:
                raise ValueError(f"dtype {str(facts.dtype)[:20]!r}, dimension {str(facts.dimension)[:20]}")
            places = [place for place in (facts.root, facts.model) if place is not None]
            texts = [text for place in places for text in (place.path, place.from_index)]
            for text in (*texts, facts.fingerprint, facts.model_name or ""):
                if not isinstance(text, str):
                    raise ValueError(f"{str(text)[:40]!r}, where a text is needed")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{file}: damaged ({error}); delete {path} and build the index again") from error
        return cls(path, facts, shards, stamp)

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def starts(self) -> list[int]:
        """The row at which each shard begins, and the number of rows in all."""
        return [0, *accumulate(shard.rows for shard in self.shards)]

    def is_current(self) -> bool:
        """Whether no other process has changed the index since this state was read."""
        return self.stamp == stamp_of(self.path)

    def read(self, number: int) -> tuple[np.ndarray, pa.Table]:
        """Vectors (rows, D) and images of one shard, memory-mapped; checked when they are first read.

        Raises DataError naming a damaged file, StaleError for one that a change by another process has deleted.
        """
        shard = self.shards[number]
        if shard.name not in self.opened:
            try:
                self.opened[shard.name] = self._checked(shard)
            except FileNotFoundError as error:
                if not self.is_current():
                    raise StaleError from error
                raise self._damage(Path(error.filename), "it is missing") from error
        return self.opened[shard.name]

    def _checked(self, shard: Shard) -> tuple[np.ndarray, pa.Table]:
        vectors, entries = self._files(shard.name)
        for file, expected in ((vectors, shard.vectors), (entries, shard.entries)):
            if checksum(file) != expected:
                raise self._damage(file, "its contents do not have the checksum in index.json")
        try:
            array = np.load(vectors, mmap_mode="c", allow_pickle=False)
            table = pa.ipc.open_file(pa.memory_map(str(entries))).read_all()
        except (ValueError, OSError, pa.ArrowException) as error:
            raise self._damage(vectors if isinstance(error, ValueError) else entries, str(error)) from error
        shape, dtype = (shard.rows, self.facts.dimension), DTYPES[self.facts.dtype]
        if array.shape != shape or array.dtype != dtype:
            raise self._damage(vectors, f"it holds {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")
        if table.num_rows != shard.rows or table.schema != COLUMNS:
            raise self._damage(entries, f"it lists {table.num_rows} images, but there are {shard.rows} vectors")
        if not np.isfinite(array).all():
            raise self._damage(vectors, "it holds vectors that are not finite (NaN)")
        return array, table

    def _damage(self, file: Path, reason: str) -> DataError:
        return DataError(f"{file}: damaged shard ({reason}); delete {self.path} and build the index again")

    def _files(self, name: str) -> tuple[Path, Path]:
        folder = self.path / "shards"
        return folder / f"{name}.npy", folder / f"{name}.arrow"

    def locate(self, row: int) -> tuple[int, int]:
        """The shard of a row of the index, and the row in it."""
        starts = self.starts
        number = bisect_right(starts, row) - 1
        return number, row - starts[number]

    def entry(self, row: int) -> Entry:
        """The image of one row."""
        number, local = self.locate(row)
        return Entry.of(self.read(number)[1].slice(local, 1).to_pylist()[0])

    def entries(self) -> Iterator[Entry]:
        """The images in the order of the rows."""
        for number in range(len(self.shards)):
            for row in self.read(number)[1].to_pylist():
                yield Entry.of(row)

    def vectors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The vectors of some rows (N, D), in the index's own precision."""
        if not len(rows):
            return np.empty((0, self.facts.dimension), DTYPES[self.facts.dtype])
        wanted = np.asarray(rows)
        starts = np.asarray(self.starts)
        numbers = np.searchsorted(starts, wanted, side="right") - 1
        vectors = np.empty((len(wanted), self.facts.dimension), DTYPES[self.facts.dtype])
        for number in np.unique(numbers):
            inside = numbers == number
            vectors[inside] = self.read(int(number))[0][wanted[inside] - starts[number]]
        return vectors

    # ------------------------------------------------------------------------------------------------------- changes

    def append(self, features: np.ndarray, entries: Sequence[Entry]) -> "Store":
        """The state with more rows; a last shard that is not full is written again with them.

        Raises DataError on a full disk and for vectors that are not finite.
        """
        features = np.asarray(features)
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            bad = entries[int(np.flatnonzero(~finite)[0])].path
            raise DataError(f"{bad}: the model gives it a vector that is not finite (NaN); check the model's weights")
        array = features.astype(DTYPES[self.facts.dtype])
        shards, listed = list(self.shards), list(entries)
        if shards and shards[-1].rows < SHARD_ROWS:
            last, table = self.read(len(shards) - 1)
            array = np.concatenate([last, array])
            listed = [Entry.of(row) for row in table.to_pylist()] + listed
            shards.pop()
        with writing(self.path):
            for start in range(0, len(listed), SHARD_ROWS):
                part = slice(start, start + SHARD_ROWS)
                shards.append(self._write(array[part], listed[part]))
            return self._commit(shards)

    def drop(self, paths: set[str]) -> "Store":
        """The state without some images: the shards that hold any of them are written again."""
        shards = []
        with writing(self.path):
            for number, shard in enumerate(self.shards):
                features, table = self.read(number)
                kept = [row for row, path in enumerate(table["path"].to_pylist()) if os.fsdecode(path) not in paths]
                if len(kept) < shard.rows:
                    if not kept:
                        continue
                    rows = table.take(kept).to_pylist()
                    shard = self._write(features[kept], [Entry.of(row) for row in rows])
                shards.append(shard)
            return self._commit(shards) if shards != list(self.shards) else self

    def create(self) -> "Store":
        """Write index.json, with the facts and shards of this state."""
        with writing(self.path):
            return self._commit(list(self.shards))

    def _write(self, array: np.ndarray, entries: Sequence[Entry]) -> Shard:
        name = secrets.token_hex(8)
        vectors, images = self._files(name)
        vectors.parent.mkdir(parents=True, exist_ok=True)
        with open(vectors, "wb") as file:
            np.save(file, np.ascontiguousarray(array), allow_pickle=False)
            _sync(file)
        table = pa.Table.from_pylist([entry.row() for entry in entries], schema=COLUMNS)
        with open(images, "wb") as file:
            with pa.ipc.new_file(file, COLUMNS) as writer:
                writer.write_table(table)
            _sync(file)
        return Shard(name, len(entries), checksum(vectors), checksum(images))

    def _commit(self, shards: Sequence[Shard]) -> "Store":
        """Make these shards the index by replacing index.json; delete files that neither state needs."""
        header: dict[str, Any] = {"format": FORMAT, **asdict(self.facts), "shards": [asdict(shard) for shard in shards]}
        write_whole(self.path / "index.json", json.dumps(header, indent=1) + "\n")
        needed = {shard.name for shard in (*shards, *self.shards)}
        for file_path in (self.path / "shards").glob("*"):
            if file_path.stem not in needed:
                file_path.unlink(missing_ok=True)
        opened = {name: maps for name, maps in self.opened.items() if name in needed}
        return Store(self.path, self.facts, tuple(shards), stamp_of(self.path), opened)


def stamp_of(path: Path) -> tuple[int, ...]:
    """What changes with every change of an index, or () without one."""
    try:
        facts = os.stat(path / "index.json")
    except OSError:
        return ()
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process changes the index; waits for one that does. The lock ends with its process."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.warning("%s: another process is changing this index; waiting for it to end", path)
            started = time.monotonic()
            lock.acquire()
            logger.info("%s: waited %.0f s", path, time.monotonic() - started)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full or read-only disk as one clear line."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); what was saved before is intact; "
            "free space or change permissions, then repeat the command"
        ) from error


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
