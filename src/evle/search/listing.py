"""Which images are there now: those of a folder, or those that a table names, with the columns of the table."""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from evle.data.custom.columns import EMBEDDED_COLUMNS, IMAGE_COLUMNS, image_of
from evle.data.custom.image_folder import ImageFolder
from evle.data.formats.embedded import embedded_column
from evle.data.formats.listing import list_folder
from evle.data.formats.table_files import TABLE_SUFFIXES, find_table, read_rows, tables_in
from evle.data.formats.text_files import open_plain_file
from evle.errors import DataError
from evle.search.store import Entry

logger = logging.getLogger(__name__)

LONGEST_FIELD = 1000
"""Characters of a column that are kept for each image."""
NO_FIELDS = "{}"
"""The columns of a row that has no other than its image."""


def list_entries(images: Path, root: Path) -> tuple[dict[str, Entry], list[str]]:
    """The images of a folder or a table by path relative to `root`, and a line for each that is not there.

    The table in a folder gives its columns to the images that it names. Hashes are empty. Raises DataError where there
    is no image at all.
    """
    inside = path_inside(folder_of(images), root)
    names = _named(images) if images.is_file() else _listed(images)
    if not names:
        raise DataError(f"{images}: no images there")
    entries, missing = {}, []
    for name, fields in names.items():
        path = os.path.join(inside, name)
        try:
            facts = os.stat(root / path)
        except OSError as error:
            missing.append(f"{path}: {error.strerror}")
            continue
        path = PurePosixPath(path).as_posix()
        entries[path] = Entry(path, facts.st_size, facts.st_mtime_ns, fields=fields)
    return entries, missing


def _listed(images: Path) -> dict[str, str]:
    listing = list_folder(images)
    for line in listing.unread:
        logger.warning("%s: not read: %s", images, line)
    return dict.fromkeys(listing.images, "") | _columns_in(images, set(listing.images))


def _columns_in(folder: Path, present: set[str]) -> dict[str, str]:
    """The columns of the table in a folder, as JSON, for those of the images `present` that it names.

    A folder of images needs no table: what cannot be used of one is reported and left out.
    """
    if not tables_in(folder):
        return {}
    columns: dict[str, str] = {}
    broken: list[DataError] = []
    try:
        table = find_table(folder)
        for name, fields in _rows_of(table):
            if isinstance(fields, DataError):
                broken.append(fields)
            elif name in present and fields != NO_FIELDS:
                columns[name] = _merged(columns.get(name, fields), fields)
    except DataError as error:
        logger.warning("no columns are read: %s", error)
        return {}
    if columns:
        logger.info("%s: its columns are kept for %s of %s images", table, f"{len(columns):,}", f"{len(present):,}")
    if broken:
        logger.warning("%s: rows left out: %s; the first: %s", table, f"{len(broken):,}", broken[0])
    return columns


class OtherTables:
    """The tables by which an image may have columns, beside the one in the folder `images` that a call reads.

    They are in the folders from `root` to the image. `evle index` of such a folder has read them before.
    """

    def __init__(self, images: Path, root: Path):
        self._root = root
        self._names: dict[Path, set[str] | None] = {}
        self._read: Path | None
        try:
            self._read = find_table(images).resolve()
        except DataError:
            self._read = None

    def name(self, path: str) -> bool:
        """Whether one of them names the image `path`, relative to the root, or cannot be read."""
        for folder in PurePosixPath(path).parents:
            inside = PurePosixPath(path).relative_to(folder).as_posix()
            for table in tables_in(self._root / folder):
                names = self._names_in(table)
                if names is None or (inside in names and table.resolve() != self._read):
                    return True
        return False

    def _names_in(self, table: Path) -> set[str] | None:
        if table not in self._names:
            try:
                self._names[table] = {name for name, _ in _rows_of(table)}
            except DataError:
                self._names[table] = None
        return self._names[table]


