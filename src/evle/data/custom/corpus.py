"""Texts for training a tokenizer, from plain text files, tables of texts, and tables of captions or questions."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from evle.data.custom.columns import (
    CAPTION_COLUMNS,
    EMBEDDED_COLUMNS,
    IMAGE_COLUMNS,
    LEFT_COLUMNS,
    PAIR_COLUMNS,
    cell_texts,
    has_column,
    value_of,
)
from evle.data.custom.folder import folder
from evle.data.formats.table_files import TABLE_SUFFIXES, find_table, first_row, kind_of_table, read_rows
from evle.data.formats.text_files import encoding_of
from evle.errors import DataError

TEXT_COLUMNS = ("text", *CAPTION_COLUMNS, "content", "question", "sentence")
"""The column of a table without images whose texts are read."""
MAX_CHARACTERS = 1 << 20
"""A longer line is handed out in pieces."""

_MARKUP = re.compile(
    r"<(?:!doctype|!--|(?:mediawiki|page|doc|docs|tei|rss|feed|svg|body|head|div|p|table|text|corpus)\b[^<>]*>"
    r"|[a-z][\w:.-]*\s+[\w:.-]+\s*=\s*[\"'])",
    re.IGNORECASE,
)
"""The first line of HTML, of a dump of MediaWiki, of WikiExtractor and of other XML; words such as <unk> are text."""


def read_texts(sources: Sequence[str | os.PathLike[str]]) -> Iterator[str]:
    """Every text of the sources, one after another: lines of a text file, captions and tags, questions or sentences of
    a table or a folder with one. A table without images holds its texts in the first of `TEXT_COLUMNS`.

    Raises DataError, at once, for a source that is missing, compressed, not UTF-8 (or UTF-16) text, or neither, and for
    text that is the code of JSON, of a web page or of other markup (dumps of MediaWiki, WikiExtractor's, RTF).
    """
    encodings: dict[Path, str] = {}
    for path in map(Path, sources):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; give text files, tables, or folders with a table")
        if path.is_dir():
            find_table(path)
        elif path.suffix.lower() not in TABLE_SUFFIXES:
            encodings[path] = encoding_of(path)
            _refuse_code(path, encodings[path])
    return _texts([Path(source) for source in sources], encodings)


def _texts(paths: list[Path], encodings: dict[Path, str]) -> Iterator[str]:
    for path in paths:
        if path.is_file() and path not in encodings and _holds_texts_alone(path):
            yield from _texts_of_table(path)
        elif path not in encodings:
            samples = folder(path, _kind(path), allow_outside=True)
            for index in range(len(samples)):
                yield from samples.texts(index)
        else:
            yield from _lines(path, encodings[path])


def _lines(path: Path, encoding: str) -> Iterator[str]:
    with open(path, encoding=encoding) as file:
        try:
            while line := file.readline(MAX_CHARACTERS):
                yield line.strip()
        except UnicodeError as error:
            raise DataError(f"{path}: damaged {encoding.upper()} ({error}); save it as UTF-8") from None


def _holds_texts_alone(table: Path) -> bool:
    names = list(map(str, first_row(table)))
    images = (*IMAGE_COLUMNS, *EMBEDDED_COLUMNS, *PAIR_COLUMNS, *LEFT_COLUMNS)
    return has_column(names, None, TEXT_COLUMNS) and not has_column(names, None, images)


def _texts_of_table(table: Path) -> Iterator[str]:
    for line, row in read_rows(table, lambda name: name.strip().casefold() in TEXT_COLUMNS):
        if isinstance(row, DataError):
            raise row
        where = f"{table}:{line}"
        yield from cell_texts(value_of(row, None, TEXT_COLUMNS, where), where, "text")


def _refuse_code(path: Path, encoding: str) -> None:
    """Raise DataError for a file of JSON, of a web page or of other markup, whose marks would become tokens."""
    line = next(filter(None, _lines(path, encoding)), "")
    if line[:20].casefold().startswith(("<!doctype html", "<html", "<?xml")):
        raise DataError(f"{path}: is the code of a web page; save its text alone")
    if line.startswith("{\\rtf") or _MARKUP.match(line):
        raise DataError(f"{path}: is markup ({line[:30]!r}), whose signs would become tokens; save its text alone")
    is_json = path.suffix.lower() == ".json" and line.startswith(("[", "{"))
    if not is_json and line.startswith(("{", "[")):
        try:
            is_json = isinstance(json.loads(line), dict | list)
        except (ValueError, RecursionError):
            is_json = False
    if is_json:
        raise DataError(f"{path}: holds JSON, whose signs would become tokens; save JSON lines as .jsonl, or text")


def _kind(path: Path) -> str:
    kind = kind_of_table(path)
    if kind == "vcr":
        raise DataError(f"{path}: no tokenizer is trained on choices; give a table of captions, questions or pairs")
    return kind
