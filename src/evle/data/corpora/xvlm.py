"""The JSON lists that X-VLM, ALBEF and EVE fine-tune from: captions, questions, and sentences about pairs of images.

coco_train.json     [{"image", "caption", "image_id"}]                          see `captions.xvlm`
vqa_train.json      [{"question_id", "question", "image", "answer": [10 texts], "dataset": "vqa" or "vg"}]
nlvr_train.json     [{"sentence", "label": "True", "images": [left, right]}]
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from evle.data.corpora import captions
from evle.data.corpora.captions import xvlm_files
from evle.data.corpora.nlvr2 import label_of, probe_pairs
from evle.data.corpora.official import (
    OUTSIDE,
    LeftOut,
    combined,
    field,
    optional,
    probe_images,
    refuse_duplicates,
    refuse_outside,
    require_folder,
    required_text,
    words_of,
)
from evle.data.custom.answers import refuse_misread
from evle.data.formats.cells import texts_of
from evle.data.formats.json_arrays import JsonArrays
from evle.data.formats.rows import Row, Rows, table_of
from evle.data.samples import NLVR2Sample, VQASample
from evle.errors import ConfigError, DataError, nearest

_QUESTIONS = pa.schema(
    [
        ("key", pa.large_string()),
        ("image", pa.large_string()),
        ("question", pa.large_string()),
        ("answers", pa.large_list(pa.large_string())),
        ("of_genome", pa.bool_()),
    ]
)
_PAIRS = pa.schema(
    [
        ("key", pa.large_string()),
        ("left", pa.large_string()),
        ("right", pa.large_string()),
        ("sentence", pa.large_string()),
        ("label", pa.bool_()),
        ("set_id", pa.large_string()),
    ]
)
_PAIR_NAME = re.compile(r"(?P<set>\w+-\d+)-\d+(?=-img0\.)")


def xvlm(
    path: str | os.PathLike[str],
    task: str = "captions",
    split: str | None = None,
    *,
    files: str | Sequence[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    vg_images: str | os.PathLike[str] | None = None,
    pairs: bool = False,
    exclude: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    allow_outside: bool = False,
) -> Rows:
    """The samples of X-VLM's lists for `task` captions, vqa or nlvr2.

    `path` is a JSON file, or a folder of them, of which `files` names one or more; by default the one whose name ends
    in `split` is read, such as vqa_train.json for train. Image names are relative to `images`, by default the JSON's
    folder; those of questions about Visual Genome ("dataset": "vg") are relative to `vg_images`, by default `images`.
    `pairs` and `exclude` are for captions (see `captions.xvlm`). Images outside of these folders are refused, unless
    `allow_outside`.

    Entries without a question or sentence, and those whose answers are all null or empty, are left out and named in
    `.skipped`; a list without the field `answer`, such as vqa_test.json, is read without answers. Raises ConfigError
    for options that cannot work, DataError for files that are missing or of another form, and for duplicate question
    ids.
    """
    if task == "captions":
        options: dict[str, Any] = {"pairs": pairs, "exclude": exclude, "allow_outside": allow_outside}
        return captions.xvlm(path, task, split, files=files, images=images, **options)
    readers = {"vqa": _questions, "nlvr2": _pairs}
    if task not in readers:
        raise ConfigError(f"source 'xvlm' has no samples for {task!r}; {nearest(task, ['captions', *readers])}")
    if pairs or exclude:
        raise ConfigError(f"pairs and exclude are for captions, not for task {task!r}; remove them")
    found = xvlm_files(Path(path), split, [files] if isinstance(files, str) else files)
    root = Path(images) if images is not None else found[0].parent
    require_folder(root, f"the images of {found[0].name}")
    return readers[task](found, root, Path(vg_images) if vg_images is not None else root, allow_outside)


def _questions(files: Sequence[Path], root: Path, vg_root: Path, allow_outside: bool) -> Rows:
    require_folder(vg_root, "Visual Genome's images")
    prints: list[str] = []
    left_out = LeftOut()
    table = table_of(_question_rows(files, prints, left_out), _QUESTIONS)
    _refuse_nothing(table, files, left_out)
    for is_of_genome, folder in () if allow_outside else ((False, root), (True, vg_root)):
        _refuse_outside(table.filter(pc.equal(table.column("of_genome"), is_of_genome)).column("image"), folder, files)
    refuse_duplicates(table.column("key").to_numpy(zero_copy_only=False), files[-1], "question_id")
    rows = Rows(
        table,
        partial(_question, root=str(root), vg_root=str(vg_root)),
        fingerprint=combined(prints),
        facts={"source": "xvlm", "file": ", ".join(map(str, files))},
        skipped=left_out.lines,
        num_skipped=left_out.count,
    )
    probe_images(rows, files[0])
    return rows


def _question_rows(files: Sequence[Path], prints: list[str], left_out: LeftOut) -> Iterator[Row]:
    for file in files:
        arrays = JsonArrays(file)
        for number, element in enumerate(arrays):
            where, record = f"{file}: entry {number}", element.value
            key = required_text(record, "question_id", where)
            of_genome = str(record.get("dataset")).strip().casefold() == "vg"
            question = words_of(field(record, "question", where), where)
            given = optional(record, "answer", where)
            answers = _answers(record, given, question, where)
            if not question or (given and not answers):
                why = "no answer" if question else "no question"
                left_out.add(file, f"entries with {why}", [f"{where} (question_id {key}): {why}"])
                continue
            yield {
                "key": f"vg-{key}" if of_genome else key,
                "image": required_text(record, "image", where),
                "question": question,
                "answers": answers,
                "of_genome": of_genome,
            }
        prints.append(arrays.fingerprint)


def _answers(record: Row, given: Any, question: str, where: str) -> list[str]:
    """The answers of an entry, each a text, a number or a record of one. Raises DataError for weights and letters."""
    try:
        answers = texts_of(given, answers=True)
    except TypeError as error:
        raise DataError(f"{where}: answer: {error}; write a text or a list of texts") from None
    refuse_misread(record, given, answers, question, where)
    return answers


def _question(row: Row, root: str, vg_root: str) -> VQASample:
    image = os.path.join(vg_root if row["of_genome"] else root, row["image"])
    return VQASample(row["key"], image, row["question"], tuple(row["answers"]))


def _pairs(files: Sequence[Path], root: Path, _: Path, allow_outside: bool) -> Rows:
    prints: list[str] = []
    left_out = LeftOut()
    table = table_of(_pair_rows(files, prints, left_out), _PAIRS)
    _refuse_nothing(table, files, left_out)
    for side in () if allow_outside else ("left", "right"):
        _refuse_outside(table.column(side), root, files)
    rows = Rows(
        table,
        partial(_pair, root=str(root)),
        fingerprint=combined(prints),
        facts={"source": "xvlm", "file": ", ".join(map(str, files))},
        skipped=left_out.lines,
        num_skipped=left_out.count,
    )
    probe_pairs(rows, files[0])
    return rows


def _pair_rows(files: Sequence[Path], prints: list[str], left_out: LeftOut) -> Iterator[Row]:
    """The lists have no identifiers. A key is the pair's name and a count of its sentences; the pairs of a sentence are
    those of one set, such as train-10171, with the same words."""
    times: Counter[str] = Counter()
    for file in files:
        arrays = JsonArrays(file)
        for number, element in enumerate(arrays):
            where, record = f"{file}: entry {number}", element.value
            images = field(record, "images", where)
            if not isinstance(images, list) or len(images) != 2 or not all(isinstance(each, str) for each in images):
                raise DataError(f"{where}: images must be two file names, not {str(images)[:60]!r}")
            sentence = words_of(field(record, "sentence", where), where)
            if not sentence:
                left_out.add(file, "entries with no sentence", [f"{where}: no sentence"])
                continue
            name = PurePosixPath(str(images[0])).name
            known = _PAIR_NAME.match(name)
            pair = known[0] if known else name
            yield {
                "key": f"{pair}#{times[pair]}",
                "left": str(images[0]),
                "right": str(images[1]),
                "sentence": sentence,
                "label": label_of(record, where),
                "set_id": f"{known['set']}: {sentence}" if known else "",
            }
            times[pair] += 1
        prints.append(arrays.fingerprint)


def _pair(row: Row, root: str) -> NLVR2Sample:
    images = (os.path.join(root, row["left"]), os.path.join(root, row["right"]))
    return NLVR2Sample(row["key"], images, row["sentence"], row["label"], row["set_id"])


def _refuse_outside(images: pa.ChunkedArray, root: Path, files: Sequence[Path]) -> None:
    for name in pc.unique(images).to_pylist():
        refuse_outside(name, root, ", ".join(map(str, files)), OUTSIDE)


def _refuse_nothing(table: pa.Table, files: Sequence[Path], left_out: LeftOut) -> None:
    if not table.num_rows:
        reasons = f": {'; '.join(left_out.lines[:3])}" if left_out.count else ""
        raise DataError(f"{', '.join(map(str, files))}: no entry that can be used{reasons}; set files=[...] to others")
