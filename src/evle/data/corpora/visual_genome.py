"""Visual Genome (Krishna et al., 2017): images with some fifty described regions and thirty named objects each.

    region_descriptions.json   [{"id", "regions": [{"image_id", "phrase", "x", "y", "width", "height"}]}]
    objects.json               [{"image_id", "objects": [{"names": [...], "x", "y", "w", "h", "object_id"}]}]
    image_data.json            [{"image_id", "width", "height",           to leave out images of downstream tasks, and
                                 "coco_id", "flickr_id"}]                 to notice images that were made smaller
    VG_100K/, VG_100K_2/       images, named by image_id

The annotations are over a gigabyte. They are read once from beginning to end, and after that only the two records of
an image when its sample is needed.
"""

import math
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from evle.data.corpora.official import (
    PROBES,
    LeftOut,
    combined,
    field,
    find_file,
    held_out_split,
    in_split,
    listed,
    probe_images,
    refuse_duplicates,
    refuse_resized,
    require_folder,
    require_task,
    text_of,
    whole_number,
    words_of,
)
from evle.data.exclusion import GENOME_FILE, Exclusion, excluded_genome_ids, read_exclusion
from evle.data.formats.json_arrays import JsonArrays, read_element
from evle.data.formats.rows import Row, Rows
from evle.data.samples import Box, CaptionSample
from evle.errors import DataError, SampleError

FOLDERS = ("VG_100K", "VG_100K_2")
REGION = ("x", "y", "width", "height")
OBJECT = ("x", "y", "w", "h")
WHAT = "the unpacked files of Visual Genome"


def visual_genome(
    path: str | os.PathLike[str],
    task: str = "captions",
    split: str | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    objects: bool = True,
    pairs: bool = False,
    exclude: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    val_share: float = 0.0,
) -> Rows:
    """Visual Genome's images with their regions' phrases as captions.

    A sample has a box with `phrase` for each region and, unless `objects` is false, a box with `label` for each object
    that has a name. The images are in VG_100K and VG_100K_2 below `images` (by default `path`), or all in `images`.
    `pairs` yields one sample per region. Its only caption is the region's phrase and its boxes are those of the whole
    image, the region's own first, so that a phrase that describes several regions can be related to all of them. A
    caption that equals the phrase of a box describes a part of the image: matching and contrast do not learn from it.
    Boxes without an area, such as those of a negative width, are left out with their phrases and named in `.skipped`.
    `exclude` (see `read_exclusion`) leaves out images by their numbers in COCO and on Flickr. The corpus has no splits:
    `val_share` holds out that share of images, chosen by a hash of their numbers, for the split val.

    Raises ConfigError for options that cannot work, DataError for files that are missing or of another form.
    """
    require_task("visual-genome", task)
    split = held_out_split("visual-genome", split, val_share)
    base = Path(path)
    regions_file = find_file(base, ["region_descriptions.json"], WHAT)
    objects_file = find_file(base, ["objects.json"], WHAT) if objects else None
    excluded = read_exclusion(exclude)
    left_out = LeftOut()
    regions = _Index.read(regions_file, "regions", left_out)
    boxes = _Index.read(objects_file, "objects", left_out) if objects_file is not None else None
    out, image_data_print = _excluded_ids(base, excluded)

    indices = np.flatnonzero(regions.counts)
    without_phrase = len(regions.ids) - len(indices)
    indices = indices[~np.isin(regions.ids[indices], out)]
    if val_share:
        indices = np.array([i for i in indices if in_split(str(regions.ids[i]), split, val_share)], np.int64)
    if not len(indices):
        raise DataError(f"{regions.file}: no image is left in split {split!r}; check val_share and exclude")
    root = Path(images) if images is not None else base if base.is_dir() else base.parent
    require_folder(root, "VG_100K and VG_100K_2")
    folders = tuple(name for name in FOLDERS if (root / name).is_dir()) or ("",)
    reader = _Reader(regions, boxes, tuple(os.path.join(root, name) for name in folders))

    counts = regions.counts[indices]
    facts: dict[str, Any] = {"source": "visual-genome", "file": str(regions.file), "split": split}
    facts |= excluded.facts(int(np.isin(regions.ids, out).sum()))
    facts |= {"images": len(indices), "regions": int(counts.sum())}
    if boxes is not None:
        facts["objects"] = int(boxes.counts[np.isin(boxes.ids, regions.ids[indices])].sum())
    if without_phrase:
        facts["images without a phrase"] = without_phrase
    if pairs:
        numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        indices = np.repeat(indices, counts)
    else:
        numbers = np.full(len(indices), -1)
    rows = Rows(
        pa.table({"image": pa.array(indices, pa.int32()), "number": pa.array(numbers, pa.int32())}),
        reader,
        fingerprint=combined(
            regions.fingerprint,
            boxes.fingerprint if boxes else "",
            image_data_print,
            excluded.fingerprint,
            (split, val_share, pairs),
        ),
        facts=facts,
        skipped=left_out.lines,
        num_skipped=left_out.count,
    )
    probe_images(rows, regions.file)
    sizes = _stated_sizes(base if base.is_dir() else base.parent)
    refuse_resized(rows, regions.file, lambda row: sizes.get(int(regions.ids[row["image"]])))
    if len(folders) == 1 and folders != ("",):
        _refuse_half(rows, root, folders[0])
    return rows


