"""Text files as people have them: UTF-8, the UTF-16 of Windows, and Windows-1252, which Excel writes in Europe."""

import codecs
import json
import os
import re
import stat
from io import BufferedReader
from typing import Any

from evle.errors import DataError

MAX_LINE = 16 << 20
"""Bytes, or characters, of one line at most. A longer line is no row of a table."""

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
"""Compressed files and archives by their first bytes."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BLOCK = 1 << 20
_HIGH = re.compile(rb"[\x80-\xff]")
# In Windows-1252 these runs and pairs are rare; in other 8-bit and East Asian encodings they are words.
_RUNS = re.compile(rb"[\x8a\x8c\x8e\x9a\x9c\x9e\x9f\xc0-\xff]{3,}")
_UTF8_PAIRS = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}")  # UTF-8 with some damage
_KANA = re.compile(rb"[\x82\x83][\x9f-\xbf\xdf-\xf1]")  # of Shift-JIS; in Windows-1252 a low quote or f, and a sign
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_SIGN_IN_WORD = re.compile(
    rb"(?<=[a-z])[\x83\x86-\x8c\x8e\x98\x9f]|[\xa2-\xaa\xac\xae-\xb3\xb6\xb8-\xba\xbc-\xbe](?=[a-z\xdf-\xff])"
    rb"|(?<=[a-z])[\x80-\x91\x93-\x95\x99\x9b\xa1\xab\xb5\xbf](?=[a-z])"
)
_LOWER = bytes.maketrans(
    bytes([*range(0x41, 0x5B), 0x8A, 0x8C, 0x8E, 0x9F, *range(0xC0, 0xD7), *range(0xD8, 0xDF)]),
    bytes([*range(0x61, 0x7B), 0x9A, 0x9C, 0x9E, 0xFF, *range(0xE0, 0xF7), *range(0xF8, 0xFF)]),
)
_DOUBTFUL = re.compile(rb"[\xe3\xe7\xf0\xf5\xfb\xfd\xfe]")
_LETTER = rb"[a-z\x9a\x9c\x9e\xdf-\xf6\xf8-\xff]"


def _pattern(*parts: bytes) -> re.Pattern[bytes]:
    """Any of several patterns, in which L is a letter in lower case."""
    return re.compile(b"|".join(parts).replace(b"L", _LETTER))


# Other encodings of the Latin alphabet: no language of Windows-1252 writes the first, and few write the second.
_FOREIGN = _pattern(
    rb"(?<=L)\xf5(?!L)|(?<=[hjkyz])\xfb",  # Hungarian "nő", "gyűrű"; Portuguese has õe, Estonian õu, French dû
    rb"\xe3(?=[a-df-hj-np-rt-y\xdf-\xff]|sL)",  # Romanian "pădure"; Portuguese has ão, ãe, ãs
    rb"(?<!L)\xf0(?=L)",  # Lithuanian "šuo"; Icelandic begins no word with ð
    rb"(?<=L)\xfe(?!L)|\xfd[a-z]{1,3}\xfd",  # Turkish "kış", "kırmızı"
    rb"[\xf0\xfd\xfe]L{0,12}\xe7|\xe7L{0,12}[\xf0\xfd\xfe]",  # Turkish "ağaç"; Icelandic has no ç
)
_UNLIKELY = _pattern(
    rb"(?<!sk)\xfd(?![nrt])|(?<=[bcdfgklmptvyz])\xfdn(?!L)",  # Turkish "altı", "kadın"; Icelandic has ský, dýr and sýn
    rb"(?<=L)(?<!\xed)\xfe",  # Turkish "yeşil"; Icelandic has íþrótt
    rb"(?<=[a-egi-kn-qs-z])\xe3(?!L)",  # Romanian "fată"; Portuguese has manhã, lã, fã, irmã, maçã
)


def open_plain_file(path: str | os.PathLike[str]) -> BufferedReader:
    """Open an ordinary file for reading. Raises DataError for a pipe, device or folder, without waiting for one."""
    name = os.fspath(path)
    try:
        handle = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DataError(f"{name}: is not an ordinary file but a {_kind_of(name)}; give a file")
    return os.fdopen(handle, "rb")


def _kind_of(path: str) -> str:
    mode = os.stat(path).st_mode
    return "folder" if stat.S_ISDIR(mode) else "named pipe" if stat.S_ISFIFO(mode) else "device or socket"


def compression_of(start: bytes) -> str:
    """The kind of compressed file or archive that begins with `start`, "" for none.

    >>> compression_of(b"PK\\x03\\x04..."), compression_of(b"a text")
    ('zip', '')
    """
    return next((name for mark, name in COMPRESSED.items() if start.startswith(mark)), "")


def refuse_other_encoding(path: str | os.PathLike[str], start: bytes) -> None:
    """Raise DataError for a file that begins with `start` where UTF-8 text is needed: compressed, or UTF-16 or -32."""
    if kind := compression_of(start):
        raise DataError(f"{os.fspath(path)}: is compressed ({kind}); unpack it first")
    encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "")
    if encoding in ("utf-16", "utf-32"):
        raise DataError(f"{os.fspath(path)}: is {encoding.upper()} text; save it as UTF-8")
    if b"\0" in start:
        raise DataError(f"{os.fspath(path)}: holds zero bytes; save it as UTF-8 text, or fetch it again")


def whole_characters(value: Any) -> Any:
    """A value of JSON in which half a character, as a cut emoji leaves it, became a replacement sign.

    No tokenizer or Arrow table takes such a half.
    """
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))


def encoding_of(path: str | os.PathLike[str], *, western: bool = False) -> str:
    """The encoding of a text file: "utf-8", "utf-8-sig", "utf-16" (or -le, -be without a byte order mark) or "utf-32".

    With `western`, what is not UTF-8 may be "cp1252", unless its bytes make no words there. The whole file is read.
    Raises DataError for a compressed or binary file and for an encoding that cannot be known.
    """
    name = os.fspath(path)
    with open_plain_file(path) as file:
        start = file.read(4096)
        if kind := compression_of(start):
            raise DataError(f"{name}: is compressed ({kind}); unpack it first")
        for mark, encoding in _MARKS:
            if start.startswith(mark):
                return encoding
        if b"\0" in start:
            for encoding, zeros in (("utf-16-le", start[1::2]), ("utf-16-be", start[0::2])):
                if 2 * zeros.count(0) > len(zeros) and len(zeros) > 1:
                    return encoding
        file.seek(0)
        line, bad_line = 1, 0
        decoder = codecs.getincrementaldecoder("utf-8")()
        while block := file.read(_BLOCK):
            if b"\0" in block:
                raise DataError(f"{name}: holds zero bytes, so it is not a text file; save it as UTF-8 text")
            if not bad_line:
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as error:
                    bad_line = line + error.object[: error.start].count(b"\n")
            line += block.count(b"\n")
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            bad_line = bad_line or line
    if not bad_line:
        return "utf-8"
    if western and _is_western(name):
        return "cp1252"
    raise DataError(f"{name}:{bad_line}: not UTF-8 text; save the file as UTF-8")


def _is_western(path: str) -> bool:
    text = _Western()
    with open_plain_file(path) as file:
        while block := file.read(_BLOCK):
            text.look_at(block)
    return text.is_likely


class _Western:
    """Collects evidence on whether text that is not UTF-8 is Windows-1252."""

    def __init__(self) -> None:
        self.high = self.odd = self.foreign = 0
        self.undefined = False

    def look_at(self, block: bytes) -> None:
        if block.isascii():
            return
        self.high += len(_HIGH.findall(block))
        self.odd += sum(map(len, (*_RUNS.findall(block), *_UTF8_PAIRS.findall(block), *_KANA.findall(block))))
        lower = block.translate(_LOWER)
        self.odd += len(_SIGN_IN_WORD.findall(block))
        for letter in _DOUBTFUL.finditer(lower):  # each pattern begins with one of these
            self.odd += _UNLIKELY.match(lower, letter.start()) is not None
            self.foreign += _FOREIGN.match(lower, letter.start()) is not None
        self.undefined = self.undefined or _UNDEFINED.search(block) is not None

    @property
    def is_likely(self) -> bool:
        return not self.undefined and 5 * (self.odd + 10 * self.foreign) <= self.high
