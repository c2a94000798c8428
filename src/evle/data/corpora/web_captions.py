"""Captions with links: SBU (Ordonez et al., 2011), CC3M (Sharma et al., 2018) and CC12M (Changpinyo et al., 2021),
beside the images that could be downloaded.

    sbu-captions-all.json      {"image_urls": [...], "captions": [...]}
    Train_GCC-training.tsv     caption<TAB>url
    cc12m.tsv                  url<TAB>caption

Many links are dead: rows without an image are counted and left out. Captions stay in their file until they are asked
for; a row in memory is its place there and its image's name.
"""

import hashlib
import json
import os
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from evle.data.corpora.official import combined, find_file, held_out_split, in_split, require_folder, require_task
from evle.data.exclusion import Exclusion, read_exclusion
from evle.data.formats.json_arrays import JsonArrays, read_element
from evle.data.formats.rows import Row, Rows
from evle.data.formats.table_files import IMAGE_SUFFIXES
from evle.data.samples import CaptionSample
from evle.errors import ConfigError, DataError, nearest

NAMES = ("number", "url")
"""How a downloaded image is called: by its row's number from 0 on (as img2dataset does: 00012/000123456.jpg), or by
the last part of its link."""
NAMED = 20
"""Rows left out for one reason that are named; the others are counted."""

_NUMBERED = 0.9  # share of names that are numbers, from which on they count as numbers of rows
_VOTES = 100  # rows looked at to tell the columns
_LINKS = (b"http://", b"https://")


class Link(NamedTuple):
    """A row of a corpus of links: its number, its place in the file in bytes, and its link ("" where it has none)."""

    row: int
    offset: int
    length: int
    url: str


class LinkFile(Protocol):
    """A file of links and captions. `fingerprint` is known when the links have been read."""

    path: Path
    fingerprint: str

    def links(self) -> Iterator[Link]:
        """Every row, in order."""

    def caption(self, offset: int, length: int) -> str:
        """The caption at a place that a link told."""


def sbu(
    path: str | os.PathLike,
    task: str = "captions",
    split: str | None = None,
    *,
    images: str | os.PathLike | None = None,
    names: str | None = None,
    exclude: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    val_share: float = 0.0,
) -> Rows:
    """SBU: `sbu-captions-all.json` (at `path` or in that folder) and the downloaded images anywhere below `images`.

    `images` is by default the JSON's folder. `names` says how images are called: "number" or "url" (see `NAMES`); by
    default it is seen from the names. Rows whose image is missing, or whose image's name stands for several links,
    are left out; `.skipped` names the first ones. `exclude` (see `read_exclusion`) leaves out photos of Flickr30K by
    their numbers on Flickr. The corpus has no splits: `val_share` holds out that share of rows for the split val.

    Raises ConfigError for options that cannot work, DataError for files that are missing or of another form, and where
    not one image belongs to a row.
    """
    require_task("sbu", task)
    split = held_out_split("sbu", split, val_share)
    file = _SbuFile(find_file(path, ["sbu-captions-all.json"], "SBU's JSON"))
    return _downloaded("sbu", file, images, names, read_exclusion(exclude), split, val_share)


def conceptual_captions(
    path: str | os.PathLike,
    task: str = "captions",
    split: str | None = None,
    *,
    images: str | os.PathLike | None = None,
    names: str | None = None,
    columns: Sequence[str] | None = None,
    exclude: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
    val_share: float = 0.0,
) -> Rows:
    """CC3M or CC12M: a TSV of captions and links (at `path`, or alone in that folder) and the downloaded images.

    Which column holds the links is seen from the first rows, or said by `columns`, such as [caption, url]; a header is
    stepped over and not counted as a row. CC3M's own validation data is another TSV. All else is as for `sbu`.
    """
    require_task("cc", task)
    split = held_out_split("cc", split, val_share)
    tables = sorted(each.name for each in Path(path).glob("*.tsv")) or ["*.tsv"]
    file = _TsvFile(find_file(path, tables, "the table of captions and links"), columns)
    return _downloaded("cc", file, images, names, read_exclusion(exclude), split, val_share)


class _SbuFile:
    """Links and captions of SBU's JSON."""

    def __init__(self, path: Path):
        self.path, self.fingerprint = path, ""

    def links(self) -> Iterator[Link]:
        offsets = {name: array("q") for name in ("image_urls", "captions")}
        lengths = {name: array("i") for name in offsets}
        arrays = JsonArrays(self.path, list(offsets))
        for name, offset, length, value in arrays:
            offsets[name].append(offset)
            lengths[name].append(length if value and str(value).strip() else 0)
        urls, captions = (len(each) for each in offsets.values())
        if urls != captions:
            raise DataError(f"{self.path}: {urls:,} image_urls but {captions:,} captions; take the official file anew")
        self.fingerprint = arrays.fingerprint
        with open(self.path, "rb") as file:
            for row, offset in enumerate(offsets["image_urls"]):
                length, url = lengths["captions"][row], ""
                if length and lengths["image_urls"][row]:
                    file.seek(offset)
                    url = str(json.loads(file.read(lengths["image_urls"][row]).decode()))
                yield Link(row, offsets["captions"][row], length, url)

    def caption(self, offset: int, length: int) -> str:
        return str(read_element(self.path, offset, length)).strip()


