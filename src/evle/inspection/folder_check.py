"""Check the user's own folder before long work, naming every image that cannot be read and every empty text."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from evle.data.custom.folder import answers_of, captions_of, image_of, key_of, question_of
from evle.data.formats.table_files import find_table, list_images, read_rows
from evle.data.images import open_image
from evle.data.samples import hashed_split
from evle.errors import DataError, SampleError

LONG = 30
"""Words above which a text counts as over-long: X-VLM's limit for captions."""


@dataclass
class FolderCheck:
    """What a check found. Lists hold one line a finding, naming file and line or the image.

    `images` counts different images by name, `texts` captions or questions; `sizes` are (width, height) with how
    many images have them; `duplicates` are images with the same bytes, `leaks` those of them that stand in more
    than one split, `repeated` rows that say what an earlier one says. `no_table` says why the images alone were
    looked at.
    """

    path: str
    table: str
    task: str
    rows: int = 0
    images: int = 0
    texts: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    split_column: bool = False
    texts_per_image: dict[int, int] = field(default_factory=dict)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    broken_rows: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    long: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    not_latin: float = 0.0
    repeated: list[str] = field(default_factory=list)
    unanswered: int = 0
    no_table: str = ""

    @property
    def ok(self) -> bool:
        """Whether every row can be used: nothing broken, unreadable or empty."""
        return bool(self.images) and not (self.broken_rows or self.unreadable or self.empty)

    def lines(self, most: int = 20) -> list[str]:
        """The findings as plain lines, at most `most` of each kind."""
        noun = "questions" if self.task == "vqa" else "captions"
        lines = [f"{self.table or self.path}: {self.rows:,} rows, {self.images:,} images, {self.texts:,} {noun}"]
        if self.no_table:
            lines.append(f"only the images were looked at: {self.no_table}")
        if self.unanswered:
            lines.append(f"questions without an answer: {self.unanswered:,}; they can be asked, and not learned from")
        if self.splits:
            how = "by the table" if self.split_column else "by a hash of the name, as the table has no split column"
            shares = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
            lines.append(f"splits ({how}): {shares} images")
        if self.texts_per_image:
            numbers = sorted(self.texts_per_image)
            mean = sum(number * count for number, count in self.texts_per_image.items()) / max(1, self.images)
            lines.append(f"{noun} an image: {numbers[0]} to {numbers[-1]}, {mean:.1f} on average")
        if self.sizes:
            (width, height), count = max(self.sizes.items(), key=lambda item: item[1])
            areas = sorted(self.sizes, key=lambda size: size[0] * size[1])
            small, large = areas[0], areas[-1]
            lines.append(
                f"pixels: {small[0]} x {small[1]} to {large[0]} x {large[1]}, most often {width} x {height} ({count:,})"
            )
        if self.texts:
            lines.append(f"not in Latin script: {100 * self.not_latin:.1f} % of the {noun}")
        kinds = (
            ("broken rows", self.broken_rows),
            ("unreadable images", self.unreadable),
            (f"empty {noun}", self.empty),
            (f"{noun} of more than {LONG} words", self.long),
            ("rows that repeat another", self.repeated),
            ("images with the same bytes", self.duplicates),
            ("images in more than one split", self.leaks),
        )
        for name, found in kinds:
            if found:
                lines.append(f"{name}: {len(found):,}")
                lines += [f"  {line}" for line in found[:most]]
                if len(found) > most:
                    lines.append(f"  ... and {len(found) - most:,} more")
        good = "every row can be used" if self.table else "every image can be read"
        if not self.rows and self.table:
            lines.append("the table holds no row")
        else:
            lines.append(good if self.ok else f"the {'rows' if self.table else 'images'} named above cannot be used")
        return lines