def _stated_sizes(folder: Path) -> dict[int, tuple[int, int]]:
    """Width and height of each image by image_data.json, of none where that file is not there."""
    if not (folder / GENOME_FILE).is_file():
        return {}
    sizes = {}
    for element in JsonArrays(folder / GENOME_FILE):
        with suppress(AttributeError, KeyError, TypeError, ValueError):  # the older form says less
            record = element.value
            sizes[int(record.get("image_id", record.get("id")))] = (int(record["width"]), int(record["height"]))
    return sizes


def _refuse_half(rows: Rows, root: Path, there: str) -> None:
    """Raise DataError where one of the two folders of images is missing, unless the other one holds all images."""
    for index in np.linspace(0, len(rows) - 1, min(PROBES, len(rows))).astype(int):
        with suppress(SampleError):  # what is wrong with one sample is reported when it is read
            image = str(rows[int(index)].image)
            if not os.path.exists(image):
                missing = next(name for name in FOLDERS if name != there)
                raise DataError(
                    f"{root / missing}: no such folder, and {os.path.basename(image)} is not in {there}; unpack the "
                    f"other half of the images there, or all of them into {there}"
                )


@dataclass(frozen=True)
class _Index:
    """The position of each image's record in a file, and its number of usable boxes."""

    file: Path
    ids: np.ndarray  # (N,) int64
    offsets: np.ndarray  # (N,) int64, in bytes
    lengths: np.ndarray  # (N,) int32
    counts: np.ndarray  # (N,) int32, of phrases or named objects
    fingerprint: str

    @classmethod
    def read(cls, file: Path, member: str, left_out: LeftOut) -> "_Index":
        """Read through a file whose records hold a list `member`, "regions" or "objects"."""
        ids, offsets, lengths, counts = array("q"), array("q"), array("i"), array("i")
        arrays = JsonArrays(file)
        named, box = (_phrases, REGION) if member == "regions" else (_labels, OBJECT)
        for number, element in enumerate(arrays):
            where = f"{file}: record {number}"
            record = element.value
            found = listed(record, member, where)
            ids.append(_image_id(record, where))
            offsets.append(element.offset)
            lengths.append(element.length)
            counts.append(0)
            for _, each in named(found, where):
                _refuse_other_image(each, ids[-1], where)
                if _has_area(each, box):
                    counts[-1] += 1
                else:
                    line = f"{where}, image {ids[-1]}: the box {[each[name] for name in box]} has no area"
                    left_out.add(file, "boxes without an area", [line])
        refuse_duplicates(np.frombuffer(ids, np.int64), file, "image id")
        return cls(file, np.array(ids), np.array(offsets), np.array(lengths), np.array(counts), arrays.fingerprint)

    def record(self, index: int) -> Any:
        return read_element(self.file, int(self.offsets[index]), int(self.lengths[index]))


