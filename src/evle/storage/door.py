"""The door: `fetch` for inputs, `writing` and `open_mirror` for outputs."""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from evle.errors import ConfigError, StorageError
from evle.storage.copies import OURS, Marker, Record, download_marked, in_threads, keep_only, signature
from evle.storage.mirrors import Mirror
from evle.storage.remote import Remote, UnreachableError
from evle.storage.urls import is_url, local, url_of

logger = logging.getLogger(__name__)

FILE_SUFFIXES = {
    *(".csv", ".html", ".json", ".jsonl", ".parquet", ".tsv", ".txt", ".yaml", ".yml"),
    *(".jpeg", ".jpg", ".png", ".webp"),
    *(".bin", ".ckpt", ".npy", ".pt", ".pth", ".safetensors", ".th"),
}
"""An output that ends in one of them is a file."""

_mirrors: dict[Path, "Mirror | FileUpload"] = {}
"""What this process writes and uploads, by its local path."""


def is_training_state(name: str) -> bool:
    """Whether a file of a run's folder is only read to resume the run."""
    return "/checkpoints/" in f"/{name}"


def fetch(path: str | os.PathLike[str], skip: Callable[[str], bool] = is_training_state) -> Path:
    """The local copy of an input: `path` itself, or where it is a URL, the downloaded file or folder.

    What has not changed since the last time is not downloaded again. Of a folder, the files that `skip` accepts are
    left out. An output that this process writes is read from its local folder. Raises StorageError.
    """
    url = url_of(path) if is_url(path) else None
    if url is None:
        return local(path)
    if mirror_of(local(url)) is not None:
        return local(url)
    target, record = local(url, "inputs"), Record.read("inputs", url)
    with record.locked():
        record = Record.read("inputs", url)
        remote, marker = Remote(url), None
        for base in (url, *_parents(url)):
            marker = _marker_or_none(Remote(base))
            if marker is not None:
                remote, marker = Remote(base), marker.below(url[len(base) + 1 :]) if base != url else marker
                break
        if marker is not None and marker.files:
            files = {name: each for name, each in marker.files.items() if not skip(name)}
            record.marker, record.files = marker.id, {}
            keep_only(target, files)
            download_marked(remote, files, target)
        else:
            _fetch_plain(Remote(url), target, record, skip)
        record.write()
    return target


def _marker_or_none(remote: Remote) -> Marker | None:
    try:
        return Marker.read(remote)
    except UnreachableError:
        raise
    except StorageError as error:
        if "damaged" in str(error):
            raise
        return None  # a parent folder that may not be read; the folder itself is tried next


def _parents(url: str) -> Iterator[str]:
    scheme, _, rest = url.partition("://")
    parts = rest.split("/")
    for count in range(len(parts) - 1, 0, -1):
        if parts[:count] != [""]:
            yield f"{scheme}://" + "/".join(parts[:count])


def _fetch_plain(remote: Remote, target: Path, record: Record, skip: Callable[[str], bool]) -> None:
    """Download what differs in size or stamp, of a file or folder that has no marker."""
    if remote.is_file():
        listed = {"": remote.stamp()}
    else:
        listed = {name: each for name, each in remote.list().items() if not name.startswith(OURS) and not skip(name)}
        if not listed:
            raise StorageError(f"{remote.url}: no such file or folder; correct the URL")
    known = record.files

    def work(name: str) -> None:
        size, stamp = listed[name]
        file = target / name if name else target
        if stamp and file.is_file() and file.stat().st_size == size and known.get(name) == [size, stamp]:
            return
        if file.is_dir():
            shutil.rmtree(file)
        remote.download(name, file)
        if size and file.stat().st_size != size:
            file.unlink()
            raise StorageError(f"{remote.url}/{name}: changed while it was read; repeat the command")

    keep_only(target, listed)
    in_threads(work, list(listed))
    record.marker, record.files = "", {name: list(each) for name, each in listed.items()}


# Outputs