def check_folder(
    path: str | os.PathLike,
    task: str = "captions",
    *,
    image_column: str | None = None,
    caption_column: str | Sequence[str] | None = None,
    question_column: str | None = None,
    split_column: str = "split",
    allow_outside: bool = False,
    num_threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> FolderCheck:
    """Read a folder's whole table and decode each of its images once. A folder without a table: its images alone.

    `progress(done, total)` is called as images are decoded. Raises DataError only where there is nothing to check.
    """
    base = Path(path)
    try:
        table = find_table(base, task)
    except DataError as error:
        if not base.is_dir() or not (names := list_images(base)):
            raise
        check = FolderCheck(str(base), "", task, no_table=str(error))
        split_of: dict[str, set[str]] = {name: set() for name in names}
        root = base
    else:
        check = FolderCheck(str(base), str(table), task)
        root = table.parent
        split_of = _read_table(
            check, table, image_column, caption_column, question_column, split_column, None if allow_outside else root
        )
    check.images = len(split_of)
    check.splits = dict(Counter(split for splits in split_of.values() for split in sorted(splits)))
    _decode(check, root, split_of, num_threads, progress)
    return check


def _read_table(
    check: FolderCheck,
    table: Path,
    image_column: str | None,
    caption_column: str | Sequence[str] | None,
    question_column: str | None,
    split_column: str,
    root: Path | None,
) -> dict[str, set[str]]:
    """Fills in what the rows say; returns the splits of each image."""
    split_of: dict[str, set[str]] = {}
    texts_of: Counter[str] = Counter()
    not_latin = 0
    seen: dict[bytes, int] = {}
    for line, row in read_rows(table):
        where = f"{table}:{line}"
        check.rows += 1
        try:
            if isinstance(row, DataError):
                raise row
            image = image_of(row, image_column, where, root)
            texts = (
                captions_of(row, caption_column, where)
                if check.task == "captions"
                else question_of(row, question_column, where)
            )
        except DataError as error:
            check.broken_rows.append(str(error))
            continue
        named = split_column in row
        check.split_column |= named
        split_of.setdefault(image, set()).add(str(row[split_column]).strip() if named else hashed_split(image))
        if not texts:
            check.empty.append(f"{where}: {image}")
        for text in texts:
            if len(text.split()) > LONG:
                check.long.append(f"{where}: {len(text.split())} words: {text[:60]}...")
            not_latin += not is_latin(text)
        texts_of[image] += len(texts)
        check.texts += len(texts)
        key, answers = "", []
        if check.task == "vqa":
            key, answers = key_of(row, where), answers_of(row, None, where)
            check.unanswered += not answers
        identity = (key or repr((image, texts, answers))).encode("utf-8", "surrogatepass")
        first = seen.setdefault(hashlib.blake2b(identity, digest_size=8).digest(), line)
        if first != line and key:
            check.broken_rows.append(
                f"{where}: the id {key!r} stands in line {first}, too; every question needs its own"
            )
        elif first != line:
            check.repeated.append(f"{where}: as line {first}")
    check.texts_per_image = dict(Counter(texts_of.values()))
    check.not_latin = not_latin / max(1, check.texts)
    return split_of


def _decode(
    check: FolderCheck,
    root: Path,
    split_of: dict[str, set[str]],
    num_threads: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Fills in what the images say."""
    seen: dict[bytes, str] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    for done, (name, found) in enumerate(_looked_at(root, list(split_of), num_threads), 1):
        if isinstance(found, str):
            check.unreadable.append(found)
        else:
            size, digest = found
            sizes[size] += 1
            first = seen.setdefault(digest, name)
            if first != name:
                check.duplicates.append(f"{name} = {first}")
                if split_of[first] != split_of[name]:
                    both = " and ".join(sorted(split_of[first] | split_of[name]))
                    check.leaks.append(f"{name} = {first}: in {both}")
        if len(split_of[name]) > 1:
            check.leaks.append(f"{name}: in {' and '.join(sorted(split_of[name]))}")
        if progress is not None:
            progress(done, len(split_of))
    check.sizes = dict(sizes)


def _looked_at(
    root: Path, names: list[str], num_threads: int
) -> Iterator[tuple[str, str | tuple[tuple[int, int], bytes]]]:
    """(name, its size and digest, or why it cannot be read), in order.

    A few hundred images are looked at together, so that memory stays small.
    """

    def look(name: str) -> tuple[str, str | tuple[tuple[int, int], bytes]]:
        try:
            size = open_image(root / name).size
            return name, (size, hashlib.blake2b((root / name).read_bytes(), digest_size=16).digest())
        except SampleError as error:
            return name, str(error)

    rest = iter(names)
    with ThreadPoolExecutor(num_threads) as pool:
        while block := list(islice(rest, 256)):
            yield from pool.map(look, block)


def is_latin(text: str) -> bool:
    """Whether at least half of a text's letters are Latin ones; a text without letters counts as Latin.

    >>> is_latin("ein Hund"), is_latin("собака"), is_latin("42")
    (True, False, True)
    """
    if text.isascii():
        return True
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters) >= len(letters)
