"""Shared by all checks of data: findings that are counted and listed, and what is unusual about a text."""

import unicodedata
from dataclasses import dataclass, field

LONG = 30
"""Words above which a text counts as over-long: X-VLM's limit for captions."""
NAMED = 1000
"""Findings of one kind that are kept as lines; the others are counted."""


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
