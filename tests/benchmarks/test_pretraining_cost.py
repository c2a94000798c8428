"""The benchmark of pre-training's cost, run whole on the smallest preset: what it prints is what it counts."""

import argparse
import importlib
import json
from pathlib import Path

import pytest
import torch

from evle.models import even_rows
from evle.models.eve import EVEConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def cost(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("pretraining_cost")


@pytest.fixture
def bench(cost):
    sizes = {"num_hidden_layers": 2, "soft_layers": (1,), "hidden_size": 96, "intermediate_size": 128, "image_size": 32}
    config = EVEConfig.from_preset("eve-tiny", objectives=cost.VARIANTS["all four"], **sizes)
    return cost.Bench(config, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("variant", ["mlm+mim", "all four"])
def test_a_step_in_bfloat16_counts_the_operations_of_one_in_float32(cost, bench, variant, monkeypatch):
    monkeypatch.setattr(even_rows, "even_rows", lambda num_rows: num_rows)  # rows of zeros weigh at these sizes
    inputs = cost.make_batch(bench.model.config, 2, 6, bench.device)
    half = cost.Bench(bench.model.config, torch.bfloat16, bench.device)
    with bench.objectives(variant), half.objectives(variant):
        assert half.count_flops(inputs) == pytest.approx(bench.count_flops(inputs), rel=0.05)
    half.step(inputs)


def test_it_reports_every_variant_and_part(cost, tmp_path, capsys):
    sizes = ["--preset", "eve-tiny", "--batch", "2", "--text-length", "8", "--decoder-layers", "1", "--dtype", "fp32"]
    cost.main([*sizes, "--rounds", "1", "--peak-size", "64", "--json", str(tmp_path / "cost.json")])
    report = json.loads((tmp_path / "cost.json").read_text(encoding="utf-8"))
    printed = capsys.readouterr().out
    assert report["decoder"] == [1, 96]
    for variant in cost.VARIANTS:
        assert variant in printed
        assert report["time"][variant]["step_seconds"] > 0
        assert report["memory"][variant]["largest_batch"] > 0
    ratios = [report["time"][variant]["flops_ratio"] for variant in cost.VARIANTS]
    assert ratios[0] == 1
    assert ratios == sorted(ratios)
    groups = report["profile"]["groups"]
    assert {"experts", "feed-forward of one modality", "pixel decoder", "vocabulary head", "optimizer"} <= set(groups)
    assert sum(share for _, share in groups.values()) == pytest.approx(1)


def test_the_experts_kernel_does_not_change_the_count_of_operations(cost, bench):
    inputs = cost.make_batch(bench.model.config, 2, 6, bench.device)
    bench.model.config.second_choice = "top"
    counted = []
    for experts in ("eager", "grouped_mm"):
        bench.model.set_experts_implementation(experts)
        with bench.objectives("mlm+mim"):
            counted.append(bench.count_flops(inputs))
    assert counted[0] == counted[1] > 0


def test_activations_grow_on_a_line(cost, bench):
    """Two batch sizes are enough to tell what a third one needs."""
    with bench.objectives("all four"):
        small, middle, large = (
            bench.saved_bytes(cost.make_batch(bench.model.config, size, 6, bench.device)) for size in (2, 4, 6)
        )
    assert middle - small == pytest.approx(large - middle, rel=0.02)


def test_a_parameter_is_no_activation(cost, bench):
    inputs = cost.make_batch(bench.model.config, 2, 6, bench.device)
    bench.forward = lambda inputs: bench.model.mlm_head[0](torch.zeros(5, 96)).sum()
    assert bench.saved_bytes(inputs) == 5 * 96 * 4  # the input; the weight is a parameter


@pytest.mark.parametrize(("text", "size"), [("80GB", 80e9), ("24GiB", 24 * 2**30), ("0.5g", 5e8)])
def test_memory_is_read_with_its_unit(cost, text, size):
    assert cost.parse_memory(text) == size


def test_memory_without_a_unit_is_refused(cost):
    with pytest.raises(argparse.ArgumentTypeError, match="write 80GB or 24GiB"):
        cost.parse_memory("80")
