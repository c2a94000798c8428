"""The benchmark of reading, run whole on two small images: every pipeline stands in its report."""

import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def reading(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("reading")


def test_it_reports_every_pipeline(reading, tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        reading.main(
            [
                "--sizes",
                "32",
                "--images",
                "64x48",
                "--count",
                "2",
                "--rounds",
                "1",
                "--json",
                str(tmp_path / "r.json"),
            ]
        )
    finally:
        torch.set_num_threads(threads)
    results = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["results"]
    assert [each["run"] for each in results] == [*reading.OURS, *reading.PEERS] * 2
    assert all(each["per_second"] > 0 for each in results)
    assert all(each["ratios"][each["run"]] == 1 for each in results if each["run"] in reading.PEERS)
    assert "64x48" in capsys.readouterr().out


def test_all_pipelines_make_batches_of_one_form(reading, tmp_path):
    file = tmp_path / "a.jpg"
    reading.make_jpeg(file, 64, 48, 0)
    for train in (True, False):
        batches = [
            reading.ours([str(file)], 32, train)(),
            reading.peer([file], 32, train, tensors=False)(),
            reading.peer([file], 32, train, tensors=True)(),
        ]
        assert {(each.shape, each.dtype) for each in batches} == {((1, 3, 32, 32), torch.float32)}
    assert (batches[0] - batches[1]).abs().max() < 0.05  # in evaluation all see the same
