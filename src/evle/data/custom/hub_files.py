"""The Parquet files of a data set on the Hugging Face hub, by split, in the forms in which they are uploaded.

data/train-00000-of-00002.parquet    data/train-00000-of-00002-0123456789abcdef.parquet
data/train.parquet                   data/train-0.parquet, train.parquet
de/train-00000-of-00001.parquet      train/0000.parquet, default/train/0000.parquet (the hub's own conversion)
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from evle.data.custom.split_hints import SPLIT_WORDS
from evle.data.formats.embedded import embedded_column
from evle.errors import DataError

_WORDS = "|".join(word for words in SPLIT_WORDS.values() for word in words)
_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d+)-of-(?P<count>\d+)(-[0-9a-f]+)?")
_PLAIN = re.compile(rf"(?P<split>{_WORDS})([-_.]?(?P<number>\d+))?", re.IGNORECASE)
_NUMBER = re.compile(r"(part-|shard-)?(?P<number>\d+)")
_FOLDER = re.compile(rf"(partial-)?({_WORDS})", re.IGNORECASE)
_DEPTH = 3  # folders: data/default/train/0000.parquet


@dataclass(frozen=True)
class _File:
    """A file of a split: its number, of how many if that is known, and the folder of its configuration."""

    path: Path
    split: str
    number: int | None
    count: int | None
    folder: Path


def parquet_by_split(base: Path, image_column: str | None, usual: tuple[str, ...]) -> dict[str, list[Path]]:
    """The files of each split of the data set in a folder, in order; {} where there is none.

    Files in other places than `base` and `base`/data, or without a number in how many, such as train.parquet, count
    only if images are inside, in the `image_column` or the first of the `usual` ones. Raises DataError where files are
    missing or duplicated, and where several data sets are in the folder.
    """
    files = [file for path in _parquet_files(base) if (file := _read_name(path, base)) is not None]
    top = [file for file in files if file.count is not None and file.path.parent in (base, base / "data")]
    files = top or [file for file in files if embedded_column(file.path, image_column, usual) is not None]
    folders = {file.folder for file in files}
    if len(folders) > 1 and not top:
        names = ", ".join(sorted(str(folder.relative_to(base)) for folder in folders)[:5])
        raise DataError(f"{base}: holds {len(folders)} configurations of a data set ({names}); name the folder of one")
    found: dict[str, list[_File]] = {}
    for file in files:
        found.setdefault(file.split, []).append(file)
    if files and not top and not any(_FOLDER.fullmatch(split) for split in found):
        return {}
    for split, each in found.items():
        if split.startswith("partial-"):
            whole = split.removeprefix("partial-")
            raise DataError(
                f"{base}: {split} is a part of a split (the hub converts the first 5 GB of a large data set); download "
                f"the original files, or rename the folder to {whole} to read this part"
            )
        _refuse_incomplete(base, split, each)
    return {split: [file.path for file in sorted(each, key=_order)] for split, each in found.items()}


def has_parquet_splits(base: Path, usual: tuple[str, ...]) -> bool:
    """Whether a folder holds such files, complete or not."""
    try:
        return bool(parquet_by_split(base, None, usual))
    except DataError:
        return True


def _parquet_files(base: Path) -> list[Path]:
    found: list[Path] = []
    for here, folders, names in os.walk(base, followlinks=True):  # one pass: a folder may hold a million images
        found += [Path(here, name) for name in names if name.endswith(".parquet") and not name.startswith(".")]
        if len(Path(here).relative_to(base).parts) == _DEPTH:
            folders.clear()
    return sorted(found)


def _read_name(path: Path, base: Path) -> _File | None:
    """What the name of a file, or that of its folder, says; None where it says no split."""
    folder, name = path.parent, path.stem
    if named := _SHARD.fullmatch(name):
        if folder != base and _FOLDER.fullmatch(folder.name):
            folder = folder.parent
        return _File(path, named["split"], int(named["number"]), int(named["count"]), folder)
    if (numbered := _NUMBER.fullmatch(name)) and folder != base:
        return _File(path, folder.name, int(numbered["number"]), None, folder.parent)
    if named := _PLAIN.fullmatch(name):
        return _File(path, named["split"], int(named["number"]) if named["number"] else None, None, folder)
    return None


def _order(file: _File) -> tuple[int, str]:
    return file.number or 0, file.path.name


def _refuse_incomplete(base: Path, split: str, files: list[_File]) -> None:
    """Raise DataError unless the files of a split are those of one upload, each once."""
    counts = {file.count for file in files}
    numbers = [file.number for file in files]
    if len(counts) > 1 or len({*numbers}) < len(numbers):
        names = ", ".join(sorted(file.path.name for file in files)[:4])
        raise DataError(f"{base}: files of several uploads of the split {split!r} ({names}); remove the older ones")
    given = {number for number in numbers if number is not None}
    if not given:
        return
    count = counts.pop()
    whole = range(count) if count is not None else range(min(1, min(given)), max(given) + 1)
    if missing := sorted({*whole} - given):
        form = f"file {missing[0]} of {split!r}" if count is None else f"{split}-{missing[0]:05}-of-{count:05}.parquet"
        raise DataError(
            f"{base}: no {form} ({len(missing):,} of {len(whole):,} files of {split!r} are missing); download the data "
            "set again"
        )
