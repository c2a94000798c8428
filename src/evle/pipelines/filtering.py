"""Scoring a file of image-text pairs by matching, to keep the best: the usual cleaning of a caption corpus.

The work is saved CHUNK pairs at a time beside the output, so that the same call resumes after an interruption.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evle.data.custom.columns import CAPTION_COLUMNS, cell_texts, image_of, present_columns
from evle.data.custom.image_folder import ImageFolder
from evle.data.formats.cells import says_something
from evle.data.formats.table_files import TABLE_SUFFIXES, read_rows
from evle.data.images import open_image
from evle.errors import ConfigError, DataError, SampleError
from evle.files import json_line, opened_whole, parse_json, write_whole
from evle.pipelines.embedding import fingerprint
from evle.pipelines.matching import MatchPipeline
from evle.report import Cell, Gallery, GalleryRow, Report, Table
from evle.terminal import ProgressLine

logger = logging.getLogger(__name__)

CHUNK = 2048
TEXT_COLUMNS = (*CAPTION_COLUMNS, "sentence")
"""Where a row's texts are: the first of these columns, in any case, that has any."""
OWN_COLUMNS = ("score", "scores", "kept", "error")
"""What the output adds to a row."""
BINS = 10
EXAMPLES = 8
NAMED = 20
"""Rows that the report names because they could not be scored."""

Example = tuple[float, str, str]
"""A score, the name that the row gives its image, and the text."""


@dataclass(frozen=True)
class Scored:
    """What `score_pairs` wrote. Counts are of texts; a row may have several."""

    output: Path
    kept_file: Path | None
    report: Path
    num_scored: int
    num_failed: int
    num_kept: int
    threshold: float
    first_error: str = ""
    """Why the first of those could not be scored."""


def score_pairs(
    match: MatchPipeline,
    pairs: str | Path,
    output: str | Path,
    *,
    keep: float | None = None,
    top: float | None = None,
    progress: bool = True,
) -> Scored:
    """Score every text of the table `pairs` against its image, and write the rows with their scores to `output`.

    A row names an image, relative to the table, and has a caption, or a list of captions, read as in training. Its row
    in `output` (JSON lines, in the same order) also has "score", the match probability, or "scores" for a list. `keep`
    keeps texts whose probability is at least so high, `top` this share of all texts, best first; with either, rows also
    have "kept", and OUTPUT.kept.jsonl holds the kept rows in the form of the input. An image that cannot be read gets
    the score null and an "error". A report with a histogram and examples is in OUTPUT.report.

    Raises ConfigError for impossible options, DataError for a table that cannot be read.
    """
    pairs, output = Path(pairs), Path(output)
    if keep is not None and top is not None:
        raise ConfigError("keep and top are two rules; give one of them")
    if not 0 <= (keep or 0) <= 1:
        raise ConfigError(f"keep={keep}: give a probability from 0 to 1")
    if not 0 < (1 if top is None else top) <= 1:
        raise ConfigError(f"top={top}: give a share above 0 and at most 1")
    if not pairs.is_file() or pairs.suffix.lower() not in TABLE_SUFFIXES:
        what = "not a table of pairs" if pairs.exists() else "no such file"
        raise DataError(f"{pairs}: {what}; give a file that ends in {', '.join(TABLE_SUFFIXES)}")
    written = [output] if keep is None and top is None else [output, _kept_file(output)]
    if pairs.resolve() in [file.resolve() for file in written]:
        raise ConfigError(f"{output}: the output would replace the input {pairs}; give another file")
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; give the name of a file to write")
    num_rows = sum(1 for _ in read_rows(pairs, lambda name: False))
    if not num_rows:
        raise DataError(f"{pairs}: has no rows; give a table with an image and a caption in each")
    part = _score(match, pairs, output, num_rows, progress)
    threshold = _threshold(part, keep, top)
    with ProgressLine(num_rows, "rows written", visible=progress) as line:
        result = _finish(part, pairs, output, threshold, line, has_rule=keep is not None or top is not None)
    part.unlink()
    return result


def _kept_file(output: Path) -> Path:
    return output.with_name(f"{output.stem}.kept.jsonl")


