"""The house keeps its shape: imports point down, heavy libraries have one door each, parameters live under models/."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import evle

ROOT = Path(evle.__file__).parent
FLOORS = {
    7: ["cli"],
    6: ["demo", "server", "registration"],
    5: ["run", "search", "export", "interop"],
    4: ["engine", "pipelines", "share"],
    3: ["tasks", "inspection", "recipes", "exported"],
    2: ["models", "data", "transforms", "config"],
    1: [
        "objectives",
        "metrics",
        "report",
        "distributed",
        "proportions",
        "pixels",
        "precision",
        "machine",
        "storage",
        "files",
        "terminal",
        "errors",
    ],
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
DOORS = {
    "accelerate": ["engine/devices.py"],
    "webdataset": ["data/custom/shards.py"],
    "gradio": ["demo"],
    "fastapi": ["server"],
    "onnxruntime": ["exported/folder.py", "export"],
    "onnxscript": ["export"],
    "sentence_transformers": ["interop"],
    "mteb": ["interop"],
    "faiss": ["search"],
    "peft": ["run/adapting.py"],
    "typer": ["cli"],
    "fsspec": ["storage", "data/custom/shard_files.py", "data/formats/tars.py"],
}
# Errors, whole files and the terminal serve every room; the configuration class is what options of a floor's other
# rooms are made of.
NEIGHBOURS = {"errors", "config", "files", "terminal"}
MODULES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(module: str) -> str:
    """A room is a folder, or one of the single files beside the folders."""
    return module.split(".")[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "evle" else {node.module}
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_point_down(path):
    own = room(name_of(path).split("/")[0])
    if own == "__init__":
        return  # the face names things of every floor and imports them late
    if own == "__main__":
        own = "cli"  # `python -m evle` is the command line
    assert own in FLOOR_OF, f"{own} has no floor"
    for module in imported(path):
        if module == "evle" or not module.startswith("evle."):
            continue
        other = room(module.removeprefix("evle."))
        if other not in FLOOR_OF:  # a name of the face, such as __version__
            continue
        assert other == own or other in NEIGHBOURS or FLOOR_OF[other] < FLOOR_OF[own], (
            f"{name_of(path)} imports {module}"
        )


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_heavy_library_has_one_door(path):
    for module in imported(path):
        doors = DOORS.get(module.split(".")[0])
        assert doors is None or any(name_of(path).startswith(door) for door in doors), f"{name_of(path)}: {module}"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if room(name_of(path).split("/")[0]) != "models"], ids=name_of
)
def test_parameters_live_under_models(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
            assert not bases & {"Module", "PreTrainedModel"}, f"{name_of(path)}: class {node.name}"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func).split(".")[-1] != "Parameter", f"{name_of(path)}:{node.lineno}"


DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "faiss": "faiss-cpu", "ruamel": "ruamel-yaml"}
"""Packages whose distribution has another name."""


def declared() -> set[str]:
    """The distributions that pyproject.toml declares for users: dependencies and extras, not those for developers."""
    project = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (names for extra, names in project["optional-dependencies"].items() if extra not in ("dev", "docs"))
    return {
        re.split(r"[^\w.-]", name)[0].lower().replace("_", "-").replace(".", "-")
        for names in (project["dependencies"], *extras)
        for name in names
    }


def test_every_import_is_declared():
    known = declared() | set(sys.stdlib_module_names) | {"evle"}
    for path in MODULES:
        for module in imported(path):
            top = module.split(".")[0]
            name = DISTRIBUTIONS.get(top, top).lower().replace("_", "-")
            assert name in known, f"{name_of(path)} imports {module}, which pyproject.toml does not declare"


def test_every_extra_is_imported():
    tops = {module.split(".")[0] for path in MODULES for module in imported(path)}
    used = {DISTRIBUTIONS.get(top, top).lower().replace("_", "-") for top in tops}
    project = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, names in project["optional-dependencies"].items():
        if extra not in ("dev", "docs"):
            listed = {re.split(r"[^\w.-]", name)[0].lower().replace("_", "-") for name in names}
            assert listed & used, f"no file imports anything of the extra {extra}"


def test_importing_the_package_costs_no_torch():
    heavy = ("torch", "transformers", "numpy")
    code = f"import sys, evle, evle.cli.main; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_name_of_the_face_exists():
    for name in evle.__all__:
        assert getattr(evle, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'EVEModle'"):
        _ = evle.EVEModle


def test_the_map_of_the_architecture_page_names_every_folder_and_file():
    page = (ROOT.parents[1] / "docs/architecture.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (`[^`]+/`|single files) \|[^|]*\| (.*) \|$", page, re.MULTILINE))
    shown = {(folder.strip("`/"), file) for folder, files in rows.items() for file in re.findall(r"`(\w+)`", files)}
    there = set()
    for path in MODULES:
        parent = path.parent.relative_to(ROOT).as_posix()
        if not path.stem.startswith("__"):
            there.add(("single files" if parent == "." else parent, path.stem))
    assert shown == there


def test_the_floors_of_the_architecture_page_are_those_of_the_code():
    page = (ROOT.parents[1] / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (.*) \|$", page, re.MULTILINE)
    assert {int(floor): re.findall(r"`(\w+)/?`", rooms) for floor, rooms in rows} == FLOORS


def test_names_of_tracked_files_are_valid_on_every_system():
    checkout = ROOT.parents[1]
    if not (checkout / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=checkout, capture_output=True, text=True, check=True).stdout
    names = listing.split("\0")[:-1]
    assert "pyproject.toml" in names
    assert not [name for name in names if re.search(r'[:*?"<>|\\]', name)]


def test_the_makefile_installs_the_checkout_itself():
    """A copy in .venv would hide the checkout from the tests that run after it."""
    lines = [line for line in (ROOT.parents[1] / "Makefile").read_text(encoding="utf-8").splitlines() if "'.[" in line]
    assert len(lines) == 2
    assert all("--editable" in line for line in lines)
