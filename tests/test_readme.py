"""README and docs say what is true: their commands parse, their examples run, their tables are those of the code.

A block of shell or Python is checked without being run: commands go through the command line up to the point where the
work would begin, Python is compiled and its evle names looked up. A block marked `run` is run, those of a page one
after another, in a folder of tiny images and models that bear the names the page uses. A YAML block marked
`file=NAME` is that file; one marked `part` shows some keys, and is laid over a smallest recipe; one marked `claims`
shows claims, which are added to a recipe of the stages that they name; one marked `other` belongs to another tool.
"""

import ast
import importlib
import inspect
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import evle
import reference_tables
from evle.cli import main as cli
from evle.config import dump_yaml, load_yaml, merge
from evle.data.sources import SOURCES
from evle.models.eve import EVEConfig
from evle.models.presets import PRESETS
from evle.models.vle import VLEConfig, VLEForPreTraining, VLEForVCRQ2A, VLEForVCRQA2R, VLEForVQA
from evle.models.vle.configuration import ROUTED
from evle.recipes import find_recipe
from evle.run.config import RunConfig, task_class
from evle.run.stages import read_stages, train
from evle.run.weights import starting_config
from micro import COLOURS, MICRO, THINGS, micro_run, nlvr2_samples, plain_image
from vle_folders import save_released

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
HARMLESS = {"cp", "cat", "export", "pip", "tensorboard"}
BLOCK = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(shell|python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALLEST = {"task": {"name": "retrieval"}, "model": {"preset": "eve-tiny"}, "train": {"steps": 1, "batch_size": 2}}
SHORT = {"train": {"steps": 4, "epochs": None, "batch_size": 4, "eval_every": 0}, "text": {"max_length": 16}}


@dataclass
class Block:
    """One fenced block of a page; `mark` is the comment above it: run, part, or file=NAME."""

    place: str
    language: str
    mark: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        place = f"{page}:{text.count(chr(10), 0, found.start()) + 1}"
        yield Block(place, found[2], (found[1] or "").strip(), found[3])


def commands(block: Block) -> list[list[str]]:
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def write_files(folder: Path, over: dict[str, Any] | None = None) -> None:
    """The recipes that the pages show, laid over with `over`, and the folders that a command looks for at once."""
    (folder / "photos").mkdir(exist_ok=True)
    for page in PAGES:
        for block in blocks(page):
            if block.mark.startswith("file="):
                path = folder / block.mark.removeprefix("file=")
                path.write_text(block.text, encoding="utf-8")
                if over:
                    tree = load_yaml(path)
                    if "stages" in tree:
                        tree["defaults"] = merge(tree.get("defaults") or {}, over)
                        tree["stages"] = {
                            name: merge(stage, {"train": over["train"]}) for name, stage in tree["stages"].items()
                        }
                    else:
                        tree = merge(tree, over)
                    path.write_text(dump_yaml(tree), encoding="utf-8")
    for name, family in (("image", "clip_vision_model"), ("text", "bert")):  # as examples/real_towers writes them
        (folder / "towers" / name).mkdir(parents=True, exist_ok=True)
        (folder / "towers" / name / "config.json").write_text(json.dumps({"model_type": family}), encoding="utf-8")


# What is not run


class ReachedError(Exception):
    """A command was understood: its work would begin here."""


def check_config(config: RunConfig) -> None:
    """What a run refuses before any work, as far as it needs no file."""
    task = task_class(config)
    task.config_type.build({name: value for name, value in config.task.items() if name != "name"}, "task")
    if config.model.init is None and config.model.preset is not None:
        starting_config(config.model)
    else:
        for name in config.model.overrides:  # of which family, the weights would tell
            assert name in {*EVEConfig.__dataclass_fields__, *VLEConfig.__dataclass_fields__, *ROUTED}, name
    for sources in (config.data.train, config.data.val, config.data.test):
        for source in sources if isinstance(sources, list) else [sources] if sources else []:
            known = inspect.signature(SOURCES[source["source"]]).parameters.keys() | {"source", "weight", "label"}
            assert source.keys() <= known, f"{source.keys() - known} is no option of the source"


def stub_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: Any, **__: Any) -> None:
        raise ReachedError

    def checked(config: RunConfig, *_: Any, **__: Any) -> None:
        check_config(config)
        raise ReachedError

    def stages_checked(read: Any, **_: Any) -> None:
        for stage in read.stages:
            check_config(stage.config)
        raise ReachedError

    monkeypatch.setattr("evle.run.evaluation.evaluate", checked)
    monkeypatch.setattr("evle.run.plan.plan", checked)
    monkeypatch.setattr("evle.run.dry_run.rehearse_stages", stages_checked)
    monkeypatch.setattr("evle.run.stages.train", stages_checked)
    monkeypatch.setattr("evle.search.build_index", reached)
    monkeypatch.setattr("evle.search.ImageIndex.load", reached)
    for name in ("evle.server.load_served", "evle.server.build_app"):
        monkeypatch.setattr(name, reached)
    # After those above, whose modules must not take the stubs for the pipelines when they are first imported.
    for name in ("Match", "VQA", "Compare", "Localise", "Embed", "Classify", "AnswerChoice", "ReasonChoice"):
        monkeypatch.setattr(f"evle.pipelines.{name}Pipeline", reached)
    for name in ("LocalLanguageModel", "LocalCaptioner"):
        monkeypatch.setattr(f"evle.pipelines.{name}", lambda folder: folder)
    monkeypatch.setattr("evle.pipelines.explaining.ExplainPipeline", reached)
    monkeypatch.setattr("evle.models.eve.convert.convert_eve", reached)
    monkeypatch.setattr("evle.models.vle.new.new_vle", reached)
    monkeypatch.setattr("evle.data.custom.corpus.read_texts", reached)
    monkeypatch.setattr("evle.inspection.folder_check.check_folder", reached)
    monkeypatch.setattr("evle.run.vcr.judge_vcr", reached)
    monkeypatch.setattr("evle.run.side_by_side.compare_runs", reached)
    monkeypatch.setenv("EVLE_KEY", "a key that a page names")
    monkeypatch.setattr("evle.cli.data._samples", reached)
    monkeypatch.setattr("evle.demo.launch", reached)
    for name in (
        "export.graphs.export",
        "share.hub.push",
        "run.adapting.merge_adapter",
        "run.interpolating.interpolate",
    ):
        monkeypatch.setattr(f"evle.{name}", reached)
    monkeypatch.setattr("evle.models.folders.model_folder", reached)


