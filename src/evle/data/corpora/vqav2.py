"""VQAv2 (Goyal et al., 2017; visualqa.org) from its official files.

v2_OpenEnded_mscoco_train2014_questions.json     {"questions": [{"image_id", "question", "question_id"}]}
v2_mscoco_train2014_annotations.json             {"annotations": [{"question_id", "image_id", "question_type",
                                                 "answer_type", "multiple_choice_answer", "answers": [{"answer"}]}]}
train2014/COCO_train2014_000000000009.jpg
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evle.data.corpora.official import (
    LeftOut,
    answer_of,
    combined,
    field,
    find_file,
    listed,
    probe_images,
    refuse_duplicates,
    require_folder,
    require_task,
    text_of,
    whole_number,
    words_of,
)
from evle.data.formats.json_arrays import JsonArrays
from evle.data.formats.rows import Row, Rows, table_of
from evle.data.samples import VQASample
from evle.errors import ConfigError, DataError, nearest

PARTS = {
    "train": ("train2014",),
    "val": ("val2014",),
    "trainval": ("train2014", "val2014"),
    "trainval-minus-held-out": ("train2014", "val2014"),
    "val-held-out": ("val2014",),
    "test": ("test2015",),
    "test-dev": ("test-dev2015",),
}
"""The parts of the official files that each split reads."""

SUBFOLDERS = ("", "questions/", "annotations/", "Questions/", "Annotations/")

_QUESTIONS = pa.schema([("question_id", pa.int64()), ("image_id", pa.int64()), ("question", pa.large_string())])
_ANSWERS = pa.schema(
    [
        ("question_id", pa.int64()),
        ("image_id", pa.int64()),
        ("answers", pa.large_list(pa.large_string())),
        ("answer_type", pa.large_string()),
        ("question_type", pa.large_string()),
    ]
)


def vqav2(
    path: str | os.PathLike[str],
    task: str = "vqa",
    split: str | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    held_out: int = 1000,
) -> Rows:
    """The questions of VQAv2 as VQASamples, with ten answers each, none in test and test-dev.

    `path` holds the official JSON files, directly or in `questions` and `annotations`. The images are in train2014,
    val2014 and test2015 below `images` (by default `path`), or all in one folder. `split` (train for None) is train,
    val, trainval, test, test-dev, or VLE's division: trainval-minus-held-out, and val-held-out with the last
    `held_out` images of val. No source states which images are the last; here they are those with the highest numbers.

    A sample's key is its question_id. Its answers begin with those that equal the official multiple_choice_answer.
    Questions without a text, an annotation or an answer are left out and named in `.skipped`, as are annotations
    without a question. Raises ConfigError for
    options that cannot work, DataError for files that are missing or of another form, and for duplicate ids.
    """
    require_task("vqav2", task, "vqa")
    split = split or "train"
    if split not in PARTS:
        raise ConfigError(f"vqav2 has no split {split!r}; {nearest(str(split), PARTS)}")
    root, base = Path(images) if images is not None else Path(path), Path(path)
    left_out = _LeftOut()
    prints: list[str] = []
    files: list[Path] = []
    folders: dict[str, str] = {}
    tables = []
    for part in PARTS[split]:
        file = _find(base, f"v2_OpenEnded_mscoco_{part}_questions.json", "VQAv2's questions")
        table = _part(base, file, part, prints, left_out)
        if part == "val2014" and split.endswith("held-out"):
            table = _divide(table, held_out, file, keep_last=split == "val-held-out")
        folder = part.replace("-dev", "")
        folders[folder] = str(_images(root, folder))
        tables.append(table.append_column("folder", pa.array([folder] * len(table), pa.large_string())))
        files.append(file)
    whole = pa.concat_tables(tables)
    if not whole.num_rows:
        raise DataError(f"{files[0]}: no question in split {split!r}")
    rows = Rows(
        whole,
        partial(_sample, folders=folders),
        fingerprint=combined(prints, split, held_out),
        facts={
            "source": "vqav2",
            "file": ", ".join(map(str, files)),
            "split": split,
            "images": pc.count_distinct(whole.column("image_id")).as_py(),
        },
        skipped=left_out.lines,
        num_skipped=left_out.count,
    )
    probe_images(rows, files[0])
    return rows


class _LeftOut(LeftOut):
    """Questions and annotations that are left out."""

    def questions(self, file: Path, why: str, ids: pa.ChunkedArray) -> None:
        """Leave out the questions of these ids."""
        lines = (f"{file}: question {number.as_py()} {why}" for number in ids)
        self.add(file, f"questions of which each {why}", lines, len(ids))

    def annotations(self, file: Path, questions: Path, ids: pa.ChunkedArray, contained: pa.Array) -> None:
        """Leave out the annotations of these ids whose questions are not `contained` in the file of questions."""
        without = ids.filter(pc.invert(pc.is_in(ids, value_set=contained)))
        lines = (f"{file}: question {number.as_py()} is not in {questions.name}" for number in without)
        self.add(file, "annotations without a question", lines, len(without))


def main_answer_first(answers: list[str], main: str) -> list[str]:
    """Annotators' answers with those equal to `main` first, as the first of equally frequent answers wins.

    >>> main_answer_first(["red", "pink", "pink", "red"], "pink")
    ['pink', 'pink', 'red', 'red']
    """
    return sorted(answers, key=lambda answer: answer != main)


def _find(base: Path, name: str, what: str) -> Path:
    return find_file(base, [folder + name for folder in SUBFOLDERS] if base.is_dir() else [name], what)


def _images(root: Path, folder: str) -> Path:
    """The folder that holds the images of one of COCO's folders: itself, or `root` for all of them."""
    if not (root / folder).is_dir() and next(root.glob(f"COCO_{folder}_*.jpg"), None) is not None:
        return root
    require_folder(root / folder, f"COCO's images {folder}")
    return root / folder


