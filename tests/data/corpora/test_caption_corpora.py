"""From official files to a report: every corpus of captions is trained on for two steps and evaluated."""

import json

import pytest
from typer.testing import CliRunner

import corpora
from evle.cli import main as cli
from evle.data.loader import Loader
from evle.data.sources import read_source
from evle.run import stages
from micro import micro_run

SHORT = {"train": {"steps": 2, "batch_size": 4, "log_every": 1}, "text": {"max_length": 16}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpora.write_all(tmp_path_factory.mktemp("corpora"))


def splits(source, options, train=None, **each):
    return {
        split: {"source": source, "split": split, **options, **((train or {}) if split == "train" else {}), **each}
        for split in ("train", "val", "test")
    }


@pytest.mark.parametrize("source", ["karpathy", "xvlm"])
def test_retrieval_is_trained_and_scored_on_the_published_splits(source, folder, tmp_path):
    options = {name: value for name, value in corpora.options_of(source, folder).items() if name != "split"}
    config = micro_run(tmp_path, "retrieval", {**SHORT, "data": splits(source, options, train={"pairs": True})})
    report = stages.train(config)
    told = json.loads((tmp_path / "report.json").read_text())
    assert report.title
    assert set(told["scores"]["test"]) >= {"TR@1", "IR@10", "R@mean"}
    assert told["scores"]["chance"]["TR@1"] == pytest.approx(100 / 6, abs=0.1)
    assert "dataset_coco.json" in json.dumps(told) or "coco_test.json" in json.dumps(told)


@pytest.mark.parametrize("source", ["coco-captions", "visual-genome", "sbu", "cc"])
def test_each_corpus_can_be_pre_trained_on(source, folder, tmp_path):
    train = {"source": source, **corpora.options_of(source, folder)}
    val = {"source": "karpathy", "path": str(folder / "coco"), "split": "val"}
    stages.train(micro_run(tmp_path, "pretraining", {**SHORT, "data": {"train": train, "val": val}}))
    assert (tmp_path / "report.json").is_file()


def test_the_published_mix_reports_what_was_left_out(folder, tmp_path):
    exclude = [str(folder / "coco/dataset_coco.json"), str(folder / "flickr30k/dataset_flickr30k.json")]
    sources = [
        {"source": name, **corpora.options_of(name, folder), "exclude": exclude, **more}
        for name, more in (
            ("coco-captions", {"pairs": True}),
            ("visual-genome", {"pairs": True}),
            ("sbu", {}),
            ("cc", {}),
        )
    ]
    sources[3]["weight"] = 2
    val = {"source": "karpathy", "path": str(folder / "coco"), "split": "val"}
    stages.train(micro_run(tmp_path, "pretraining", {**SHORT, "data": {"train": sources, "val": val}}))
    told = (tmp_path / "report.json").read_text()
    assert "left out as images of downstream tasks" in told
    assert "no image was downloaded" in told


def test_a_corrupt_image_is_skipped_and_named_in_the_report(tmp_path):
    coco = corpora.coco(tmp_path / "coco")
    damaged = coco / "val2014/COCO_val2014_000000000028.jpg"
    damaged.write_bytes(damaged.read_bytes()[:100])
    options = {"path": str(coco)}
    stages.train(micro_run(tmp_path / "run", "retrieval", {**SHORT, "data": splits("karpathy", options)}))
    told = json.loads((tmp_path / "run/report.json").read_text())
    assert str(damaged) in json.dumps(told)


def test_workers_read_from_files_as_the_main_process_does(folder, tmp_path):
    for source in corpora.OPTIONS:
        samples = read_source(source, corpora.options_of(source, folder))
        batches = [
            list(Loader(samples, _key, list, batch_size=4, seed=0, num_workers=workers).batches(0))
            for workers in (0, 1)
        ]
        assert batches[0] == batches[1]


def _key(sample, rng):
    return sample.key


def call(*arguments, code=0):
    """What a command prints; its exit code is checked."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("source", corpora.OPTIONS)
def test_data_check_show_and_stats_know_every_corpus(source, folder, tmp_path):
    options = [f"{name}={value}" for name, value in corpora.options_of(source, folder).items()]
    said = call("data", "check", source, *options)
    assert f"source: {source}" in said
    assert said.endswith("every sample can be used\n")
    assert "texts: " in call("data", "stats", source, *options)
    call("data", "show", source, *options, "--num", 4, "-o", tmp_path / "look")
    assert (tmp_path / "look/report.html").read_text().count("<img") == 4


def test_data_check_names_a_corrupt_image_and_a_wrong_split(tmp_path, monkeypatch):
    coco = corpora.coco(tmp_path / "karpathy")  # a folder of the source's name does not hide the source
    monkeypatch.chdir(tmp_path)
    damaged = coco / "val2014/COCO_val2014_000000000028.jpg"
    damaged.write_bytes(b"")
    said = call("data", "check", "karpathy", "path=karpathy", "--split", "test", code=1)
    assert "unreadable images: 1\n  karpathy/val2014/COCO_val2014_000000000028.jpg: is empty (0 bytes)" in said
    assert "every sample can be used" in call("data", "check", "karpathy", "path=karpathy", "--split", "val")
    assert "did you mean 'test'?" in call("data", "check", "karpathy", "path=karpathy", "--split", "tset", code=2)
