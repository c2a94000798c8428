"""JSON lines: one record per line, with its offset in bytes, so that `json_arrays.read_element` can read it again.

Also one record of JSON by itself, as a shard has it.
"""

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from evle.data.formats.text_files import MAX_LINE, refuse_other_encoding, whole_characters
from evle.errors import DataError, EvleError
from evle.files import parse_json


class Line(NamedTuple):
    """One record: its line counted from 1, its offset and length in bytes, and its value."""

    number: int
    offset: int
    length: int
    value: dict[str, Any]


def parse_record(data: bytes | str, where: str, *, kind: type = object, error: type[EvleError] = DataError) -> Any:
    """The JSON value in `data`, as `parse_json` reads it. A duplicate key is an error, and half a character becomes a
    replacement sign."""
    value = parse_json(data, where, kind=kind, error=error, unique_keys=True)
    is_half = b"\\ud" in data.lower() if isinstance(data, bytes) else "\\ud" in data.lower()
    return whole_characters(value) if is_half else value


class JsonLines:
    """The records of a file. Iterate once; `fingerprint` is a hash of its bytes, known after the last one.

    Raises DataError, with file and line, for a file that is missing, and for a line that is cut short or no object.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self.fingerprint = ""

    def __iter__(self) -> Iterator[Line]:
        if not os.path.isfile(self.path):
            raise DataError(f"{self.path}: no such file")
        digest, offset = hashlib.blake2b(digest_size=8), 0
        with open(self.path, "rb") as file:
            refuse_other_encoding(self.path, file.read(64))
            file.seek(0)
            for number, data in enumerate(iter(partial(file.readline, MAX_LINE), b""), 1):
                if len(data) == MAX_LINE:
                    raise DataError(f"{self.path}:{number}: a line of more than {MAX_LINE >> 20} MB; split it")
                digest.update(data)
                if data.strip():
                    yield Line(number, offset, len(data), self._record(data, number))
                offset += len(data)
        self.fingerprint = digest.hexdigest()

    def _record(self, data: bytes, number: int) -> dict[str, Any]:
        where = f"{self.path}:{number}"
        try:
            record = parse_record(data, where)
        except DataError as error:
            if data.strip() in (b"{", b"["):
                raise DataError(f"{where}: one object over several lines; write each object on one line") from None
            reason = str(error)
            if not data.endswith(b"\n") and ("(Expecting" in reason or "(Unterminated" in reason):
                reason = reason.replace("not usable JSON", "cut short", 1)
            raise DataError(f"{reason}; fetch or unpack the file again") from None
        if not isinstance(record, dict):
            cure = "write one object per line, not one list of them" if isinstance(record, list) else "correct it"
            raise DataError(f"{where}: each line must be an object {{...}}, not {str(record)[:40]!r}; {cure}")
        return record