def _part(base: Path, file: Path, part: str, prints: list[str], left_out: "_LeftOut") -> pa.Table:
    """The questions of one official file with their answers."""
    arrays = JsonArrays(file, ["questions"])
    questions = table_of(_questions(arrays, file), _QUESTIONS)
    prints.append(arrays.fingerprint)
    refuse_duplicates(questions.column("question_id").to_numpy(), file, "question_id")
    contained = questions.column("question_id").combine_chunks()
    asked = pc.not_equal(questions.column("question"), "")
    left_out.questions(file, "has no text", questions.filter(pc.invert(asked)).column("question_id"))
    questions = questions.filter(asked)
    if part.startswith("test"):
        nothing = pa.nulls(len(questions), pa.large_string())
        empty = pa.array([[]], pa.large_list(pa.large_string())).take(pa.array(np.zeros(len(questions), np.int64)))
        questions = questions.append_column("answers", empty).append_column("answer_type", nothing)
        return questions.append_column("question_type", nothing)
    answers_file = _find(base, f"v2_mscoco_{part}_annotations.json", "VQAv2's annotations")
    arrays = JsonArrays(answers_file, ["annotations"])
    answers = table_of(_answers(arrays, answers_file), _ANSWERS)
    prints.append(arrays.fingerprint)
    refuse_duplicates(answers.column("question_id").to_numpy(), answers_file, "question_id")
    left_out.annotations(answers_file, file, answers.column("question_id"), contained)
    indices = pc.index_in(questions.column("question_id"), value_set=answers.column("question_id").combine_chunks())
    left_out.questions(answers_file, "has no annotation", questions.filter(pc.is_null(indices)).column("question_id"))
    questions = questions.filter(pc.is_valid(indices))
    if not questions.num_rows:
        raise DataError(f"{answers_file}: annotates none of the questions in {file}; use files of the same version")
    answers = answers.take(pc.drop_null(indices).combine_chunks())
    answered = pc.greater(pc.list_value_length(answers.column("answers")), 0)
    left_out.questions(answers_file, "has no answer", answers.filter(pc.invert(answered)).column("question_id"))
    questions, answers = questions.filter(answered), answers.filter(answered)
    others = pc.not_equal(questions.column("image_id"), answers.column("image_id"))
    if pc.any(others).as_py():
        number = questions.filter(others).column("question_id")[0].as_py()
        raise DataError(
            f"{answers_file}: question {number} belongs to another image than in {file}; download both files again"
        )
    for name in ("answers", "answer_type", "question_type"):
        questions = questions.append_column(name, answers.column(name))
    return questions


def _questions(arrays: JsonArrays, file: Path) -> Iterator[Row]:
    for number, element in enumerate(arrays):
        where, record = f"{file}: question {number}", element.value
        yield {
            "question_id": whole_number(record, "question_id", where),
            "image_id": whole_number(record, "image_id", where),
            "question": words_of(field(record, "question", where), where),
        }


def _answers(arrays: JsonArrays, file: Path) -> Iterator[Row]:
    for number, element in enumerate(arrays):
        where, record = f"{file}: annotation {number}", element.value
        texts = [answer_of(field(each, "answer", where), where) for each in listed(record, "answers", where)]
        answers = [text for text in texts if text]  # an answer of null is none
        main = answer_of(record.get("multiple_choice_answer"), where)
        yield {
            "question_id": whole_number(record, "question_id", where),
            "image_id": whole_number(record, "image_id", where),
            "answers": main_answer_first(answers, main) if answers else [],
            "answer_type": text_of(record.get("answer_type"), where),
            "question_type": text_of(record.get("question_type"), where),
        }


def _divide(table: pa.Table, held_out: int, file: Path, keep_last: bool) -> pa.Table:
    """The questions about the last `held_out` images, or those about all the others."""
    numbers = np.unique(table.column("image_id").to_numpy())
    if not 0 < held_out < len(numbers):
        raise ConfigError(f"held_out={held_out} must be above 0 and below the {len(numbers):,} images of {file}")
    last = pc.greater_equal(table.column("image_id"), int(numbers[-held_out]))
    return table.filter(last if keep_last else pc.invert(last))


def _sample(row: Row, folders: dict[str, str]) -> VQASample:
    name = f"COCO_{row['folder']}_{row['image_id']:012}.jpg"
    return VQASample(
        key=str(row["question_id"]),
        image=os.path.join(folders[row["folder"]], name),
        question=row["question"],
        answers=tuple(row["answers"]),
        answer_type=row["answer_type"] or "",
        question_type=row["question_type"] or "",
    )
