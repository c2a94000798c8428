"""What an index returns: the images of a search, and the counts of a change."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evle.data.custom.columns import CAPTION_COLUMNS, present_columns
from evle.terminal import one_line

NAMED = 20
"""Unreadable images that a report names; the others are counted."""


@dataclass(frozen=True)
class Hit:
    """One image of a result.

    `score` is the cosine similarity; `match`, where hits were re-ranked, the probability that the text is true of it.
    `key` is the image's path relative to the index's root, `path` its path on this machine, `fields` the columns of the
    table that the index was built from, and `changed` the time of the file's last change in seconds.
    """

    score: float
    key: str
    path: Path
    match: float | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    changed: float = 0.0

    @property
    def caption(self) -> str:
        """The first caption in the user's table, "" without one."""
        value = self.fields.get(self.caption_column, "")
        return str(value[0]) if isinstance(value, list) else str(value)

    @property
    def caption_column(self) -> str:
        """The column of the user's table that holds the caption, "" without one."""
        names = present_columns(tuple(self.fields), None, CAPTION_COLUMNS)
        return next((name for name in names if self.fields[name]), "")


@dataclass
class Change:
    """What a change of the index did.

    `num_reused` counts images whose file was known by its contents (touched, renamed or copied): they were not embedded
    again. `skipped` has one line per image that could not be read. `recall` is that of the approximate index and
    `note` the reason why a large index has none.
    """

    num_added: int = 0
    num_kept: int = 0
    vanished: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0
    num_reused: int = 0
    recall: float | None = None
    note: str = ""

    def __str__(self) -> str:
        """The counts on one line, then up to NAMED of the images that could not be read, one per line."""
        counts = f"{self.num_added} added, {self.num_kept} kept in {self.seconds:.1f} s"
        if self.num_reused:
            counts += f", {self.num_reused} recognised by their contents"
        for names, what in ((self.changed, "changed"), (self.vanished, "gone"), (self.skipped, "could not be read")):
            if names:
                counts += f", {len(names)} {what}"
        if self.recall is not None:
            counts += f"; approximate search finds {self.recall:.1%} of the exact 10 best"
        if self.note:
            counts += f"; {self.note}"
        more = [f"... and {len(self.skipped) - NAMED} more"] if len(self.skipped) > NAMED else []
        return "\n  ".join([counts, *map(one_line, self.skipped[:NAMED]), *more])