def hashed(entry: Entry, root: Path) -> Entry:
    """The entry with the hash of its file's contents, "" for a file that cannot be read."""
    try:
        with open_plain_file(root / entry.path) as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except (OSError, DataError):
        digest = ""
    return replace(entry, digest=digest)


def is_gone(path: Path) -> bool:
    """Whether there is no such file. One in a folder that may not be opened, or on a disk that fails, is not gone."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return False


def folder_of(images: Path) -> Path:
    """The folder itself, or the folder of a table. Raises DataError for anything else."""
    if images.is_file():
        if images.suffix.lower() not in TABLE_SUFFIXES:
            raise DataError(f"{images}: give a folder of images, or a table ({', '.join(TABLE_SUFFIXES)})")
        return images.parent
    if not images.is_dir():
        raise DataError(f"{images}: no such folder")
    return images


def _named(table: Path) -> dict[str, str]:
    """The images of a table, relative to its folder, and each one's columns as JSON.

    Raises DataError for a broken row, an image outside of the folder, and a table that holds its images inside.
    """
    names: dict[str, str] = {}
    for name, fields in _rows_of(table):
        if isinstance(fields, DataError):
            raise fields
        names[name] = _merged(names.get(name, fields), fields)
    return names


def _rows_of(table: Path) -> Iterator[tuple[str, str | DataError]]:
    """The image of each row, relative to the table's folder, and its columns as JSON, or why there are none.

    Raises DataError for a table that holds its images inside, or is none.
    """
    if table.suffix.lower() == ".parquet" and (column := embedded_column(table, None, EMBEDDED_COLUMNS)) is not None:
        raise DataError(
            f"{table}: holds the images themselves (column {column!r}), but an index names files, "
            "to show them again; write them into a folder and index that"
        )
    folder = ImageFolder(table.parent)
    for line, row in read_rows(table):
        try:
            if isinstance(row, DataError):
                raise row
            name = image_of(row, None, f"{table}:{line}", folder)
            yield folder.file_of(name) or name, _fields(row)
        except DataError as error:
            yield "", error


def _fields(row: dict[str, Any]) -> str:
    """The columns of a row that are texts, numbers or lists of them, as JSON."""
    kept = {}
    for name, value in row.items():
        if name in IMAGE_COLUMNS:
            continue
        if isinstance(value, list) and all(isinstance(part, str | int | float) for part in value):
            kept[name] = [part[:LONGEST_FIELD] if isinstance(part, str) else part for part in value]
        elif isinstance(value, str):
            kept[name] = value[:LONGEST_FIELD]  # type: ignore[assignment]
        elif isinstance(value, bool | int | float):
            kept[name] = value  # type: ignore[assignment]
    return json.dumps(kept, sort_keys=True) if kept else NO_FIELDS


def _merged(known: str, fields: str) -> str:
    """The columns of several rows about one image as JSON: a column with different values becomes their list.

    >>> _merged('{"caption": "a cat", "year": 2018}', '{"caption": "a dog", "year": 2018}')
    '{"caption": ["a cat", "a dog"], "year": 2018}'
    """
    if known == fields:
        return known
    merged: dict[str, Any] = json.loads(known)
    for name, value in json.loads(fields).items():
        values = merged[name] if isinstance(merged.get(name), list) else [merged[name]] if name in merged else []
        more = [part for part in (value if isinstance(value, list) else [value]) if part not in values]
        if more:
            merged[name] = [*values, *more] if values or isinstance(value, list) else value
    return json.dumps(merged, sort_keys=True)


def cure_of_moving(images: Path, root: Path) -> str:
    """What to do where an index's root is gone, perhaps to `images`; "" where it is there."""
    if not is_gone(root):
        return ""
    return f"{root} is gone: if it moved, `evle index -o INDEX --root {images}` remembers it"


def path_inside(images: Path, root: Path) -> str:
    """The path from `root` to a folder at or below it, "" for `root` itself."""
    try:
        relative = images.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        cure = cure_of_moving(images, root) or "make another index, or one of a folder above both"
        raise DataError(f"{images} is outside of the index's root {root}; {cure}") from None
    return "" if relative == "." else relative
