"""The members of a tar by its headers alone (ustar, pax, GNU names), without the contents of its files."""

import posixpath
import re
from collections.abc import Iterator
from typing import IO, NamedTuple

_BLOCK = 512
_PAX_SIZE = re.compile(rb"\d+ ")
_MAX_DIGITS = 18  # of a length in bytes; more are damage, and Python refuses to read thousands


class Span(NamedTuple):
    """Bytes of a file; of size 0 where a sample has no such member."""

    offset: int
    size: int


class TarDamage(ValueError):
    """A tar ends, or stops making sense, at `offset`."""

    def __init__(self, reason: str, offset: int):
        super().__init__(reason)
        self.offset = offset


def tar_members(file: IO[bytes], size: int, links: dict[str, str] | None = None) -> Iterator[tuple[str, Span]]:
    """(name, span) of each plain file in an open tar of `size` bytes, by its headers alone.

    `links` takes in the target, as a name in the tar, of each hard and symbolic link.

    Raises TarDamage where a header is broken, a member is cut short, or the closing zero blocks are missing.
    """
    at, ended = 0, False
    name: str | None = None
    link: str | None = None
    length: int | None = None
    while at < size:
        file.seek(at)
        block = file.read(_BLOCK)
        if len(block) < _BLOCK:
            raise TarDamage("cut short inside a header", at)
        if not block.strip(b"\0"):
            at, ended = at + _BLOCK, True
            continue
        ended = False
        kind, own_name, own_size = _read_header(block, at)
        body = at + _BLOCK
        if kind in b"xgLK":  # what these hold describes the next member
            if own_size > 1 << 20:
                raise TarDamage("an extended header of impossible size", at)
            data = file.read(own_size)
            if len(data) < own_size:
                raise TarDamage("cut short inside an extended header", at)
            if kind == b"K":
                link = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind == b"L":
                name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind == b"x":
                fields = _pax_fields(data, at)
                name = fields[b"path"].decode("utf-8", "surrogateescape") if b"path" in fields else name
                link = fields[b"linkpath"].decode("utf-8", "surrogateescape") if b"linkpath" in fields else link
                length = _number(fields[b"size"], at) if fields.get(b"size", b"").isdigit() else length
        else:
            span = Span(body, own_size if length is None else length)
            own_size = span.size
            if body + span.size > size:
                raise TarDamage(f"cut short inside {name or own_name}", at)
            if kind in b"07\0" and not (name or own_name).endswith("/"):
                yield name or own_name, span
            elif kind in b"12" and links is not None:
                target = link or block[157:257].partition(b"\0")[0].decode("utf-8", "surrogateescape")
                folder = posixpath.dirname(name or own_name) if kind == b"2" else ""
                links[name or own_name] = posixpath.join(folder, target)
            if kind in b"12":
                own_size = 0
            name = length = link = None
        at = body + -(-own_size // _BLOCK) * _BLOCK
    if not ended:
        raise TarDamage("no end mark" if size else "an empty file", min(at, size))


def _read_header(block: bytes, at: int) -> tuple[bytes, str, int]:
    """(type, name, size) of a header block, its check sum verified."""
    try:
        data = int(block[148:156].strip(b" \0"), 8)
        if data != sum(block) - sum(block[148:156]) + 8 * 32:
            raise TarDamage("a broken header", at)
        if block[124] & 0x80:  # GNU's binary form, for eight gigabytes and more
            size = int.from_bytes(block[125:136], "big")
        else:
            size = int(block[124:136].strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise error if isinstance(error, TarDamage) else TarDamage("a broken header", at) from None
    if size < 0:
        raise TarDamage("a broken header", at)
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = prefix + b"/" + name
    return block[156:157], name.decode("utf-8", "surrogateescape"), size


def _pax_fields(data: bytes, header: int) -> dict[bytes, bytes]:
    """The `path` and `size` of the pax header at the byte `header`: lines of "LENGTH KEY=VALUE"."""
    fields, at = dict[bytes, bytes](), 0
    while (found := _PAX_SIZE.match(data, at)) is not None:
        length = _number(found[0].rstrip(), header)
        key, _, value = data[found.end() : at + length].rstrip(b"\n").partition(b"=")
        fields[key] = value
        at += max(length, len(found[0]))
    return fields


def _number(digits: bytes, at: int) -> int:
    if len(digits) > _MAX_DIGITS:
        raise TarDamage("an extended header of impossible size", at)
    return int(digits)