class _Reader:
    """Reads the sample of a row: an image's index, and the number of its phrase, or -1 for all phrases."""

    def __init__(self, regions: _Index, objects: _Index | None, folders: tuple[str, ...]):
        self.regions, self.objects, self.folders = regions, objects, folders
        if objects is not None:  # the index of each id among the objects
            self._order = np.argsort(objects.ids, kind="stable").astype(np.int32)
            self._sorted = objects.ids[self._order]

    def __call__(self, row: Row) -> CaptionSample:
        index, number = row["image"], row["number"]
        image_id = int(self.regions.ids[index])
        phrases = list(_region_boxes(self.regions.record(index)["regions"], f"image {image_id}"))
        captions = tuple(box.phrase for box in phrases)
        if number >= 0:
            captions = captions[number : number + 1]
            phrases.insert(0, phrases.pop(number))
        name = f"{image_id}.jpg"
        paths = [os.path.join(folder, name) for folder in self.folders]
        key = f"visual-genome/{image_id}"
        return CaptionSample(
            key=key if number < 0 else f"{key}#{number}",
            image=next((each for each in paths[:-1] if os.path.exists(each)), paths[-1]),
            captions=captions,
            boxes=(*phrases, *self._objects(image_id)),
            match_id=key,
        )

    def _objects(self, image_id: int) -> Iterable[Box]:
        if self.objects is None:
            return ()
        found = int(np.searchsorted(self._sorted, image_id))
        if found == len(self._sorted) or self._sorted[found] != image_id:
            return ()
        return _object_boxes(self.objects.record(int(self._order[found]))["objects"], f"image {image_id}")


def _phrases(regions: Sequence[Any], where: str) -> Iterator[tuple[str, Any]]:
    """(phrase, region) of each region that has a phrase."""
    for region in regions:
        if phrase := words_of(field(region, "phrase", where), where):
            yield " ".join(phrase.split()), region


def _labels(objects: Sequence[Any], where: str) -> Iterator[tuple[str, Any]]:
    """(label, object) of each object that has a name; the first of several is its label."""
    for each in objects:
        names = _names(field(each, "names", where), where)
        if names and (label := " ".join(text_of(names[0], where).lower().split())):
            yield label, each


def _region_boxes(regions: Sequence[Any], where: str) -> Iterator[Box]:
    for phrase, region in _phrases(regions, where):
        if _has_area(region, REGION):
            x, y, width, height = _numbers(region, REGION, where)
            yield Box(x, y, width, height, phrase=phrase)


def _object_boxes(objects: Sequence[Any], where: str) -> Iterator[Box]:
    for label, each in _labels(objects, where):
        if _has_area(each, OBJECT):
            x, y, width, height = _numbers(each, OBJECT, where)
            yield Box(x, y, width, height, label=label)


def _has_area(record: Any, names: Sequence[str]) -> bool:
    """Whether a box is a rectangle. One whose values are not numbers passes here: reading it raises the error."""
    try:
        x, y, width, height = [record[name] for name in names]
        return bool(0 < width < math.inf and 0 < height < math.inf and abs(x) < math.inf and abs(y) < math.inf)
    except (KeyError, TypeError):
        return True


def _refuse_other_image(record: Any, image_id: int, where: str) -> None:
    """Raise DataError for a region or an object that names another image than the record that holds it."""
    if isinstance(record, dict) and record.get("image_id", image_id) != image_id:
        other = whole_number(record, "image_id", where)
        if other != image_id:
            raise DataError(f"{where}: a box of image {other} in the record of image {image_id}; use the official file")


def _names(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise SampleError(f"{where}: the names {str(value)[:40]!r} of an object must be a list; use the official file")
    return value


def _numbers(record: Any, names: Sequence[str], where: str) -> list[float]:
    values = [record.get(name) for name in names]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise SampleError(
            f"{where}: the box {dict(zip(names, values))} must be four numbers; download the official file again"
        )
    return values


def _excluded_ids(base: Path, excluded: Exclusion) -> tuple[np.ndarray, str]:
    """The ids of the images to leave out, and the fingerprint of the file that they come from."""
    if not excluded:
        return np.zeros(0, np.int64), ""
    folder = base if base.is_dir() else base.parent
    file = find_file(folder, [GENOME_FILE], "Visual Genome's image_data.json, which translates COCO's numbers,")
    out, fingerprint = excluded_genome_ids(file, excluded)
    return np.array(out, np.int64), fingerprint


def _image_id(record: Any, where: str) -> int:
    return whole_number(record, "image_id" if "image_id" in record else "id", where)
