"""What Pillow reads wrongly in the files of images: gaps of zeros in a JPEG, which it decodes as grey parts, and long
texts in a PNG, for which it refuses the pixels."""

import re
import struct
import zlib

CUT = 16
"""Zeros at the end of a JPEG without its end marker that show that it was not fetched to its end."""
PNG_CUT = 4096
"""Zeros at the end of a PNG without its end that show the same."""
GAP = 512
"""Zeros in a row within the pixels of a JPEG that show that a part was not fetched: a block of the smallest files."""
LONGEST_TEXT = 1 << 20
"""Bytes of an unpacked text, beyond which Pillow refuses a PNG."""

_CUT = "ends in zeros, as a file not fetched to its end"
_PNG_END = b"IEND\xaeB`\x82"
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])", re.DOTALL)
_END, _SCAN, _TABLES = 0xD9, 0xDA, 0xC4
_FRAMES = (0xC0, 0xC1, 0xC2)
"""Markers of frames with Huffman codes: baseline, extended and progressive."""
_PROGRESSIVE = 0xC2
_WITHOUT_LENGTH = (0x01, 0xD8)


def gap_of_zeros(encoded: bytes) -> str:
    """What shows that a part of a JPEG or PNG file is zeros in place of pixels; empty for any other file.

    In a JPEG, what follows its end, such as padding or further images, and its thumbnails are not looked at. Of a PNG
    only the end is, because Pillow notices gaps.
    """
    if encoded.startswith(b"\x89PN"):
        return _CUT if encoded.endswith(bytes(PNG_CUT)) and _PNG_END not in encoded else ""
    is_cut = encoded.endswith(bytes(CUT))
    if not encoded.startswith(b"\xff\xd8\xff") or not (is_cut or bytes(GAP) in encoded):
        return ""
    first_symbols: dict[int, int] = {}  # by class and number of a Huffman table
    frame = position = 0
    while found := _MARKER.search(encoded, position):
        marker, position = found[1][0], found.end()
        if marker == _END:
            return ""
        if marker in _WITHOUT_LENGTH:
            continue
        length = int.from_bytes(encoded[position : position + 2], "big")
        segment, position = encoded[position + 2 : position + length], position + max(length, 2)
        if marker == _TABLES:
            first_symbols |= _first_symbols(segment)
        elif marker in _FRAMES:
            frame = marker
        elif marker == _SCAN:
            end = _MARKER.search(encoded, position)
            if is_cut and end is None:
                return _CUT
            gap = encoded.find(bytes(GAP), position, end.start() if end else len(encoded))
            if gap >= 0 and not _may_hold_zeros(segment, frame, first_symbols):
                return "has a gap of zeros, as a file of which a part was not fetched"
    return _CUT if is_cut else ""


def _first_symbols(segment: bytes) -> dict[int, int]:
    """The symbol of the first code, which consists of zeros, in each Huffman table of a segment."""
    symbols = {}
    while len(segment) > 17:
        symbols[segment[0]] = segment[17]
        segment = segment[17 + sum(segment[1:17]) :]
    return symbols


def _may_hold_zeros(scan: bytes, frame: int, first_symbols: dict[int, int]) -> bool:
    """Whether a scan with this header may hold many zeros: where the codes of zeros mean "as before" (DC) and "no more"
    (AC), a plain area is one. Elsewhere zeros would be the steepest of patterns.

    The pass that refines the DC of a progressive image holds single bits, which may be zeros.
    """
    count = scan[0] if scan else 0
    if frame not in _FRAMES or len(scan) < 2 * count + 4:
        return True
    start, end, bits = scan[2 * count + 1 : 2 * count + 4]
    if frame == _PROGRESSIVE and bits >> 4 and start == 0:
        return True
    numbers = scan[2 : 2 * count + 1 : 2]
    tables = [number >> 4 for number in numbers] if start == 0 else []
    tables += [0x10 | number & 15 for number in numbers] if end > 0 else []
    return all(first_symbols.get(table, 0) == 0 for table in tables)


def without_long_texts(encoded: bytes) -> bytes:
    """A PNG without its texts and colour profile of more than `LONGEST_TEXT` bytes, for which Pillow would refuse it;
    they are not unpacked any further. Any other file as it is."""
    if not encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return encoded
    kept: list[bytes] = []
    start, position = 0, 8
    while position + 12 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, position)
        end = position + 12 + length
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP") and _is_long(kind, encoded[position + 8 : end - 4]):
            kept.append(encoded[start:position])
            start = end
        position = end
    return b"".join([*kept, encoded[start:]]) if kept else encoded


def _is_long(kind: bytes, content: bytes) -> bool:
    """Whether the content of a chunk, unpacked, is longer than `LONGEST_TEXT`."""
    rest = content.partition(b"\0")[2]
    if len(content) > LONGEST_TEXT or kind == b"tEXt":
        return len(content) > LONGEST_TEXT
    if kind == b"iTXt":
        if rest[:1] != b"\x01":  # not compressed
            return False
        rest = b"\0" + rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(rest[1:], LONGEST_TEXT)
    except zlib.error:  # Pillow leaves it out
        return False
    return bool(unpacking.unconsumed_tail)
