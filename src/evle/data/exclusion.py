"""Pictures that pre-training must not see: the validation and test images of downstream tasks.

They are the val and test images of Karpathy's splits, told by their COCO number (which Visual Genome's
image_data.json names too) or, for Flickr30K, by their file name, which is the photo's number on Flickr.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evle.data.json_arrays import JsonArrays
from evle.data.official import field
from evle.errors import ConfigError, DataError

HELD_OUT = ("val", "test")
"""Splits of a Karpathy file whose images are left out; restval is training data."""

_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})")
_FLICKR_URL = re.compile(r"(\d+)_[0-9a-f]+")


@dataclass(frozen=True)
class Exclusion:
    """Images to leave out: COCO numbers, and stems of file names. Made by `read_exclusion`."""

    coco_ids: frozenset[int] = frozenset()
    names: frozenset[str] = frozenset()
    files: tuple[str, ...] = ()
    fingerprint: str = ""

    def __bool__(self) -> bool:
        return bool(self.files)

    def holds(self, name: str = "", *, coco_id: int | None = None, flickr_id: int | str | None = None) -> bool:
        """Whether an image is to be left out, by its file's name or URL, its COCO number, or its number on Flickr.

        >>> excluded = Exclusion(frozenset([391895]), frozenset(["1007129816"]))
        >>> excluded.holds("val2014/COCO_val2014_000000391895.jpg"), excluded.holds("flickr30k-images/1007129816.jpg")
        (True, True)
        >>> excluded.holds("http://static.flickr.com/2723/1007129816_b0f291553e.jpg"), excluded.holds("1007.jpg")
        (True, False)
        """
        if coco_id is not None and coco_id in self.coco_ids:
            return True
        if flickr_id is not None and str(flickr_id) in self.names:
            return True
        if not name:
            return False
        stem = name.rpartition("/")[2].partition(".")[0]
        if stem in self.names:
            return True
        if coco := _COCO_NAME.fullmatch(stem):
            return int(coco[1]) in self.coco_ids
        if (photo := _FLICKR_URL.match(stem)) and photo[1] in self.names:
            return "flickr" in urlsplit(name).netloc
        return False

    def facts(self, count: int) -> dict[str, Any]:
        """What a report says of `count` images left out; nothing where no exclusion was asked for."""
        if not self:
            return {}
        return {"left out as images of downstream tasks": count, "left out by": ", ".join(self.files)}


def read_exclusion(files: str | os.PathLike | Sequence[str | os.PathLike] | None) -> Exclusion:
    """The images that files name: Karpathy's JSON (its val and test images), or .txt with a COCO number or a file
    name a line.

    Raises DataError for a file that is missing, of another form, or names no image.
    """
    if files is None:
        return Exclusion()
    paths = [Path(file) for file in ([files] if isinstance(files, str | os.PathLike) else files)]
    coco_ids: set[int] = set()
    names: set[str] = set()
    prints = []
    for path in paths:
        before = len(coco_ids) + len(names)
        if path.suffix == ".json":
            prints.append(_read_karpathy(path, coco_ids, names))
        elif path.suffix == ".txt":
            prints.append(_read_list(path, coco_ids, names))
        else:
            raise ConfigError(f"exclude={path}: name Karpathy's JSON, or a .txt file with an image a line")
        if len(coco_ids) + len(names) == before:
            raise DataError(f"{path}: names no image to leave out; is it the right file?")
    identity = hashlib.blake2b(repr(prints).encode(), digest_size=8).hexdigest()
    return Exclusion(frozenset(coco_ids), frozenset(names), tuple(path.name for path in paths), identity)


def _read_karpathy(path: Path, coco_ids: set[int], names: set[str]) -> str:
    arrays = JsonArrays(path, ["images"])
    for number, element in enumerate(arrays):
        where = f"{path}: image {number}"
        if field(element.value, "split", where) not in HELD_OUT:
            continue
        if "cocoid" in element.value:
            coco_ids.add(int(element.value["cocoid"]))
        else:
            names.add(str(field(element.value, "filename", where)).partition(".")[0])
    return arrays.fingerprint


def _read_list(path: Path, coco_ids: set[int], names: set[str]) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; name it with exclude=FILE") from None
    for line in data.decode("utf-8-sig", errors="replace").split("\n"):
        text = line.strip()
        if text.isdecimal():
            coco_ids.add(int(text))
        elif text:
            names.add(text.rpartition("/")[2].partition(".")[0])
            if coco := _COCO_NAME.fullmatch(text.rpartition("/")[2].partition(".")[0]):
                coco_ids.add(int(coco[1]))
    return hashlib.blake2b(data, digest_size=8).hexdigest()
