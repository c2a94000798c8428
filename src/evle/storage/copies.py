"""Copies of remote folders: the marker that makes one whole, and downloading what changed.

URL/.evle/marker.json   {"id", "files": {name: {"at", "size", "sha256"}}}: written last, so what it lists is whole
URL/.evle/owner.json    {"id", "host", "pid"}: the process that writes; an older one that still runs then stops
URL/.evle/<id>/...      new versions of files, until the marker lists them
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from evle.errors import StorageError
from evle.files import checksum, write_whole
from evle.storage.remote import Remote, as_json, to_json
from evle.storage.urls import cache_folder

OURS = ".evle/"
MARKER, OWNER = OURS + "marker.json", OURS + "owner.json"
THREADS = 8


@dataclass(frozen=True)
class RemoteFile:
    """One file of a marker: where its bytes are below the URL, how many, and their checksum."""

    at: str
    size: int
    sha256: str


@dataclass
class Marker:
    """The complete contents of a remote folder."""

    id: str
    files: dict[str, RemoteFile] = field(default_factory=dict)

    def to_json(self) -> bytes:
        return to_json(asdict(self))

    @classmethod
    def read(cls, remote: Remote) -> "Marker | None":
        """The marker of a remote folder, or None. Raises StorageError for a damaged one."""
        data = remote.read(MARKER) or remote.read(MARKER + ".part")
        if data is None:
            return None
        with as_json(f"{remote.url}/{MARKER}"):
            tree = json.loads(data)
            return cls(str(tree["id"]), {name: RemoteFile(**each) for name, each in tree["files"].items()})

    def below(self, prefix: str) -> "Marker":
        """The part of it in a folder, or the one file of that name, which is then called ""."""
        inside = {name.removeprefix(prefix + "/"): each for name, each in self.files.items() if _is_in(name, prefix)}
        if prefix in self.files:
            inside = {"": self.files[prefix]}
        return Marker(self.id, inside)


def _is_in(name: str, folder: str) -> bool:
    return name.startswith(folder + "/")


@dataclass
class Record:
    """What this machine knows about a copy: its marker, and size, time and stamp of each local file."""

    file: Path
    marker: str = ""
    files: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, side: str, url: str) -> "Record":
        """The record of a URL's copy; empty where there is none, or a damaged one."""
        file = cache_folder() / "records" / side / (hashlib.sha256(url.encode()).hexdigest()[:32] + ".json")
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
            return cls(file, str(tree["marker"]), dict(tree["files"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(file)

    def write(self) -> None:
        """Save the record."""
        _make_folder(self.file.parent)
        write_whole(self.file, json.dumps({"marker": self.marker, "files": self.files}))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this machine from changing the same copy."""
        _make_folder(self.file.parent)
        with FileLock(str(self.file) + ".lock"):
            yield


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be created ({error.strerror}); name a folder for local copies in EVLE_CACHE"
        ) from None


def signature(file: Path) -> list[int]:
    """Size and time of a local file, which change when it does."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def in_threads(work: Callable[[str], None], names: list[str]) -> None:
    """Call `work` for each name, several at once; the first error is raised after all ended."""
    with ThreadPoolExecutor(THREADS, "storage") as pool:
        futures = [pool.submit(work, name) for name in names]
    for each in futures:
        each.result()


def download_marked(remote: Remote, files: Mapping[str, RemoteFile], folder: Path) -> None:
    """Download what a marker lists into `folder`; files that are already there, byte for byte, are kept.

    Raises StorageError where a file's bytes are not those of the marker.
    """

    def work(name: str) -> None:
        each, target = files[name], folder / name if name else folder
        if target.is_file() and target.stat().st_size == each.size and checksum(target) == each.sha256:
            return
        remote.download(each.at, target)
        if target.stat().st_size != each.size or checksum(target) != each.sha256:
            target.unlink()
            raise StorageError(
                f"{remote.url}/{name}: does not match the checksum of its upload, or is being replaced; repeat the "
                "command, and where that does not help, the one that wrote it"
            )

    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise StorageError(f"{remote.url}: its marker lists {name!r}, which is no file below it")
    in_threads(work, list(files))


def keep_only(folder: Path, names: Mapping[str, object]) -> None:
    """Delete the files of a local copy that the remote folder does not have."""
    if "" in names:
        if folder.is_dir():
            shutil.rmtree(folder)
        return
    if folder.is_file():
        folder.unlink()
    for file in folder.rglob("*") if folder.is_dir() else ():
        if not file.is_dir() and file.relative_to(folder).as_posix() not in names:
            file.unlink()
