"""NLVR, version 1 (Suhr et al., 2017; github.com/lil-lab/nlvr, CC-BY-4.0): people's statements about drawn images of
three grey boxes with small shapes.

    nlvr/train/train.json                      {"identifier": "3304-0", "sentence", "label": "true", "directory": "5",
                                               "structured_rep": ...}, one per line; dev/dev.json, test/test.json
    nlvr/train/images/5/train-3304-0-0.png     to train-3304-0-5.png: the six orders of the three boxes

In the corpus as it first appeared the lines have no `directory`: the images are then looked up in the folders.

Without the images, they are drawn from `structured_rep`: three lists of {"type": "square", "color": "#0099ff", "size":
20, "x_loc": 40, "y_loc": 79}, whose locations are those of the upper left corner in a box of 100 pixels.

The official scores are accuracy, of every image, and consistency, of sentences judged right for all of their images: up
to four examples (3304-0 to 3304-3), each in six orders.
"""

import itertools
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from evle.data.corpora.nlvr2 import label_of
from evle.data.corpora.official import (
    LeftOut,
    combined,
    find_file,
    optional,
    probe_images,
    refuse_duplicates,
    refuse_outside,
    require_folder,
    require_task,
    required_text,
    words_of,
)
from evle.data.formats.json_arrays import read_element
from evle.data.formats.json_lines import JsonLines
from evle.data.formats.rows import Row, Rows, table_of
from evle.data.samples import ImageSource, VQASample
from evle.data.synthetic.box_words import SHAPES, Box, Boxes, Item
from evle.data.synthetic.boxes import ANSWERS, BoxesDrawing
from evle.errors import ConfigError, DataError, nearest

SPLITS = ("train", "dev", "test")
PERMUTATIONS = tuple(itertools.permutations(range(3)))
"""The orders in which the three boxes are drawn, where the images were not fetched."""
ORDERS = len(PERMUTATIONS)
"""Images of an example: the orders of its three boxes."""
COLOURS = {"black": "black", "yellow": "yellow", "blue": "blue", "#0099ff": "blue"}
"""Colors of `structured_rep`, in lower case."""
STATED = "structured_rep"
QUESTION_TYPE = "statement"

