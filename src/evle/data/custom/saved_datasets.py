"""Data sets of the Hugging Face `datasets` library on disk, read without it (save_to_disk's layout; the hub's Parquet).

saved/dataset_dict.json   {"splits": ["train", "test"]}          hub/data/train-00000-of-00002.parquet
saved/train/state.json    {"_data_files": [{"filename": ...}]}   hub/data/test-00000-of-00001.parquet
saved/train/data-00000-of-00001.arrow
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evle.data.custom.columns import EMBEDDED_COLUMNS, IMAGE_COLUMNS, Columns
from evle.data.custom.folder import Folder, samples_of
from evle.data.custom.hub_files import has_parquet_splits, parquet_by_split
from evle.data.custom.table import (
    SPLIT_NAMES,
    as_list,
    checked_shares,
    has_split_column,
    read_table,
    split_named,
)
from evle.data.formats.embedded import EmbeddedImages, embedded_column, table_columns
from evle.errors import ConfigError, DataError
from evle.files import read_json


def saved_dataset(
    path: str | os.PathLike[str],
    task: str = "captions",
    split: str | Sequence[str] | None = None,
    *,
    image_column: str | None = None,
    caption_column: str | Sequence[str] | None = None,
    tags_column: str | Sequence[str] | None = None,
    match_column: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    split_column: str | None = "split",
    caption_separator: str | None = None,
    shares: Sequence[float] = (0.8, 0.1, 0.1),
) -> Folder:
    """The samples of a data set that `datasets` saved, or that is stored as Parquet files on the hub, images embedded.

    Columns are found and named as for the source `folder`; each row is an image, and its key PATH#ROW. `split` is one
    of the data set's own ("val" finds "validation" too), several, or None for all; a data set without splits is divided
    as a table is. Texts are held in memory, images are read when asked for.

    Raises DataError for what is no such data set, damaged files, unknown splits and missing columns.
    """
    base = Path(path)
    checked_shares(shares)
    if task not in ("captions", "vqa", "vcr"):
        raise ConfigError(f"task={task!r} is not read from tables with images inside; choose captions, vqa or vcr")
    by_split = _files_by_split(base, image_column)
    names = list(by_split)
    files = [file for name in names for file in by_split[name]]
    held = {embedded_column(file, image_column, EMBEDDED_COLUMNS) for file in files}
    column = next(iter(held))
    if len(held) != 1 or column is None:
        sought = repr(image_column) if image_column else " or ".join(map(repr, (*EMBEDDED_COLUMNS, *IMAGE_COLUMNS[1:])))
        raise DataError(
            f"{base}: no column {sought} with images inside; set image_column, or save the data set with its images"
        )
    named = (caption_column, tags_column, match_column, question_column, answer_column, split_column)
    columns = Columns(column, *named, separator=caption_separator)
    wanted = as_list(split)
    # One file may hold the rows of all splits, as Karpathy's do on the hub: then their column is right, not its name.
    by_column = len(by_split) == 1 and has_split_column(table_columns(files[0]), columns)
    if names != [""] and not by_column:
        if wanted is not None:
            chosen = [split_named(each, names, str(base)) for each in wanted]
            files = [file for name in chosen for file in by_split[name]]
            _refuse_contradiction(base, {name: by_split[name] for name in chosen}, column, columns)
        split, columns = None, columns._replace(split=None)
    images = EmbeddedImages(files, column)
    rows = read_table(images.rows(columns.wanted), task, columns, images, str(base), report=_raise)
    if wanted is not None and len(by_split) == 1 and names != [""] and split_column == "split" and rows.split_note:
        raise DataError(f"{base}: all files are of the split {names[0]!r}, but: {rows.split_note}")
    rows.digest.update(repr([(file.name, file.stat().st_size) for file in files]).encode())
    return samples_of(rows, split, shares)


def _raise(line: int, error: DataError) -> None:
    raise error


def _refuse_contradiction(base: Path, files: dict[str, list[Path]], image: str, columns: Columns) -> None:
    """Raises DataError where rows name another split than the file that they are in."""
    for name, each in files.items():
        if not has_split_column(table_columns(each[0]), columns):
            continue
        usual = {same.casefold() for same in SPLIT_NAMES.get(name, (name,))} | {name.casefold()}
        for number, row in EmbeddedImages(each, image).rows(lambda column: column == columns.split):
            named = "" if isinstance(row, DataError) else str(row.get(str(columns.split)) or "").strip()
            if named and named.casefold() not in usual:
                raise DataError(
                    f"{base}: row {number} of the split {name!r} says split {named!r} in its column {columns.split!r}; "
                    "set split_column=null to follow the names of the files, or correct the column"
                )


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder has the files of such a data set."""
    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return saved or has_parquet_splits(path, EMBEDDED_COLUMNS)


def _files_by_split(base: Path, image_column: str | None) -> dict[str, list[Path]]:
    """The files of each split, in order; "" for a data set without splits."""
    if (base / "dataset_dict.json").is_file():
        names = _json(base / "dataset_dict.json").get("splits") or []
        return {name: _saved_files(base / name) for name in names}
    if (base / "state.json").is_file():
        return {"": _saved_files(base)}
    found = parquet_by_split(base, image_column, EMBEDDED_COLUMNS)
    if not found:
        raise DataError(
            f"{base}: neither state.json nor dataset_dict.json (of save_to_disk) nor files such as "
            "data/train-00000-of-00001.parquet there; a single Parquet table is read by the source folder"
        )
    return found


def _saved_files(folder: Path) -> list[Path]:
    state = _json(folder / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(f"{folder}: saved with an index of chosen rows; call flatten_indices() before save_to_disk")
    files = [folder / str(each["filename"]) for each in state.get("_data_files") or []]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise DataError(f"{missing[0] if missing else folder}: no such data file; copy the whole folder again")
    return files


def _json(file: Path) -> dict[str, Any]:
    try:
        return read_json(file, kind=dict)
    except DataError as error:
        raise DataError(f"{error}; copy the whole folder again") from None
