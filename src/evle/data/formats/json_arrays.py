"""The elements of a JSON file's arrays, one at a time: annotation files of gigabytes in a few megabytes of memory.

Official annotations are one big list, or one object of several lists. Each element is decoded, handed out and
forgotten; its offset in bytes comes with it, so that `read_element` can read it again.
"""

import codecs
import hashlib
import json
import os
from collections.abc import Generator, Iterator, Sequence
from json.decoder import WHITESPACE  # type: ignore[attr-defined]
from typing import Any, BinaryIO, NamedTuple

from evle.data.formats.text_files import refuse_other_encoding, whole_characters
from evle.errors import DataError
from evle.files import DuplicateKeyError, unique_members

CHUNK = 1 << 20
"""Bytes read at once."""
LARGEST = 1 << 28
"""Characters of one element at most; more is a file of another form."""

BLANKS = " \t\n\r"
_MARGIN = 16  # a word, escape or number that is cut in two fails within this many characters of the end


class Element(NamedTuple):
    """One element: the name of its array, its offset and length in bytes, and its value."""

    array: str
    offset: int
    length: int
    value: Any


class JsonArrays:
    """The elements of the arrays `names` of a JSON object, or with the name "" those of a file that is one list.

    Iterate once. `fingerprint` is a hash of the file's bytes, known after the last element. Half a character in a text
    becomes a replacement sign. Raises DataError for a file that is missing, compressed, not UTF-8, cut short, not JSON,
    or without one of the arrays, and for a duplicate key.
    """

    def __init__(self, path: str | os.PathLike[str], names: Sequence[str] = ("",)):
        self.path, self.names = os.fspath(path), tuple(names)
        self.fingerprint = ""

    def __iter__(self) -> Iterator[Element]:
        if not os.path.isfile(self.path):
            raise DataError(f"{self.path}: no such file")
        with open(self.path, "rb") as file:
            refuse_other_encoding(self.path, file.read(64))
            file.seek(0)
            window = _Window(file, self.path)
            first = window.peek()
            if first == "[":
                yield from self._array(window, "")
                found = [""]
            elif first == "{":
                found = yield from self._members(window)
            else:
                how = f"starts with {first!r} and is no JSON list or object" if first else "is empty"
                raise DataError(f"{self.path}: {how}; fetch or unpack the file again")
            if (after := window.peek()) == first == "{":
                raise window.error("a second value follows the first, as in JSON lines", "write one list [...] of them")
            if after:
                raise window.error("there is text after its end")
            self.fingerprint = window.digest.hexdigest()
        missing = [name for name in self.names if name not in found]
        if missing:
            sought = " and ".join(f"no list {name!r}" if name else "no list of records" for name in missing)
            holds = ", ".join(map(repr, found)) if found != [""] else "one list"
            raise DataError(f"{self.path}: {sought} in it: it holds {holds or 'nothing'}; is it the right file?")

    def _members(self, window: "_Window") -> Generator[Element, None, list[str]]:
        """The elements of every wanted array of an object; returns the names of its members."""
        found: list[str] = []
        window.take("{")
        while window.peek() != "}":
            if found:
                window.take(",")
            window.peek()
            name = str(window.value("the name of a member", len(found)))
            if name in found:
                raise window.error(f"the key {name!r} is duplicated")
            window.take(":")
            found.append(name)
            if window.peek() == "[":
                yield from self._array(window, name)
            else:
                window.value(f"member {name!r}", 0)
        window.take("}")
        return found

    def _array(self, window: "_Window", name: str) -> Iterator[Element]:
        wanted, number = name in self.names, 0
        what = f"{name!r}, element" if name else "element"
        window.take("[")
        more = window.peek() != "]"
        while more:
            window.peek()
            offset = window.byte
            value = window.value(what, number)
            if wanted:
                yield Element(name, offset, window.byte - offset, value)
            number += 1
            more = window.peek() == ","
            window.at += more
        window.take("]")


def read_element(path: str | os.PathLike[str], offset: int, length: int) -> Any:
    """The element at an offset from `JsonArrays`. Raises DataError when the file is no longer the same."""
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(length)
    try:
        value = json.loads(data)
        return whole_characters(value) if b"\\ud" in data.lower() else value
    except (ValueError, RecursionError):
        raise DataError(f"{path}: changed at byte {offset:,} since it was opened; start again") from None


class _Window:
    """The part of a file that is being decoded: characters, and how many bytes lie before the current one."""

    def __init__(self, file: BinaryIO, path: str):
        self.file, self.path = file, path
        self.digest = hashlib.blake2b(digest_size=8)
        self.text, self.at, self.ended = "", 0, False
        self._known = (0, 0)  # a character of the text, and its offset in the file in bytes
        self._characters = codecs.getincrementaldecoder("utf-8")()
        self._decode = json.JSONDecoder(object_pairs_hook=unique_members).raw_decode
        if self.peek() == "\ufeff":  # a byte order mark
            self.at += 1

    @property
    def byte(self) -> int:
        """The offset of the current character in the file, in bytes."""
        character, byte = self._known
        if self.text.isascii():
            return byte + self.at - character
        byte += len(self.text[character : self.at].encode())
        self._known = (self.at, byte)
        return byte

    def peek(self) -> str:
        """The next character that is not blank, or "" at the end."""
        while True:
            mark = self.text[self.at : self.at + 1]
            if mark and mark not in BLANKS:
                return mark
            self.at = WHITESPACE.match(self.text, self.at).end()
            if self.at == len(self.text) and not self._more():
                return ""

    def take(self, mark: str) -> None:
        """Step over `mark`."""
        found = self.peek()
        if found != mark:
            raise self.error(f"{mark!r} is needed where {found!r} is" if found else f"cut short before {mark!r}")
        self.at += 1

    def value(self, what: str, number: int) -> Any:
        """The value that begins here, which an error calls `what` and its `number`."""
        while True:
            try:
                value, end = self._decode(self.text, self.at)
                if self.text.find("\\ud", self.at, end) >= 0 or self.text.find("\\uD", self.at, end) >= 0:
                    value = whole_characters(value)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - _MARGIN
                if not cut or len(self.text) - self.at > LARGEST:
                    raise self.error(f"{what} {number:,} is not JSON ({error.msg})") from None
                if not self._more():
                    raise self.error(f"cut short in {what} {number:,}") from None
                continue
            except RecursionError:
                raise self.error(f"{what} {number:,} is nested too deeply") from None
            except DuplicateKeyError as error:
                raise self.error(f"{what} {number:,} has a duplicate key, {error}") from None
            except ValueError:  # Python refuses to read whole numbers of more than 4,300 digits
                raise self.error(f"{what} {number:,} holds a number of thousands of digits") from None
            if not self.ended and len(self.text) - end < _MARGIN and self.text[end - 1] not in '}]"':
                self._more()  # the number may continue: 12 of 12.5e+3
                continue
            self.at = end
            return value

    def error(self, what: str, cure: str = "fetch or unpack the file again") -> DataError:
        return DataError(f"{self.path}: {what}, at byte {self.byte:,}; {cure}")

    def _more(self) -> bool:
        """Read more, at least as much as is held now; False at the end of the file."""
        if self.ended:
            return False
        data = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.digest.update(data)
        self.ended = not data
        self._known = (0, self.byte)
        try:
            self.text = self.text[self.at :] + self._characters.decode(data, final=self.ended)
        except UnicodeDecodeError:
            self.text, self.at = "", 0
            raise self.error("what follows is not UTF-8 text", "save it as UTF-8, or fetch it again") from None
        self.at = 0
        return bool(data)