_SCHEMA = pa.schema(
    [
        ("identifier", pa.large_string()),
        ("sentence", pa.large_string()),
        ("label", pa.bool_()),
        ("directory", pa.large_string()),
        ("order", pa.int8()),
        ("offset", pa.int64()),
        ("length", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class StatedBoxes:
    """The image of a line with `structured_rep`, its boxes in one of their orders, drawn when it is asked for."""

    file: str
    offset: int
    length: int
    order: int

    def draw(self) -> Image.Image:
        """The image, mode RGB, 400 x 100 pixels."""
        where = f"{self.file}: byte {self.offset:,}"
        boxes = boxes_of(read_element(self.file, self.offset, self.length)[STATED], where)
        return BoxesDrawing(tuple(boxes[place] for place in PERMUTATIONS[self.order])).draw()


def boxes_of(stated: Any, where: str) -> Boxes:
    """The three boxes that `structured_rep` states. Raises DataError, naming `where`, for another form."""
    if not isinstance(stated, list) or len(stated) != 3 or not all(isinstance(box, list) for box in stated):
        raise DataError(f"{where}: {STATED} must be a list of three lists, not {str(stated)[:40]!r}; fetch it again")
    return tuple(_box_of(box, where) for box in stated)


def _box_of(stated: list[Any], where: str) -> Box:
    items = []
    for each in stated:
        try:
            shape, colour = str(each["type"]).lower(), COLOURS[str(each["color"]).lower()]
            size, x, y = (round(float(each[name])) for name in ("size", "x_loc", "y_loc"))
        except (KeyError, TypeError, ValueError, OverflowError):
            shape, size = "", 0
        if shape not in SHAPES or size < 1:
            raise DataError(
                f"{where}: {STATED} has {str(each)[:80]!r}, not type (circle, square, triangle), color (Yellow, Black, "
                "#0099ff), size, x_loc and y_loc; fetch the file again"
            )
        items.append(Item(shape, colour, size, x, y))
    return tuple(items)


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
    JSON file; the images are in `images` next to that file, or below `images`. Where there is no such folder, and the
    lines state what the boxes hold, the images are drawn; which order has which number is then ours. `split` (train for
    None) is train, dev or test. `orders` is the number of images per example, at most six. A sample's key is the name
    of its image, such as train-3304-0-5, as the official evaluator expects it. Lines without a sentence are left out
    and named in `.skipped`.

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
    drawn = images is None and not root.is_dir() and STATED in next((line.value for line in JsonLines(file)), ())
    if not drawn:
        require_folder(root, f"NLVR's images of {split}")
    lines, left_out = JsonLines(file), LeftOut()
    table = table_of(_rows(lines, file, split, orders, left_out, None if drawn else root), _SCHEMA)
    if not table.num_rows:
        raise DataError(f"{file}: no sentence; download the file again")
    identifiers = table.column("identifier").to_numpy(zero_copy_only=False)
    refuse_duplicates(identifiers[::orders], file, "identifier")
    rows = Rows(
        table,
        partial(_sample, root=str(root), split=split, drawn_from=str(file) if drawn else ""),
        fingerprint=combined(lines.fingerprint, split, orders),
        facts={
            "source": "nlvr",
            "file": str(file),
            "split": split,
            "examples": table.num_rows // orders,
            **({"images": f"drawn from {STATED}"} if drawn else {}),
        },
        skipped=left_out.lines,
        num_skipped=left_out.count,
    )
    if not drawn:
        probe_images(rows, file)
    return rows


def _places(root: Path) -> dict[str, str]:
    """The folder below `root` of each file by its name."""
    return {name: os.path.relpath(folder, root) for folder, _, names in os.walk(root) for name in names}


def _rows(lines: JsonLines, file: Path, split: str, orders: int, left_out: LeftOut, root: Path | None) -> Iterator[Row]:
    """Each line once per order; `root` has the images, None if they are drawn."""
    places = None
    for line in lines:
        where = f"{file}:{line.number}"
        identifier = required_text(line.value, "identifier", where)
        if len(identifier.split("-")) != 2:
            raise DataError(f"{where}: identifier {identifier!r} is not of the form SET-EXAMPLE; is it NLVR version 1?")
        sentence = words_of(line.value.get("sentence"), where)
        if not sentence:
            left_out.add(file, "lines with no sentence", [f"{where} ({identifier}): no sentence"])
            continue
        if "directory" in line.value or optional(line.value, "directory", where):
            directory = required_text(line.value, "directory", where)
        elif root is not None:
            places = places or _places(root)
            directory = places.get(f"{split}-{identifier}-0.png", "")
        else:
            directory = ""
        refuse_outside(posixpath.join(directory, identifier), Path("images"), where)
        row = {
            "identifier": identifier,
            "sentence": sentence,
            "label": label_of(line.value, where),
            "directory": directory,
            "offset": line.offset,
            "length": line.length,
        }
        if root is None:
            boxes_of(line.value.get(STATED), where)
        yield from ({**row, "order": order} for order in range(orders))


def _sample(row: Row, root: str, split: str, drawn_from: str) -> VQASample:
    key = f"{split}-{row['identifier']}-{row['order']}"
    if drawn_from:
        image: ImageSource = StatedBoxes(drawn_from, row["offset"], row["length"], row["order"])
    else:
        image = os.path.join(root, row["directory"], f"{key}.png")
    return VQASample(
        key=key,
        image=image,
        question=row["sentence"],
        answers=() if row["label"] is None else (ANSWERS[row["label"]],),
        answer_type="yes/no",
        question_type=QUESTION_TYPE,
        set_id=f"{split}-{row['identifier'].split('-')[0]}",
    )
