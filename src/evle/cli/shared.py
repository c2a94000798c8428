"""What the verbs that use a model share: an image from stdin, lists from stdin, JSON lines, and the next command."""

import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from evle.errors import ConfigError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a list.")]
MAX_STDIN = 200_000_000
"""Bytes that are read from stdin at most."""


def image_source(path: Path) -> Path | bytes:
    """The image that a verb is given: a path, or with "-" the bytes of stdin."""
    if str(path) != "-":
        return path
    data = sys.stdin.buffer.read(MAX_STDIN + 1)
    if not data:
        raise ConfigError("-: stdin is empty; pipe an image into the command")
    if len(data) > MAX_STDIN:
        raise ConfigError(f"-: stdin holds more than {MAX_STDIN:,} bytes; give the image as a file")
    return data


def text_list(texts: Iterable[str], image: Path | None = None) -> list[str]:
    """The texts that a verb is given; a single "-" stands for the lines of stdin."""
    listed = list(texts)
    if listed != ["-"]:
        return listed
    if image is not None and str(image) == "-":
        raise ConfigError("both the image and the texts are -: only one of them can come from stdin")
    lines = [line.strip() for line in sys.stdin.read().splitlines() if line.strip()]
    if not lines:
        raise ConfigError("-: stdin is empty; pipe in one text per line")
    return lines


def print_json(row: Mapping[str, Any]) -> None:
    """One JSON line; paths become text."""
    print(json.dumps(row, default=str, ensure_ascii=False))


def print_next(*command: object) -> None:
    """The next useful command, ready to be copied."""
    print("next: " + shlex.join(str(part) for part in command), file=sys.stderr)
