"""Official files of published corpora: where their archives put them, and clear errors for what is missing or wrong."""

import hashlib
import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evle.data.custom.image_folder import file_like
from evle.data.formats.cells import is_null, says_something, unescaped
from evle.data.formats.rows import Row, Rows
from evle.data.samples import hashed_split
from evle.errors import ConfigError, DataError, SampleError, nearest

PROBES = 16
"""The number of images that are looked for before a data set is refused as one without images."""
OUTSIDE = "correct it, or set allow_outside=true"
"""What to do where the user's own list names an image outside of the folder."""
NAMED = 20
"""The most rows left out for one reason that are named; the others are counted."""
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar", ".7z", ".gz")


class LeftOut:
    """The rows that a source leaves out: their number, and the first ones of each kind by name."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[Path, str], tuple[list[str], int]] = {}

    def add(self, file: Path, what: str, lines: Iterable[str], count: int = 1) -> None:
        """Leave out `count` rows of a file: `lines` describes each of them, and `what` all rows of this kind."""
        if not count:
            return
        named, so_far = self._kinds.get((file, what), ([], 0))
        named += islice(lines, NAMED - len(named))
        self._kinds[file, what] = (named, so_far + count)

    @property
    def count(self) -> int:
        return sum(count for _, count in self._kinds.values())

    @property
    def lines(self) -> list[str]:
        """A line for each of the first rows, and one for the others of their kind."""
        lines = []
        for (file, what), (named, count) in self._kinds.items():
            lines += named
            if count > len(named):
                lines.append(f"{file}: {count - len(named):,} more {what}")
        return lines


def require_task(source: str, task: str, holds: str = "captions") -> None:
    """Raise ConfigError unless the source holds samples for `task`."""
    if task != holds:
        raise ConfigError(f"source {source!r} holds {holds}, not {task!r}; choose another source or task")


def wanted_splits(source: str, split: str | Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The requested splits, or all `known` ones for None. Raises ConfigError for a split that does not exist."""
    wanted = known if split is None else [split] if isinstance(split, str) else split
    for name in wanted:
        if name not in known:
            raise ConfigError(f"{source} has no split {name!r}; {nearest(str(name), known)}")
    return tuple(wanted)


def in_split(name: str, split: str, val_share: float) -> bool:
    """Whether the image `name` of a corpus without splits belongs to "train" or "val", by a hash of its name."""
    return hashed_split(name, (1 - val_share, val_share, 0.0)) == split


def held_out_split(source: str, split: str | None, val_share: float) -> str:
    """The requested split of a corpus without splits: train (also for None), or a held-out val."""
    if not 0 <= val_share < 1:
        raise ConfigError(f"val_share={val_share} must be from 0 to below 1")
    name = split or "train"
    if name not in ("train", "val"):
        raise ConfigError(f"{source} has no split {name!r}; {nearest(name, ['train', 'val'])}")
    if name == "val" and not val_share:
        raise ConfigError(f"{source} has no split val; hold one out with val_share=0.01, in train and in val")
    return name


def find_file(path: str | os.PathLike[str], names: Iterable[str], what: str) -> Path:
    """The file at `path`, or the one of `names` in the folder `path`; errors call it `what`."""
    base, names = Path(path), list(names)
    if base.is_file():
        return base
    if not base.is_dir():
        raise DataError(f"{base}: no such file or folder; set path to the folder of {what}")
    found = [base / name for name in names if (base / name).is_file()]
    if not found:
        sought = " or ".join(dict.fromkeys(name.rpartition("/")[2] for name in names))
        folders = ", ".join(dict.fromkeys(name.rpartition("/")[0] for name in names if "/" in name))
        where = f"there, nor in {folders}" if folders else "there"
        hint = _packed(base) or _similar(base, names)
        raise DataError(f"{base}: no {sought} {where}{hint}; put {what} there, or set path to the file")
    if len(found) > 1:
        raise DataError(f"{base}: both {' and '.join(file.name for file in found)} are there; set path to one of them")
    return found[0]


