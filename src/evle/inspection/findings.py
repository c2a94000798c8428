"""Shared by all checks of data: findings that are counted and listed, and what is unusual about a text."""

import re
import unicodedata
from dataclasses import dataclass, field

from evle.data.samples import Box

LONG = 30
"""Words above which a text counts as over-long: X-VLM's limit for captions."""
ODD = "texts that hold codes; they are read as they are"
"""The name of findings by `oddity`."""
DARK = "images of more than 8 bits that are too dark"
"""The name of findings by `odd_values`."""
OUTSIDE = "boxes that reach outside of their image (of a larger one?)"
"""The name of findings by `is_inside`."""
NAMED = 1000
"""Findings of one kind that are kept as lines; the others are counted."""

_TAG = re.compile(r"</?[A-Za-z][^<>]{0,60}>")
_ESCAPE = re.compile(r"\\(?:[nrt](?![a-z])|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2})")
_ADDRESS = re.compile(r"(https?://|www\.)\S+")
_FILE_NAME = re.compile(r"\S+\.(jpe?g|png|webp|gif|tiff?|bmp)", re.IGNORECASE)
_PERCENT = re.compile(r"%[0-9A-F]{2}")


@dataclass
class Findings:
    """Findings of one kind: their number, and the first ones as lines. `fatal` ones make data unusable."""

    name: str
    fatal: bool = False
    count: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Count one finding, and keep its line if it is one of the first."""
        self.count += 1
        if len(self.lines) < NAMED:
            self.lines.append(line)

    def shown(self, most: int) -> list[str]:
        """A heading and at most `most` lines; lines that differ only in their row are shown once, with their number."""
        if not self.count:
            return []
        lines = [f"  {line}" for line in self.lines[:most]]
        if self.count > len(lines):
            lines.append(f"  ... and {self.count - len(lines):,} more")
        return [f"{self.name}: {self.count:,}", *lines]


def is_latin(text: str) -> bool:
    """Whether at least half of a text's letters are Latin ones; a text without letters counts as Latin.

    >>> is_latin("ein Hund"), is_latin("собака"), is_latin("42")
    (True, False, True)
    """
    if text.isascii():
        return True
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters) >= len(letters)


def is_inside(box: Box, size: tuple[int, ...]) -> bool:
    """Whether a box is inside an image of a size (width, height), up to a tenth of each side.

    >>> is_inside(Box(90, 0, 15, 10), (100, 50)), is_inside(Box(90, 0, 40, 10), (100, 50))
    (True, False)
    """
    starts, lengths = (box.x, box.y), (box.width, box.height)
    return all(
        start < side and start + length > 0 and start >= -side / 10 and start + length <= 1.1 * side
        for start, length, side in zip(starts, lengths, size)
    )


def place_of(box: Box, size: tuple[int, ...]) -> str:
    """A box in an image of a size (width, height), in words."""
    return (
        f"{box.label or box.phrase!r}: {box.width:g} x {box.height:g} at ({box.x:g}, {box.y:g}) of "
        f"{size[0]} x {size[1]} pixels"
    )


def oddity(text: str) -> str:
    """What in a text is a code rather than a word: a tag, an escape, signs of another encoding; "" for nothing.

    >>> oddity("https://host/a"), oddity("dogs/a-dog.jpg")
    ('an address', 'the name of a file')
    >>> oddity("<b>a dog</b>"), oddity("un cafÃ©"), oddity("a dog, 50 % off")
    ('the tag <b>', 'UTF-8 that was decoded as Windows-1252', '')
    """
    if text.isdecimal():
        return "a number"
    if found := _TAG.search(text):
        return f"the tag {found[0]}"
    if found := _ESCAPE.search(text):
        return f"the escape {found[0]}"
    if _ADDRESS.fullmatch(text):
        return "an address"
    if _FILE_NAME.fullmatch(text):
        return "the name of a file"
    if " " not in text and len(_PERCENT.findall(text)) > 1:
        return "percent codes"
    if "\n" in text:
        return "several lines"
    if any(unicodedata.category(sign) == "Cc" and sign not in "\n\r\t" for sign in text):
        return "a control character"
    if not text.isascii() and any(sign in "ÃÂâðÐ" for sign in text):
        try:
            return "UTF-8 that was decoded as Windows-1252" if text.encode("cp1252").decode() else ""
        except UnicodeError:
            return ""
    return ""
