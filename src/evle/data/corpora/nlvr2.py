"""NLVR2 (Suhr et al., 2019) from its official files.

    data/train.json                                  {"identifier": "train-10171-0-0", "sentence", "label": "True",
                                                     "directory": 65}, one per line
    images/train/65/train-10171-0-img0.png           in dev and test1 without the directory:
    images/dev/dev-850-0-img0.png

An identifier is split-set-pair-sentence. The pairs of one sentence differ in the third part alone; the official
evaluator's consistency is the share of sentences that are judged correctly for all of their pairs.
"""

import os
import posixpath
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from evle.data.corpora.official import (
    LeftOut,
    combined,
    field,
    find_file,
    no_images,
    optional,
    refuse_duplicates,
    refuse_outside,
    require_folder,
    require_task,
    required_text,
    text_of,
    words_of,
)
from evle.data.formats.json_lines import JsonLines
from evle.data.formats.rows import Row, Rows, table_of
from evle.data.samples import NLVR2Sample
from evle.errors import ConfigError, DataError, nearest

SPLITS = ("train", "dev", "test1")

LABELS = {"true": True, "1": True, "false": False, "0": False, "": None, "none": None}
"""Labels by their words in lower case."""

_SCHEMA = pa.schema(
    [
        ("identifier", pa.large_string()),
        ("sentence", pa.large_string()),
        ("label", pa.bool_()),
        ("directory", pa.large_string()),
    ]
)


def nlvr2(
    path: str | os.PathLike[str],
    task: str = "nlvr2",
    split: str | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
) -> Rows:
    """The sentences of NLVR2 about pairs of images, as NLVR2Samples; a sample's key is its identifier.

    `path` holds train.json, dev.json and test1.json, directly or in `data` (or `nlvr2/data`), or is one such file. The
    images are in a folder named after the split below `images`, by default `images` in `path`, or next to the files.
    `split` (train for None) is train, dev or test1. Labels are optional. Lines without a sentence are left out and
    named in `.skipped`. Raises ConfigError for options that cannot work, DataError, with file and line, for files that
    are missing or of another form, and for duplicate identifiers.
    """
    require_task("nlvr2", task, "nlvr2")
    split = split or "train"
    if split not in SPLITS:
        raise ConfigError(f"nlvr2 has no split {split!r}; {nearest(str(split), SPLITS)}")
    base = Path(path)
    file = find_file(base, [f"{folder}{split}.json" for folder in ("data/", "", "nlvr2/data/")], "NLVR2's sentences")
    beside = base if base.is_dir() else base.parent
    root = Path(images) if images is not None else beside / "images"
    if images is None and not (root / split).is_dir() and (beside / split).is_dir():
        root = beside
    require_folder(root / split, f"NLVR2's images of {split}")
    lines = JsonLines(file)
    left_out = LeftOut()
    table = table_of(_rows(lines, file, split, left_out), _SCHEMA)
    if not table.num_rows:
        raise DataError(f"{file}: no sentence; download the file again")
    refuse_duplicates(table.column("identifier").to_numpy(zero_copy_only=False), file, "identifier")
    rows = Rows(
        table,
        partial(_sample, root=str(root / split)),
        fingerprint=combined(lines.fingerprint, split),
        facts={"source": "nlvr2", "file": str(file), "split": split},
        skipped=left_out.lines,
        num_skipped=left_out.count,
    )
    probe_pairs(rows, file)
    return rows


def probe_pairs(samples: Rows, file: Path, tries: int = 16) -> None:
    """Raise DataError when none of some evenly spread samples has its images on disk: the folder is a wrong one."""
    step = max(1, len(samples) // tries)
    names = [str(name) for index in range(0, len(samples), step) for name in samples[index].images]
    if not any(os.path.exists(name) for name in names):
        raise no_images(names, file)


def sentence_of(identifier: str) -> str:
    """What the pairs of one sentence have in common: the identifier without its third part, as in the official
    evaluator.

    >>> sentence_of("dev-850-1-0") == sentence_of("dev-850-0-0") != sentence_of("dev-850-0-1")
    True
    """
    split, group, _, sentence = identifier.split("-")
    return f"{split}-{group}-{sentence}"


def label_of(record: dict[str, Any], where: str) -> bool | None:
    """True or false (also 1 or 0), or None where the label is not public. Raises DataError for any other word."""
    given = optional(record, "label", where)
    label = (str(given) if isinstance(given, bool) else text_of(given, where)).lower()
    if label not in LABELS:
        raise DataError(f"{where}: label {given!r} is neither True nor False; download the file again")
    return LABELS[label]


def _rows(lines: JsonLines, file: Path, split: str, left_out: LeftOut) -> Iterator[Row]:
    for line in lines:
        where = f"{file}:{line.number}"
        identifier = str(field(line.value, "identifier", where))
        if len(identifier.split("-")) != 4:
            raise DataError(f"{where}: identifier {identifier!r} is not of the form {split}-SET-PAIR-SENTENCE")
        if not identifier.startswith(f"{split}-"):
            raise DataError(f"{where}: {identifier!r} does not belong to split {split!r}; is it the right file?")
        directory = required_text(line.value, "directory", where) if split == "train" else ""
        refuse_outside(posixpath.join(directory, identifier), Path(split), where)
        sentence = words_of(field(line.value, "sentence", where), where)
        if not sentence:
            left_out.add(file, "lines with no sentence", [f"{where} ({identifier}): no sentence"])
            continue
        yield {
            "identifier": identifier,
            "sentence": sentence,
            "label": label_of(line.value, where),
            "directory": directory,
        }


def _sample(row: Row, root: str) -> NLVR2Sample:
    pair = os.path.join(root, row["directory"], row["identifier"].rpartition("-")[0])
    return NLVR2Sample(
        key=row["identifier"],
        images=(f"{pair}-img0.png", f"{pair}-img1.png"),
        sentence=row["sentence"],
        label=row["label"],
        set_id=sentence_of(row["identifier"]),
    )
