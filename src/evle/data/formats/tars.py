"""Tar files read at random: an index of byte offsets, written once per tar and kept beside it (ustar, pax, GNU names).

The members of a tar that share a name up to its first dot are one sample, as webdataset groups them: 000000001.jpg,
000000001.txt, 000000001.json; they may be anywhere in the tar. The index is a file of its own: one line of JSON, one
fixed-size record per sample, then the keys. Nothing of it stays in memory: a record is read from its offset when its
sample is asked for.
"""

import json
import os
import posixpath
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

from evle.data.formats.listing import IMAGE_SUFFIXES, UNREAD_IMAGES
from evle.data.formats.tar_headers import Span, TarDamage, tar_members
from evle.data.formats.text_files import compression_of
from evle.errors import DataError, SampleError

INDEX_SUFFIX = ".index"
VERSION = 3
MAX_MEMBER_BYTES = 256 << 20
"""A larger image or text is left out: no data set of images has one, and a damaged size could fill the memory."""

IMAGE_EXTENSIONS = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
TEXT_EXTENSIONS = ("txt", "text", "caption")
SLOTS = ("image", "second image", "text", "json")
"""The members of a sample that its record holds; a second image is a member such as 000000001.right.jpg."""

OPEN_FILES = 128
"""Files that each process keeps open: tars and their indexes, the least recently used closed first."""

NAMED = 50
"""Left-out samples of one tar that its index names; the others are counted."""

_NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]*)$")
_RECORD = np.dtype(
    [("offset", "<i8", len(SLOTS)), ("size", "<u4", len(SLOTS)), ("key_offset", "<u4"), ("key_size", "<u2")]
)
_COLUMNS = 2 * len(SLOTS) + 2


class Entry(NamedTuple):
    """A sample's key and members."""

    key: str
    image: Span
    second_image: Span
    text: Span
    json: Span


@dataclass(frozen=True, slots=True)
class Member:
    """The bytes of one member of a tar, read when asked for. `stamp` distinguishes the tar from another of its name."""

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
    """The index of one tar; the samples themselves stay on disk.

    `digest` is a hash of keys, offsets and sizes; `left_out` counts samples and members that cannot be used, by
    reason, and `named` lists the first of them; `damage` is what is wrong with the tar itself, "" for nothing.
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
        """The bytes of one member of a sample."""
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
            raise DataError(f"{self.file}: cut short; delete it, and it is written again")
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
    file = _opened(path, stamp)  # held until it is read: another thread may push it out of the cache meanwhile
    return os.pread(file.fileno(), size, offset)


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
    """The index of a tar: the one on disk if it is of this very file, else a new one, which is kept.

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
            part = file.with_name(f"{file.name}.{os.getpid()}.part")  # ranks may all write it at once
            try:
                part.write_bytes(content)
                os.replace(part, file)
            finally:
                part.unlink(missing_ok=True)
            index = _read_index(tar, stamp, file)
            assert index is not None, "what was just written is of this tar"
            return index
    raise DataError(
        f"{tar}: its index can be written neither to {' nor to '.join(str(file.parent) for file in files)}; name a "
        "folder with the option cache"
    )


def _index_files(tar: str, cache: str | None) -> list[Path]:
    """Where the index may be, the first choice first."""
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
            state = os.fstat(opened.fileno())
        head["named"] = tuple(head["named"])
        head |= {"tar": tar, "stamp": stamp, "file": str(file), "file_stamp": f"{state.st_ino}-{state.st_mtime_ns}"}
        return TarIndex(records_at=len(line), **head)
    except (OSError, ValueError, KeyError, TypeError):  # no index, or none of ours: it is written again
        return None


