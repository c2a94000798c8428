"""Every entry point that takes a path takes URLs: memory, HDFS (a strict stand-in), S3 (a local server), files."""

import inspect
import shutil
from pathlib import Path

import fsspec
import pytest
from typer.main import get_command

from commands import call
from evle.cli import main as cli
from evle.cli import urls
from evle.config import dump_yaml
from evle.engine.run_folder import Run, read_log
from evle.engine.stop import StopSignal
from evle.errors import EvleError
from evle.run.stages import train
from evle.storage import fetch, join, local
from micro import caption_samples, micro_run, plain_image
from retrieval_models import save_retrieval_model, save_vqa_model
from stores import empty_stores, s3_server


@pytest.fixture(autouse=True)
def _stores(tmp_path, monkeypatch):
    with empty_stores(tmp_path / "cache", monkeypatch):
        yield


@pytest.fixture(params=["file", "memory", "hdfs", "s3"])
def base(request, tmp_path):
    """The URL of an empty folder."""
    if request.param == "s3":
        with s3_server():
            yield "s3://bucket/work"
    else:
        yield f"file://{tmp_path}/work" if request.param == "file" else f"{request.param}://bucket/work"


def upload(source: Path, url: str) -> str:
    files, path = fsspec.url_to_fs(url)
    if source.is_dir():
        for file in source.rglob("*"):
            if file.is_file():
                upload(file, f"{url}/{file.relative_to(source).as_posix()}")
    else:
        if not url.startswith("s3://"):
            files.makedirs(files._parent(path), exist_ok=True)
        files.put_file(str(source), path)
    return url


def exists(url: str) -> bool:
    files, path = fsspec.url_to_fs(url)
    files.invalidate_cache()
    return files.exists(path)


def photos(folder: Path) -> Path:
    folder.mkdir()
    for colour in ("red", "blue", "green"):
        plain_image(colour).save(folder / f"{colour}.png")
    lines = [f'{{"image": "{colour}.png", "caption": "a {colour} ball"}}' for colour in ("red", "blue", "green")]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_the_verbs_of_a_model_read_and_write_urls(base, tmp_path):
    model = upload(save_retrieval_model(tmp_path / "model"), join(base, "model"))
    images = upload(photos(tmp_path / "photos"), join(base, "photos"))
    image, text = join(images, "red.png"), "a red ball"

    assert "3 images" in call("index", images, "-o", join(base, "index"), "--model", model)
    if not base.startswith("file"):
        shutil.rmtree(tmp_path / "cache")  # another machine
    call("index", images, "-o", join(base, "index"))  # an update
    call("search", join(base, "index"), text, "--model", model, "--html", join(base, "found.html"))
    assert exists(join(base, "found.html"))
    assert text in call("match", model, image, text, "a blue ball")
    call("match", model, "--pairs", join(images, "captions.jsonl"), "-o", join(base, "scored/scored.jsonl"))
    assert exists(join(base, "scored/scored.jsonl"))
    assert "embedding" in call("embed", model, "--images", image)
    call("explain", model, image, text, "-o", join(base, "map.png"))
    assert exists(join(base, "map.png"))
    call("card", model)
    assert exists(join(base, "model/README.md"))
    answers = upload(save_vqa_model(tmp_path / "vqa"), join(base, "vqa"))
    call("ask", answers, image, "what colour")


def test_the_verbs_of_data_read_and_write_urls(base, tmp_path):
    images = upload(photos(tmp_path / "photos"), join(base, "photos"))
    call("data", "check", images)
    call("data", "stats", images)
    call("data", "show", images, "-o", join(base, "look"))
    assert exists(join(base, "look/report.html"))
    call("data", "shards", images, "-o", join(base, "shards"))
    assert "samples: 3" in call("data", "stats", "shards", f"path={join(base, 'shards')}")
    call("tokenizer", "train", join(images, "captions.jsonl"), "-o", join(base, "tokenizer"), "--vocab-size", "300")
    assert exists(join(base, "tokenizer/tokenizer.json"))


def recipe(tmp_path: Path, **changes: object) -> Path:
    tree = micro_run(Path("unused"), "retrieval", {"train": {"steps": 6, "save_every": 2}, **changes}).plain()
    tree.pop("output")
    file = tmp_path / "micro.yaml"
    file.write_text(dump_yaml(tree))
    return file