def _score(match: MatchPipeline, pairs: Path, output: Path, num_rows: int, progress: bool) -> Path:
    """The file of scored rows in progress, complete: it begins with a line that names the input and the model."""
    part = output.with_name(output.name + ".part")
    facts = os.stat(pairs)
    header = {
        "pairs": str(pairs.resolve()),
        "size": facts.st_size,
        "mtime": facts.st_mtime_ns,
        "model": match.source,
        "weights": fingerprint(match),
        "text": repr(match.text),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    done = _resumable(part, header)
    if done:
        logger.info("%s: resuming after %s rows", part, f"{done:,}")
    else:
        write_whole(part, json.dumps(header) + "\n")
    rows = islice(read_rows(pairs), done, None)
    with ExitStack() as stack:
        file = stack.enter_context(open(part, "a", encoding="utf-8"))
        line = stack.enter_context(ProgressLine(num_rows, "rows scored", done=done, visible=progress))
        while chunk := list(islice(rows, CHUNK)):
            for scored in _scored_chunk(match, pairs, chunk):
                file.write(json_line(scored) + "\n")
            file.flush()
            os.fsync(file.fileno())
            line.advance(len(chunk))
    return part


def _resumable(part: Path, header: dict[str, Any]) -> int:
    """The number of whole rows in an unfinished output of the same input and model; a torn last line is cut off."""
    if not part.is_file():
        return 0
    num_lines, length = 0, 0
    with open(part, "r+b") as file:
        for line in file:
            if num_lines == 0 and line != json.dumps(header).encode() + b"\n":
                return 0
            if line.endswith(b"\n"):
                num_lines, length = num_lines + 1, length + len(line)
        file.truncate(length)
    return max(0, num_lines - 1)


def _scored_chunk(match: MatchPipeline, pairs: Path, chunk: list[tuple[int, Any]]) -> list[dict[str, Any]]:
    """The rows of a chunk with their scores; the pipeline forms batches of similar length."""
    rows: list[dict[str, Any]] = []
    images, texts, owners = [], [], []
    lists = set()
    for line, row in chunk:
        try:
            if isinstance(row, DataError):
                raise row
            row = {name: value for name, value in row.items() if name not in OWN_COLUMNS}  # of an earlier output
            column, listed = texts_of(row, f"{pairs}:{line}")
            image = _image_path(image_of(row, None, f"{pairs}:{line}", None), pairs, f"{pairs}:{line}")
        except DataError as error:
            rows.append({**({} if isinstance(row, DataError) else row), "score": None, "error": str(error)})
            continue
        images += [image] * len(listed)
        texts += listed
        owners += [len(rows)] * len(listed)
        if len(listed) > 1 or isinstance(row[column], list):
            lists.add(len(rows))
        rows.append(row)
    if not texts:
        return rows
    margins, failures = match.margins(images, texts)
    scores: dict[int, list[float | None]] = {}
    for index, (owner, margin) in enumerate(zip(owners, torch.sigmoid(margins).tolist(), strict=True)):
        scores.setdefault(owner, []).append(None if index in failures else round(margin, 6))
        if index in failures:
            rows[owner]["error"] = str(failures[index])
    for owner, values in scores.items():
        rows[owner] |= {"scores": values} if owner in lists else {"score": values[0]}
    return rows


def _image_path(name: str, pairs: Path, where: str) -> Path:
    """The file of an image, by the name that a row gives it."""
    images = ImageFolder(pairs.parent)
    return Path(images.path_of(images.name_of(name, where)))


def texts_of(row: dict[str, Any], where: str) -> tuple[str, list[str]]:
    """The column of TEXT_COLUMNS that holds the texts of a row, and the texts. Raises DataError for none."""
    for name in present_columns(tuple(row), None, TEXT_COLUMNS):
        if texts := list(filter(says_something, cell_texts(row[name], where, "caption"))):
            return name, texts
    raise DataError(f"{where}: no text; a row needs one of {', '.join(TEXT_COLUMNS)}")


def _rows(part: Path) -> Iterator[dict[str, Any]]:
    with open(part, encoding="utf-8") as lines:
        next(lines)
        for number, line in enumerate(lines, 2):
            yield parse_json(line, f"{part}:{number}", kind=dict)


def _values(row: dict[str, Any]) -> list[float | None]:
    values: list[float | None] = row["scores"] if "scores" in row else [row.get("score")]
    return values


def _threshold(part: Path, keep: float | None, top: float | None) -> float:
    if top is None:
        return keep or 0.0
    scores = np.sort(np.fromiter((value for row in _rows(part) for value in _values(row) if value is not None), float))
    return float(scores[-max(1, math.ceil(top * len(scores)))]) if len(scores) else 0.0


def _finish(part: Path, pairs: Path, output: Path, threshold: float, line: ProgressLine, *, has_rule: bool) -> Scored:
    """Write the output, the kept rows and the report from the scored rows, which are read one by one."""
    kept_file = _kept_file(output) if has_rule else None
    counts, num_failed, num_kept = [0] * BINS, 0, 0
    examples: list[Example] = []
    reasons: list[list[Any]] = []
    with ExitStack() as stack:
        file = stack.enter_context(opened_whole(output))
        kept = None if kept_file is None else stack.enter_context(opened_whole(kept_file))
        for number, row in enumerate(_rows(part)):
            if number % CHUNK == 0:
                line.update(number)
            values = _values(row)
            is_kept = [value is not None and value >= threshold for value in values]
            for value in values:
                if value is not None:
                    counts[min(BINS - 1, int(value * BINS))] += 1
            if None in values:
                num_failed += values.count(None)
                reasons += [[row.get("error", "")]] if len(reasons) < NAMED else []
            num_kept += sum(is_kept)
            if kept is not None:
                row["kept"] = is_kept if "scores" in row else is_kept[0]
                if any(is_kept):
                    kept.write(_line(_kept_part(row, is_kept)))
            file.write(_line(row))
            if any(value is not None for value in values):
                texts, image = texts_of(row, str(pairs))[1], image_of(row, None, str(pairs), None)
                examples += [(v, image, text) for v, text in zip(values, texts, strict=True) if v is not None]
                if len(examples) > 20_000:
                    examples = _spread(examples, threshold)
    num_scored = sum(counts)
    report = Report(
        f"Pairs of {pairs.name}",
        [
            f"{num_scored:,} texts scored, {num_failed:,} could not be",
            *(
                [f"{num_kept:,} kept ({num_kept / max(1, num_scored):.1%}), from {threshold:.3f} on"]
                if has_rule
                else []
            ),
        ],
        tables=[_histogram(counts), *_failures(reasons)],
        galleries=_galleries(examples, pairs, threshold, has_rule),
    ).write(output.with_name(f"{output.stem}.report"))
    first_error = str(reasons[0][0]) if reasons else ""
    return Scored(output, kept_file, report, num_scored, num_failed, num_kept, threshold, first_error)


def _kept_part(row: dict[str, Any], is_kept: list[bool]) -> dict[str, Any]:
    """A row in the form of the input, with the kept ones of its texts."""
    plain = {name: value for name, value in row.items() if name not in OWN_COLUMNS}
    if "scores" in row:
        name, texts = texts_of(plain, "")
        plain[name] = [text for text, kept in zip(texts, is_kept, strict=True) if kept]
    return plain


def _line(row: dict[str, Any]) -> bytes:
    return (json_line(row) + "\n").encode()


def _failures(reasons: list[list[Any]]) -> list[Table]:
    """Why texts could not be scored, for the first rows; no table where all were."""
    note = f"At most {NAMED} rows are shown; in the output, every such row has its error."
    return [Table("Not scored", ["reason"], reasons, note)] if reasons else []


def _histogram(counts: list[int]) -> Table:
    most, total = max(1, *counts), max(1, sum(counts))
    rows = [
        [
            f"{number / BINS:.1f} to {(number + 1) / BINS:.1f}",
            count,
            100 * count / total,
            "█" * round(16 * count / most),
        ]
        for number, count in enumerate(counts)
    ]
    return Table("Match probabilities", ["probability", "texts", "%", ""], rows)


def _spread(examples: list[Example], threshold: float) -> list[Example]:
    """The best, the worst, and those nearest to the threshold on both sides."""
    ordered = sorted(examples, key=lambda each: -each[0])
    num_kept = sum(value >= threshold for value, _, _ in ordered)
    near = slice(max(0, num_kept - EXAMPLES), num_kept + EXAMPLES)
    return list(dict.fromkeys([*ordered[:EXAMPLES], *ordered[near], *ordered[-EXAMPLES:]]))


def _galleries(examples: list[Example], pairs: Path, threshold: float, has_rule: bool) -> list[Gallery]:
    ordered = sorted(examples, key=lambda each: -each[0])
    num_kept = sum(value >= threshold for value, _, _ in ordered)
    groups = {"Best": ordered[:EXAMPLES], "Worst": ordered[::-1][:EXAMPLES]}
    if has_rule:
        groups |= {
            "Just kept": ordered[max(0, num_kept - EXAMPLES) : num_kept],
            "Just dropped": ordered[num_kept : num_kept + EXAMPLES],
        }
    return [
        Gallery(name, [GalleryRow("", [_cell(*each, pairs) for each in group])])
        for name, group in groups.items()
        if group
    ]


def _cell(value: float, image: str, text: str, pairs: Path) -> Cell:
    try:
        return Cell(open_image(_image_path(image, pairs, str(pairs)), size_hint=448), f"{value:.3f} {text}")
    except SampleError:
        return Cell(None, f"{value:.3f} {text}")
