"""Tar files read at random: an index of byte offsets, made once a tar and kept beside it (POSIX ustar, pax, GNU names).

The members of a tar that share a name up to its first dot are one sample, as webdataset groups them: 000000001.jpg,
000000001.txt, 000000001.json. The index is a file of its own: a line of JSON, one fixed-size record a sample, then the
keys. Nothing of it stays in memory: a record is read at its place when its sample is asked for.
"""

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from io import FileIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec
import numpy as np

from evle.errors import DataError, SampleError

INDEX_SUFFIX = ".index"
VERSION = 1
MAX_MEMBER_BYTES = 256 << 20
"""A larger image or text is left out: no data set of images has one, and a damaged size could fill the memory."""

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm", "pgm")
TEXT_EXTENSIONS = ("txt", "text", "caption")
SLOTS = ("image", "second image", "text", "json")
"""What of a sample has a place in its record; a second image is a member such as 000000001.right.jpg."""

OPEN_FILES = 128
"""Files that each process keeps open: tars and their indexes, the least recently used closed first."""

NAMED = 50
"""So many left-out samples of one tar are named in its index; the rest are counted."""

_BLOCK = 512
_PAX_SIZE = re.compile(rb"\d+ ")
_NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]*)$")
_RECORD = np.dtype(
    [("offset", "<i8", len(SLOTS)), ("size", "<u4", len(SLOTS)), ("key_offset", "<u4"), ("key_size", "<u2")]
)
_COLUMNS = 2 * len(SLOTS) + 2


class Span(NamedTuple):
    """Bytes of a file; of size 0 where a sample has no such member."""

    offset: int
    size: int


class Entry(NamedTuple):
    """A sample's key and members."""

    key: str
    image: Span
    second_image: Span
    text: Span
    json: Span


@dataclass(frozen=True, slots=True)
class Member:
    """The bytes of one member of a tar, read when asked for. `stamp` tells the tar from another of its name."""

    tar: str
    offset: int
    size: int
    stamp: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.tar} at byte {self.offset:,}"

    def read(self) -> bytes:
        """The member. Raises SampleError where the tar can no longer be read there."""
        try:
            found = read_at(self.tar, self.stamp, self.offset, self.size)
        except OSError as error:
            raise SampleError(f"{self}: {error.strerror or error}; put the shard back or start again") from None
        if len(found) != self.size:
            raise SampleError(
                f"{self}: {len(found)} bytes instead of {self.size}: the shard changed since it was indexed; "
                "start again"
            )
        return found


@dataclass(frozen=True, slots=True)
class TarIndex:
    """What the index of one tar says, the samples themselves left on disk.

    `digest` is a hash of keys, places and sizes; `left_out` counts samples and members that cannot be used, by
    reason, `named` says which the first of them are; `damage` tells what is wrong with the tar itself, "" for nothing.
    """

    tar: str
    stamp: str
    file: str
    file_stamp: str
    records_at: int
    num_samples: int
    digest: str
    left_out: dict[str, int]
    named: tuple[str, ...]
    damage: str

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, row: int) -> Entry:
        size = _RECORD.itemsize
        found = np.frombuffer(self._read(self.records_at + row * size, size), _RECORD)[0]
        keys_at = self.records_at + self.num_samples * size
        key = self._read(keys_at + int(found["key_offset"]), int(found["key_size"])).decode("utf-8", "surrogateescape")
        return Entry(key, *map(Span, found["offset"].tolist(), found["size"].tolist()))

    def member(self, span: Span) -> Member:
        """The bytes that a sample's span stands for."""
        return Member(self.tar, span.offset, span.size, self.stamp)

    def all_keys(self) -> list[str]:
        """All keys, in order."""
        size = _RECORD.itemsize
        records = np.frombuffer(self._read(self.records_at, self.num_samples * size), _RECORD)
        length = int(records["key_size"].sum(dtype=np.int64))
        keys = self._read(self.records_at + self.num_samples * size, length)
        ends = (records["key_offset"].astype(np.int64) + records["key_size"]).tolist()
        starts = records["key_offset"].tolist()
        return [keys[start:end].decode("utf-8", "surrogateescape") for start, end in zip(starts, ends)]

    def _read(self, offset: int, size: int) -> bytes:
        found = read_at(self.file, self.file_stamp, offset, size)
        if len(found) != size:
            raise DataError(f"{self.file}: cut short; delete it, and it is made again")
        return found


def is_remote(path: str) -> bool:
    """Whether a path is a URL such as s3://bucket/00000.tar, for fsspec to open."""
    return "://" in path


