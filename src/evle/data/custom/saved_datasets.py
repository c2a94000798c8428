"""Data sets of the Hugging Face `datasets` library on disk, read without it (save_to_disk's layout; the hub's Parquet).

saved/dataset_dict.json   {"splits": ["train", "test"]}          hub/data/train-00000-of-00002.parquet
saved/train/state.json    {"_data_files": [{"filename": ...}]}   hub/data/test-00000-of-00001.parquet
saved/train/data-00000-of-00001.arrow
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evle.data.custom.folder import EMBEDDED_COLUMNS, IMAGE_COLUMNS, Columns, Folder, collect
from evle.data.formats.embedded import EmbeddedImages, embedded_column
from evle.errors import DataError, nearest

SPLIT_NAMES = {"val": ("val", "validation", "valid", "dev"), "validation": ("validation", "val")}
"""What a split may be called in the files, by what a recipe calls it."""

_SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+(-[0-9a-f]+)?\.parquet")


def saved_dataset(
    path: str | os.PathLike,
    task: str = "captions",
    split: str | Sequence[str] | None = None,
    *,
    image_column: str | None = None,
    caption_column: str | Sequence[str] | None = None,
    tags_column: str | None = None,
    match_column: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    split_column: str | None = "split",
    shares: Sequence[float] = (0.8, 0.1, 0.1),
) -> Folder:
    """The samples of a data set that `datasets` saved, or that lies as Parquet files on the hub, images embedded.

    Columns are found and named as for the source `folder`; each row is an image, and its key PATH#ROW. `split` is one
    of the data set's own ("val" finds "validation" too), several, or None for all; a data set without splits is divided
    as a table is. Texts are held in memory, images are read when asked for.

    Raises DataError for what is no such data set, damaged files, unknown splits and missing columns.
    """
    base = Path(path)
    by_split = _files_by_split(base)
    wanted = [split] if isinstance(split, str) else list(split) if split is not None else None
    if "" in by_split:
        files = by_split[""]
    else:
        names = list(by_split) if wanted is None else [_split_named(base, each, list(by_split)) for each in wanted]
        files = [file for name in names for file in by_split[name]]
        split, split_column = None, None
    held = {embedded_column(file, image_column, EMBEDDED_COLUMNS) for file in files}
    column = next(iter(held))
    if len(held) != 1 or column is None:
        sought = repr(image_column) if image_column else " or ".join(map(repr, (*EMBEDDED_COLUMNS, *IMAGE_COLUMNS[1:])))
        raise DataError(
            f"{base}: no column {sought} with images inside; set image_column, or save the data set with its images"
        )
    columns = Columns(column, caption_column, tags_column, match_column, question_column, answer_column, split_column)
    images = EmbeddedImages(files, column)
    identity = [(file.name, file.stat().st_size) for file in files]
    digest = hashlib.blake2b(repr((identity, task, wanted, columns, tuple(shares))).encode(), digest_size=8)
    return collect(images.rows(), task, split, columns, shares, images, None, str(base), digest)


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder has the files of such a data set."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json")) or any(
        _SHARD.fullmatch(file.name) for file in (*path.glob("*.parquet"), *path.glob("data/*.parquet"))
    )


def _files_by_split(base: Path) -> dict[str, list[Path]]:
    """The files of each split, in order; "" for a data set without splits."""
    if (base / "dataset_dict.json").is_file():
        names = _json(base / "dataset_dict.json").get("splits") or []
        return {name: _saved_files(base / name) for name in names}
    if (base / "state.json").is_file():
        return {"": _saved_files(base)}
    found: dict[str, list[Path]] = {}
    for file in sorted([*base.glob("*.parquet"), *base.glob("data/*.parquet")]):
        if (named := _SHARD.fullmatch(file.name)) is not None:
            found.setdefault(named["split"], []).append(file)
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
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); copy the whole folder again") from None
    if not isinstance(found, dict):
        raise DataError(f"{file}: not an object; copy the whole folder again")
    return found


def _split_named(base: Path, wanted: str, names: list[str]) -> str:
    for name in SPLIT_NAMES.get(wanted, (wanted,)):
        if name in names:
            return name
    raise DataError(f"{base}: no split {wanted!r}; {nearest(wanted, names)}")
