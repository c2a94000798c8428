"""The command line: help in an instant, one clear line for what a user can cause, and every verb at work."""

import errno
import io
import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from typer.main import get_command
from typer.testing import CliRunner

import reasoning_corpora
import saved_tables
from commands import call
from evle import __version__
from evle.cli import main as cli
from evle.cli.completion import KEYS, complete_key, complete_recipe
from evle.cli.group import DEBUG, PANELS
from evle.config import dump_yaml
from micro import COLOURS, MICRO, THINGS, plain_image

WIDTH = 110  # columns that help and lists may take


def verbs(group: Any = None, before: str = "") -> Iterator[str]:
    """Every verb of the command line, "data check" for those of a group."""
    for name, command in (group or get_command(cli.app)).commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, f"{before}{name} ")
        else:
            yield before + name


VERBS = sorted(verbs())


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A user's folder of images with captions, and a recipe for it."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for turn in range(2):
        for colour, thing in zip(COLOURS, THINGS, strict=True):
            plain_image(colour).save(folder / f"{thing}{turn}.png")
            split = ("train", "test")[turn]
            rows.append(
                {"image": f"{thing}{turn}.png", "captions": [f"{colour} {thing}"], "keywords": [thing], "split": split}
            )
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    """A retrieval run made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    recipe = {
        "task": {"name": "retrieval", "k_test": 2},
        "model": {"preset": "eve-tiny", "overrides": MICRO},
        "tokenizer": {"vocab_size": 400},
        "data": {"train": {"source": "folder", "split": "train"}, "test": {"source": "folder", "split": "test"}},
        "text": {"max_length": 12},
        "train": {"steps": 4, "batch_size": 4},
    }
    (folder / "mine.yaml").write_text(dump_yaml(recipe))
    said = call("train", folder / "mine.yaml", f"data.path={images}", "-o", folder / "run")
    assert "R@mean on test" in said
    assert f"report: {folder / 'run' / 'report.html'}" in said
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb):
    said = call(*verb.split(), "--help", width=80)
    assert f"    evle {verb}" in said
    assert max(map(len, said.splitlines())) <= 80
    assert not re.search(r"<\w", said)  # the name of a type, where the name of what it takes belongs


@pytest.mark.parametrize("group", ["", "data", "tokenizer"])
def test_a_list_of_verbs_says_of_each_what_it_does(group):
    said = call(*group.split(), "--help", width=80)
    assert max(map(len, said.splitlines())) <= 80
    head, listed = said.split("Train:" if group == "" else "Commands:")
    assert "..." not in listed
    assert f"  evle {group}" in head


@pytest.mark.parametrize("verb", VERBS)
def test_the_short_help_of_a_verb_fits_its_line_and_starts_with_a_verb(verb):
    command: Any = get_command(cli.app)
    for name in verb.split():
        command = command.commands[name]
    short = command.help.splitlines()[0]
    assert len(short) <= 51, short  # and a full stop
    assert short.endswith(".")
    assert re.match(r"[A-Z][a-z]+ ", short)
    assert short.split()[0] not in ("The", "A", "How", "Of", "Which"), short


def test_verbs_are_listed_in_groups():
    said = call("--help", width=80)
    order = [said.index(f"\n{panel}:\n") for panel in PANELS]
    assert order == sorted(order)
    assert "Commands:" not in said


def test_the_shell_completes_recipes_and_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    assert complete_recipe("qui") == ["quickstart"]
    assert complete_recipe("mi") == ["mine.yaml"]
    assert complete_key("optim.lr") == ["optim.lr=", "optim.lr_mult=", "optim.lr_mult_patterns="]
    assert "task.k_test=" in complete_key("task.")
    assert complete_key("optim.lr=") == []
    assert "--install-completion" in call("--help")


def test_the_keys_that_the_shell_completes_are_those_of_the_configuration():
    from evle.run.config import RunConfig

    keys = "".join(f"{key}\n" for key in RunConfig.known_keys())
    if KEYS.read_text(encoding="utf-8") != keys:
        KEYS.write_text(keys, encoding="utf-8")
        pytest.fail(f"{KEYS.name} was out of date and has been rewritten; commit it with the new keys")


def test_completing_imports_nothing_heavy():
    code = (
        "import sys; from evle.cli.main import app; from evle.cli.completion import complete_key, complete_recipe; "
        "assert complete_recipe('qui') == ['quickstart'] and complete_key('optim.lr_mult='[:-1]); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_answers_in_half_a_second():
    seconds = []  # of a processor: how busy the machine is does not count
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "evle", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def test_the_version():
    assert call("--version") == f"evle {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "quickstrat"], "did you mean 'quickstart'"),
        (["train", "quickstart", "optim.lrr=1"], "did you mean optim.lr?"),
        (["train", "quickstart", "lr=1e-4"], "unknown key 'lr'; did you mean optim.lr?"),
        (["train", "easy-vqa", "batch_size=8"], "did you mean train.batch_size or evaluate.batch_size?"),
        (["train", "easy-vqa", "train.lr=3"], "unknown key 'train.lr'; did you mean optim.lr?"),
        (["train", "easy-vqa", "drop_path_rate=0"], "did you mean model.overrides.drop_path_rate?"),
        (["train", "easy-vqa", "task.lr=3"], "unknown key 'task.lr'; did you mean optim.lr?"),
        (["train", "quickstart", "seed"], "write it as key=value"),
        (["train", "nothing.yaml"], "no such recipe file"),
        (["train", "quickstart", "k_test=3"], "did you mean task.k_test?"),
        (["train", "eve-base-pretrain"], "corpora/coco"),
        (["train", "eve-base-coco-retrieval"], "or model.init=RUN"),
        (["evaluate", "nowhere"], "there is no recipe 'nowhere'"),
        (["evaluate", "runs/nowhere"], "runs/nowhere: no such folder"),
        (["search", "nowhere", "a dog"], "nowhere is not an index"),
        (["convert", "evf", "a", "b"], "did you mean 'eve'"),
        (["convert", "eve", "nowhere.th", "b"], "nowhere.th"),
        (["tokenizer", "train", "nowhere.txt", "-o", "t"], "nowhere.txt: no such file"),
        (["data", "check", "nowhere"], "nowhere"),
        (["data", "stats", "scenes", "--kind", "vqaa"], "did you mean 'vqa'"),
        (["data", "stats", "vqav22", "path=."], "'vqav22' is neither a folder nor a source; did you mean 'vqav2'"),
        (["data", "check", "karpathi"], "'karpathi' is neither a folder nor a source; did you mean 'karpathy'"),
    ],
)
def test_what_a_user_can_cause_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = call(*arguments, code=2)
    lines = [line for line in said.splitlines() if not line.startswith("[1/")]
    assert len(lines) == 1, said
    assert lines[0].startswith("evle: ")
    assert message in lines[0]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/model"), 2, "the disk is full (runs/model)"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 2, "runs: may not be read or written; change its"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a.tar"), 2, "a.tar: is a folder, where a file is needed"),
        (
            FileExistsError(errno.EEXIST, "File exists", "out"),
            2,
            "out: is a file, where a folder is needed; choose",
        ),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), 2, "Not a directory: a/b"),
        (KeyboardInterrupt(), 130, "repeat the command"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3 bytes"), 2, "out of memory"),
    ],
)
def test_what_the_machine_can_cause_is_one_line(error, code, message, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr("evle.recipes.recipes", fail)
    said = call("recipes", code=code)
    assert said.startswith("evle: ")
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_to_end_says_what_is_kept(monkeypatch, tmp_path, number, code, word):
    monkeypatch.setattr("evle.search.ImageIndex.build", lambda *_, **__: signal.raise_signal(number))
    said = call("index", tmp_path, "-o", tmp_path / "i", "--model", "models/emoji-search", code=code)
    assert said.endswith(f"{word}; what was embedded is kept: repeat the command for the rest\n")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_data_workers_that_end_with_their_process_are_no_error(monkeypatch):
    def fail():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")

    monkeypatch.setattr("evle.recipes.recipes", fail)
    assert call("recipes", code=143) == "evle: terminated; repeat the command\n"


def test_a_tokenizer_is_not_trained_for_a_place_that_holds_a_file(tmp_path):
    (tmp_path / "books.txt").write_text("a red ball\n")
    (tmp_path / "out").write_text("mine")
    said = call("tokenizer", "train", tmp_path / "books.txt", "-o", tmp_path / "out", code=2)
    assert "out is a file, or below one: choose another output" in said
    assert (tmp_path / "out").read_text() == "mine"


def test_developers_get_the_traceback(monkeypatch):
    monkeypatch.delenv(DEBUG, raising=False)
    result = CliRunner().invoke(cli.app, ["--traceback", "train", "quickstrat"], env={DEBUG: ""})
    monkeypatch.delenv(DEBUG, raising=False)
    assert type(result.exception).__name__ == "ConfigError"


def test_a_dry_run_tells_and_writes_nothing(images, trained, tmp_path):
    said = call("train", trained / "mine.yaml", f"data.path={images}", "-o", tmp_path / "run", "--dry-run")
    assert "steps: 4 of 4 samples" in said
    assert not (tmp_path / "run").exists()


def test_a_run_is_scored_on_any_split_from_its_folder(images, trained, tmp_path):
    said = call("evaluate", trained / "run", "data.test.split=train", f"data.path={images}", "-o", tmp_path / "scores")
    assert "R@mean on train" in said
    report = json.loads((tmp_path / "scores" / "report.json").read_text())
    assert report["scores"]["chance"]["TR@1"] == pytest.approx(100 / 8)
    call("evaluate", trained / "run")
    assert (trained / "run" / "evaluation" / "report.html").is_file()


def test_a_run_is_not_overwritten_unasked(images, trained):
    again = ("train", trained / "mine.yaml", f"data.path={images}", "-o", trained / "run")
    assert "holds a finished run of this configuration" in call(*again, code=2)
    assert "holds a finished run of another configuration (seed: 0 -> 1)" in call(*again, "seed=1", code=2)
    assert "R@mean on test" in call(*again, "--overwrite")


def test_images_are_indexed_and_found(images, trained, tmp_path, monkeypatch):
    assert "16 images" in call("index", images, "-o", tmp_path / "index", "--model", trained / "run")
    said = call("search", tmp_path / "index", "red apple", "-k", 3, "--rerank", 3, "--html", tmp_path / "found.html")
    assert len([line for line in said.splitlines() if ".png" in line]) == 3
    assert (tmp_path / "found.html").is_file()
    assert "apple0.png" in call("search", tmp_path / "index", "--image", images / "apple0.png", "-k", 16)
    monkeypatch.chdir(images)
    said = call("search", tmp_path / "index", "red apple", "-k", 16)
    assert "  apple0.png" in said  # below the working folder: as it can be typed there


def test_a_tokenizer_is_trained_and_used(images, trained, tmp_path):
    (tmp_path / "more.txt").write_text("a line of text\nanother line\n")
    said = call("tokenizer", "train", images, tmp_path / "more.txt", "-o", tmp_path / "tok", "--vocab-size", 300)
    assert "300 tokens" in said
    run = (
        "train",
        trained / "mine.yaml",
        f"data.path={images}",
        f"tokenizer.path={tmp_path / 'tok'}",
        "--dry-run",
    )
    assert "tokenizer: 300 tokens, from" in call(*run)


def test_data_is_looked_at(images, tmp_path):
    assert "every row can be used" in call("data", "check", images)
    said = call("data", "stats", images, "--split", "train")
    assert "texts: 8, 2 to 2 words" in said
    assert "tags: 8 different" in said
    assert "answers: " in call("data", "stats", "scenes", "count=40", "--kind", "vqa")
    call("data", "show", "scenes", "count=8", "--kind", "nlvr2", "-o", tmp_path / "look")
    packed = ("data", "shards", "scenes", "count=8", "--kind", "vqa", "--per-shard", "5", "-o", tmp_path / "packed")
    assert "8 samples in 2 shards" in call(*packed)
    assert "2 of them from before" in call(*packed)
    assert "answers: " in call("data", "stats", "shards", f"path={tmp_path / 'packed'}", "--kind", "vqa")
    call("data", "show", images, "-o", tmp_path / "look2")
    assert "red apple" in (tmp_path / "look2" / "report.html").read_text()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "captions.jsonl").write_text('{"image": "missing.png", "caption": "a dog"}\n')
    assert "missing.png" in call("data", "check", tmp_path / "bad", code=1)


def test_a_folder_is_read_as_what_it_is(images, tmp_path):
    """Shards with img2dataset's own tables beside them, a saved data set, and Parquet with its images inside."""
    call("data", "shards", images, "--split", "train", "-o", tmp_path / "shards")
    parquet.write_table(saved_tables.table(saved_tables.rows(0)).drop(["image"]), tmp_path / "shards" / "00000.parquet")
    saved_tables.save(tmp_path / "saved", [saved_tables.table(saved_tables.rows(0, 1))])
    (tmp_path / "inside").mkdir()
    parquet.write_table(saved_tables.table(saved_tables.rows(0, 1, 2)), tmp_path / "inside" / "captions.parquet")
    for name, samples in (("shards", 8), ("saved", 2), ("inside", 3)):
        said = call("data", "check", tmp_path / name)
        assert f"{samples} samples, {samples} different images" in said
        assert "every sample can be used" in said
        assert f"samples: {samples}" in call("data", "stats", tmp_path / name)
        call("data", "show", tmp_path / name, "-o", tmp_path / "look")