def require_folder(folder: Path, what: str) -> None:
    """Raise DataError unless the folder of `what` exists."""
    if not folder.is_dir():
        missing = f"{folder}: no such folder{_packed(folder.parent)}{_of_another_year(folder)}"
        raise DataError(f"{missing}; put {what} there, or set images=FOLDER to the folder that holds them")


def _packed(folder: Path) -> str:
    """A remark on the archives in a folder, which most likely have not been unpacked yet."""
    names = sorted(file.name for file in folder.glob("*") if file.name.endswith(ARCHIVES)) if folder.is_dir() else []
    return f" (still packed: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def _similar(base: Path, names: Iterable[str]) -> str:
    """A remark on the files with names like those of missing ones, such as those of another split or version."""
    folders = dict.fromkeys(name.rpartition("/")[0] for name in names)
    there = [file.name for folder in folders for file in (base / folder).glob("*") if file.is_file()]
    close = dict.fromkeys(each for name in names for each in get_close_matches(name.rpartition("/")[2], there, 3, 0.7))
    return f" (there is {', '.join(close)})" if close else ""


def _of_another_year(folder: Path) -> str:
    """A remark on a folder that differs in its year alone, such as val2017 for val2014."""
    stem = folder.name.rstrip("0123456789")
    there = folder.parent.glob(f"{stem}20??") if len(folder.name) == len(stem) + 4 else ()
    names = sorted(each.name for each in there if each.is_dir() and stem)
    return f" ({', '.join(names)} is of another year)" if names else ""


def probe_images(samples: Sequence[Any], file: Path) -> None:
    """Raise DataError when none of some evenly spread samples has its image on disk, as the folder is then a wrong one.

    Single missing images are reported when they are read.
    """
    tried = []
    for index in np.linspace(0, len(samples) - 1, min(PROBES, len(samples))).astype(int):
        with suppress(SampleError):  # what is wrong with one sample is reported when it is read
            tried.append(str(samples[int(index)].image))
    if tried and not any(os.path.exists(name) for name in tried):
        raise no_images(tried, file)


def refuse_resized(samples: Rows, file: Path, size_of: Callable[[Row], tuple[int, int] | None]) -> None:
    """Raise DataError when images have another size than their annotations say, for which the boxes were drawn.

    `size_of` a row is the width and height in the annotations. Evenly spread samples are looked at; an image that
    cannot be opened is reported when it is read, and a turned one counts as its own size.
    """
    for index in np.linspace(0, len(samples) - 1, min(PROBES, len(samples))).astype(int):
        stated = size_of(samples.row(int(index)))
        if stated is None:
            continue
        found, name = stated, ""
        with suppress(OSError, ValueError):  # what is wrong with one image is reported when it is read
            name = str(samples[int(index)].image)
            with Image.open(name) as image:
                found = image.size
        if found not in (stated, stated[::-1]):
            raise DataError(
                f"{name}: has {found[0]} x {found[1]} pixels, and {stated[0]} x {stated[1]} in the annotations of "
                f"{file}, so that its boxes do not fit; use the images in their original size"
            )


def no_images(tried: Sequence[str], file: Path) -> DataError:
    """The error for a file of which none of the images that were `tried` exist."""
    similar = file_like(tried[0])
    return DataError(
        f"{tried[0]}: no such file{f' (but there is {similar})' if similar else ''}, nor any other of {len(tried)} "
        f"images that {file} names; put the images there, or set images=FOLDER to the folder that holds them"
    )


def refuse_duplicates(names: Sequence[Any] | np.ndarray, file: Path, what: str) -> None:
    """Raise DataError when an id appears twice in the file."""
    values, counts = np.unique(np.asarray(names), return_counts=True)
    twice = values[counts > 1]
    if len(twice):
        more = f" ({len(twice) - 1:,} other {what}s too)" if len(twice) > 1 else ""
        times = int(counts[counts > 1][0])
        raise DataError(f"{file}: {what} {str(twice[0])!r} appears {times} times{more}; download the file again")


