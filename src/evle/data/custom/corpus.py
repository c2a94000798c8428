"""Texts for training a tokenizer, from plain text files and from tables of captions or questions."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from evle.data.custom.folder import folder
from evle.data.formats.table_files import TABLE_SUFFIXES, find_table
from evle.data.samples import CaptionSample, VQASample
from evle.errors import DataError


def read_texts(sources: Sequence[str | os.PathLike[str]]) -> Iterator[str]:
    """Every text of the sources, one after another: lines of a text file, captions and tags of a table or a folder
    with one.

    Raises DataError, at once, for a source that is missing or is neither.
    """
    paths = [Path(source) for source in sources]
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; give text files, tables, or folders with a table")
        if path.is_dir():
            find_table(path)
    return _texts(paths)


def _texts(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        if path.is_dir() or path.suffix in TABLE_SUFFIXES:
            for sample in folder(path):
                if isinstance(sample, CaptionSample):
                    yield from (*sample.captions, *sample.tags)
                elif isinstance(sample, VQASample):
                    yield sample.question
            continue
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                yield line.strip()
