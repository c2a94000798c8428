"""VCR (Zellers et al., 2019; visualcommonsense.com) from its official files.

val.jsonl                                        {"annot_id", "objects": ["person", ...], "img_fn", "metadata_fn",
                                                 "question": ["What", "is", [0], "doing", "?"], "answer_choices",
                                                 "answer_label", "rationale_choices", "rationale_label"}, one per line
vcr1images/lsmdc_.../x.jpg                       the image, and next to it its metadata
vcr1images/lsmdc_.../x.json                      {"boxes": [[x1, y1, x2, y2, score]], "names", "width", "height"}
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from evle.data.corpora.official import (
    LeftOut,
    combined,
    field,
    find_file,
    probe_images,
    refuse_duplicates,
    refuse_outside,
    refuse_resized,
    require_folder,
    require_task,
    required_text,
)
from evle.data.custom.choices import SHARES, is_bare_reference
from evle.data.formats.json_arrays import read_element
from evle.data.formats.json_lines import JsonLines
from evle.data.formats.rows import Row, Rows, table_of
from evle.data.samples import SPLITS, Box, Tagged, VCRSample
from evle.errors import ConfigError, DataError, SampleError, nearest
from evle.files import read_json

IMAGES = "vcr1images"
CHOICES = 4
FIELDS = ("annot_id", "img_fn", "metadata_fn", "objects", "question", "answer_choices", "rationale_choices")
"""The fields of every record; those of train and val also have labels."""
LABELS = ("answer_label", "rationale_label")
ENOUGH = 40
"""Labels of which one in four is 0: among so many, all are from 1 on in one file of 100,000."""
BEYOND = 1.1
"""A box that ends this far beyond the image, in shares of its side, is not in its pixels."""
_CHOSEN = ("answer_choices", "rationale_choices")

_SCHEMA = pa.schema([("annot_id", pa.large_string()), ("offset", pa.int64()), ("length", pa.int64())])


def vcr(
    path: str | os.PathLike[str],
    task: str = "vcr",
    split: str | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
) -> Rows:
    """The questions of VCR as VCRSamples; a sample's key is its annot_id.

    `path` holds train.jsonl, val.jsonl and test.jsonl, or is one of them. The images and their metadata are below
    `images`, by default the folder vcr1images next to the files. `split` (train for None) is train, val or test; test
    has no labels. `objects` are all boxes of an image with their classes; the task decides how persons are named. Only
    the position of a record is kept in memory; the record is read from its file when its sample is needed.

    Questions whose metadata is missing are left out and named in `.skipped`. Raises ConfigError for options that cannot
    work, DataError for files that are missing or of another form, and for duplicate ids. Indexing raises SampleError
    for a record or metadata that cannot be used.
    """
    require_task("vcr", task, "vcr")
    split = split or "train"
    if split not in SPLITS:
        raise ConfigError(f"vcr has no split {split!r}; {nearest(str(split), SPLITS)}")
    base = Path(path)
    file = find_file(base, [f"{split}.jsonl"], "VCR's questions")
    root = Path(images) if images is not None else (base if base.is_dir() else base.parent) / IMAGES
    require_folder(root, "VCR's images and their metadata")
    lines = JsonLines(file)
    left_out = LeftOut()
    table = table_of(_rows(lines, file, split, root, left_out), _SCHEMA)
    if not table.num_rows:
        raise DataError(left_out.lines[0] if left_out.count else f"{file}: no question; download the file again")
    refuse_duplicates(table.column("annot_id").to_numpy(zero_copy_only=False), file, "annot_id")
    rows = Rows(
        table,
        partial(_sample, file=str(file), root=str(root)),
        fingerprint=combined(lines.fingerprint, split),
        facts={"source": "vcr", "file": str(file), "split": split},
        skipped=left_out.lines,
        num_skipped=left_out.count,
    )
    probe_images(rows, file)
    refuse_resized(rows, file, partial(_size_in_metadata, file=str(file), root=str(root)))
    return rows


def _size_in_metadata(row: Row, file: str, root: str) -> tuple[int, int] | None:
    """Width and height of a question's image by its metadata, None where it says none."""
    record = read_element(file, row["offset"], row["length"])
    try:
        fields = read_json(os.path.join(root, record["metadata_fn"]), kind=dict)
        return int(fields["width"]), int(fields["height"])
    except (DataError, KeyError, TypeError, ValueError, OverflowError):
        return None


