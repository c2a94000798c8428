"""Captions with links: SBU (Ordonez et al., 2011), CC3M (Sharma et al., 2018) and CC12M (Changpinyo et al., 2021),
with the images that could be downloaded.

    sbu-captions-all.json      {"image_urls": [...], "captions": [...]}
    Train_GCC-training.tsv     caption<TAB>url
    cc12m.tsv                  url<TAB>caption

Many links are dead: rows without an image are counted and left out. Captions stay in their file until they are needed;
in memory, a row is its position there and its image's name. `evle.data.corpora.downloads` finds each row's image.
"""

import hashlib
import json
import os
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from evle.data.corpora.downloads import (
    LAYOUTS,
    Links,
    find_layout,
    hash_of_caption,
    images_below,
    images_of_rows,
    name_of_link,
)
from evle.data.corpora.official import (
    combined,
    find_file,
    held_out_split,
    in_split,
    require_folder,
    require_task,
    words_of,
)
from evle.data.custom.columns import CAPTION_COLUMNS
from evle.data.exclusion import Exclusion, read_exclusion
from evle.data.formats.cells import is_null, says_something, unescaped
from evle.data.formats.json_arrays import JsonArrays, read_element
from evle.data.formats.rows import Row, Rows
from evle.data.formats.text_files import refuse_other_encoding
from evle.data.samples import CaptionSample
from evle.errors import ConfigError, DataError

NAMED = 20
"""The most rows left out for one reason that are named; the others are counted."""

_VOTES = 100  # rows read to recognise the columns
_LINKS = (b"http://", b"https://")


class Link(NamedTuple):
    """A row of a corpus of links: its number, its position in the file in bytes, its link ("" where it has none), and a
    hash of its caption."""

    row: int
    offset: int
    length: int
    url: str
    caption: int


class LinkFile(Protocol):
    """A file of links and captions. `fingerprint` is set once the links have been read."""

    path: Path
    fingerprint: str

    def links(self) -> Iterator[Link]:
        """Every row, in order."""

    def caption(self, offset: int, length: int) -> str:
        """The caption at the position of a link."""


def sbu(
    path: str | os.PathLike[str],
    task: str = "captions",
    split: str | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    names: str | None = None,
    exclude: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    val_share: float = 0.0,
) -> Rows:
    """SBU: `sbu-captions-all.json` (at `path` or in that folder) and the downloaded images anywhere below `images`.

    `images` is by default the JSON's folder. `names` is the layout of the images, one of "number", "number-from-1",
    "folders-of-N" and "url" (see `evle.data.corpora.downloads`); by default it is recognised, or refused where the
    evidence leaves several. Rows whose image is missing, or whose image's name belongs to several links, are left out;
    `.skipped` names the first ones. `exclude` (see `read_exclusion`) leaves out photos of Flickr30K by their numbers on
    Flickr. The corpus has no splits: `val_share` holds out that share of rows for the split val.

    Raises ConfigError for options that cannot work, DataError for files that are missing or of another form, for images
    of an ambiguous layout or of another table, and where no image belongs to a row.
    """
    require_task("sbu", task)
    split = held_out_split("sbu", split, val_share)
    file = _SbuFile(find_file(path, ["sbu-captions-all.json"], "SBU's JSON"))
    return _downloaded("sbu", file, images, names, read_exclusion(exclude), split, val_share)


