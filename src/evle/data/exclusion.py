"""Images that pre-training must not see: the validation and test images of downstream tasks.

They are the val and test images of Karpathy's splits. COCO's are recognised by their COCO number, and Flickr30K's by
their file name, which is the photo's number on Flickr. Visual Genome's image_data.json has both numbers of its images.
"""

import hashlib
import os
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evle.data.corpora.official import field, required_text, text_of, whole_number
from evle.data.formats.json_arrays import JsonArrays
from evle.data.formats.text_files import encoding_of
from evle.errors import ConfigError, DataError

TRAINED_ON = ("train", "restval")
HELD_OUT = ("val", "test")
"""Splits of a Karpathy file whose images are left out; restval is training data."""

_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})", re.IGNORECASE)
_MAX_COCO = 999_999
"""COCO's numbers end below 600,000; those of photos on Flickr are larger, but for a few."""
_FLICKR_URL = re.compile(r"(\d+)_[0-9a-f]+")
_GENOME_NAME = re.compile(r"(?:^|.*/)(?:vg|vg_100k|vg_100k_2|visual[-_]?genome)/(?:.*/)?(\d+)(?:\.\w+)?", re.IGNORECASE)
_NUMBER = re.compile(r"(\d{1,18})(?:\.0)?")
_SHORTENED = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")
"""A number that is no COCO number; a spreadsheet writes a large one as 3.92E+05."""
_SUFFIXES = re.compile(r"(?:\.(?:jpe?g|png|webp|gif|bmp|tiff?))+$", re.IGNORECASE)
_TOKEN = re.compile(r"#\d+$")
"""The number of a caption behind the name of its image, as in Flickr's token files."""
_SEVERAL = re.compile(r"[\[\]{}<>\t,;|#]|^\d+(?:\s|$)|\s[^/]*$|\.(?:jpe?g|png|webp|gif|bmp|tiff?)\s", re.IGNORECASE)
"""What no name of an image in these corpora has; its folders may have blanks."""
_HEADERS = ("id", "image_id", "cocoid", "coco_id", "image", "images", "filename", "file_name", "name")
GENOME_FILE = "image_data.json"
LEFT_OUT = "left out as images of downstream tasks"


@dataclass(frozen=True)
class Exclusion:
    """Images to leave out: COCO numbers, stems of file names, numbers in Visual Genome. `read_exclusion` creates it."""

    coco_ids: frozenset[int] = frozenset()
    names: frozenset[str] = frozenset()
    files: tuple[str, ...] = ()
    fingerprint: str = ""
    genome_ids: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.files)

    def holds(self, name: str = "", *, coco_id: int | None = None, flickr_id: int | str | None = None) -> bool:
        """Whether an image must be left out, by its file's name or URL, its COCO number, or its number on Flickr.

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
        if self.genome_ids and (genome := _GENOME_NAME.fullmatch(name)):
            return int(genome[1]) in self.genome_ids
        stem = _stem(name)
        if stem in self.names:
            return True
        if coco := _COCO_NAME.fullmatch(stem):
            return int(coco[1]) in self.coco_ids
        if (photo := _FLICKR_URL.match(stem)) and photo[1] in self.names:
            return "flickr" in urlsplit(name).netloc
        return False

    def facts(self, count: int) -> dict[str, Any]:
        """Facts about `count` excluded images for a report; none where no exclusion was requested."""
        if not self:
            return {}
        return {LEFT_OUT: count, "left out by": ", ".join(self.files)}


def is_genome(name: str) -> bool:
    """Whether a path or key names an image of Visual Genome by its number.

    >>> is_genome("vg/VG_100K_2/17.jpg"), is_genome("visual-genome/17"), is_genome("sbu/17.jpg")
    (True, True, False)
    """
    return _GENOME_NAME.fullmatch(name) is not None


def read_exclusion(files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None) -> Exclusion:
    """The images that files name: Karpathy's JSON (its val and test images), or a .txt with one COCO number or file
    name per line. Add Visual Genome's image_data.json to find the same images in lists and shards of Visual Genome; the
    source visual-genome reads that file by itself.

    Raises DataError for a file that is missing, of another form, or names no image.
    """
    if files is None:
        return Exclusion()
    paths = [Path(file) for file in ([files] if isinstance(files, str | os.PathLike) else files)]
    coco_ids: set[int] = set()
    names: set[str] = set()
    prints = []
    genome = [path for path in paths if path.name == GENOME_FILE]
    for path in paths:
        if path in genome:
            continue
        if path.suffix.lower() in (".json", ".txt") and not path.is_file():
            raise DataError(f"{path}: no such file; check exclude=FILE")
        before = len(coco_ids) + len(names)
        if path.suffix.lower() == ".json":
            prints.append(_read_karpathy(path, coco_ids, names))
        elif path.suffix.lower() == ".txt":
            prints.append(_read_list(path, coco_ids, names))
        else:
            raise ConfigError(f"exclude={path}: must be Karpathy's JSON, or a .txt file with one image per line")
        if len(coco_ids) + len(names) == before:
            raise DataError(f"{path}: no image to leave out in it; is it the right file?")
    if genome and not coco_ids and not names:
        raise ConfigError(f"exclude={genome[0]} only translates numbers; add Karpathy's JSON")
    found = Exclusion(frozenset(coco_ids), frozenset(names), tuple(path.name for path in paths))
    genome_ids: set[int] = set()
    for path in genome:
        ids, print_ = excluded_genome_ids(path, found)
        genome_ids.update(ids)
        prints.append(print_)
    identity = hashlib.blake2b(repr(prints).encode(), digest_size=8).hexdigest()
    return replace(found, fingerprint=identity, genome_ids=frozenset(genome_ids))


def excluded_genome_ids(path: str | os.PathLike[str], excluded: Exclusion) -> "tuple[array[int], str]":
    """The numbers in Visual Genome of the images to leave out, by its image_data.json, and that file's fingerprint."""
    arrays, out = JsonArrays(path), array("q")
    for number, element in enumerate(arrays):
        where = f"{path}: record {number}"
        coco_id = whole_number(element.value, "coco_id", where) if field(element.value, "coco_id", where) else None
        if excluded.holds(coco_id=coco_id, flickr_id=text_of(element.value.get("flickr_id"), where)):
            out.append(whole_number(element.value, "image_id" if "image_id" in element.value else "id", where))
    return out, arrays.fingerprint


