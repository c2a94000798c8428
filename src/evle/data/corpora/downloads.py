"""Which row of a table of links each downloaded image belongs to.

Downloaders name their files in different ways, and a wrong guess gives every image the caption of a neighbour. So each
layout that is possible is held against the evidence: the range of the numbers, names that occur more than once, and the
captions and links that img2dataset writes beside its images. One layout must be left; otherwise the folder is refused.

    17.jpg                   number             the number of the row, from 0
    17.jpg                   number-from-1      the number of the row, from 1
    0012/345.jpg             folders-of-1000    the folder's number times 1000, plus the image's (SBU's authors)
    00012/000123456.jpg      folders-of-10000   the same, with the folder's digits repeated (img2dataset)
    4000001_b0f2.jpg         url                the last part of the link without its ending
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, NoReturn
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from evle.data.formats.listing import IMAGE_SUFFIXES
from evle.errors import ConfigError, DataError, nearest

LAYOUTS = ("number", "number-from-1", "folders-of-N", "url")
"""How downloaded images are named (see the head of this file)."""

_FOLDERS_OF = re.compile(r"folders-of-(\d+)")
_SIZES = tuple(10**power for power in range(2, 6))
"""Sizes that a folder of images may have where neither the names nor any notes give it."""
_FULL = 0.99  # a folder whose last hundredth holds an image is taken to be full
_NUMBERED = 0.9  # the share of names that are numbers from which on they are taken for numbers of rows
_NOTES = 64  # images whose notes are read
_LOOKED_AT = 1024  # images looked at to find those that have notes


@dataclass(frozen=True)
class Links:
    """The usable rows of a table of links: one entry of each array per row, texts as hashes."""

    row: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    name: np.ndarray  # of the last part of the link
    url: np.ndarray
    caption: np.ndarray
    excluded: np.ndarray
    unusable: np.ndarray
    """Numbers of the rows that have no caption or no link."""

    @property
    def num_rows(self) -> int:
        return len(self.row) + len(self.unusable)


@dataclass(frozen=True)
class Layout:
    """A way to name images: `keys` (int64, one per image, -1 for none) are numbers of rows, or for "url" hashes."""

    name: str
    keys: np.ndarray


class Note(NamedTuple):
    """The link or the caption of an image's row that a downloader wrote beside it, each "" where it wrote none."""

    image: int
    file: Path
    url: str
    caption: str


def name_of_link(url: str) -> str:
    """The last part of a link without its ending.

    >>> name_of_link("http://static.flickr.com/1/40_b0.jpg?size=large")
    '40_b0'
    """
    return _stem(unquote(url.partition("?")[0].partition("#")[0]))


def hash_of_caption(caption: str) -> int:
    """A hash that does not depend on blanks."""
    return hash(" ".join(caption.split()))