def write_run(folder: Path) -> None:
    """What is left of a run that some page speaks of: its settings."""
    source = {"source": "folder", "path": "FOLDER"}
    data = {split: {**source, "split": split} for split in ("train", "val", "test")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_yaml(micro_run(folder, "retrieval", {"data": data}).plain()))
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")


def write_model(folder: Path) -> None:
    """What is left of a model of no run that some page speaks of."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "clip"}')


def check_command(words: list[str]) -> None:
    program = words[0]
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        assert {word for word in words[1:] if "=" not in word} <= targets
    elif program in ("torchrun", "accelerate"):
        place = words.index("-m")
        assert words[place + 1] == "evle"
        check_command(words[place + 1 :])
    elif program == "python":
        file = words[1] if words[1] != "-m" else words[2].replace(".", "/") + ".py"
        assert (ROOT / file).is_file() or (ROOT / file.removesuffix(".py")).is_dir(), f"{file} does not exist"
    elif program == "evle":
        # A bucket needs a network and credentials; tests/storage reads and writes URLs.
        words = [word.replace("s3://", "") for word in words]
        if words[1] == "evaluate" and "/" in words[2]:
            (write_model if "task.name=retrieval" in words else write_run)(Path(words[2]))
        result = CliRunner().invoke(cli.app, words[1:])
        done = isinstance(result.exception, ReachedError) or result.exit_code == 0
        assert done, f"{result.output} {result.exception}"
    else:
        assert program in HARMLESS, f"what is {program}?"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    stub_the_work(monkeypatch)
    for block in blocks(page):
        for words in commands(block) if block.language == "shell" else ():
            try:
                check_command(words)
            except (AssertionError, ValueError) as error:
                pytest.fail(f"{block.place}: {' '.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES)
def test_every_name_in_python_exists(page):
    for block in blocks(page):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "evle":
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), f"{block.place}: {ast.unparse(node)}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "evle":
                assert hasattr(evle, node.attr), f"{block.place}: evle.{node.attr}"


@pytest.mark.parametrize("page", PAGES)
def test_every_recipe_shown_can_be_built(page, tmp_path):
    write_files(tmp_path)
    for block in blocks(page):
        if block.language == "yaml" and block.mark != "other":
            path = tmp_path / "shown.yaml"
            path.write_text(block.text, encoding="utf-8")
            if block.mark == "part":
                path.write_text(dump_yaml(merge(SMALLEST, load_yaml(path))), encoding="utf-8")
            if block.mark == "claims":
                claims = load_yaml(path)["claims"]
                stages = {claim[side]: SMALLEST for claim in claims.values() for side in ("of", "than")}
                path.write_text(dump_yaml({"stages": stages, "claims": claims}), encoding="utf-8")
            for stage in read_stages(path).stages:
                check_config(stage.config)


# What is run


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder as the pages suppose it: photos with captions and questions, trained runs, a released checkpoint."""
    folder = tmp_path_factory.mktemp("world")
    photos = folder / "photos"
    photos.mkdir()
    for bundled in ("models", "examples/images"):
        shutil.copytree(ROOT / bundled, folder / bundled)
    captions, questions = [], []
    for turn, split in enumerate(["train", "train", "val", "test"]):
        for colour, thing in zip(COLOURS, THINGS, strict=True):
            name = f"{thing}{turn}.png"
            plain_image(colour).save(photos / name)
            captions.append({"image": name, "captions": [f"a {colour} {thing}"], "keywords": [thing], "split": split})
            questions.append({"image": name, "question": "which colour is it?", "answer": colour, "split": split})
    for name, rows in (("captions", captions), ("questions", questions)):
        (photos / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    for name, colour in (("a", "red"), ("b", "blue")):
        plain_image(colour).save(folder / f"{name}.jpg")

    source = {"source": "folder", "path": str(photos), "split": "train"}
    changes = {
        "data": {"train": source},
        "model": {"overrides": {"num_attention_heads": 1, "hidden_size": 64}},
        **SHORT,
    }
    train(micro_run(folder / "runs/pictures/retrieval", "retrieval", changes))
    shutil.copytree(folder / "runs/pictures/retrieval", folder / "runs/coco")
    train(micro_run(folder / "runs/quickstart/vqa-pretrained", "vqa", changes))
    train(micro_run(folder / "nlvr2", "nlvr2"), samples={split: nlvr2_samples() for split in ("train", "test")})
    shutil.copytree(folder / "nlvr2/model", folder / "models/nlvr2")
    for name, head, fields in (
        ("models/vle-pretrained", VLEForPreTraining, {"objectives": ["mlm", "itm", "pbc"]}),
        ("models/vcr-q2a", VLEForVCRQ2A, {"num_token_types": 12}),
        ("models/vcr-qa2r", VLEForVCRQA2R, {"num_token_types": 12}),
        ("hfl/vle-base-for-vqa", VLEForVQA, {"num_labels": 5}),
    ):
        save_released(folder / name, head, **fields)
    vqa = folder / "runs/quickstart/vqa-pretrained/model"
    evle.EVEProcessor.from_pretrained(vqa).tokenizer.save_pretrained(folder / "tokenizers/eve")
    CliRunner().invoke(cli.app, ["convert", "eve", str(vqa), str(folder / "eve_base_vqa.th")])
    write_files(
        folder, {"model": {"preset": "eve-tiny", "overrides": MICRO}, "tokenizer": {"vocab_size": 300}, **SHORT}
    )
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if any("run" in block.mark.split() for block in blocks(page))])
def test_what_is_marked_runs(page, world, monkeypatch):
    monkeypatch.chdir(world)
    names: dict[str, Any] = {}
    for block in blocks(page):
        if "run" not in block.mark.split():
            continue
        if block.language == "python":
            exec(compile(block.text, block.place, "exec"), names)
            continue
        for words in commands(block):
            assert words[0] == "evle", f"{block.place}: only evle is run"
            result = CliRunner().invoke(cli.app, words[1:])
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            assert result.exit_code == 0, f"{block.place}: {' '.join(words)}: {result.output}"


