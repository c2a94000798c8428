"""Whole files: JSON whose every fault is one line, and replacing a file so that a crash leaves the old or the new."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from evle.errors import DataError, EvleError

_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def read_json(path: str | os.PathLike[str], *, kind: type = object, error: type[EvleError] = DataError) -> Any:
    """The JSON value in a file, which must be a `kind` (dict, list). Raises `error`, also where the file is missing."""
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise error(f"{os.fspath(path)}: cannot be read ({problem.strerror or problem})") from None
    return parse_json(data, os.fspath(path), kind=kind, error=error)


def parse_json(
    data: bytes | str,
    where: str,
    *,
    kind: type = object,
    error: type[EvleError] = DataError,
    unique_keys: bool = False,
) -> Any:
    """The JSON value in `data`, which must be a `kind`. Raises `error` for whatever is wrong with it: `where` names it.

    With `unique_keys`, an object with a duplicate key is an error too; otherwise its last value counts.

    >>> parse_json("[" * 100_000, "a.json")
    Traceback (most recent call last):
        ...
    evle.errors.DataError: a.json: not usable JSON (nested too deeply)
    """
    try:
        hook = unique_members if unique_keys else None
        value = json.loads(data.decode("utf-8-sig") if isinstance(data, bytes) else data, object_pairs_hook=hook)
    except DuplicateKeyError as problem:
        raise error(f"{where}: not usable JSON (the key {problem} is duplicated)") from None
    except RecursionError:
        raise error(f"{where}: not usable JSON (nested too deeply)") from None
    except UnicodeDecodeError as problem:
        raise error(f"{where}: not usable JSON (not UTF-8: byte {problem.start})") from None
    except json.JSONDecodeError as problem:
        raise error(f"{where}: not usable JSON ({problem})" if data else f"{where}: is empty") from None
    except ValueError:  # Python refuses to read whole numbers of more than 4,300 digits
        raise error(f"{where}: not usable JSON (a number has thousands of digits)") from None
    if not isinstance(value, kind):
        raise error(f"{where}: holds {_kind(type(value))}, where {_kind(kind)} is needed")
    return value


class DuplicateKeyError(ValueError):
    """A key that appears twice in an object; its text is the key."""


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object, as a hook for a JSON decoder. Raises DuplicateKeyError.

    >>> unique_members([("caption", "a dog"), ("caption", "a cat")])
    Traceback (most recent call last):
        ...
    evle.files.DuplicateKeyError: 'caption'
    """
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        raise DuplicateKeyError(repr(next(name for name in names if names.count(name) > 1)))
    return members


def _kind(kind: type) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "null" if kind is type(None) else names.get(kind, "a number")


def json_line(value: Any) -> str:
    """`value` as JSON in one line, also for readers that end a line at every sign that Unicode calls a line's end.

    Signs that steer a terminal, and bytes of names that are not UTF-8, are written as escapes: none is lost.

    >>> json_line({"image": "a\\u2028b\\udcff\\x85 é.png"})
    '{"image": "a\\\\u2028b\\\\udcff\\\\u0085 é.png"}'
    """
    text = json.dumps(value, default=_text, ensure_ascii=False)
    return _ESCAPED.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)


def _text(value: Any) -> str:
    """A path, a date or the like as text; bytes, as of a table in Parquet, as the text that they hold."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def checksum(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal digits. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, data: str | bytes) -> None:
    """Write `data` beside `path`, flush it to the disk, and move it there: `path` never holds half of it.

    A lone surrogate in a text is written as a question mark. Raises OSError.
    """
    encoded = data if isinstance(data, bytes) else data.encode("utf-8", "replace")
    with opened_whole(path) as file:
        file.write(encoded)


@contextmanager
def opened_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which is moved to `path` at the end, as `write_whole` does; after an error it is deleted."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        flush_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def flush_file(path: Path) -> None:
    """Have the disk hold what was written to a file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Have the disk hold a folder's names, where the system can be asked to."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse
        pass
    finally:
        os.close(handle)