class _TsvFile:
    """Links and captions of a TSV without quotes, whose columns may stand in either order."""

    def __init__(self, path: Path, columns: Sequence[str] | None):
        self.path, self.fingerprint = path, ""
        with open(path, "rb") as file:
            head = [file.readline().removeprefix(BOM_UTF8).rstrip(b"\r\n").split(b"\t") for _ in range(_VOTES)]
        linked = [[cell.startswith(_LINKS) for cell in cells] for cells in head]
        if columns is None:
            votes = np.array([[*row, False, False][:2] for row in linked]).sum(0)
            if not votes.any():
                first = b"\t".join(head[0])[:60]
                raise DataError(f"{path}: no link in its first rows ({first!r}); is it the right file?")
            self.url_column = int(votes.argmax())
        elif sorted(columns) == ["caption", "url"]:
            self.url_column = list(columns).index("url")
        else:
            raise ConfigError(f"columns={list(columns)} must be [caption, url] or [url, caption]")
        self.has_header = not any(linked[0]) and any(any(row) for row in linked)

    def links(self) -> Iterator[Link]:
        digest = hashlib.blake2b(digest_size=8)
        offset = 0
        with open(self.path, "rb") as file:
            for row, line in enumerate(file, -int(self.has_header)):
                digest.update(line)
                if row >= 0:
                    caption, url = self._cells(line)
                    yield Link(row, offset, len(line), url if caption else "")
                offset += len(line)
        self.fingerprint = digest.hexdigest()

    def caption(self, offset: int, length: int) -> str:
        with open(self.path, "rb") as file:
            file.seek(offset)
            return self._cells(file.read(length))[0]

    def _cells(self, line: bytes) -> tuple[str, str]:
        """(caption, link), both empty for a line that is broken. Captions before their link may hold tabs."""
        cells = line.removeprefix(BOM_UTF8).split(b"\t")
        if self.url_column == 1:
            at = next((place for place, cell in enumerate(cells) if place and cell.startswith(_LINKS)), 1)
            cells[:at] = [b" ".join(cells[:at])]
        try:
            caption, url = cells[1 - self.url_column].decode().strip(), cells[self.url_column].decode().strip()
        except (IndexError, UnicodeDecodeError):
            return "", ""
        return caption, url


class _LeftOut:
    """Rows left out: how many for each reason, and the first ones by name."""

    def __init__(self, file: Path):
        self.file = file
        self.counts: dict[str, int] = {}
        self.lines: list[str] = []

    def add(self, reason: str, rows: Sequence[int] | np.ndarray) -> None:
        if len(rows):
            self.counts[reason] = len(rows)
            self.lines += [f"{self.file}: row {row:,}: {reason}" for row in rows[:NAMED]]
            if len(rows) > NAMED:
                self.lines.append(f"{self.file}: {len(rows) - NAMED:,} more rows: {reason}")


class _Links(NamedTuple):
    """The usable rows of a file of links, an array entry each; names and links as numbers that are equal when they
    are."""

    row: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    name: np.ndarray
    url: np.ndarray
    excluded: np.ndarray


class _Reader:
    """Makes the sample of a row."""

    def __init__(self, file: LinkFile, root: str):
        self.file, self.root = file, root

    def __call__(self, row: Row) -> CaptionSample:
        caption = self.file.caption(row["offset"], row["length"])
        key = f"{self.file.path.name}/{row['row']}"
        return CaptionSample(key, os.path.join(self.root, row["image"]), (caption,))


def _downloaded(
    source: str,
    file: LinkFile,
    images: str | os.PathLike | None,
    names: str | None,
    excluded: Exclusion,
    split: str,
    val_share: float,
) -> Rows:
    """The samples of the rows whose images are there."""
    root = Path(images) if images is not None else file.path.parent
    require_folder(root, f"the images that {file.path.name} links to")
    pictures = _images_below(root)
    rule = names or _rule_of(pictures)
    if rule not in NAMES:
        raise ConfigError(f"names={rule!r}: {nearest(rule, NAMES)}")
    left_out = _LeftOut(file.path)
    links = _read_links(file, rule, excluded, left_out)
    place, several = _places(links, _image_names(pictures, rule))
    left_out.add("no image was downloaded", links.row[(place < 0) & ~several])
    left_out.add("its image's name stands for several links or files", links.row[several])
    found = (place >= 0) & ~several
    if not found.any():
        raise DataError(
            f"{root}: none of {len(pictures):,} images (such as {pictures[0]}) is named by the {rule} of a row of "
            f"{file.path}; set names=number or names=url, or images=FOLDER"
        )
    kept = np.flatnonzero(found & ~links.excluded)
    if val_share:
        keys = [f"{file.path.name}/{row}" for row in links.row[kept]]
        kept = kept[[in_split(key, split, val_share) for key in keys]]
    if not len(kept):
        raise DataError(f"{file.path}: no row is left in split {split!r}; check val_share and exclude")

    table = pa.table(
        {
            "row": pa.array(links.row[kept]),
            "offset": pa.array(links.offset[kept]),
            "length": pa.array(links.length[kept]),
            "image": pictures.take(pa.array(place[kept])),
        }
    )
    facts: dict[str, Any] = {"source": source, "file": str(file.path), "split": split}
    facts |= {f"rows left out: {reason}": count for reason, count in left_out.counts.items()}
    facts |= excluded.facts(int((found & links.excluded).sum()))
    identity = combined(file.fingerprint, excluded.fingerprint, split, val_share, rule, links.row[kept].tobytes())
    samples = Rows(
        table,
        _Reader(file, str(root)),
        fingerprint=identity,
        facts=facts,
        skipped=left_out.lines,
        num_skipped=sum(left_out.counts.values()),
    )
    if rule == "number":
        _check_origin(samples, file.path)
    return samples