def _rows(lines: JsonLines, file: Path, split: str, root: Path, left_out: LeftOut) -> Iterator[Row]:
    """The position of each question whose metadata exists. Folders are listed once, instead of testing each file."""
    there: dict[str, set[str]] = {}
    labels: dict[str, Counter[Any]] = {name: Counter() for name in LABELS}
    for line in lines:
        where, record = f"{file}:{line.number}", line.value
        annot_id = required_text(record, "annot_id", where)
        for name in FIELDS:
            field(record, name, where)
        if split != "test":
            for name, counted in labels.items():
                counted[_hashable(field(record, name, where))] += 1
        for name in ("img_fn", "metadata_fn"):
            if not isinstance(record[name], str) or not record[name].strip():
                raise DataError(f"{where}: {name} must be a file name, not {str(record[name])[:40]!r}")
            refuse_outside(record[name], root, where)
        folder, _, name = str(record["metadata_fn"]).rpartition("/")
        if folder not in there:
            there[folder] = set(os.listdir(root / folder)) if (root / folder).is_dir() else set()
        if name in there[folder]:
            yield {"annot_id": annot_id, "offset": line.offset, "length": line.length}
        else:
            reason = f"{annot_id}: {root / folder / name}: no such metadata; unpack VCR's images with it"
            left_out.add(file, "questions without metadata", [reason])
    for name, counted in labels.items():
        _refuse_from_1(name, counted, file)


def _hashable(label: Any) -> Any:
    return label if isinstance(label, int | float | str) else repr(label)


def _refuse_from_1(name: str, counted: Counter[Any], file: Path) -> None:
    """Raise DataError for labels that count the choices from 1, so that 1 is the first one: a 4 is among them and no
    0, or there is no 0 among ENOUGH."""
    if 0 not in counted and (CHOICES in counted or counted.total() >= ENOUGH):
        seen = ", ".join(sorted({str(label)[:20] for label in counted})[:6])
        raise DataError(
            f"{file}: no {name} is 0 (there are {seen}), so they seem to count the choices from 1; VCR counts from 0: "
            "subtract 1, or use the official file"
        )


def _sample(row: Row, file: str, root: str) -> VCRSample:
    return vcr_sample(read_element(file, row["offset"], row["length"]), root)


def vcr_sample(record: Mapping[str, Any], root: str | os.PathLike[str]) -> VCRSample:
    """A record of VCR's annotations as a sample, with its image and metadata below `root`.

    Raises SampleError for a record that lacks a field, and for metadata that is missing or does not fit the record.
    """
    if lacking := [name for name in FIELDS if name not in record]:
        key = record.get("annot_id", "a record of VCR")
        raise SampleError(f"{key}: no {', '.join(lacking)}; use a line of VCR's .jsonl files")
    for name in ("objects", "question", *_CHOSEN):
        if not isinstance(record[name], list | tuple):
            given = str(record[name])[:40]
            raise SampleError(f"{record['annot_id']}: its {name} must be a list, not {given!r}; use the official file")
    for name in ("img_fn", "metadata_fn"):
        if not isinstance(record[name], str):
            given = str(record[name])[:40]
            raise SampleError(f"{record['annot_id']}: its {name} must be a file name, not {given!r}")
    objects = _objects(record, os.path.join(root, record["metadata_fn"]))
    choices = {name: [_tagged(text, record, len(objects)) for text in record[name]] for name in _CHOSEN}
    for name, texts in choices.items():
        if len(texts) != CHOICES:
            raise SampleError(f"{record['annot_id']}: {len(texts)} {name} instead of {CHOICES}; use the official file")
    return VCRSample(
        key=str(record["annot_id"]),
        image=os.path.join(root, record["img_fn"]),
        objects=objects,
        question=_tagged(record["question"], record, len(objects)),
        answer_choices=tuple(choices["answer_choices"]),
        rationale_choices=tuple(choices["rationale_choices"]),
        answer_label=_label(record, "answer_label"),
        rationale_label=_label(record, "rationale_label"),
    )


