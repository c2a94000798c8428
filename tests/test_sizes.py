"""Files and functions stay small enough to be read in one go."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80
LONGER_FILES = {
    "evle/models/eve/modeling.py": (560, "one modeling file per family; transformers finds experts by its source"),
    "evle/models/vle/modeling.py": (560, "one modeling file per family, with its base classes"),
    "evle/search/index.py": (520, "an index and the two ways to search it share their checks"),
}
"""Files that may be longer: the lines that they may have, and why."""


def paths() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


@pytest.mark.parametrize("path", paths(), ids=name_of)
def test_a_file_is_short(path):
    most, _ = LONGER_FILES.get(name_of(path), (MAX_FILE_LINES, ""))
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= most, f"{name_of(path)} has {lines} lines, more than {most}: split it by what its parts are for"


@pytest.mark.parametrize("path", paths(), ids=name_of)
def test_functions_are_short(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    long = {
        f"{name_of(path)}:{node.lineno}: {node.name}() has {length} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert not long, f"more than {MAX_FUNCTION_LINES} lines; move steps into functions of their own: {long}"


def test_every_exception_is_still_needed():
    lengths = {name_of(path): path.read_text(encoding="utf-8").count("\n") for path in paths()}
    assert not {name for name in LONGER_FILES if lengths.get(name, 0) <= MAX_FILE_LINES}
