"""NLVR, version 1 (Suhr et al., 2017; github.com/lil-lab/nlvr, CC-BY-4.0): people's statements about drawn images of
three grey boxes with small shapes.

    nlvr/train/train.json                      {"identifier": "3304-0", "sentence", "label": "true", "directory": "5",
                                               "structured_rep": ...}, one per line; dev/dev.json, test/test.json
    nlvr/train/images/5/train-3304-0-0.png     to train-3304-0-5.png: the six orders of the three boxes

The official scores are accuracy, of every image, and consistency, of examples all of whose six images are right.
"""

import os
import posixpath
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa

from evle.data.corpora.nlvr2 import label_of
from evle.data.corpora.official import (
    LeftOut,
    combined,
    find_file,
    probe_images,
    refuse_duplicates,
    refuse_outside,
    require_folder,
    require_task,
    required_text,
    words_of,
)
from evle.data.formats.json_lines import JsonLines
from evle.data.formats.rows import Row, Rows, table_of
from evle.data.samples import VQASample
from evle.errors import ConfigError, DataError, nearest

SPLITS = ("train", "dev", "test")
ORDERS = 6
"""Images of an example: the orders of its three boxes."""
QUESTION_TYPE = "statement"
ANSWERS = {True: "true", False: "false"}

_SCHEMA = pa.schema(
    [
        ("identifier", pa.large_string()),
        ("sentence", pa.large_string()),
        ("label", pa.bool_()),
        ("directory", pa.large_string()),
        ("order", pa.int8()),
    ]
)


def nlvr(
    path: str | os.PathLike[str],
    task: str = "vqa",
    split: str | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    orders: int = ORDERS,
) -> Rows:
    """The statements of NLVR as VQASamples about one image each, with the answer true or false.

    `path` is the folder that holds `train`, `dev` and `test` (or `nlvr` with these), the folder of one split, or its
    JSON file; the images are in `images` next to that file, or below `images`. `split` (train for None) is train, dev
    or test. `orders` is the number of images per example, at most six. A sample's key is the name of its image, such as
    train-3304-0-5, as the official evaluator expects it. Lines without a sentence are left out and named in `.skipped`.

    Raises ConfigError for options that cannot work, DataError, with file and line, for files that are missing or of
    another form, and for duplicate identifiers.
    """
    require_task("nlvr", task, "vqa")
    split = split or "train"
    if split not in SPLITS:
        raise ConfigError(f"nlvr has no split {split!r}; {nearest(str(split), SPLITS)}")
    if not 1 <= orders <= ORDERS:
        raise ConfigError(f"orders={orders} must be from 1 to {ORDERS}")
    folders = (f"{split}/", f"nlvr/{split}/", "")
    file = find_file(path, [f"{folder}{split}.json" for folder in folders], "NLVR's sentences")
    root = Path(images) if images is not None else file.parent / "images"
    require_folder(root, f"NLVR's images of {split}")
    lines, left_out = JsonLines(file), LeftOut()
    table = table_of(_rows(lines, file, orders, left_out), _SCHEMA)
    if not table.num_rows:
        raise DataError(f"{file}: no sentence; download the file again")
    identifiers = table.column("identifier").to_numpy(zero_copy_only=False)
    refuse_duplicates(identifiers[::orders], file, "identifier")
    rows = Rows(
        table,
        partial(_sample, root=str(root), split=split),
        fingerprint=combined(lines.fingerprint, split, orders),
        facts={"source": "nlvr", "file": str(file), "split": split, "examples": table.num_rows // orders},
        skipped=left_out.lines,
        num_skipped=left_out.count,
    )
    probe_images(rows, file)
    return rows


def _rows(lines: JsonLines, file: Path, orders: int, left_out: LeftOut) -> Iterator[Row]:
    for line in lines:
        where = f"{file}:{line.number}"
        identifier = required_text(line.value, "identifier", where)
        if len(identifier.split("-")) != 2:
            raise DataError(f"{where}: identifier {identifier!r} is not of the form SET-EXAMPLE; is it NLVR version 1?")
        sentence = words_of(line.value.get("sentence"), where)
        if not sentence:
            left_out.add(file, "lines with no sentence", [f"{where} ({identifier}): no sentence"])
            continue
        directory = required_text(line.value, "directory", where)
        refuse_outside(posixpath.join(directory, identifier), Path("images"), where)
        row = {
            "identifier": identifier,
            "sentence": sentence,
            "label": label_of(line.value, where),
            "directory": directory,
        }
        yield from ({**row, "order": order} for order in range(orders))


def _sample(row: Row, root: str, split: str) -> VQASample:
    key = f"{split}-{row['identifier']}-{row['order']}"
    return VQASample(
        key=key,
        image=os.path.join(root, row["directory"], f"{key}.png"),
        question=row["sentence"],
        answers=() if row["label"] is None else (ANSWERS[row["label"]],),
        answer_type="yes/no",
        question_type=QUESTION_TYPE,
        set_id=f"{split}-{row['identifier']}",
    )