def _stem(name: str) -> str:
    """A file's name without its folders, the endings of images, and the number of a caption.

    >>> _stem("train/a.jpg"), _stem("a.jpg.webp"), _stem("frame.0001.PNG"), _stem("1007129816.jpg#0")
    ('a', 'a', 'frame.0001', '1007129816')
    """
    return _SUFFIXES.sub("", _TOKEN.sub("", name.rpartition("/")[2].partition("?")[0]))


def _read_karpathy(path: Path, coco_ids: set[int], names: set[str]) -> str:
    arrays = JsonArrays(path, ["images"])
    for number, element in enumerate(arrays):
        where = f"{path}: image {number}"
        split = field(element.value, "split", where)
        if split in TRAINED_ON:
            continue
        if split not in HELD_OUT:
            known = ", ".join((*TRAINED_ON, *HELD_OUT))
            raise DataError(f"{where}: split {split!r} is none of {known}; download the file again")
        if element.value.get("cocoid") is not None:
            coco_ids.add(whole_number(element.value, "cocoid", where))
        else:
            names.add(_stem(required_text(element.value, "filename", where)))
    return arrays.fingerprint


def _read_list(path: Path, coco_ids: set[int], names: set[str]) -> str:
    """Add the images of a list. One number that is too large for COCO shows that the numbers may be Flickr's."""
    data = path.read_bytes()
    numbers: set[int] = set()
    for number, line in enumerate(data.decode(encoding_of(path, western=True)).splitlines(), start=1):
        text = line.strip().rstrip(",;").strip().strip("\"'").strip()
        text = _TOKEN.sub("", text.replace("\\", "/"))
        if count := _NUMBER.fullmatch(text):
            numbers.add(int(count[1]))
        elif _SHORTENED.fullmatch(text):
            raise DataError(f"{path}:{number}: {text[:40]!r} is no COCO number; write all digits of the whole number")
        elif not text or text.startswith("#") or text.casefold() in _HEADERS:
            continue
        elif _SEVERAL.search(text):
            raise DataError(f"{path}:{number}: {text[:40]!r} is not one COCO number or file name; write one per line")
        else:
            names.add(_stem(text))
            if coco := _COCO_NAME.fullmatch(_stem(text)):
                coco_ids.add(int(coco[1]))
    coco_ids |= numbers
    if max(numbers, default=0) > _MAX_COCO:
        names |= set(map(str, numbers))
    return hashlib.blake2b(data, digest_size=8).hexdigest()