class _Collected:
    """What a walk through a tar collects; becomes the bytes of its index.

    The members of a sample may be anywhere in the tar. A member that its sample has already begins another sample of
    the same name, as in tars that were put together. Where a member could belong to several samples of its name, all
    of them are left out.
    """

    def __init__(self) -> None:
        self.records = array("q")  # _COLUMNS numbers for each sample
        self.names = bytearray()
        self.left_out: Counter[str] = Counter()
        self.named: list[str] = []
        self._rows: dict[str, int] = {}  # the last sample of each key
        self._keys: list[str] = []
        self._members: list[list[tuple[int, int] | None]] = []
        self._repeated: dict[str, list[int]] = {}  # of each key with several samples, how many of them lack each slot
        self._joined: set[int] = set()  # samples whose members are not side by side
        self._ambiguous: set[str] = set()
        self._dotted: dict[int, list[str]] = {}
        self._unread: dict[int, str] = {}

    def leave_out(self, key: str, reason: str, cure: str = "") -> None:
        self.left_out[reason] += 1
        if len(self.named) < NAMED:
            self.named.append(f"{key}: {reason}{cure}")

    def add(self, key: str, slot: str | None, span: Span, name: str, *, follows: bool) -> None:
        """One member of the sample `key`; `follows` the one before in the tar, if that was of the same sample."""
        row = self._rows.get(key)
        index = SLOTS.index(slot) if slot is not None else None
        if row is not None and index is not None and self._is_ambiguous(key, row, index, follows):
            self._ambiguous.add(key)
        if key in self._ambiguous:
            return None
        if row is not None and index is not None and self._members[row][index] is not None:
            if follows:
                return self.leave_out(name, f"a second {slot} in the same sample")
            row = None
        if row is None:
            if key in self._rows:
                lacking = self._repeated.setdefault(key, [int(each is None) for each in self._members[self._rows[key]]])
                self._repeated[key] = [count + 1 for count in lacking]
            row = self._rows[key] = len(self._keys)
            self._keys.append(key)
            self._members.append([None] * len(SLOTS))
        elif not follows:
            self._joined.add(row)
        ending = "." + name.rpartition(".")[2].lower()
        if index is not None:
            self._members[row][index] = (span.offset, span.size)
            if key in self._repeated:
                self._repeated[key][index] -= 1
        elif ending in UNREAD_IMAGES:
            self._unread.setdefault(row, ending)
        elif "." in name.rpartition("/")[2].removeprefix(key.rpartition("/")[2] + "."):
            self._dotted.setdefault(row, []).append(name)

    def _is_ambiguous(self, key: str, row: int, index: int, follows: bool) -> bool:
        """Whether a member could be of another sample than the last of its key, the `row`."""
        is_open = self._members[row][index] is None
        if follows:
            return row in self._joined and not is_open
        return key in self._repeated and self._repeated[key][index] > is_open

    def content(self, stamp: str, damage: str, last_is_cut: bool) -> bytes:
        """The index; of a damaged tar the last sample is left out without a word if it has one member."""
        seen: Counter[str] = Counter()
        for row, (key, members) in enumerate(zip(self._keys, self._members)):
            has = {slot for slot, span in zip(SLOTS, members) if span is not None}
            if last_is_cut and row == len(self._keys) - 1 and len(has) <= 1:
                continue
            reason = "no image" if "image" not in has else "" if has & {"text", "json"} else "no caption"
            if key in self._ambiguous:
                reason = "ambiguous, as several samples of this name are mixed in the tar"
                self.leave_out(key, reason, "; pack them into tars of their own")
            elif reason and row in self._dotted:
                example = self._dotted[row][0].rpartition("/")[2]
                count = len(self._dotted[row])
                self.leave_out(
                    key,
                    f"{reason}, as names are cut at the first dot",
                    f": {count} members, such as {example}; rename them",
                )
            elif reason == "no image" and row in self._unread:
                ending = self._unread[row]
                self.leave_out(key, f"no image but a {ending}, which is not read", "; convert it to JPEG or PNG")
            elif reason:
                self.leave_out(key, reason)
            else:
                seen[key] += 1  # two samples must not share their randomness, nor their index in a result
                self._record(key if seen[key] == 1 else f"{key}~{seen[key]}", members)
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

    def _record(self, key: str, members: list[tuple[int, int] | None]) -> None:
        name = key.encode("utf-8", "surrogateescape")
        spans = [span or (0, 0) for span in members]
        self.records.extend([offset for offset, _ in spans])
        self.records.extend([size for _, size in spans])
        self.records.extend((len(self.names), len(name)))
        self.names += name


def _make_index(tar: str, stamp: str) -> bytes:
    collected, damage, links = _Collected(), "", dict[str, str]()
    size = int(stamp.partition("-")[0])
    last = ""

    def add(name: str, span: Span) -> None:
        nonlocal last
        parts = _NAME.match(name.removeprefix("./"))
        if parts is None:
            return  # a folder's or a system's own file, such as ._000.jpg
        if span.size > MAX_MEMBER_BYTES:
            collected.leave_out(name, f"over {MAX_MEMBER_BYTES >> 20} MB")
        else:
            collected.add(parts[1], _slot(parts[2].lower()), span, name, follows=parts[1] == last)
        last = parts[1]

    with fsspec.open(tar, "rb") if is_remote(tar) else FileIO(tar) as file:
        if kind := compression_of(file.read(16)):
            return collected.content(stamp, f"is compressed ({kind}); unpack it first", False)
        try:
            for name, span in tar_members(file, size, links):
                add(name, span)
        except TarDamage as error:
            damage = f"{error} at byte {error.offset:,} of {size:,}: what follows is lost; fetch the shard again"
        if links:
            for name, span in _linked_members(file, size, links, collected):
                add(name, span)
    return collected.content(stamp, damage, bool(damage))


def _linked_members(
    file: IO[bytes], size: int, links: dict[str, str], collected: _Collected
) -> Iterator[tuple[str, Span]]:
    """(name, span of its target) of each link in a tar that is already walked through."""
    targets = {name: _final_target(name, links) for name in links}
    wanted, spans = set(targets.values()), dict[str, Span]()
    with suppress(TarDamage):
        for name, span in tar_members(file, size):
            if posixpath.normpath(name) in wanted:
                spans[posixpath.normpath(name)] = span
    for name, target in targets.items():
        if target in spans:
            yield name, spans[target]
        elif _NAME.match(name.removeprefix("./")) is not None:
            collected.leave_out(name, "a link to what is not in the tar")


def _final_target(name: str, links: dict[str, str]) -> str:
    target, normal = name, {posixpath.normpath(each): to for each, to in links.items()}
    for _ in range(len(SLOTS) + 16):  # links to links, and loops
        target = normal.get(posixpath.normpath(target), target)
    return posixpath.normpath(target)


def _slot(extension: str) -> str | None:
    if extension in TEXT_EXTENSIONS:
        return "text"
    if extension == "json":
        return "json"
    kind, _, last = extension.rpartition(".")
    if last in IMAGE_EXTENSIONS:
        return {"": "image", "left": "image", "right": "second image"}.get(kind)
    return None
