"""A lock on a folder, so that two processes never write one run at the same time.

The lock is the operating system's (a POSIX record lock on `.lock` in the folder): it ends with the process, however
that ends, and the data workers that a process forks do not inherit it.
"""

import atexit
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from evle.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows has no record locks of this kind: there, nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"

_held: set[Path] = set()
"""Folders that this process holds: the operating system would grant it the same lock again."""

_kept: dict[Path, contextlib.ExitStack] = {}
"""The locks that `hold` took, by folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which is created if it does not exist, and removed again if it stays empty.

    Raises ConfigError when a process, this one included, holds it already; the message names the process.
    """
    release(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: choose another output")
    key = folder.resolve()
    file = _acquire(folder, key)
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        file.close()
        with contextlib.suppress(OSError):
            folder.rmdir()  # only if empty: the run was refused before it wrote anything


def hold(folder: Path) -> None:
    """Hold the lock of `folder` until `release`, or until this process ends, unless this process holds it already.

    Raises ConfigError as `locked`.
    """
    if folder.resolve() not in _held:
        stack = contextlib.ExitStack()
        stack.enter_context(locked(folder))
        _kept[folder.resolve()] = stack
        owner = os.getpid()
        atexit.register(lambda: release(folder) if os.getpid() == owner else None)


def release(folder: Path) -> None:
    """Give back a lock that `hold` took."""
    if (stack := _kept.pop(folder.resolve(), None)) is not None:
        stack.close()


def _acquire(folder: Path, key: Path) -> IO[str]:
    path = folder / LOCK
    if key in _held:
        raise ConfigError(f"{folder}: this process is already training a run in it; wait for it to end")
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held for as long as the lock
        except FileNotFoundError:
            continue  # another process removed the empty folder in between
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"{folder} is a file, or inside of one: choose another output") from None
        if not _lock(file):
            holder = _holder(file)
            file.close()
            raise ConfigError(
                f"{folder}: another process is training this run ({holder}); wait for it to end, stop it, or choose "
                "another output"
            )
        if _is_at(file, path):
            break
        file.close()  # the process that held it removed the file in between
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    file.flush()
    return file


def _lock(file: IO[str]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether the open file still is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(file: IO[str]) -> str:
    try:
        file.seek(0)
        holder: dict[str, Any] = json.loads(file.read())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it does not say which"