def images_below(root: Path) -> tuple[pa.Array, list[str]]:
    """Paths of the images anywhere below `root`, relative to it and in order, and a line for each linked folder there,
    which is not followed. Raises DataError where there are no images, or a folder cannot be opened."""
    unfollowed: list[str] = []

    def walk(folder: str) -> Iterator[str]:
        here = os.path.join(root, folder)
        try:
            with os.scandir(here) as entries:
                shown = (entry for entry in entries if not entry.name.startswith("."))
                inside = sorted(
                    (entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in shown
                )
        except OSError as error:
            raise DataError(f"{here}: cannot be opened ({error.strerror}); change its permissions") from None
        for name, is_folder, is_link in inside:
            path = f"{folder}/{name}" if folder else name
            if is_folder:
                yield from walk(path)
            elif is_link and os.path.isdir(os.path.join(root, path)):
                unfollowed.append(f"{root / path}: a link to a folder, which is not followed; move its images here")
            elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield path

    chunks, paths = [], walk("")
    while chunk := list(islice(paths, 100_000)):
        chunks.append(pa.array(chunk, pa.large_string()))
    if not chunks:
        shard = next(root.rglob("*.tar"), None)
        cure = f"{shard.name} is a shard: read it with the source 'shards'" if shard else "set images=FOLDER"
        raise DataError(f"{root}: no images there; {unfollowed[0] if unfollowed else cure}")
    return pa.concat_arrays(chunks), unfollowed


def find_layout(root: Path, images: pa.Array, links: Links, names: str | None, table: Path) -> Layout:
    """The layout that the images below `root` have: `names`, or the one that the evidence leaves.

    Raises ConfigError for a layout that does not exist, DataError where no layout or more than one fits, and where the
    notes beside the images contradict the layout.
    """
    numbers = _Numbers(images)
    if names is not None:
        layout = _named(names, numbers, images)
        return _refuse_contradicted([layout], list(_notes(root, images, with_texts=False)), links, table)[0]
    if numbers.share < _NUMBERED:
        return _by_url(images)
    known_size = _size_by_stats(root, images)
    notes = list(_notes(root, images, with_texts=True))
    layouts = _possible(numbers, images, links, known_size)
    layouts += [_folders(numbers, size) for size in _sizes_by_notes(numbers, notes, links)]
    fitting = [each for each in layouts if _in_range(each, numbers, links)]
    agreeing = _refuse_contradicted(fitting, notes, links, table)
    if not any(each.name == "url" for each in agreeing):
        agreeing = [each for each in agreeing if _is_certain(each, numbers, links, notes, known_size)]
    distinct = _distinct(agreeing, links)
    if len(distinct) != 1:
        _refuse(root, images, links, distinct or fitting, table)
    return distinct[0]


def images_of_rows(links: Links, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """For each row the index of its image, or -1; and whether the image's name belongs to several links or files."""
    wanted = links.name if layout.name == "url" else links.row
    order = np.argsort(layout.keys, kind="stable")
    keys = layout.keys[order]
    first, last = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
    index = np.where(last > first, order[np.minimum(first, len(order) - 1)], -1)
    shared = np.zeros(0, np.int64)
    if layout.name == "url":
        by_name = np.lexsort((links.url, wanted))
        name, url = wanted[by_name], links.url[by_name]
        shared = np.unique(name[1:][(name[1:] == name[:-1]) & (url[1:] != url[:-1])])
    return index, (index >= 0) & ((last - first > 1) | np.isin(wanted, shared))


class _Numbers:
    """The digits in the names of images, one entry of each array per image, -1 for none.

    `stem` is the number of the name, `folder` that of the folder, and `local` the number within the folder: the name
    without the folder's digits where all names repeat them (`repeats`), else the whole name. `widths` are the numbers
    of digits of `local`, and `padded` tells whether any of them starts with 0.
    """

    def __init__(self, images: pa.Array):
        count = len(images)
        stems = [_stem(str(name)) for name in images]
        folders = [os.path.basename(os.path.dirname(str(name))) for name in images]
        self.stem = np.fromiter((_number(stem) for stem in stems), np.int64, count)
        self.folder = np.fromiter((_number(folder) for folder in folders), np.int64, count)
        self.share = float((self.stem >= 0).mean())
        both = [(folder, stem) for folder, stem in zip(folders, stems) if _number(folder) >= 0 and _number(stem) >= 0]
        self.in_folders = bool(both) and len(both) == int((self.stem >= 0).sum())
        self.repeats = self.in_folders and all(
            len(stem) > len(folder) and stem.startswith(folder) for folder, stem in both
        )
        parts = [stem[len(folder) :] if self.repeats else stem for folder, stem in zip(folders, stems)]
        self.local = np.fromiter((_number(part) for part in parts), np.int64, count)
        digits = [part for part in parts if _number(part) >= 0]
        self.widths = {len(part) for part in digits}
        self.padded = len(self.widths) == 1 and any(part[0] == "0" and len(part) > 1 for part in digits)


def _possible(numbers: _Numbers, images: pa.Array, links: Links, known_size: int | None) -> list[Layout]:
    """The layouts that names made of digits may have."""
    layouts = []
    if not numbers.repeats:
        layouts = [Layout("number", numbers.stem), Layout("number-from-1", _shifted(numbers.stem))]
    if numbers.in_folders:
        sizes = {10**width for width in numbers.widths} if numbers.padded or numbers.repeats else set(_SIZES)
        layouts += [_folders(numbers, size) for size in ([known_size] if known_size else sorted(sizes))]
    url = _by_url(images)
    if np.isin(url.keys[numbers.stem >= 0], links.name).mean() >= _NUMBERED:
        layouts.append(url)
    return layouts


def _named(names: str, numbers: _Numbers, images: pa.Array) -> Layout:
    if names == "number":
        return Layout(names, numbers.stem)
    if names == "number-from-1":
        return Layout(names, _shifted(numbers.stem))
    if names == "url":
        return _by_url(images)
    if (size := _FOLDERS_OF.fullmatch(names)) and int(size[1]) > 0:
        return _folders(numbers, int(size[1]))
    raise ConfigError(f"names={names!r}: {nearest(names, LAYOUTS)} (such as folders-of-1000)")


def _folders(numbers: _Numbers, size: int) -> Layout:
    usable = (numbers.folder >= 0) & (numbers.local >= 0) & (numbers.local < size)
    return Layout(f"folders-of-{size}", np.where(usable, numbers.folder * size + numbers.local, -1))


def _by_url(images: pa.Array) -> Layout:
    return Layout("url", np.fromiter((hash(_stem(str(name))) for name in images), np.int64, len(images)))


def _shifted(numbers: np.ndarray) -> np.ndarray:
    """Numbers counted from 1 as numbers of rows; 0 gets a number that no row has."""
    return np.where(numbers > 0, numbers - 1, np.where(numbers == 0, np.int64(2**62), -1))


def _in_range(layout: Layout, numbers: _Numbers, links: Links) -> bool:
    """Whether every name that is a number belongs to a row of the table, and to no other image's."""
    if layout.name == "url":
        return True
    keys = layout.keys[numbers.stem >= 0]
    if not ((keys >= 0) & (keys < links.num_rows)).all():
        return False
    flat = not layout.name.startswith("folders")
    if flat and numbers.in_folders and numbers.padded and 10 ** max(numbers.widths) < links.num_rows:
        return False  # names of so few digits cannot number all rows
    return len(np.unique(keys)) >= _NUMBERED * len(keys)


def _is_certain(layout: Layout, numbers: _Numbers, links: Links, notes: Sequence[Note], known_size: int | None) -> bool:
    """Whether a layout that fits can be told from its neighbours.

    Without notes, numbers count from 0 where a 0 is there, and from 1 where the number of rows is. The size of folders
    is known from padded names of the images in them, from notes or statistics, or from a full folder; in a single first
    folder it does not matter.
    """
    known = numbers.stem[numbers.stem >= 0]
    if layout.name == "number":
        return bool(notes) or bool((known == 0).any())
    if layout.name == "number-from-1":
        return bool(notes) or bool((known == links.num_rows).any())
    if known_size or (numbers.padded and not numbers.repeats) or (numbers.folder <= 0).all():
        return True
    noted = any(numbers.folder[note.image] > 0 for note in notes)
    return noted or int(numbers.local.max()) >= _FULL * int(layout.name.rpartition("-")[2])


def _distinct(layouts: Sequence[Layout], links: Links) -> list[Layout]:
    """The layouts that give any row another image than those before them."""
    distinct: list[tuple[Layout, np.ndarray]] = []
    for layout in layouts:
        images = images_of_rows(links, layout)[0]
        if not any(np.array_equal(images, others) for _, others in distinct):
            distinct.append((layout, images))
    return [layout for layout, _ in distinct]


def _notes(root: Path, images: pa.Array, with_texts: bool) -> Iterator[Note]:
    """The notes beside some images: `.json` with a link or a caption, and `.txt` with a caption for `with_texts`."""
    read = 0
    spread = np.linspace(0, len(images) - 1, min(_LOOKED_AT, len(images))).astype(int)
    for index in np.random.default_rng(0).permutation(spread):
        beside = root / images[int(index)].as_py()
        try:
            told = json.loads(beside.with_suffix(".json").read_bytes())
            url, caption = (told.get(name) for name in ("url", "caption"))
            note = Note(int(index), beside.with_suffix(".json"), *(str(each or "") for each in (url, caption)))
        except (OSError, ValueError, AttributeError, RecursionError):
            try:
                text = beside.with_suffix(".txt").read_text(encoding="utf-8") if with_texts else ""
            except (OSError, ValueError):
                continue  # nothing beside the image to compare
            note = Note(int(index), beside.with_suffix(".txt"), "", text)
        if note.url.strip() or note.caption.strip():
            yield note
            read += 1
        if read == _NOTES:
            return


def _rows_of_note(note: Note, links: Links) -> np.ndarray:
    """The numbers of the rows that have the link of a note, or else its caption."""
    rows = links.row[links.url == hash(note.url)] if note.url else links.row[:0]
    if len(rows) or not note.caption.strip():
        return rows
    return links.row[links.caption == hash_of_caption(note.caption)]


def _first_contradiction(layout: Layout, notes: Sequence[Note], links: Links) -> Note | None:
    """The first note of another row than the layout gives to its image. Rows that cannot be used say nothing."""
    if layout.name == "url":
        return None
    for note in notes:
        row = int(layout.keys[note.image])
        usable = 0 <= row < links.num_rows and not np.isin(row, links.unusable)
        if usable and row not in _rows_of_note(note, links):
            return note
    return None


def _sizes_by_notes(numbers: _Numbers, notes: Sequence[Note], links: Links) -> set[int]:
    """The sizes of folders that the notes of images outside of the first folder give."""
    if not numbers.in_folders:
        return set()
    for note in notes:
        folder, local = int(numbers.folder[note.image]), int(numbers.local[note.image])
        rows = _rows_of_note(note, links)
        if folder > 0 and len(rows):
            return {(int(row) - local) // folder for row in rows if row > local and not (row - local) % folder}
    return set()


def _size_by_stats(root: Path, images: pa.Array) -> int | None:
    """The number of rows in a shard of img2dataset, by the 00000_stats.json that it writes beside each folder.

    Only the last shard is smaller, so the largest of two is known to be full.
    """
    folders = dict.fromkeys(
        os.path.dirname(images[i].as_py()) for i in range(0, len(images), max(1, len(images) // 1000))
    )
    counts = []
    for folder in islice(folders, _NOTES):
        try:
            counts.append(int(json.loads((root / f"{folder}_stats.json").read_bytes())["count"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return max(counts) if len(counts) > 1 and max(counts) > 0 else None


def _refuse_contradicted(
    layouts: Sequence[Layout], notes: Sequence[Note], links: Links, table: Path
) -> Sequence[Layout]:
    """The layouts that no note contradicts. Raises DataError where there are layouts, but none of these."""
    contradictions = [_first_contradiction(layout, notes, links) for layout in layouts]
    agreeing = [layout for layout, note in zip(layouts, contradictions) if note is None]
    if agreeing or not layouts:
        return agreeing
    layout, note = layouts[0], contradictions[0]
    assert note is not None
    row = int(layout.keys[note.image])
    what, text = ("link", note.url) if note.url else ("caption", " ".join(note.caption.split()))
    raise DataError(
        f"{note.file}: its {what} is {text[:60]!r}, but row {row:,} of {table} has another one; the images were "
        f"downloaded from another table, or their names are not of the form {layout.name}: name their table as path, "
        f"or set names to one of {', '.join(LAYOUTS)}"
    )


def _refuse(root: Path, images: pa.Array, links: Links, layouts: Sequence[Layout], table: Path) -> NoReturn:
    example, choices = images[0].as_py(), "names=number, number-from-1, folders-of-N (such as folders-of-1000) or url"
    rows = [(each.name, int(each.keys[0])) for each in layouts if each.name != "url"]
    if layouts:
        could = " or ".join(
            [f"row {row:,} ({name})" for name, row in rows]
            + ["the row of that link (url)" for each in layouts if each.name == "url"]
        )
        raise DataError(
            f"{root}: the names of the images do not tell which rows of {table} they belong to: {example} could be "
            f"{could}; set {choices}"
        )
    raise DataError(
        f"{root}: the names of {len(images):,} images (such as {example}) do not fit the {links.num_rows:,} rows of "
        f"{table} in any known layout; name the table that they were downloaded from as path, or set {choices}"
    )


def _number(digits: str) -> int:
    """The number that up to 18 digits make, -1 for anything else."""
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 18 else -1


def _stem(name: str) -> str:
    return os.path.splitext(name.rpartition("/")[2])[0]
