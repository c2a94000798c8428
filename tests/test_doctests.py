"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

import evle

ROOT = Path(evle.__file__).parent
MODULES = [
    "evle." + path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in sorted(ROOT.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8") and path.stem != "__init__"
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings_hold(module):
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not result.failed
