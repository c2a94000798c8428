"""What lies in a user's folder: its table, found and read row by row, and its image files."""

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evle.errors import DataError

TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
TABLE_STEMS = {"captions": ("captions", "metadata"), "vqa": ("questions", "vqa", "captions", "metadata")}
OTHER_TABLES = (".json", ".xlsx", ".xls", ".ods", ".arrow", ".feather")
"""Named where no table is found: their owner takes them for one."""
IMAGE_SUFFIXES = (
    ".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip

_CHUNK = 20_000  # rows of Parquet read at once

Row = dict[str, Any]


def find_table(path: Path, task: str = "captions") -> Path:
    """The table of a folder, or `path` itself when it is a file.

    It is captions.* (questions.* for VQA) or metadata.*, else the only table there.
    """
    if path.is_file():
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise DataError(f"{path}: a table must be one of {', '.join(TABLE_SUFFIXES)}; convert it")
        return path
    if not path.exists():
        raise DataError(f"{path}: no such folder; check data.path")
    for stem in TABLE_STEMS[task]:
        for suffix in TABLE_SUFFIXES:
            if (path / (stem + suffix)).is_file():
                return path / (stem + suffix)
    tables = sorted(file for file in path.iterdir() if file.suffix.lower() in TABLE_SUFFIXES)
    if len(tables) == 1:
        return tables[0]
    if tables:
        raise DataError(f"{path}: several tables ({', '.join(file.name for file in tables)}); name one as path")
    others = sorted(file.name for file in path.iterdir() if file.suffix.lower() in OTHER_TABLES)
    unread = f" ({', '.join(others[:3])}: of no kind that is read)" if others else ""
    raise DataError(
        f"{path}: no {TABLE_STEMS[task][0]}.jsonl, .csv, .tsv or .parquet there{unread}; write one, or set "
        "captions_from=filename or =folder"
    )


def kind_of_table(path: Path) -> str:
    """What a folder's table is for, by its name: "vqa" where there are questions and no captions, else "captions"."""
    try:
        return "vqa" if find_table(path).stem in TABLE_STEMS["vqa"][:2] else "captions"
    except DataError:
        return "captions"


def list_images(path: str | os.PathLike) -> list[str]:
    """Every image file below a folder, by its suffix, as sorted paths relative to it; hidden files are left out."""
    if not Path(path).is_dir():
        raise DataError(f"{path}: no such folder")
    found = []
    for here, folders, files in os.walk(os.fspath(path)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = PurePosixPath(Path(here).relative_to(path))
        found += [
            str(inside / name)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def read_rows(file: Path) -> Iterator[tuple[int, Row | DataError]]:
    """(line number, row) of a table; a broken row comes as a DataError.

    Lines count from 1 as in an editor; in a Parquet table they are rows.
    """
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Row | DataError]]]] = {
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".parquet": _read_parquet,
    }
    return readers[file.suffix.lower()](file)


def _read_jsonl(file: Path) -> Iterator[tuple[int, Row | DataError]]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield number, DataError(f"{file}:{number}: not UTF-8 text; save the file as UTF-8")
            except json.JSONDecodeError as error:
                is_list = number == 1 and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"[")
                cure = "write an object a line, not one list of them" if is_list else "mend the line"
                yield number, DataError(f"{file}:{number}: not JSON ({error.msg}, column {error.colno}); {cure}")
            except RecursionError:
                yield number, DataError(f"{file}:{number}: brackets within brackets without end; mend the line")
            else:
                if isinstance(row, dict):
                    yield number, _whole(row) if b"\\ud" in line.lower() else row
                else:
                    start = line[:20].decode("utf-8", "replace")
                    yield number, DataError(f"{file}:{number}: each line must be an object {{...}}, not {start!r}")


def _whole(row: Row) -> Row:
    """Half a character, as a cut emoji leaves it in JSON, becomes a replacement sign: no tokenizer takes it."""
    text = json.dumps(row, ensure_ascii=False)
    return json.loads(text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))


def _read_csv(file: Path) -> Iterator[tuple[int, Row | DataError]]:
    with open(file, encoding="utf-8-sig", newline="") as lines:
        delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
        reader = csv.DictReader(lines, delimiter=delimiter, restkey="")
        while True:
            try:
                row = next(reader)
                header = reader.fieldnames or ()
                if len(header) == 1 and (other := next((sign for sign in ";\t,|" if sign in header[0]), None)):
                    raise DataError(f"{file}: {other!r} stands between the columns; save it with {delimiter!r}")
            except StopIteration:
                return
            except UnicodeDecodeError:
                raise DataError(f"{file}: not UTF-8 text near line {reader.line_num + 1}; save it as UTF-8") from None
            except csv.Error as error:
                yield reader.line_num, DataError(f"{file}:{reader.line_num}: not CSV ({error}); mend the line")
                continue
            if "" in row and isinstance(row[""], list):
                many = f"{len(row) - 1 + len(row[''])} fields where the header has {len(row) - 1}"
                yield reader.line_num, DataError(f"{file}:{reader.line_num}: {many}; put quotes around commas")
            else:
                yield reader.line_num, {name: value for name, value in row.items() if value is not None}


def _read_parquet(file: Path) -> Iterator[tuple[int, Row | DataError]]:
    try:
        parquet = pq.ParquetFile(file)
        number = 0
        for batch in parquet.iter_batches(_CHUNK):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file}: not a readable Parquet file ({str(error).splitlines()[0]}); write it again"
        ) from error
