"""Peers at equal compute, run whole with seconds of training."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from evle.transforms.collate import number_ids

COLOURS = {"red": (200, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 200), "grey": (90, 90, 90)}


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return importlib.import_module("benchmarks.peers")


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


def test_every_run_is_kept_and_a_repeated_command_only_reports(peers, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peers, "BATCH", 16)
    monkeypatch.setattr(peers, "RATES", (1e-3,))
    command = [str(images), "-o", str(tmp_path / "out"), "--minutes", "0.05", "--trial-minutes", "0.05"]
    command += ["--workers", "0"]
    command += ["--gallery", "6", "--seeds", "1", "--more", "1", "--peers", "clip", "siglip", "vilt", "eve"]
    peers.main([*command, "--report", str(tmp_path / "peers.md")])
    results = sorted((tmp_path / "out" / "results").glob("*.json"))
    assert len(results) == 4 + 4 + 2  # trials, runs, and another seed of the closest pair
    found = json.loads(results[0].read_text())
    assert found["steps"] > 0
    assert set(found["tests"]) == {"test_style", "val"}
    text = (tmp_path / "peers.md").read_text()
    assert "runs of 0.05 minutes, not of the 10" in text
    assert all(f"| {name} |" in text for name in ("clip", "siglip", "vilt", "eve"))
    assert "benchmarks.peers FOLDER" in text
    assert str(images) not in text
    monkeypatch.setattr(peers, "run", None)
    peers.main(command)
    capsys.readouterr()


def test_concepts_for_tuning_are_kept_out_of_training(peers, images):
    data = peers.Data(images, ["train"], ["val"], 100)
    trained, tuned = ({sample.captions[0] for sample in part} for part in (data.train, data.tuning))
    assert trained
    assert tuned
    assert not trained & tuned
    assert len(trained) + len(tuned) == 80
    assert len(data.tests["val"]) == 8


def test_siglip_is_the_sigmoid_of_every_pair(peers, images):
    data = peers.Data(images, ["train"], ["val"], 100)
    ready = peers.prepared("siglip", data, 0, (), 0)
    contender = peers.BUILDERS["siglip"](ready).train(False)
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


def test_towers_must_be_given_for_what_starts_from_them(peers, images, capsys):
    with pytest.raises(SystemExit):
        peers.main([str(images), "--peers", "frozen"])
    assert "frozen needs --towers" in capsys.readouterr().err