def refuse_outside(name: str, root: Path, where: str, cure: str = "download the official file again") -> None:
    """Raise DataError, naming `where`, for the name of an image that leads out of `root`, the folder of the images.

    >>> refuse_outside("train/../val/a.jpg", Path("images"), "a.json")
    >>> refuse_outside("../a.jpg", Path("images"), "a.json")
    Traceback (most recent call last):
        ...
    evle.errors.DataError: a.json: the image '../a.jpg' is outside of images; download the official file again
    """
    path = posixpath.normpath(name)
    if posixpath.isabs(path):
        path = posixpath.relpath(path, os.path.abspath(root))
    if path == ".." or path.startswith("../"):
        raise DataError(f"{where}: the image {name!r} is outside of {root}; {cure}")


def field(record: Any, name: str, where: str) -> Any:
    """`record[name]`. Raises DataError, naming `where`, for a record of another form."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: must be an object {{...}}, not {str(record)[:40]!r}; is it the right file?")
    if name not in record:
        raise DataError(f"{where}: no field {name!r}; {nearest(name, map(str, record))}; is it the right file?")
    return record[name]


def optional(record: dict[str, Any], name: str, where: str) -> Any:
    """`record[name]`, None where there is no such field. Raises DataError, naming `where`, where the field has its name
    in another case or in the plural: it would be passed over in silence.

    >>> optional({"Label": "True"}, "label", "a.json:1")
    Traceback (most recent call last):
        ...
    evle.errors.DataError: a.json:1: no field 'label', but 'Label'; rename it to 'label'
    """
    if name in record:
        return record[name]
    for other in record:
        if other.strip().casefold() in (name, f"{name}s"):
            raise DataError(f"{where}: no field {name!r}, but {other!r}; rename it to {name!r}")
    return None


def listed(record: Any, name: str, where: str) -> list[Any]:
    """`record[name]`, which must be a list. Raises DataError, naming `where`."""
    value = field(record, name, where)
    if not isinstance(value, list):
        raise DataError(f"{where}: its {name} must be a list, not {str(value)[:40]!r}; is it the right file?")
    return value


def whole_number(record: Any, name: str, where: str) -> int:
    """`record[name]`, which must be a whole number or its digits. Raises DataError, naming `where`."""
    value = field(record, name, where)
    try:
        number = int(value)
        if not isinstance(value, bool) and (isinstance(value, str) or number == value) and abs(number) < 2**63:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise DataError(f"{where}: {name} must be a whole number, not {str(value)[:40]!r}")


def text_of(value: Any, where: str) -> str:
    """A text without blanks around it: "" for null and NaN, "2" for 2.0. Raises DataError for a list, an object, true
    and false."""
    if isinstance(value, list | dict | bool):
        raise DataError(f"{where}: {str(value)[:40]!r} is not a text; is it the right file?")
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def answer_of(value: Any, where: str) -> str:
    """`text_of` an answer, with "yes" for true and "no" for false."""
    return ("yes" if value else "no") if isinstance(value, bool) else text_of(value, where)


def words_of(value: Any, where: str) -> str:
    """`text_of` a caption, question or sentence, with the signs that HTML's entities stand for: "" also for the words
    that programs write where there is no value, and for punctuation alone.

    >>> words_of(" NaN ", "a.json"), words_of("None", "a.json"), words_of("salt &amp; pepper", "a.json")
    ('', '', 'salt & pepper')
    """
    text = unescaped(text_of(value, where))
    return "" if is_null(text) or not says_something(text) else text


def required_text(record: Any, name: str, where: str) -> str:
    """`record[name]` as a text that is not empty. Raises DataError, naming `where`."""
    text = text_of(field(record, name, where), where)
    if not text:
        raise DataError(f"{where}: {name} is empty; download the official file again")
    return text


def same_file(name: str) -> str:
    """One spelling of a relative path: "./a.jpg", "a//b/../a.jpg" and another Unicode form name the same file.

    >>> same_file("./train//a.jpg") == same_file("train/b/../a.jpg")
    True
    """
    return unicodedata.normalize("NFC", posixpath.normpath(name))


def combined(*parts: Any) -> str:
    """One fingerprint of hashes and options."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