def test_a_source_is_read_as_what_it_holds(tmp_path):
    folder = reasoning_corpora.vqav2(tmp_path)
    assert "question types: " in call("data", "stats", "vqav2", f"path={folder}")


def test_a_sample_that_cannot_be_made_stops_neither_page_nor_counts(tmp_path):
    folder = reasoning_corpora.vcr(tmp_path)
    next((folder / "vcr1images").rglob("*.json")).write_text("{}")
    splits = ("train", "val", "test")
    said = "".join(call("data", "stats", "vcr", f"path={folder}", "--split", split) for split in splits)
    assert "samples that cannot be read: 1, the first: " in said
    for split in splits:
        call("data", "show", "vcr", f"path={folder}", "--split", split, "-o", tmp_path / split)
    assert any("no metadata with boxes" in (tmp_path / each / "report.html").read_text() for each in splits)


def test_the_recipes_are_listed():
    said = call("recipes")
    assert "quickstart" in said
    assert "eve-base-pretrain" in said
    assert max(len(line) for line in said.splitlines() if not line.startswith("The files: ")) <= WIDTH


def test_a_file_name_that_is_not_utf8_is_printed_byte_for_byte(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="utf-8"))
    monkeypatch.setattr(cli, "app", lambda: print("caf\udce9.jpg", flush=True))
    cli.main()
    assert written.getvalue() == b"caf\xe9.jpg\n"