class FileUpload:
    """One remote file, such as an image or a table, and what is beside it under its stem: `a.kept.jsonl`, `a-2.png` and
    the folder `a.report` of `a.jsonl`."""

    def __init__(self, url: str):
        folder, _, name = url.rpartition("/")
        if folder.endswith(("/", ":")) or not folder:
            raise ConfigError(f"{url}: names no folder; write it as SCHEME://BUCKET/FOLDER/{name}")
        self.url, self.folder, self._stem = url, local(folder), Path(name).stem
        self._remote, self._before = Remote(folder), dict[str, list[int]]()

    def open(self) -> None:
        """Have the files here that are there already; what was not uploaded before stays. Raises StorageError where
        none may be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        probe = f"{OURS}{self._stem}.probe"
        self._remote.write(probe, b"")
        self._remote.remove(probe)
        uploaded = Record.read("files", self.url).files
        waiting = {name for name, here in self._own().items() if uploaded.get(name) != here}
        there = {name for name in self._remote.list() if self._is_own(name)} - waiting
        for name in self._own().keys() - waiting - there:
            (self.folder / name).unlink()
        in_threads(lambda name: self._remote.download(name, self.folder / name), sorted(there))
        self._before = {name: here for name, here in self._own().items() if name not in waiting}

    def close(self) -> None:
        """Upload what is new, and remove there what was removed here. Raises StorageError where that fails."""
        record, here = Record.read("files", self.url), self._own()
        changed = [name for name, own in here.items() if self._before.get(name) != own]
        try:
            in_threads(lambda name: self._remote.upload(self.folder / name, name), changed)
            in_threads(self._remote.remove, sorted(self._before.keys() - here.keys()))
        except StorageError as error:
            raise StorageError(f"{error}; {', '.join(changed)} are in {self.folder} on this machine") from None
        record.files = dict(here)
        record.write()

    def _is_own(self, name: str) -> bool:
        top, _, below = name.partition("/")
        if below:
            return top == f"{self._stem}.report" and ".." not in below.split("/")
        return re.fullmatch(rf"{re.escape(self._stem)}(-\d+)?\..+", top) is not None

    def _own(self) -> dict[str, list[int]]:
        """The local files by name, each with its signature."""
        tops = [each for each in self.folder.glob("*") if each.name.startswith(self._stem)]
        files = [file for top in tops for file in (top.rglob("*") if top.is_dir() else [top]) if file.is_file()]
        names = {file.relative_to(self.folder).as_posix(): file for file in sorted(files)}
        return {name: signature(file) for name, file in names.items() if self._is_own(name)}


def mirror_of(path: str | os.PathLike[str]) -> Mirror | None:
    """The open mirror whose folder is `path` or above it."""
    folder = Path(path).absolute()
    for each in (folder, *folder.parents):
        if isinstance(mirror := _mirrors.get(each), Mirror):
            return mirror
    return None


def open_mirror(
    target: str | os.PathLike[str], *, writes: bool = True, skip: Callable[[str], bool] = lambda name: False
) -> Path:
    """The local path of an output, which is uploaded when `close_mirrors` is called, if `target` is of a URL.

    Raises ConfigError and StorageError, before any work is done, for a URL that cannot be written.
    """
    url, path = url_of(target), local(target)
    if url is None or path in _mirrors or mirror_of(local(url)) is not None:
        return path if url is None else local(url)
    path = local(url)
    if path.suffix.lower() in FILE_SUFFIXES:
        upload = FileUpload(url)
        upload.open()
        _mirrors[path] = upload
        return path
    mirror = Mirror(url)
    mirror.open(writes=writes, skip=skip)
    _mirrors[path] = mirror
    if writes:
        logger.info("%s: written to %s and uploaded from there", url, path)
    return path


def close_mirrors(*, failed: bool = False, below: int = 0) -> None:
    """Upload what was written and wait. With `failed`, work ended by an error, which a failing upload must not hide.

    `below`: how many of the mirrors that were opened first stay open. Raises StorageError.
    """
    problem: StorageError | None = None
    for path in list(_mirrors)[below:]:
        try:
            _mirrors.pop(path).close()
        except StorageError as error:
            problem = problem or error
            if failed:
                logger.warning("%s", error)
    if problem is not None and not failed:
        raise problem


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Upload, at the end, all outputs that were opened within."""
    number = len(_mirrors)
    try:
        yield
    except BaseException:
        close_mirrors(failed=True, below=number)
        raise
    close_mirrors(below=number)


@contextlib.contextmanager
def writing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """The local path of an output, which is uploaded at the end if `target` is a URL or below one."""
    with session():
        yield open_mirror(target)
