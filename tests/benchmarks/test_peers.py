"""Peers at equal compute, run whole with seconds of training."""

import argparse
import importlib
import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image

from evle.data.custom.folder import folder
from evle.transforms.collate import number_ids

COLOURS = {"red": (200, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 200), "grey": (90, 90, 90)}


@pytest.fixture
def module(monkeypatch):
    """A module of the package by its name."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return lambda name: importlib.import_module(f"benchmarks.peers.{name}")


@pytest.fixture
def images(tmp_path):
    rows = []
    for number in range(24):
        for name, colour in COLOURS.items():
            file = tmp_path / f"{name}-{number}.png"
            Image.new("RGB", (24, 24), colour).save(file)
            split = "train" if number < 20 else "test_style" if number < 22 else "val"
            rows.append({"image": file.name, "captions": [f"{name} square {number}"], "split": split})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path


def options(folder, *more):
    return [str(folder), "-o", str(folder / "out"), "--minutes", "0.01", "--trial-minutes", "0.01", *more]


def test_every_run_is_kept_and_a_repeated_command_only_reports(module, images, tmp_path, capsys, monkeypatch):
    command, retrieval = module("__main__"), module("retrieval")
    monkeypatch.setattr(retrieval, "BATCH", 16)
    monkeypatch.setattr(retrieval, "RATES", dict.fromkeys(retrieval.ABOUT, (1e-3,)))
    given = options(images, "--gallery", "6", "--seeds", "1", "--more", "1")
    given += ["--peers", "clip", "siglip", "vilt", "eve"]
    command.main([*given, "--report", str(tmp_path / "peers.md")])
    results = sorted((images / "out" / "results").glob("*.json"))
    assert len(results) == 4 + 4 + 2  # trials, runs, and another seed of the closest pair
    found = json.loads(results[0].read_text())
    assert found["steps"] > 0
    assert set(found["tests"]) == {"test_style", "val"}
    assert not any("tests" in json.loads(file.read_text()) for file in results if "-trial-" in file.name)
    text = (tmp_path / "peers.md").read_text()
    assert "runs of 0.01 minutes, not of the 10" in text
    assert all(f"| {name} |" in text for name in ("clip", "siglip", "vilt", "eve", "chance"))
    assert "benchmarks.peers FOLDER" in text
    assert str(images) not in text
    again = [*given, "--report", str(tmp_path / "peers.md"), "--add", "On another machine", "--note", "Beside tests."]
    command.main(again)
    command.main(again)
    page = (tmp_path / "peers.md").read_text()
    assert page.startswith(text.rstrip())
    assert page.count("## On another machine\n\nBeside tests.\n\n### Retrieval") == 1
    monkeypatch.setattr(module("contest").Contest, "run", None)
    command.main(given)
    capsys.readouterr()


def test_a_rate_that_is_given_takes_the_place_of_trials(module, images, monkeypatch, capsys):
    command = module("__main__")
    monkeypatch.setattr(module("retrieval"), "BATCH", 16)
    command.main(options(images, "--gallery", "6", "--seeds", "1", "--peers", "clip", "--rates", "clip=2e-3"))
    (file,) = (images / "out" / "results").glob("*.json")
    assert json.loads(file.read_text())["rate"] == 2e-3
    assert "The learning rate of clip was given, not chosen by trials." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(options(images, "--rates", "clap=1e-3"))
    assert "no contender 'clap'" in capsys.readouterr().err


def test_what_depends_on_the_towers_is_not_taken_with_others(module, tmp_path):
    retrieval, contest = module("retrieval"), module("contest")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    one = retrieval.checksums_of_weights(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert retrieval.checksums_of_weights(str(tmp_path)) != one
    settings = {"settings": {"--gallery": 6}, "own_settings": {"vle": {"towers": [one]}}}
    made = contest.Contest("", "", {}, {}, (), "", [], [], {}, None, None, (), **settings)
    assert made.settings_of("clip") == {"--gallery": 6}
    assert made.settings_of("vle") == {"--gallery": 6, "towers": [one]}


def test_a_result_of_other_settings_is_not_taken_for_one_of_these(module, images, monkeypatch):
    command, retrieval = module("__main__"), module("retrieval")
    monkeypatch.setattr(retrieval, "BATCH", 16)
    monkeypatch.setattr(retrieval, "RATES", dict.fromkeys(retrieval.ABOUT, (1e-3,)))
    given = options(images, "--seeds", "1", "--more", "0", "--peers", "eve")
    command.main([*given, "--gallery", "6"])
    with pytest.raises(SystemExit, match=r"made with other --gallery, 6 and not 4; choose another folder"):
        command.main([*given, "--gallery", "4"])
    with pytest.raises(SystemExit, match="made with other --tests"):
        command.main([*given, "--gallery", "6", "--tests", "val"])


def test_longer_trials_count_once_there_is_one_of_every_rate(module, tmp_path):
    longest = module("__main__").longest_trials
    for minutes, rate in ((0.5, 1e-3), (0.5, 3e-3), (2.0, 1e-3)):
        file = tmp_path / f"clip-trial-{minutes:g}min-rate-{rate:g}-seed-0.json"
        file.write_text(json.dumps({"minutes": minutes, "rate": rate}))
    assert longest(tmp_path, "clip", (1e-3, 3e-3), 0.25) == 0.5
    assert longest(tmp_path, "clip", (1e-3,), 0.25) == 2
    assert longest(tmp_path, "open-clip", (1e-3,), 0.25) == 0.25


@pytest.mark.slow
def test_answers_to_questions_about_scenes_are_compared_too(module, images, capsys, monkeypatch):
    questions = module("questions")
    monkeypatch.setattr(questions, "BATCH", 4)
    monkeypatch.setattr(questions, "TUNED", 8)
    monkeypatch.setattr(questions, "QUESTIONS", 400)
    monkeypatch.setattr(questions, "SCRATCH_RATES", (1e-3,))
    module("__main__").main(
        options(images, "--gallery", "2", "--seeds", "1", "--more", "0", "--peers", *questions.ABOUT)
    )
    text = capsys.readouterr().out
    assert "## Questions about scenes" in text
    rows = [line for line in text.splitlines() if line.startswith(("| vqa-", "| chance"))]
    assert len(rows) == 1 + 2 * len(questions.ABOUT)
    assert all(json.loads(file.read_text())["steps"] > 0 for file in (images / "out" / "results").glob("*-run-*.json"))


def test_the_budget_is_processor_time_whatever_the_clock_says(module, images, monkeypatch):
    contest, retrieval = module("contest"), module("retrieval")
    monkeypatch.setattr(retrieval, "BATCH", 8)
    samples = contest.Chosen(folder(images, "captions", "train"), range(80))
    ready = retrieval.prepared("clip", samples, 0, ())
    moments = iter(range(1000))
    monkeypatch.setattr(contest.time, "process_time", lambda: float(next(moments)))  # a second for every step
    trained = contest.train(retrieval.BUILDERS["clip"](ready), ready, 1e-3, 0, 5.0)
    assert (trained.steps, trained.seconds) == (4, 5.0)


def test_concepts_for_tuning_are_kept_out_of_training(module, images):
    contest = module("retrieval").contest(
        argparse.Namespace(folder=images, train=["train"], tests=["val"], gallery=100, towers=(), output=images)
    )
    galleries = [[sample.captions[0] for sample in gallery] for gallery in contest.tuning]
    trained, tuned = {sample.captions[0] for sample in contest.learned}, set(chain.from_iterable(galleries))
    assert trained
    assert tuned
    assert not trained & tuned
    assert len(trained) + len(tuned) == 80
    assert sum(map(len, galleries)) == len(tuned)  # no caption is in two galleries
    assert len(contest.tests["val"]) == 8


def test_samples_are_divided_into_parts_that_are_spread_over_all(module):
    contest = module("contest")
    parts = contest.divided(contest.Chosen(list(range(70)), range(70)), 30)
    assert [len(part) for part in parts] == [24, 23, 23]
    assert sorted(chain.from_iterable(parts)) == list(range(70))
    assert [part[0] for part in parts] == [0, 1, 2]


@pytest.mark.parametrize(("best", "at_end"), [(1e-4, True), (3e-4, False), (1e-3, True)])
def test_the_page_tells_that_the_best_rate_is_at_the_end_of_those_tried(module, best, at_end):
    trials = [{"peer": "eve", "rate": rate} for rate in (1e-4, 3e-4, 1e-3)]
    assert module("page")._is_at_end("eve", [{"rate": best}], trials) == at_end


@pytest.mark.slow
def test_a_model_of_open_clip_is_trained_by_its_own_command(module, images, monkeypatch, tmp_path):
    pytest.importorskip("open_clip_train", reason="benchmarks/requirements.txt is not installed")
    contest, openclip, retrieval = (module(name) for name in ("contest", "openclip", "retrieval"))
    samples = contest.Chosen(folder(images, "captions", "train"), range(8))
    ready = retrieval.prepared("open-clip", samples, 0, ())
    (tmp_path / "timing.json").write_text(json.dumps({"start": 0.0, "step": 1.0}))
    trained = openclip.train(ready, samples, tmp_path, 4, 1e-3, 0, 3.0)
    assert trained.steps == 3
    assert trained.seconds > 0
    table = (tmp_path / "rate-0.001-seed-0-steps-3.csv").read_text().splitlines()
    assert len(table) == 1 + 3 * 4  # eight images, four of them twice
    scores = retrieval.score(trained, samples)
    assert 0 <= scores["R@mean"] <= 100


def test_siglip_is_the_sigmoid_of_every_pair(module, images):
    retrieval = module("retrieval")
    ready = retrieval.prepared("siglip", folder(images, "captions", "train"), 0, ())
    contender = retrieval.BUILDERS["siglip"](ready).train(False)
    batch = {
        "pixel_values": torch.randn(3, 3, 64, 64),
        "input_ids": torch.randint(5, 50, (3, 6)),
        "attention_mask": torch.ones(3, 6, dtype=torch.long),
        "match_ids": number_ids(["a", "b", "c"]),
    }
    image = contender.get_image_features(batch["pixel_values"])
    text = contender.get_text_features(batch["input_ids"], batch["attention_mask"])
    logits = contender.model.logit_scale.exp() * text @ image.T + contender.bias
    naive = sum(
        -torch.nn.functional.logsigmoid(logits[row, column] if row == column else -logits[row, column])
        for row in range(3)
        for column in range(3)
    )
    torch.testing.assert_close(contender.loss(batch), naive / 3)


def test_towers_must_be_given_for_what_starts_from_them(module, images, capsys):
    with pytest.raises(SystemExit):
        module("__main__").main([str(images), "--peers", "frozen"])
    assert "frozen needs --towers" in capsys.readouterr().err
