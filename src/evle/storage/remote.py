"""One place in remote storage: the few operations that copies need, with errors in one line and repeated attempts."""

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.registry import known_implementations

from evle.errors import StorageError, in_one_line, nearest
from evle.storage.deadline import TooSlowError, in_time
from evle.storage.urls import URL

logger = logging.getLogger(__name__)

T = TypeVar("T")
PAUSES = (1.0, 4.0, 15.0)
"""Seconds between attempts."""
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "oss", "memory"}
"""Schemes whose files appear whole or not at all, below folders that need not exist."""
UNREACHABLE = {
    "gaierror",
    "ClientConnectorDNSError",
    "ConnectionTimeoutError",
    "EndpointConnectionError",
    "TooSlowError",
}
"""Exceptions of libraries that are raised where no server can be reached, by name: none of them is imported here."""
NO_ROUTE = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT}
PERMANENT = (FileNotFoundError, PermissionError, NotImplementedError, ImportError, IsADirectoryError, TooSlowError)


_answered: set[str] = set()
"""Hosts that this process has reached: only these are worth another attempt when they cannot be reached."""


class UnreachableError(StorageError):
    """No server answers there, so that asking for another file is in vain."""


class Remote:
    """The file or folder at a URL. Every method raises StorageError, which names the URL and the cure."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        match = URL.fullmatch(url)
        assert match is not None
        self.scheme = match[1].lower()
        self._host = f"{self.scheme}://{match[2].partition('/')[0]}"
        try:
            self._files, self._path = fsspec.url_to_fs(self.url)
        except ImportError as error:
            raise StorageError(f"{url}: a package for {self.scheme}:// is missing ({in_one_line(error)})") from None
        except ValueError as error:
            known = self.scheme in known_implementations
            hint = in_one_line(error) if known else f"unknown scheme; {_nearest_scheme(self.scheme)}"
            raise StorageError(f"{url}: {hint}") from None
        except Exception as error:  # whatever the scheme's library raises where it connects at once
            raise StorageError(f"{url}: cannot be reached ({in_one_line(error)}); {_cure(error, 'read')}") from None

    def list(self) -> dict[str, tuple[int, str]]:
        """The files of the folder by their path below it, each with its size and a text that changes with it."""
        self._files.invalidate_cache()
        found = self._try("read", lambda: self._files.find(self._path, detail=True), missing={})
        root = self._path.rstrip("/") + "/"
        return {
            name.removeprefix(root): (int(each.get("size") or 0), _stamp(each))
            for name, each in found.items()
            if name.startswith(root) and not name.endswith("/")
        }

    def is_file(self) -> bool:
        """Whether the URL is a file."""
        self._files.invalidate_cache()
        return bool(self._try("read", lambda: self._files.isfile(self._path), missing=False))

    def stamp(self) -> tuple[int, str]:
        """Size of the file at the URL, and a text that changes with it."""
        each = self._try("read", lambda: self._files.info(self._path))
        return int(each.get("size") or 0), _stamp(each)

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None where there is none."""
        return self._try("read", lambda: self._files.cat_file(self._at(name)), missing=None)

    def write(self, name: str, data: bytes) -> None:
        """Replace a small file, whole or not at all."""
        path = self._at(name)

        def work() -> None:
            if self.scheme in OBJECT_STORES:
                self._files.pipe_file(path, data)
                return
            self._files.makedirs(self._files._parent(path), exist_ok=True)
            self._files.pipe_file(path + ".part", data)
            self._move(path + ".part", path)

        self._try("written", work)

    def download(self, name: str, target: Path) -> None:
        """Copy a file here; `target` appears whole."""
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            self._try(
                "read",
                lambda: self._files.get_file(self._at(name), str(part)),
                received=lambda: part.stat().st_size if part.exists() else 0,
            )
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    def upload(self, source: Path, name: str) -> None:
        """Copy a local file there."""
        path = self._at(name)

        def work() -> None:
            if self.scheme not in OBJECT_STORES:
                self._files.makedirs(self._files._parent(path), exist_ok=True)
            self._files.put_file(str(source), path)

        self._try("written", work, size=source.stat().st_size)

    def copy(self, source: str, name: str) -> None:
        """Copy a remote file over another one; most stores do it without sending its bytes."""
        self._try("written", lambda: self._files.cp_file(self._at(source), self._at(name)))

    def remove(self, name: str) -> None:
        """Delete a remote file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._try("written", lambda: self._files.rm_file(self._at(name)), missing=None)

    def _move(self, old: str, new: str) -> None:
        self._files.makedirs(self._files._parent(new), exist_ok=True)
        if self._files.exists(new):  # not every store replaces a file
            self._files.rm_file(new)
        self._files.mv(old, new)

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}" if name else self._path

    def _try(
        self,
        verb: str,
        work: Callable[[], T],
        received: Callable[[], int] | None = None,
        size: int = 0,
        **default: Any,
    ) -> T:
        """The result of `work`, repeated while it may help; `missing` is the result where there is no such file.

        It is given up when it takes too long (see `in_time`, also for `received` and `size`), and at once where no
        server has answered yet.
        """
        for pause in (*PAUSES, None):
            try:
                result = in_time(work, received, size)
                _answered.add(self._host)
                return result
            except Exception as error:  # a library of any scheme may raise anything
                if isinstance(error, FileNotFoundError) and "missing" in default:
                    _answered.add(self._host)
                    return default["missing"]
                no_server = _is_unreachable(error)
                in_vain = no_server and self._host not in _answered
                if pause is None or in_vain or isinstance(error, PERMANENT) or "credential" in _text(error).lower():
                    raise (UnreachableError if no_server else StorageError)(
                        f"{self.url}: cannot be {verb} ({in_one_line(error)}); {_cure(error, verb)}"
                    ) from None
                logger.info("%s: %s; trying again in %g s", self.url, in_one_line(error), pause)
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def as_json(what: str) -> Iterator[None]:
    """Raise StorageError for a file of ours that holds no such JSON."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{what}: damaged ({in_one_line(error)}); delete it, or choose another URL") from None


def to_json(value: Any) -> bytes:
    """JSON as bytes."""
    return json.dumps(value, indent=1).encode()


def _stamp(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "created"):
        if info.get(key):
            return str(info[key])
    return ""


def _text(error: BaseException) -> str:
    return f"{type(error).__name__} {error}"


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that there is no connection to a server."""
    while error is not None:
        if type(error).__name__ in UNREACHABLE or (isinstance(error, OSError) and error.errno in NO_ROUTE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _nearest_scheme(scheme: str) -> str:
    known = [name for name in known_implementations if name.isalnum()]
    return nearest(scheme, known, "the documentation of fsspec")


def _cure(error: BaseException, verb: str) -> str:
    if "credential" in _text(error).lower() or "InvalidAccessKeyId" in _text(error):
        return "set the credentials as the scheme's library expects them (for s3: AWS_ACCESS_KEY_ID and its secret)"
    if isinstance(error, FileNotFoundError):
        return "create the bucket or folder, or correct the URL"
    if isinstance(error, PermissionError):
        return "check the credentials and the permissions"
    if isinstance(error, NotImplementedError):
        return "this storage is only for reading; choose another output" if verb == "written" else "use another scheme"
    return "check the connection and the URL, and repeat the command"