def _images_below(root: Path) -> pa.Array:
    """Paths, relative to `root`, of the images anywhere below it, in order."""

    def walk(folder: str) -> Iterator[str]:
        with os.scandir(os.path.join(root, folder)) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
        for name, is_folder in found:
            inside = f"{folder}/{name}" if folder else name
            if is_folder:
                yield from walk(inside)
            elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield inside

    chunks, paths = [], walk("")
    while chunk := list(islice(paths, 100_000)):
        chunks.append(pa.array(chunk, pa.large_string()))
    if not chunks:
        shard = next(root.rglob("*.tar"), None)
        cure = f"{shard.name} is a shard: read it with the source 'shards'" if shard else "set images=FOLDER"
        raise DataError(f"{root}: no images there; {cure}")
    return pa.concat_arrays(chunks)


def _rule_of(pictures: pa.Array) -> str:
    """The usual rule for images of such names."""
    some = pictures[:: max(1, len(pictures) // 1000)].to_pylist()
    numbered = sum(_stem(name).isdecimal() for name in some)
    return "number" if numbered >= _NUMBERED * len(some) else "url"


def _stem(name: str) -> str:
    return os.path.splitext(name.rpartition("/")[2])[0]


def _stem_of_link(url: str) -> str:
    return _stem(unquote(url.partition("?")[0].partition("#")[0]))


def _image_names(pictures: pa.Array, rule: str) -> np.ndarray:
    """int64 (N,): the number of the row that each image's name says, -1 for none, or a hash of the name."""
    stems = (_stem(str(name)) for name in pictures)
    if rule == "number":
        return np.fromiter((int(stem) if stem.isdecimal() else -1 for stem in stems), np.int64, len(pictures))
    return np.fromiter((hash(stem) for stem in stems), np.int64, len(pictures))


def _read_links(file: LinkFile, rule: str, excluded: Exclusion, left_out: _LeftOut) -> _Links:
    """The usable rows of `file`; the others go to `left_out`."""
    columns = [array(code) for code in "iqiqqb"]
    unusable: array[int] = array("i")
    for link in file.links():
        if not link.url:
            unusable.append(link.row)
            continue
        ids = (link.row, link.row) if rule == "number" else (hash(_stem_of_link(link.url)), hash(link.url))
        values = (link.row, link.offset, link.length, *ids, bool(excluded) and excluded.holds(link.url))
        for column, value in zip(columns, values):
            column.append(value)
    left_out.add("no caption or no link", unusable)
    row, offset, length, name, url, out = (np.array(column) for column in columns)
    return _Links(row, offset, length, name, url, out.astype(bool))


def _places(links: _Links, image_names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the place of its image, or -1; and whether its image's name stands for several links or files."""
    order = np.argsort(image_names, kind="stable")
    names = image_names[order]
    first, last = np.searchsorted(names, links.name, "left"), np.searchsorted(names, links.name, "right")
    place = np.where(last > first, order[np.minimum(first, len(order) - 1)], -1)
    by_name = np.lexsort((links.url, links.name))
    name, url = links.name[by_name], links.url[by_name]
    shared = np.unique(name[1:][(name[1:] == name[:-1]) & (url[1:] != url[:-1])])
    return place, (place >= 0) & ((last - first > 1) | np.isin(links.name, shared))


def _check_origin(samples: Rows, file: Path) -> None:
    """Raise DataError when what img2dataset wrote beside an image says another caption than the image's row."""
    for place in (0, len(samples) // 2, len(samples) - 1):
        sample = samples[place]
        beside = Path(str(sample.image)).with_suffix(".json")
        try:
            told = json.loads(beside.read_bytes())["caption"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no such notes, or none of captions: nothing to compare
        if isinstance(told, str) and told.split() != sample.captions[0].split():
            raise DataError(
                f"{beside}: its caption is {told[:60]!r}, but {sample.key} says {sample.captions[0][:60]!r}: the "
                f"images were downloaded from another table than {file}; name theirs as path"
            )
