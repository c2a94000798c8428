"""The benchmarks of VLE, run whole on the smallest preset: all ways compute the same, what is printed is counted."""

import importlib
import json
from pathlib import Path

import pytest
import torch

from evle.models.vle import VLEForPreTraining, VLEForVQA
from vle_models import batch, build, relative_difference

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--preset", "vle-tiny", "--batch", "2", "--rounds", "1", "--peak-size", "64", "--text-length", "12"]


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.parametrize("an_image", ["1", "2"])
def test_vcr_ways_agree_and_encoding_the_image_once_is_the_least_work(an_image, load, tmp_path, capsys):
    arguments = [*SMALL, "--questions-an-image", an_image, "--json", str(tmp_path / "vcr.json")]
    report = load("vle_vcr").main(arguments)
    printed = capsys.readouterr().out
    assert report["largest difference of a score"] < 1e-4
    ways = report["compared"]["VCR, one call"]
    assert all(name in printed for name in ways)
    first, *others = ways.values()
    assert first["flops_ratio"] == first["ratio"] == 1
    assert all(other["flops_ratio"] > 1.1 for other in others)
    assert json.loads((tmp_path / "vcr.json").read_text(encoding="utf-8"))["compared"]["VCR, one call"] == ways


def test_step_compares_three_kinds_of_work(load, capsys):
    report = load("vle_step").main([*SMALL, "--dtype", "bf16"])
    printed = capsys.readouterr().out
    for part in ("inference", "fine-tuning", "pre-training"):
        assert part in printed
        assert report["compared"][part]["port"]["seconds"] > 0
    assert report["compared"]["pre-training"]["port"]["flops_ratio"] > 1.2


def test_the_port_computes_what_ours_computes(load):
    model, port = build(VLEForVQA), load("side_by_side").stock_port(build(VLEForVQA))
    assert {type(layer.attention.self).__name__ for layer in port.vle.text_model.encoder.layer} == {
        "DisentangledSelfAttention"
    }
    with torch.no_grad():
        assert relative_difference(port(**batch()).logits, model(**batch()).logits) < 1e-5


def test_pass_by_pass_has_the_losses_of_one_step(load, monkeypatch):
    """With the same negatives, each row's neighbour, the port's four losses are ours."""
    step = load("vle_step")
    model = build(VLEForPreTraining, mpc_readout="patches")
    inputs = step.make_batch(model.config, 3, 7)
    rolled = torch.arange(3).roll(1)
    monkeypatch.setattr(
        "evle.models.vle.matching.draw_negatives", lambda ids, _: (rolled, rolled, torch.ones(3, dtype=torch.bool))
    )
    with torch.no_grad():
        assert relative_difference(step.pass_by_pass(model, inputs), model(**inputs).loss) < 1e-4
