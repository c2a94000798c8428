"""Files and functions stay small enough to be read in one go."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80


def paths() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


@pytest.mark.parametrize("path", paths(), ids=name_of)
def test_a_file_is_short(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES, (
        f"{name_of(path)} has {lines} lines, more than {MAX_FILE_LINES}; split it by what its parts are for"
    )


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
