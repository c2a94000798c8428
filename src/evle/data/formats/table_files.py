"""The table of a user's folder, found and read row by row."""

import codecs
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from evle.data.formats.delimited import read_delimited
from evle.data.formats.json_lines import parse_record
from evle.data.formats.listing import other_tables
from evle.data.formats.parquet_rows import read_parquet
from evle.data.formats.text_files import MAX_LINE, compression_of, encoding_of, open_plain_file
from evle.errors import DataError

TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
TABLE_STEMS = {
    "captions": ("captions", "metadata"),
    "vqa": ("questions", "vqa", "captions", "metadata"),
    "nlvr2": ("pairs", "nlvr2", "metadata"),
    "vcr": ("choices", "vcr", "metadata"),
}

Row = dict[str, Any]


def find_table(path: Path, task: str = "captions") -> Path:
    """The table of a folder, or `path` itself when it is a file.

    It is captions.* (questions.* for VQA, pairs.* for NLVR2, choices.* for VCR) or metadata.*, else the only table
    there. Raises DataError where there is none, or several.
    """
    if path.is_file():
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise DataError(f"{path}: a table must be one of {', '.join(TABLE_SUFFIXES)}; convert it")
        return path
    if not path.exists():
        raise DataError(f"{path}: no such folder; check data.path")
    if not path.is_dir():
        raise DataError(f"{path}: is neither a folder nor an ordinary file; give a folder with a table and images")
    for stem in TABLE_STEMS[task]:
        there = [path / (stem + suffix) for suffix in TABLE_SUFFIXES if (path / (stem + suffix)).is_file()]
        if len(there) > 1:
            raise DataError(
                f"{path}: both {' and '.join(file.name for file in there)} are there; remove one of them, or set "
                "path to the one to read"
            )
        if there:
            return there[0]
    tables = tables_in(path)
    if len(tables) == 1:
        return tables[0]
    if tables:
        raise DataError(f"{path}: several tables ({', '.join(file.name for file in tables)}); name one as path")
    others = other_tables(path)
    unread = f" ({'; '.join(others[:3])})" if others else ""
    raise DataError(
        f"{path}: no {TABLE_STEMS[task][0]}.jsonl, .csv, .tsv or .parquet there{unread}; write one, or set "
        "captions_from=filename or =folder"
    )


def tables_in(folder: Path) -> list[Path]:
    """The tables of a folder, sorted, without those of other systems (._a.csv of macOS)."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in TABLE_SUFFIXES and file.is_file() and not file.name.startswith(".")
    )


def tables_beside(folder: Path, read: str) -> list[str]:
    """The names of the tables in a folder other than the one `read`; without one, also those in folders inside."""
    names = [file.name for file in tables_in(folder) if file.name != read]
    if not read:
        inside = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
        names += [f"{each.name}/{file.name}" for each in inside for file in tables_in(each)]
    return names


def kind_of_table(path: Path) -> str:
    """What a folder's table is for: by its name, else by its columns; "captions" where neither tells."""
    for task, stems in TABLE_STEMS.items():
        named = (path / f"{stem}{suffix}" for stem in stems if stem != "metadata" for suffix in TABLE_SUFFIXES)
        if path.is_dir() and any(file.is_file() for file in named):
            return task
    try:
        table = find_table(path)
        names = {str(name).strip().casefold() for name in first_row(table)}
    except DataError:
        return "captions"
    named_for = [task for task, stems in TABLE_STEMS.items() if table.stem in stems and table.stem != "metadata"]
    if "answer_choices" in names:
        return "vcr"
    if "sentence" in names and ("images" in names or {"left", "right"} <= names):
        return "nlvr2"
    has_captions = names & {"caption", "captions"}
    return next(iter(named_for), "vqa" if "question" in names and not has_captions else "captions")


def first_row(file: Path) -> Row:
    """The first row of a table that is not broken, {} where there is none; of Parquet, its columns without values."""
    if file.suffix.lower() == ".parquet":
        return next((row for _, row in read_rows(file, lambda name: False) if isinstance(row, dict)), {})
    return next((row for _, row in islice(read_rows(file), 100) if isinstance(row, dict)), {})


def read_rows(file: Path, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[int, Row | DataError]]:
    """(line number, row) of a table; a broken row is a DataError.

    Lines count from 1 as in an editor; in a Parquet table they are rows, and columns that are not `wanted` are None.
    Raises DataError for a file that cannot be read as a table at all.
    """
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return read_parquet(file, wanted)
    return _read_jsonl(file) if suffix == ".jsonl" else read_delimited(file)


def _read_jsonl(file: Path) -> Iterator[tuple[int, Row | DataError]]:
    for number, line in _json_lines(file):
        where = f"{file}:{number}"
        try:
            row = parse_record(line, where)
            if isinstance(row, dict):
                yield number, row
                continue
            is_list = number == 1 and isinstance(row, list)
            cure = "write one object per line, not one list of them" if is_list else "write one object {...} per line"
            yield number, DataError(f"{where}: not an object but {line[:20].decode('utf-8', 'replace')!r}; {cure}")
        except DataError as error:
            is_list = number == 1 and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"[")
            cure = "write one object per line, not one list of them" if is_list else "correct the line"
            yield number, DataError(f"{error}; {cure}")


def _json_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """(number, UTF-8 bytes) of each line that is not blank."""
    with ExitStack() as stack:
        lines = stack.enter_context(open_plain_file(file))
        start = lines.read(8)
        if kind := compression_of(start):
            raise DataError(f"{file}: is compressed ({kind}); unpack it first")
        lines.seek(0)
        text = None
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
            text = stack.enter_context(open(file, encoding=encoding_of(file)))
        number = 0
        try:
            while line := lines.readline(MAX_LINE) if text is None else text.readline(MAX_LINE).encode():
                number += 1
                if len(line) >= MAX_LINE:
                    raise DataError(f"{file}:{number}: a line of more than {MAX_LINE >> 20} MB; split it")
                if line.strip():
                    yield number, line
        except UnicodeError as error:
            raise DataError(f"{file}:{number + 1}: cannot be decoded ({error}); save the file as UTF-8") from None
