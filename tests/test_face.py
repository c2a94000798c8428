"""The face of the package: lazy for Python, typed for checkers and editors, known to transformers."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import evle
from eve_models import build
from evle.models.eve import EVEForVQA
from evle.models.eve.processing import EVEProcessor
from evle.models.vle import VLEModel
from evle.models.vle.processing import VLEProcessor
from evle.transforms.text import train_tokenizer
from vle_models import build as build_vle

ROOT = Path(__file__).parents[1]


def test_every_public_name_is_imported_for_checkers_and_listed():
    tree = ast.parse(Path(evle.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == evle.FACE
    assert list(evle.FACE) == [name for name in evle.__all__ if name != "__version__"]
    assert (Path(evle.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize("name", evle.FACE)
def test_every_public_name_is_there(name):
    assert getattr(evle, name) is getattr(import_module(evle.FACE[name]), name)


PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if page.is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_name_that_a_page_mentions_is_in_the_face(page):
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w/.-])evle\.([A-Za-z]\w*)", text))
    for imported in re.findall(r"from evle import ([\w, ]+)", text):
        names |= {name.strip() for name in imported.split(",")}
    modules = {path.stem for path in Path(evle.__file__).parent.iterdir()}
    assert not names - set(evle.__all__) - modules


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_costs_neither_torch_nor_transformers():
    code = "import sys, evle; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert python(code) == "[]"


ORDERS = {
    "evle first": "import evle; from transformers import AutoConfig, AutoModel",
    "transformers first": "from transformers import AutoConfig, AutoModel; import evle",
    "transformers half imported": "import transformers, evle; from transformers import AutoConfig, AutoModel",
    "one family first": "import evle.models.eve; from transformers import AutoConfig, AutoModel",
}


RARE = ("transformers half imported", "one family first")  # each order is a process that imports torch


@pytest.mark.parametrize(
    "order",
    [pytest.param(code, marks=pytest.mark.slow if name in RARE else (), id=name) for name, code in ORDERS.items()],
)
def test_the_auto_classes_know_both_families(order, tmp_path):
    tokenizer = train_tokenizer(["a red ball", "two dogs"], 300)
    for processor, model in ((EVEProcessor, build(EVEForVQA)), (VLEProcessor, build_vle(VLEModel))):
        model.save_pretrained(tmp_path / model.config.model_type)
        processor.for_size(32, tokenizer).save_pretrained(tmp_path / model.config.model_type)
    code = f"""{order}
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor
for family in ("eve", "vle"):
    folder = {str(tmp_path)!r} + "/" + family
    print(type(AutoConfig.from_pretrained(folder)).__name__, type(AutoModel.from_pretrained(folder)).__name__, end=" ")
    print(type(AutoProcessor.from_pretrained(folder)).__name__, end=" ")
model = AutoModelForVisualQuestionAnswering.from_pretrained({str(tmp_path / "eve")!r})
print(type(model) is evle.EVEForVQA, AutoModel.from_config(evle.VLEConfig()).config.model_type)
"""
    assert python(code).splitlines()[-1] == ("EVEConfig EVEModel EVEProcessor VLEConfig VLEModel VLEProcessor True vle")


@pytest.mark.slow
def test_a_type_checker_sees_classes_not_any(tmp_path):
    (tmp_path / "user.py").write_text(
        "from evle import EVEForVQA, ExplainPipeline, evaluate\nimport evle\n"
        "reveal_type(EVEForVQA)\nreveal_type(ExplainPipeline)\nreveal_type(evle.Report)\n"
        "reveal_type(evaluate)\nevle.NoSuchName\n"
    )
    source = Path(evle.__file__).parent.parent
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache")),
            *("--no-site-packages", "--ignore-missing-imports"),  # evle alone: reading torch takes minutes
            str(tmp_path / "user.py"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={"MYPYPATH": str(source), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
    )
    revealed = [line.split("Revealed type is")[1] for line in done.stdout.splitlines() if "Revealed" in line]
    assert len(revealed) == 4
    assert not [each for each in revealed if each.strip() == '"Any"'], done.stdout
    assert "NoSuchName" in done.stdout