# What is said


@pytest.mark.parametrize("page", reference_tables.TABLES)
def test_reference_tables_are_the_codes(page):
    shown = PAGES[page].read_text(encoding="utf-8")
    assert shown == reference_tables.filled(page), "write them anew: python tests/reference_tables.py"


def test_every_key_and_field_says_what_it_is_for():
    for line in reference_tables.recipe_tables().splitlines():
        assert not line.startswith("| `") or line.split("|")[3].strip(), line


@pytest.mark.parametrize("source", SOURCES)
def test_every_option_of_a_source_is_described(source):
    text = PAGES["data.md"].read_text(encoding="utf-8")
    options = inspect.signature(SOURCES[source]).parameters.keys() - {"task"}
    assert {option for option in options if f"`{option}" not in text} == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", PAGES[page].read_text(encoding="utf-8"))
    headings = {
        name: {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines if line[:1] == "#"}
        for name, lines in ((name, each.read_text(encoding="utf-8").splitlines()) for name, each in PAGES.items())
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = PAGES[page].parent / file if file else PAGES[page]
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in headings[path.name], f"{page}: {target}"


@pytest.mark.parametrize("page", ["eve.md", "vle.md"])
def test_the_tests_that_a_page_names_exist(page):
    tests = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    named = set(re.findall(r"`(test_\w+)`", PAGES[page].read_text(encoding="utf-8")))
    assert named, "the page names its tests"
    assert named <= tests, named - tests


def test_every_deviation_names_its_test():
    rows = [line for line in PAGES["faithfulness.md"].read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    for row in rows:
        if row.split("|")[1].strip() not in ("paper", "article, README"):
            assert len(row.split("|")) == 7, row
            files = re.findall(r"`([\w/]+\.py)`", row.split("|")[5])
            assert files, row
            assert all((ROOT / "tests" / file).is_file() for file in files), row


@pytest.mark.parametrize("page", PAGES)
def test_every_key_that_a_page_names_exists(page):
    keys = set(re.findall(r"^\| `([\w.]+)`", reference_tables.recipe_tables(), re.MULTILINE))
    keys |= {f"data.{split}" for split in ("train", "val", "test")}
    options = {name for each in SOURCES.values() for name in inspect.signature(each).parameters} | {"source", "weight"}
    fields = {*EVEConfig.__dataclass_fields__, *VLEConfig.__dataclass_fields__, *ROUTED, "num_labels", "id2label"}
    text = PAGES[page].read_text(encoding="utf-8")
    sections = "task|model|data|image|text|optim|train|evaluate|tokenizer"
    for key in re.findall(rf"`((?:{sections})\.[a-z][\w.]*)(?:=[^`]*)?`", text):
        if key.endswith((".py", ".json", ".yaml", ".jsonl", ".md")):
            continue
        if key.startswith("model.overrides."):
            assert key.split(".")[2] in fields, f"{key} is no field of a model"
        elif source := re.fullmatch(r"data\.(?:train|val|test)\.(?:\d+\.)?(\w+)", key):
            assert source[1] in options, f"{key}: no source has this option"
        else:
            assert re.sub(r"\.\d+$", "", key) in keys, f"{key} is no key"


def test_the_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_recipes_named_in_the_docs_exist():
    for page in PAGES.values():
        for name in re.findall(r"`((?:eve|vle)-[\w-]+)`", page.read_text(encoding="utf-8")):
            if name not in PRESETS:
                assert find_recipe(name).is_file()