def read_at(path: str, stamp: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on, fewer where it ends before; safe in threads and forked processes.

    The file stays open for the next call with the same `path` and `stamp`.
    """
    if is_remote(path):
        files, inside = fsspec.url_to_fs(path)
        return files.cat_file(inside, start=offset, end=offset + size)
    return os.pread(_opened(path, stamp).fileno(), size, offset)


class _File(FileIO):
    """A file that closes when it falls out of the cache and nobody reads any more."""

    def __del__(self) -> None:
        self.close()


@lru_cache(OPEN_FILES)
def _opened(path: str, stamp: str) -> _File:
    return _File(path)


def stamp_of(tar: str) -> str:
    """Size and time of a tar as one text, changed when the file is. Raises DataError where there is none."""
    try:
        if is_remote(tar):
            files, inside = fsspec.url_to_fs(tar)
            return f"{files.size(inside)}-{files.ukey(inside)}"
        found = os.stat(tar)
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"{tar}: cannot be read ({error}); check the path") from None
    return f"{found.st_size}-{found.st_mtime_ns}"


def index_of(tar: str, cache: str | None = None) -> TarIndex:
    """The index of a tar: the one that is there if it is of this very file, else made and kept.

    It is kept beside the tar, or in the folder `cache`; where neither may be written (and for a remote tar without
    `cache`) in the user's cache folder. Raises DataError for a file that cannot be read or an index that cannot be
    written; a damaged tar, and what is no tar at all, is indexed as far as it goes.
    """
    stamp = stamp_of(tar)
    files = _index_files(tar, cache)
    for file in files:
        if (found := _read_index(tar, stamp, file)) is not None:
            return found
    content = _make_index(tar, stamp)
    for file in files:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f"{file.name}.{os.getpid()}.part")  # ranks may all make it at once
            try:
                part.write_bytes(content)
                os.replace(part, file)
            finally:
                part.unlink(missing_ok=True)
            made = _read_index(tar, stamp, file)
            assert made is not None, "what was just written is of this tar"
            return made
    raise DataError(
        f"{tar}: its index can be written neither to {' nor to '.join(str(file.parent) for file in files)}; name a "
        "folder with the option cache"
    )


def _index_files(tar: str, cache: str | None) -> list[Path]:
    """Where the index may lie, the first choice first."""
    absolute = tar if is_remote(tar) else os.path.abspath(tar)
    name = f"{os.path.basename(tar)}.{blake2b(absolute.encode('utf-8', 'surrogateescape'), digest_size=8).hexdigest()}"
    if cache is not None:
        return [Path(cache) / (name + INDEX_SUFFIX)]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    fallback = Path(home) / "evle" / "shards" / (name + INDEX_SUFFIX)
    return [fallback] if is_remote(tar) else [Path(tar + INDEX_SUFFIX), fallback]


def _read_index(tar: str, stamp: str, file: Path) -> TarIndex | None:
    """The index in `file`, or None where there is none, or one of another state of the tar."""
    try:
        with open(file, "rb") as opened:
            line = opened.readline()
            head = json.loads(line)
            if not isinstance(head, dict) or head.pop("version", None) != VERSION or head.pop("stamp", None) != stamp:
                return None
            opened.seek(0, os.SEEK_END)
            if opened.tell() != len(line) + head.pop("bytes"):
                return None
            made = os.fstat(opened.fileno())
        head["named"] = tuple(head["named"])
        head |= {"tar": tar, "stamp": stamp, "file": str(file), "file_stamp": f"{made.st_ino}-{made.st_mtime_ns}"}
        return TarIndex(records_at=len(line), **head)
    except (OSError, ValueError, KeyError, TypeError):  # no index, or none of ours: it is made anew
        return None


class _Collected:
    """What a walk through a tar collects; becomes the bytes of its index."""

    def __init__(self) -> None:
        self.records = array("q")  # a row of _COLUMNS a sample
        self.names = bytearray()
        self.left_out: Counter[str] = Counter()
        self.named: list[str] = []
        self._seen: Counter[str] = Counter()

    def leave_out(self, key: str, reason: str) -> None:
        self.left_out[reason] += 1
        if len(self.named) < NAMED:
            self.named.append(f"{key}: {reason}")

    def take(self, key: str, spans: dict[str, Span]) -> None:
        """One sample, unless it lacks what every sample has."""
        if "image" not in spans:
            return self.leave_out(key, "no image")
        if "text" not in spans and "json" not in spans:
            return self.leave_out(key, "no caption")
        self._seen[key] += 1
        if self._seen[key] > 1:  # two samples must not share their randomness, nor their place in a result
            key = f"{key}~{self._seen[key]}"
        name = key.encode("utf-8", "surrogateescape")
        places = [spans.get(slot, Span(0, 0)) for slot in SLOTS]
        self.records.extend([at for at, _ in places])
        self.records.extend([size for _, size in places])
        self.records.extend((len(self.names), len(name)))
        self.names += name

    def content(self, stamp: str, damage: str) -> bytes:
        rows = np.frombuffer(self.records, np.int64).reshape(-1, _COLUMNS)
        records = np.zeros(len(rows), _RECORD)
        records["offset"], records["size"] = rows[:, : len(SLOTS)], rows[:, len(SLOTS) : 2 * len(SLOTS)]
        records["key_offset"], records["key_size"] = rows[:, -2], rows[:, -1]
        body = records.tobytes() + bytes(self.names)
        head: dict[str, Any] = {
            "version": VERSION,
            "stamp": stamp,
            "bytes": len(body),
            "num_samples": len(rows),
            "digest": blake2b(body, digest_size=8).hexdigest(),
            "left_out": dict(self.left_out),
            "named": self.named,
            "damage": damage,
        }
        return json.dumps(head).encode() + b"\n" + body


def _make_index(tar: str, stamp: str) -> bytes:
    collected, damage = _Collected(), ""
    key, spans = "", dict[str, Span]()
    size = int(stamp.partition("-")[0])
    with fsspec.open(tar, "rb") if is_remote(tar) else FileIO(tar) as file:
        try:
            for name, span in tar_members(file, size):
                named = _NAME.match(name.removeprefix("./"))
                if named is None:
                    continue  # a folder's or a system's own file, such as ._000.jpg
                if named[1] != key:
                    if spans:
                        collected.take(key, spans)
                    key, spans = named[1], {}
                slot = _slot(named[2].lower())
                if span.size > MAX_MEMBER_BYTES:
                    collected.leave_out(name, f"over {MAX_MEMBER_BYTES >> 20} MB")
                elif slot in spans:
                    collected.leave_out(name, f"a second {slot} in the same sample")
                elif slot is not None:
                    spans[slot] = span
                else:
                    spans.setdefault("", span)  # keeps a sample of unknown members alive, to be named
        except TarDamage as error:
            damage = f"{error} at byte {error.offset:,} of {size:,}: what follows is lost; fetch the shard again"
    if spans and not (damage and len(spans) == 1):  # cut off after its first member: the damage says it
        collected.take(key, spans)
    return collected.content(stamp, damage)


def _slot(extension: str) -> str | None:
    if extension in TEXT_EXTENSIONS:
        return "text"
    if extension == "json":
        return "json"
    kind, _, last = extension.rpartition(".")
    if last in IMAGE_EXTENSIONS:
        return {"": "image", "left": "image", "right": "second image"}.get(kind)
    return None


class TarDamage(ValueError):
    """A tar ends, or stops making sense, at `offset`."""

    def __init__(self, reason: str, offset: int):
        super().__init__(reason)
        self.offset = offset


def tar_members(file: IO[bytes], size: int) -> Iterator[tuple[str, Span]]:
    """(name, span) of each plain file in an open tar of `size` bytes, by its headers alone.

    Raises TarDamage where a header is broken, a member is cut short, or the closing zero blocks are missing.
    """
    at, ended = 0, False
    name: str | None = None
    length: int | None = None
    while at < size:
        file.seek(at)
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise TarDamage("cut short inside a header", at)
        if not block.strip(b"\0"):
            at, ended = at + _BLOCK, True
            continue
        ended = False
        kind, own_name, own_size = _read_header(block, at)
        body = at + _BLOCK
        if kind in b"xgLK":  # what these hold describes the next member
            if own_size > 1 << 20:
                raise TarDamage("an extended header of impossible size", at)
            told = file.read(own_size)
            if len(told) < own_size:
                raise TarDamage("cut short inside an extended header", at)
            if kind == b"L":
                name = told.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind == b"x":
                fields = _pax_fields(told)
                name = fields[b"path"].decode("utf-8", "surrogateescape") if b"path" in fields else name
                length = int(fields[b"size"]) if fields.get(b"size", b"").isdigit() else length
        else:
            span = Span(body, own_size if length is None else length)
            own_size = span.size
            if body + span.size > size:
                raise TarDamage(f"cut short inside {name or own_name}", at)
            if kind in b"07\0" and not (name or own_name).endswith("/"):
                yield name or own_name, span
            name = length = None
        at = body + -(-own_size // _BLOCK) * _BLOCK
    if not ended:
        raise TarDamage("no end mark" if size else "an empty file", min(at, size))


def _read_header(block: bytes, at: int) -> tuple[bytes, str, int]:
    """(type, name, size) of a header block, its check sum verified."""
    try:
        told = int(block[148:156].strip(b" \0"), 8)
        if told != sum(block) - sum(block[148:156]) + 8 * 32:
            raise TarDamage("a broken header", at)
        if block[124] & 0x80:  # GNU's binary form, for eight gigabytes and more
            size = int.from_bytes(block[125:136], "big")
        else:
            size = int(block[124:136].strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise error if isinstance(error, TarDamage) else TarDamage("a broken header", at) from None
    if size < 0:
        raise TarDamage("a broken header", at)
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return block[156:157], name.decode("utf-8", "surrogateescape"), size


def _pax_fields(told: bytes) -> dict[bytes, bytes]:
    """The `path` and `size` of a pax header: lines of "LENGTH KEY=VALUE"."""
    fields, at = dict[bytes, bytes](), 0
    while (found := _PAX_SIZE.match(told, at)) is not None:
        length = int(found[0])
        key, _, value = told[found.end() : at + length].rstrip(b"\n").partition(b"=")
        fields[key] = value
        at += max(length, len(found[0]))
    return fields