def _objects(record: Mapping[str, Any], metadata: str) -> tuple[Box, ...]:
    try:
        fields = json.loads(Path(metadata).read_bytes())
        boxes = fields["boxes"]
        corners = [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2, *_ in boxes]
    except FileNotFoundError:
        raise SampleError(
            f"{record['annot_id']}: {metadata}: no such metadata; unpack VCR's images again, or set images to the "
            "folder that holds the lsmdc_... folders"
        ) from None
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, OSError) as error:
        raise SampleError(
            f"{record['annot_id']}: {metadata}: no metadata with boxes [x1, y1, x2, y2, score] "
            f"({type(error).__name__}: {error}); unpack VCR's images again"
        ) from None
    if len(corners) != len(record["objects"]):
        raise SampleError(
            f"{record['annot_id']}: {len(record['objects'])} objects, but {metadata} has {len(corners)} boxes"
        )
    wrong = [box for box in corners if not all(map(math.isfinite, box)) or box[2] < box[0] or box[3] < box[1]]
    if wrong:
        raise SampleError(
            f"{record['annot_id']}: {metadata}: the box {list(wrong[0])} has no corners x1 <= x2, y1 <= y2; unpack "
            "VCR's images again"
        )
    if corners and 0 < max(map(max, corners)) <= SHARES:
        raise SampleError(
            f"{record['annot_id']}: {metadata}: the box {list(corners[0])} is in shares of the image, not in pixels; "
            "unpack VCR's images again"
        )
    names, width, height = (fields.get(name) for name in ("names", "width", "height"))
    if isinstance(names, list) and names != record["objects"]:
        raise SampleError(
            f"{record['annot_id']}: {metadata}: its names {str(names)[:60]} are not the record's objects "
            f"{str(record['objects'])[:60]}, so that labels and boxes do not fit; use the official files"
        )
    sides = (width, height) if isinstance(width, int | float) and isinstance(height, int | float) else ()
    if sides and (far := [box for box in corners if box[2] > BEYOND * sides[0] or box[3] > BEYOND * sides[1]]):
        raise SampleError(
            f"{record['annot_id']}: {metadata}: the box {list(far[0])} leaves the image of {width} x {height} pixels; "
            "write boxes in pixels, or unpack VCR's images again"
        )
    return tuple(
        Box(x1, y1, x2 - x1, y2 - y1, label=str(label))
        for (x1, y1, x2, y2), label in zip(corners, record["objects"], strict=True)
    )


def _tagged(parts: Any, record: Mapping[str, Any], num_objects: int) -> Tagged:
    """A text of words and lists of objects, which must exist."""
    found: list[str | tuple[int, ...]] = []
    for part in parts:
        if isinstance(part, list | tuple):
            for number in part:
                if not (isinstance(number, int) and 0 <= number < num_objects):
                    raise SampleError(
                        f"{record['annot_id']}: a text names object {number} of {num_objects}; use the official file"
                    )
            found.append(tuple(part))
        elif is_bare_reference(part, num_objects):
            raise SampleError(
                f"{record['annot_id']}: a text holds {part!r}, a bare number or a reference as a text; write [0] for "
                "the object 0, or use the official file"
            )
        else:
            found.append(str(part))
    return tuple(found)


def _label(record: Mapping[str, Any], name: str) -> int | None:
    label = record.get(name)
    if label is not None and (isinstance(label, bool) or label not in range(CHOICES)):
        raise SampleError(f"{record['annot_id']}: {name} {label!r} is not one of 0 to {CHOICES - 1}")
    return None if label is None else int(label)
