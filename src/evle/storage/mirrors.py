"""Outputs: a local folder that is uploaded to a URL while it is written, and is the same folder on another machine."""

import contextlib
import json
import logging
import os
import shutil
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from evle.errors import ConfigError, StorageError
from evle.files import checksum
from evle.storage.copies import (
    MARKER,
    OURS,
    OWNER,
    Marker,
    Record,
    RemoteFile,
    download_marked,
    in_threads,
    keep_only,
    signature,
)
from evle.storage.remote import Remote, as_json, to_json
from evle.storage.urls import cache_folder, local

logger = logging.getLogger(__name__)

MOST_FOREIGN = 10_000
"""Files in an output folder without a marker of ours: more of them are hardly a run."""
COPIED = 64 * 2**20
"""Bytes: smaller files may be appended to while they are uploaded, so their state is copied; larger ones are linked."""


class Mirror:
    """A local folder that is uploaded to a URL, whole and in the background; the same folder after a restart elsewhere.

    `open` brings the local folder to the state of the URL, unless the folder is ahead of it. `push` uploads the state
    of now in a thread; where that fails, the next one tries again. `close` uploads the last state and waits.
    """

    def __init__(self, url: str):
        self.url, self.folder = url, local(url)
        self.problem = ""
        self._remote = Remote(url)
        self._id = uuid.uuid4().hex
        self._marker: Marker | None = None
        self._is_claimed = False
        self._skipped: set[str] = set()
        self._lock = threading.Lock()
        self._waiting: Path | None = None
        self._thread: threading.Thread | None = None

    def open(self, *, writes: bool = True, skip: Callable[[str], bool] = lambda name: False) -> None:
        """Claim the URL for this process (unless it only reads) and have its files here, but those that `skip` names.

        Raises StorageError where it cannot be written, read, or holds something else than an output.
        """
        with Record.read("outputs", self.url).locked():
            record = Record.read("outputs", self.url)
            self._marker = Marker.read(self._remote)
            was_claimed = self._remote.read(OWNER) is not None
            if writes:
                owner = {"id": self._id, "host": socket.gethostname(), "pid": os.getpid()}
                self._remote.write(OWNER, to_json(owner))
                self._is_claimed = True
            if self._marker is not None:
                self._skipped = {name for name in self._marker.files if skip(name)}
                if record.marker == self._marker.id and self.folder.is_dir():
                    return  # this machine wrote it last; what is here may be newer
                files = {name: each for name, each in self._marker.files.items() if name not in self._skipped}
                self._refuse_file()
                keep_only(self.folder, files)
                download_marked(self._remote, files, self.folder)
                self._remember(record)
            elif record.marker:  # it was deleted there
                shutil.rmtree(self.folder, ignore_errors=True)
                record.marker, record.files = "", {}
                record.write()
            elif not was_claimed:
                self._take_foreign()

    def _refuse_file(self) -> None:
        if self.folder.is_file():
            self.folder.unlink()

    def _take_foreign(self) -> None:
        """Download files that something else than a mirror uploaded, such as a copied run."""
        listed = {name: each for name, each in self._remote.list().items() if not name.startswith(OURS)}
        if len(listed) > MOST_FOREIGN:
            raise ConfigError(f"{self.url}: holds {len(listed):,} files that are no output; choose another output")
        if listed:
            in_threads(lambda name: self._remote.download(name, self.folder / name), list(listed))

    def push(self) -> None:
        """Upload the state of now in the background. Call it when the files are whole."""
        if not self._is_claimed:
            return
        state = self._snapshot()
        with self._lock:
            if self._waiting is not None:
                shutil.rmtree(self._waiting, ignore_errors=True)
            self._waiting = state
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Upload the last state and wait. Raises StorageError where that fails: the local folder has everything."""
        if not self._is_claimed:
            return
        self.push()
        self.wait()
        if self.problem:
            raise StorageError(
                f"{self.problem}; all of it is in {self.folder} on this machine: repeat the command to upload it"
            )

    def wait(self) -> None:
        """Wait for uploads that run."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                state, self._waiting = self._waiting, None
                if state is None:
                    self._thread = None
                    return
            try:
                self._upload(state)
                self.problem = ""
            except StorageError as error:
                self.problem = str(error)
                logger.warning("%s; the next upload tries again", error)
            except OSError as error:
                self.problem = f"{self.url}: not uploaded ({error})"
                logger.warning("%s; the next upload tries again", self.problem)
            finally:
                shutil.rmtree(state, ignore_errors=True)

    def _snapshot(self) -> Path:
        """The files of the folder as they are now, as links or copies in a folder of their own."""
        base = cache_folder() / "snapshots"
        base.mkdir(parents=True, exist_ok=True)
        state = Path(tempfile.mkdtemp(dir=base))
        for file in sorted(self.folder.rglob("*")) if self.folder.is_dir() else ():
            name = file.relative_to(self.folder)
            if _is_unfinished(name):
                continue
            target = state / name
            with contextlib.suppress(FileNotFoundError):  # a temporary file that is gone
                if file.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                elif file.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _link_or_copy(file, target)
        return state

    def _upload(self, state: Path) -> None:
        self._refuse_other_owner()
        record, before = Record.read("outputs", self.url), self._marker or Marker("")
        local_files = {
            file.relative_to(state).as_posix(): signature(file) for file in state.rglob("*") if file.is_file()
        }
        is_same = record.marker == before.id
        changed = [
            name
            for name, own in local_files.items()
            if name not in before.files or not is_same or record.files.get(name) != own
        ]
        kept = self._skipped - local_files.keys()
        vanished = before.files.keys() - local_files.keys() - kept
        if not changed and not vanished and before.id:
            return
        marker = Marker(uuid.uuid4().hex, {name: each for name, each in before.files.items() if name not in vanished})
        moved: dict[str, RemoteFile] = {}
        guard = threading.Lock()

        def send(name: str) -> None:
            file, own = state / name, before.files.get(name)
            digest, size = checksum(file), file.stat().st_size
            if own is not None and (own.size, own.sha256) == (size, digest):
                return
            at = name if own is None else f"{OURS}{marker.id}/{name}"
            self._remote.upload(file, at)
            with guard:
                marker.files[name] = RemoteFile(at, size, digest)
                if at != name:
                    moved[name] = marker.files[name]

        in_threads(send, changed)
        self._refuse_other_owner()
        self._write(marker)
        # Before what may fail: from here on the local folder is what the marker lists, or newer.
        record.marker, record.files = marker.id, local_files
        record.write()
        if moved:
            self._settle(marker, moved)
        for name in vanished:
            self._remote.remove(before.files[name].at)

    def _settle(self, marker: Marker, moved: dict[str, RemoteFile]) -> None:
        """Give new versions their plain names, so that any other tool finds the folder as it is meant."""
        plain = Marker(marker.id, dict(marker.files))

        def move(name: str) -> None:
            self._remote.copy(moved[name].at, name)
            plain.files[name] = RemoteFile(name, moved[name].size, moved[name].sha256)

        in_threads(move, list(moved))
        self._write(plain)
        in_threads(lambda name: self._remote.remove(moved[name].at), list(moved))

    def _write(self, marker: Marker) -> None:
        self._remote.write(MARKER, marker.to_json())
        self._marker = marker

    def _remember(self, record: Record) -> None:
        """Record that the local folder is what the marker lists."""
        assert self._marker is not None
        names = self._marker.files.keys() - self._skipped
        record.marker = self._marker.id
        record.files = {name: signature(self.folder / name) for name in names}
        record.write()

    def _refuse_other_owner(self) -> None:
        data = self._remote.read(OWNER)
        with as_json(f"{self.url}/{OWNER}"):
            owner = json.loads(data or b"{}")
            if owner.get("id") != self._id:
                raise StorageError(
                    f"{self.url}: another process writes to it now (process {owner.get('pid')} on "
                    f"{owner.get('host')}); stop one of them"
                )


def _is_unfinished(name: Path) -> bool:
    """Whether a file is a lock, or belongs to a folder or file that is being written."""
    if name.name == ".lock" or name.name.endswith((".part", ".lock")):
        return True
    return any(part.endswith((".new", ".old")) for part in name.parts)


def _link_or_copy(file: Path, target: Path) -> None:
    if file.stat().st_size > COPIED:
        with contextlib.suppress(OSError):
            os.link(file, target)
            return
    shutil.copy2(file, target)