@pytest.mark.parametrize(
    "base",
    ["s3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("memory", "file", "hdfs"))],
    indirect=True,
)
def test_training_reads_and_writes_urls(base, tmp_path):
    images = upload(photos(tmp_path / "photos"), join(base, "photos"))
    source = {"source": "folder", "path": images}
    file = recipe(tmp_path, data={"train": source, "test": source})
    output = join(base, "run")
    said = call("train", file, "-o", output)
    assert ("report: " + (f"{local(output)}" if base.startswith("file") else output) + "/report.html") in said
    assert all(exists(join(output, name)) for name in ("model/model.safetensors", "report.html", "checkpoints/last"))
    if not base.startswith("file"):
        shutil.rmtree(tmp_path / "cache")
    call("evaluate", output)
    assert exists(join(output, "evaluation/report.json"))
    call("train", file, "-o", join(base, "second"), f"model.init={output}", "model.preset=null")
    assert "finished run" in call("train", file, "-o", output, code=2)


@pytest.mark.slow
def test_an_export_reads_and_writes_urls(base, tmp_path):
    model = upload(save_retrieval_model(tmp_path / "model"), join(base, "model"))
    call("export", model, "-o", join(base, "exported"), "--format", "torch")
    assert exists(join(base, "exported/config.json"))


def stop_at(patch: pytest.MonkeyPatch, folder: Path, step: int) -> None:
    """Stop a training, as the end of a machine's time does, when its log has a line of that step."""

    def is_over(_: StopSignal) -> bool:
        return any(each >= step for each, _ in read_log(folder).get("loss", []))

    patch.setattr(StopSignal, "came", property(is_over, lambda self, value: None), raising=False)


@pytest.mark.parametrize("scheme", ["memory", "hdfs", "s3"])
def test_a_run_resumes_from_its_url_after_the_machine_is_gone(scheme, tmp_path, monkeypatch):
    samples = {"train": caption_samples(), "test": caption_samples()}
    changes = {"train": {"steps": 8, "save_every": 2, "log_every": 1, "ema": 0.5}}
    train(micro_run(tmp_path / "whole", "retrieval", changes), samples=samples)

    def remote_part() -> None:
        output = f"{scheme}://bucket/runs/part"
        config = micro_run(tmp_path, "retrieval", changes).model_copy(update={"output": output})
        with monkeypatch.context() as patch:
            stop_at(patch, local(output), step=5)
            with pytest.raises(EvleError, match="stopped after step"):
                train(config, samples=samples)
        shutil.rmtree(tmp_path / "cache")
        train(config, samples=samples)
        shutil.rmtree(tmp_path / "cache")
        part = fetch(output, skip=lambda name: False)
        assert Run(part).status()["state"] == "finished"
        for name in ("model/model.safetensors", "checkpoints/last/ema.safetensors"):
            assert (part / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        losses = [read_log(folder)["loss"] for folder in (part, tmp_path / "whole")]
        assert losses[0] == losses[1]

    if scheme == "s3":
        with s3_server():
            remote_part()
    else:
        remote_part()


def test_a_recipe_of_stages_goes_to_a_url_as_a_whole(tmp_path):
    images = photos(tmp_path / "photos")
    source = {"source": "folder", "path": str(images)}
    one = micro_run(Path("unused"), "retrieval", {"train": {"steps": 2}}).plain()
    one.pop("output")
    one["data"] = {"train": source, "test": source}
    stages = {"first": {}, "second": {"model": {"init": "stage:first", "preset": None}}}
    file = tmp_path / "two.yaml"
    file.write_text(dump_yaml({"title": "two", "defaults": one, "stages": stages}))
    call("train", file, "-o", "memory://bucket/two")
    shutil.rmtree(tmp_path / "cache")
    said = call("train", file, "-o", "memory://bucket/two")
    assert said.count("finished before, kept") == 2
    assert "report: memory://bucket/two/report.html" in said


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("readonly://bucket/run", "cannot be written"),
        ("nosuch://bucket/run", "unknown scheme"),
        ("s3://missing/run", "bucket does not exist"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_line_before_training(output, words, tmp_path):
    images = photos(tmp_path / "photos")
    source = {"source": "folder", "path": str(images)}
    file = recipe(tmp_path, data={"train": source})
    if output.startswith("s3"):
        with s3_server():
            said = call("train", file, "-o", output, code=2)
    else:
        said = call("train", file, "-o", output, code=2)
    assert words in said
    assert len(said.strip().splitlines()) == 1
    assert output in said


def test_missing_credentials_are_one_line(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    fsspec.filesystem("s3").clear_instance_cache()
    said = call("data", "show", "scenes", "-o", "s3://bucket/look", code=2)
    assert "set the credentials" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    [
        ("ask", "memory://b/none", "a.png", "what"),
        ("search", "memory://b/none", "a dog"),
        ("evaluate", "memory://b/none"),
        ("data", "check", "memory://b/none"),
        ("train", "memory://b/none.yaml"),
        ("train", "easy-vqa", "model.init=memory://b/none", "--dry-run"),
        ("new", "vle", "--vision", "memory://b/none", "--text", "memory://b/none", "-o", "x"),
        ("serve", "name=memory://b/none"),
        ("demo", "memory://b/none"),
        ("merge", "memory://b/none", "-o", "x"),
        ("export", "memory://b/none", "-o", "x"),
        ("convert", "eve", "memory://b/none.th", "x"),
        ("push", "memory://b/none", "a/b"),
        ("vcr", "memory://b/none", "memory://b/none"),
    ],
    ids=lambda command: command[0],
)
def test_an_input_that_is_not_there_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = call(*command, code=2)
    assert "memory://b/none" in said
    assert "no such file or folder" in said


def test_every_parameter_that_is_a_path_takes_urls():
    def verbs(group):
        for command in group.commands.values():
            yield from verbs(command) if hasattr(command, "commands") else [command]

    listed = list(verbs(get_command(cli.app)))
    assert len(listed) > 20
    for command in listed:
        parameters = inspect.signature(command.callback).parameters.values()
        assert not [each.name for each in parameters if "Path" in str(each.annotation).split("typer")[0]], command.name


def test_a_path_that_is_an_input_is_fetched_and_an_output_is_opened(tmp_path):
    def verb(model: Path, images: list[Path], output: Path | None = None, text: str = "") -> None:
        seen.append((model, images, output, text))

    seen: list[object] = []
    upload(photos(tmp_path / "photos"), "memory://b/photos")
    image = "memory://b/photos/red.png"
    urls.takes_urls(verb)(model=image, images=["a.png", image], output="hdfs:///b/out", text=image)
    local_image = local(image, "inputs")
    assert seen == [(local_image, [Path("a.png"), local_image], local("hdfs:///b/out"), image)]
