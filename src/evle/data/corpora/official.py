"""Official files of published corpora: found where their archives put them, or named with what is missing and where."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from evle.data.samples import hashed_split
from evle.errors import ConfigError, DataError, SampleError, nearest

PROBES = 16
"""So many images are looked for before a data set counts as one without images."""
NAMED = 20
"""So many rows left out for one reason are named; the others are counted."""
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar", ".7z", ".gz")


class LeftOut:
    """Rows that a source leaves out: `count` of them, the first of each reason named in `lines`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def add(self, file: Path, what: str, lines: Iterable[str], count: int) -> None:
        """Leave out `count` rows of a file, of which `lines` tell one by one, and `what` what they all are."""
        self.count += count
        self.lines += islice(lines, NAMED)
        if count > NAMED:
            self.lines.append(f"{file}: {count - NAMED:,} more {what}")


def require_task(source: str, task: str, holds: str = "captions") -> None:
    """Raise ConfigError unless the source holds samples of `task`."""
    if task != holds:
        raise ConfigError(f"source {source!r} holds {holds}, not {task!r}; choose another source or task")


def wanted_splits(source: str, split: str | Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The splits asked for, all of the `known` ones for None. Raises ConfigError for one that does not exist."""
    wanted = known if split is None else [split] if isinstance(split, str) else split
    for name in wanted:
        if name not in known:
            raise ConfigError(f"{source} has no split {name!r}; {nearest(str(name), known)}")
    return tuple(wanted)


def in_split(name: str, split: str, val_share: float) -> bool:
    """Whether the image `name` of a corpus without splits belongs to "train" or "val", by a hash of its name."""
    return hashed_split(name, (1 - val_share, val_share, 0.0)) == split


def held_out_split(source: str, split: str | None, val_share: float) -> str:
    """The split asked for of a corpus that has none of its own: train (also for None), or a held-out val."""
    if not 0 <= val_share < 1:
        raise ConfigError(f"val_share={val_share} must be from 0 to below 1")
    name = split or "train"
    if name not in ("train", "val"):
        raise ConfigError(f"{source} has no split {name!r}; {nearest(name, ['train', 'val'])}")
    if name == "val" and not val_share:
        raise ConfigError(f"{source} has no val of its own; hold some out: val_share=0.01 for train and for val")
    return name


def find_file(path: str | os.PathLike, names: Iterable[str], what: str) -> Path:
    """The file at `path`, or the one of `names` that lies in the folder `path`; `what` is what an error calls it."""
    base, names = Path(path), list(names)
    if base.is_file():
        return base
    if not base.is_dir():
        raise DataError(f"{base}: no such file or folder; name the folder of {what} as path")
    found = [base / name for name in names if (base / name).is_file()]
    if not found:
        sought = " or ".join(dict.fromkeys(name.rpartition("/")[2] for name in names))
        folders = ", ".join(dict.fromkeys(name.rpartition("/")[0] for name in names if "/" in name))
        where = f"there, nor in {folders}" if folders else "there"
        raise DataError(f"{base}: no {sought} {where}{_packed(base)}; put {what} into it, or name the file as path")
    if len(found) > 1:
        raise DataError(f"{base}: both {' and '.join(file.name for file in found)} are there; name one as path")
    return found[0]


def require_folder(folder: Path, what: str) -> None:
    """Raise DataError unless the folder of `what` is there."""
    if not folder.is_dir():
        missing = f"{folder}: no such folder{_packed(folder.parent)}"
        raise DataError(f"{missing}; put {what} there, or set images=FOLDER to where they lie")


def _packed(folder: Path) -> str:
    """Words for the archives that lie in a folder, which their owner has most likely forgotten to unpack."""
    names = sorted(file.name for file in folder.glob("*") if file.name.endswith(ARCHIVES)) if folder.is_dir() else []
    return f" (still packed: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def probe_images(samples: Sequence[Any], file: Path) -> None:
    """Raise DataError when none of some spread samples has its image on disk: the folder is then another one.

    Single missing images are found when they are read.
    """
    tried = []
    for place in np.linspace(0, len(samples) - 1, min(PROBES, len(samples))).astype(int):
        with suppress(SampleError):  # what is wrong with one sample is told when it is read
            tried.append(str(samples[int(place)].image))
    if tried and not any(os.path.exists(name) for name in tried):
        raise DataError(
            f"{tried[0]}: no such file, nor any other of {len(tried)} images that {file} names; put the images "
            "there, or set images=FOLDER to where they lie"
        )


def refuse_duplicates(names: Sequence[Any] | np.ndarray, file: Path, what: str) -> None:
    """Raise DataError when an id of the file stands twice."""
    values, counts = np.unique(np.asarray(names), return_counts=True)
    twice = values[counts > 1]
    if len(twice):
        more = f" ({len(twice) - 1:,} other {what}s too)" if len(twice) > 1 else ""
        times = int(counts[counts > 1][0])
        raise DataError(f"{file}: {what} {str(twice[0])!r} stands {times} times{more}; take the official file anew")


def field(record: Any, name: str, where: str) -> Any:
    """`record[name]`. Raises DataError, naming the place, for a record of another form."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: must be an object {{...}}, not {str(record)[:40]!r}; is it the right file?")
    if name not in record:
        raise DataError(f"{where}: no field {name!r}; {nearest(name, map(str, record))}; is it the right file?")
    return record[name]


def listed(record: Any, name: str, where: str) -> list[Any]:
    """`record[name]`, which must be a list. Raises DataError, naming the place."""
    value = field(record, name, where)
    if not isinstance(value, list):
        raise DataError(f"{where}: its {name} must be a list, not {str(value)[:40]!r}; is it the right file?")
    return value


def whole_number(record: Any, name: str, where: str) -> int:
    """`record[name]`, which must be a whole number or its digits. Raises DataError, naming the place."""
    value = field(record, name, where)
    try:
        return int(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {name} must be a number, not {str(value)[:40]!r}") from None


def text_of(value: Any, where: str) -> str:
    """A text without blanks around it, "" for null. Raises DataError, naming the place, for what is none."""
    if isinstance(value, list | dict):
        raise DataError(f"{where}: {str(value)[:40]!r} is no text; is it the right file?")
    return "" if value is None else str(value).strip()


def combined(*parts: Any) -> str:
    """One fingerprint of hashes and options."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