def conceptual_captions(
    path: str | os.PathLike[str],
    task: str = "captions",
    split: str | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    names: str | None = None,
    columns: Sequence[str] | None = None,
    exclude: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    val_share: float = 0.0,
) -> Rows:
    """CC3M or CC12M: a TSV of captions and links (at `path`, or alone in that folder) and the downloaded images.

    The column of links is recognised from the first rows, or given by `columns`, such as [caption, url]. A header may
    name more columns, one of them `caption`; it is not counted as a row. Without one, rows with more than a link and a
    caption are refused. CC3M's own validation data is another TSV. All else is as for `sbu`.
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
        captions_seen = array("q")
        arrays = JsonArrays(self.path, list(offsets))
        for name, offset, length, value in arrays:
            text = words_of(value, f"{self.path}: {name} {len(offsets[name])}")
            offsets[name].append(offset)
            lengths[name].append(length if text else 0)
            if name == "captions":
                captions_seen.append(hash_of_caption(str(value)))
        urls, captions = (len(each) for each in offsets.values())
        if urls != captions:
            raise DataError(
                f"{self.path}: {urls:,} image_urls but {captions:,} captions; download the official file again"
            )
        self.fingerprint = arrays.fingerprint
        with open(self.path, "rb") as file:
            for row, offset in enumerate(offsets["image_urls"]):
                length, url = lengths["captions"][row], ""
                if length and lengths["image_urls"][row]:
                    file.seek(offset)
                    url = str(json.loads(file.read(lengths["image_urls"][row]).decode()))
                yield Link(row, offsets["captions"][row], length, url, captions_seen[row])

    def caption(self, offset: int, length: int) -> str:
        return words_of(read_element(self.path, offset, length), f"{self.path}: byte {offset:,}")


class _TsvFile:
    """Links and captions of a TSV without quotes: a caption and a link in either order, or the columns that its header
    names."""

    def __init__(self, path: Path, columns: Sequence[str] | None):
        self.path, self.fingerprint = path, ""
        with open(path, "rb") as file:
            refuse_other_encoding(path, file.read(64))
            file.seek(0)
            lines = [file.readline().removeprefix(BOM_UTF8).rstrip(b"\r\n") for _ in range(_VOTES)]
        head = [line.split(b"\t") for line in lines]
        linked = [[cell.startswith(_LINKS) for cell in cells] for cells in head]
        self.has_header = not any(linked[0]) and any(any(row) for row in linked)
        names = [_plain(cell) for cell in _filled(head[0])] if self.has_header else []
        self.width = max(2, len(names))
        if columns is None:
            votes = np.array([(row + [False] * self.width)[: self.width] for row in linked]).sum(0)
            if not votes.any():
                raise DataError(
                    f"{path}: no link in its first rows ({lines[0][:60]!r}); is it the right file? A row is a caption "
                    "and a link http://... or https://..., with a tab between them and without quotes"
                )
            self.url_column = int(votes.argmax())
        elif sorted(columns) != ["caption", "url"]:
            raise ConfigError(f"columns={list(columns)} must be [caption, url] or [url, caption]")
        elif self.width > 2:
            raise ConfigError(
                f"columns={list(columns)} are two, but the header of {path} names {', '.join(names)}; remove the "
                "option columns, so that the header counts"
            )
        else:
            self.url_column = list(columns).index("url")
        self.caption_column = self._caption_column(names)
        self._refuse_other_columns(head, linked)

    def _caption_column(self, names: Sequence[str]) -> int:
        """The column of captions: the one that the header names so, or of two columns the other one."""
        known = [names.index(name) for name in CAPTION_COLUMNS if name in names]
        if self.width == 2:
            if known and self.url_column == known[0]:
                raise DataError(
                    f"{self.path}: its links are in the column {names[known[0]]!r}; correct the header or columns"
                )
            return 1 - self.url_column
        if not known or self.url_column == known[0]:
            raise DataError(
                f"{self.path}: its header names {', '.join(names)}, and none of them is a caption; name its column "
                "caption"
            )
        return known[0]

    def _refuse_other_columns(self, head: Sequence[Sequence[bytes]], linked: Sequence[Sequence[bool]]) -> None:
        """Raise DataError where the first rows have their links in another column, or more columns than are known."""
        firsts = [row.index(True) for row in linked if any(row)]
        there = sum(first == self.url_column for first in firsts)
        if 2 * there < len(firsts):
            other = max(firsts, key=firsts.count)
            raise DataError(
                f"{self.path}: the links of its first rows are in column {other + 1}, not {self.url_column + 1}; "
                "add a header line that names each column, such as id<TAB>caption<TAB>url, or correct columns"
            )
        wide = [] if self._may_hold_tabs else [n for n, cells in enumerate(head) if len(_filled(cells)) > self.width]
        if 2 * len(wide) > len(firsts):  # a single one is left out, and counted
            raise DataError(
                f"{self.path}:{wide[0] + 1}: {len(_filled(head[wide[0]]))} columns instead of {self.width}, so that "
                "the caption is not known; add a header line that names each column, such as url<TAB>status<TAB>caption"
            )

    @property
    def _may_hold_tabs(self) -> bool:
        """Whether captions may hold tabs: all before the link is the caption."""
        return self.width == 2 and self.url_column == 1

    def links(self) -> Iterator[Link]:
        digest = hashlib.blake2b(digest_size=8)
        offset, blank = 0, None
        with open(self.path, "rb") as file:
            for row, line in enumerate(file, -int(self.has_header)):
                digest.update(line)
                if not line.strip() and blank is None:
                    blank = row
                elif blank is not None and line.strip():
                    raise DataError(
                        f"{self.path}: row {blank} is a blank line, which programs that download images do not count; "
                        "remove the blank lines, so that images are matched to their rows"
                    )
                if line.startswith(b'"') and b"\t" not in line and line.count(b'"') % 2:
                    raise DataError(
                        f"{self.path}:{row + 1 + self.has_header}: a quote opens here, and the row ends on another "
                        "line; write each row on one line, without quotes around it"
                    )
                if row >= 0 and line.strip():
                    caption, url = self._cells(line)
                    yield Link(row, offset, len(line), url if caption else "", hash_of_caption(caption))
                offset += len(line)
        self.fingerprint = digest.hexdigest()

    def caption(self, offset: int, length: int) -> str:
        with open(self.path, "rb") as file:
            file.seek(offset)
            return self._cells(file.read(length))[0]

    def _cells(self, line: bytes) -> tuple[str, str]:
        """(caption, link), both empty for a line that is broken or has more columns than the others."""
        cells = line.removeprefix(BOM_UTF8).rstrip(b"\r\n").split(b"\t")
        if not self._may_hold_tabs and len(_filled(cells)) > self.width:
            return "", ""
        if self._may_hold_tabs:
            at = next((index for index, cell in enumerate(cells) if index and cell.startswith(_LINKS)), 1)
            cells[:at] = [b" ".join(cells[:at])]
        try:
            caption, url = cells[self.caption_column].decode().strip(), cells[self.url_column].decode().strip()
        except (IndexError, UnicodeDecodeError):
            return "", ""
        caption = unescaped(_unquoted(caption))
        return ("" if is_null(caption) or not says_something(caption) else caption), url


def _filled(cells: Sequence[bytes]) -> Sequence[bytes]:
    """The cells up to the last one that is not empty."""
    last = max((number for number, cell in enumerate(cells, 1) if cell.strip()), default=0)
    return cells[:last]


def _plain(cell: bytes) -> str:
    return cell.decode("utf-8", "replace").strip().strip('"').casefold()


def _unquoted(caption: str) -> str:
    """A caption with quotes inside as it was before pandas or a spreadsheet wrote it.

    >>> _unquoted('"a ""big"" dog"'), _unquoted('"a dog"')
    ('a "big" dog', '"a dog"')
    """
    inner = caption[1:-1]
    is_quoted = '""' in inner and caption[0] == caption[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else caption


class _LeftOut:
    """Rows left out: their number for each reason, and the names of the first ones."""

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


class _Reader:
    """Reads the sample of a row."""

    def __init__(self, file: LinkFile, root: str):
        self.file, self.root = file, root

    def __call__(self, row: Row) -> CaptionSample:
        caption = self.file.caption(row["offset"], row["length"])
        key = f"{self.file.path.name}/{row['row']}"
        return CaptionSample(key, os.path.join(self.root, row["image"]), (caption,))


def _downloaded(
    source: str,
    file: LinkFile,
    images: str | os.PathLike[str] | None,
    names: str | None,
    excluded: Exclusion,
    split: str,
    val_share: float,
) -> Rows:
    """The samples of the rows whose images exist."""
    root = Path(images) if images is not None else file.path.parent
    require_folder(root, f"the images that {file.path.name} links to")
    files, unfollowed = images_below(root)
    left_out = _LeftOut(file.path)
    links = _read_links(file, excluded, left_out)
    layout = find_layout(root, files, links, names, file.path)
    index, several = images_of_rows(links, layout)
    left_out.add("no image was downloaded", links.row[(index < 0) & ~several])
    left_out.add("its image's name belongs to several links or files", links.row[several])
    found = (index >= 0) & ~several
    if not found.any():
        raise DataError(
            f"{root}: none of {len(files):,} images (such as {files[0]}) belongs to a row of {file.path} by the "
            f"layout {layout.name}; set names to one of {', '.join(LAYOUTS)}, or images=FOLDER"
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
            "image": files.take(pa.array(index[kept])),
        }
    )
    facts: dict[str, Any] = {"source": source, "file": str(file.path), "split": split}
    facts |= {f"rows left out: {reason}": count for reason, count in left_out.counts.items()}
    facts |= excluded.facts(int((found & links.excluded).sum()))
    identity = combined(
        file.fingerprint, excluded.fingerprint, split, val_share, layout.name, links.row[kept].tobytes()
    )
    samples = Rows(
        table,
        _Reader(file, str(root)),
        fingerprint=identity,
        facts=facts,
        skipped=[*unfollowed, *left_out.lines],
        num_skipped=len(unfollowed) + sum(left_out.counts.values()),
    )
    return samples


def _read_links(file: LinkFile, excluded: Exclusion, left_out: _LeftOut) -> Links:
    """The usable rows of `file`; the others go to `left_out`."""
    columns = [array(code) for code in "iqiqqqb"]
    unusable: array[int] = array("i")
    for link in file.links():
        if not link.url:
            unusable.append(link.row)
            continue
        hashes = (hash(name_of_link(link.url)), hash(link.url), link.caption)
        values = (link.row, link.offset, link.length, *hashes, bool(excluded) and excluded.holds(link.url))
        for column, value in zip(columns, values):
            column.append(value)
    left_out.add("no caption, no link, or not UTF-8 text", unusable)
    row, offset, length, name, url, caption, out = (np.array(column) for column in columns)
    return Links(row, offset, length, name, url, caption, out.astype(bool), np.array(unusable, np.int64))
