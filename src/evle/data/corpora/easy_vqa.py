"""easy-VQA 1.0 (github.com/vzhou842/easy-VQA): one coloured shape on a plain background, and questions about it.

    data/train/images/0.png     64 x 64 pixels, 4,000 of them; 1,000 in data/test
    data/train/questions.json   [["what color is the shape?", "blue", 0], ...]: 38,575 of them; 9,673 in data/test

The images and questions are part of the Python package `easy-vqa`, whose code is not run.
"""

import importlib.util
import os
from functools import partial
from pathlib import Path

import pyarrow as pa

from evle.data.formats.json_lines import parse_record
from evle.data.formats.rows import Row, Rows, fingerprint, table_of
from evle.data.samples import SPLITS, VQASample, hashed_split
from evle.errors import ConfigError, DataError, nearest

HOW = "get it with `pip install easy-vqa`, or set path to its unpacked folder"

_SCHEMA = pa.schema([("question", pa.string()), ("answer", pa.string()), ("image", pa.int64()), ("line", pa.int64())])


def easy_vqa(
    path: str | os.PathLike[str] | None = None,
    task: str = "vqa",
    split: str | None = None,
    *,
    val_share: float = 0.0,
) -> Rows:
    """The questions of easy-VQA as VQASamples, with one answer each.

    `path` is the package's folder, its `data` folder, or None for the installed package. `split` is train (also for
    None), test or val. The data set has no val: `val_share` holds out that share of train's images, chosen by a hash
    of their numbers, with all of their questions. Give train and val the same share.

    The data set does not name types of question. Here they are color, shape, and for the yes/no questions presence ("is
    there a red shape?") and absence ("is there not a red shape?"). Raises ConfigError for options that cannot work,
    DataError for files that are missing or of another form.
    """
    if task != "vqa":
        raise ConfigError(f"source 'easy-vqa' holds questions, not {task!r}; use it with task.name=vqa")
    split = split or "train"
    if split not in SPLITS:
        raise DataError(f"easy-vqa has no split {split!r}; {nearest(split, SPLITS)}")
    if not 0 <= val_share < 1:
        raise ConfigError(f"val_share={val_share} must be from 0 to below 1")
    if split == "val" and not val_share:
        raise ConfigError("easy-vqa has no split val; hold one out with val_share=0.1, in train and in val")
    folder = find_data(path) / ("test" if split == "test" else "train")
    file = folder / "questions.json"
    shares = (1 - val_share, val_share, 0.0)
    rows = [
        row
        for row in _read(file)
        if split == "test" or not val_share or hashed_split(f"{row['image']}.png", shares) == split
    ]
    if not rows:
        raise DataError(f"{file}: no question is left in split {split!r} with val_share={val_share}")
    return Rows(
        table_of(rows, _SCHEMA),
        partial(_sample, folder=str(folder), split=folder.name),
        fingerprint=fingerprint([file], (split, val_share)),
        facts={"data set": "easy-VQA", "split": split, "images": len({row["image"] for row in rows})},
    )


def find_data(path: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds `train` and `test`: below `path`, or in the installed package. Raises DataError."""
    if path is None:
        found = importlib.util.find_spec("easy_vqa")  # for a top-level name this imports nothing
        if found is None or found.origin is None:
            raise DataError(f"the package easy-vqa is not installed; {HOW}")
        path = Path(found.origin).parent
    base = Path(path)
    if not base.is_dir():
        raise DataError(f"{base}: no such folder; for easy-VQA, {HOW}")
    for folder in (base, base / "data", base / "easy_vqa" / "data"):
        if (folder / "train" / "questions.json").is_file():
            return folder
    raise DataError(f"{base}: no train/questions.json there or in data/; for easy-VQA, {HOW}")


def question_type(question: str) -> str:
    """The type of a question of easy-VQA.

    >>> [question_type(text) for text in ("what is the blue shape?", "what color is the shape?", "is no shape red?")]
    ['shape', 'color', 'absence']
    """
    words = question.rstrip("?").split()
    if words[:1] == ["what"]:
        return "color" if "color" in words else "shape"
    return "absence" if "no" in words or "not" in words else "presence"


def _read(file: Path) -> list[Row]:
    try:
        found = parse_record(file.read_bytes(), str(file))
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; for easy-VQA, {HOW}") from None
    except DataError as error:
        raise DataError(f"{error}; {HOW}") from None
    if not (file.parent / "images").is_dir():
        raise DataError(f"{file.parent / 'images'}: no such folder; put the images next to questions.json")
    if not isinstance(found, list):
        raise DataError(f"{file}: must be a list of [question, answer, image], not a {type(found).__name__}")
    rows = []
    for line, entry in enumerate(found):
        match entry:
            case [str(question), str(answer), int(image)] if not isinstance(image, bool) and 0 <= image < 2**63:
                rows.append({"question": question, "answer": answer, "image": image, "line": line})
            case _:
                raise DataError(f"{file}: entry {line} is {str(entry)[:60]}, not [question, answer, image's number]")
    return rows


def _sample(row: Row, folder: str, split: str) -> VQASample:
    kind = question_type(row["question"])
    return VQASample(
        key=f"{split}-{row['line']}",
        image=os.path.join(folder, "images", f"{row['image']}.png"),
        question=row["question"],
        answers=(row["answer"],),
        answer_type="other" if kind in ("color", "shape") else "yes/no",
        question_type=kind,
    )
