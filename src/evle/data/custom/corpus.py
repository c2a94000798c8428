"""Texts for training a tokenizer, from plain text files and from tables of captions or questions."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from evle.data.custom.folder import folder
from evle.data.formats.table_files import TABLE_SUFFIXES, find_table, kind_of_table
from evle.data.formats.text_files import encoding_of
from evle.errors import DataError

MAX_CHARACTERS = 1 << 20
"""A longer line is handed out in pieces."""


def read_texts(sources: Sequence[str | os.PathLike[str]]) -> Iterator[str]:
    """Every text of the sources, one after another: lines of a text file, captions and tags, questions or sentences of
    a table or a folder with one.

    Raises DataError, at once, for a source that is missing, compressed, not UTF-8 (or UTF-16) text, or neither.
    """
    encodings: dict[Path, str] = {}
    for path in map(Path, sources):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; give text files, tables, or folders with a table")
        if path.is_dir():
            find_table(path)
        elif path.suffix.lower() not in TABLE_SUFFIXES:
            encodings[path] = encoding_of(path)
    return _texts([Path(source) for source in sources], encodings)


def _texts(paths: list[Path], encodings: dict[Path, str]) -> Iterator[str]:
    for path in paths:
        if path not in encodings:
            samples = folder(path, _kind(path), allow_outside=True)
            for index in range(len(samples)):
                yield from samples.texts(index)
            continue
        with open(path, encoding=encodings[path]) as file:
            while line := file.readline(MAX_CHARACTERS):
                yield line.strip()


def _kind(path: Path) -> str:
    kind = kind_of_table(path)
    if kind == "vcr":
        raise DataError(f"{path}: no tokenizer is trained on choices; give a table of captions, questions or pairs")
    return kind
