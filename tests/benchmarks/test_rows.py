"""Every row of the benchmark, on the smallest sizes: it runs, and the textbook computes what ours computes."""

import json
from importlib import import_module

import pytest
import torch
from benchmarks.__main__ import precisions_of, row_names
from benchmarks.case import Setting
from benchmarks.measuring import run_row
from benchmarks.profile import main as profile_row
from benchmarks.table import lines_of, markdown

WITH_TEXTBOOK = (
    "eve_forward",
    "eve_vqa_step",
    "eve_retrieval_step",
    "soft_layer",
    "masked_signal_8",
    "input_pipeline",
    "vle_forward",
    "vle_vqa_step",
    "vle_pretraining_step",
    "vle_vcr",
)


def build(row: str, setting: Setting):
    torch.manual_seed(0)
    return import_module(f"benchmarks.rows.{row}").build(setting)


@pytest.mark.parametrize("row", WITH_TEXTBOOK)
def test_what_ours_is_compared_with_computes_the_same(row):
    differences = build(row, Setting(quick=True, exact=True)).differences()
    assert differences
    limit = 0.05 if row == "input_pipeline" else 1e-4  # decoders and resizing round differently
    assert max(differences.values()) < limit, {name: value for name, value in differences.items() if value >= limit}


@pytest.mark.parametrize(("row", "precision"), [(row, one) for row in row_names() for one in precisions_of(row)])
def test_a_row_measures_all_its_ways(row, precision, tmp_path):
    file = tmp_path / f"{row}.{precision}.json"
    record = run_row(import_module(f"benchmarks.rows.{row}").build, Setting(precision, quick=True), 1, file)
    assert json.loads(file.read_text(encoding="utf-8"))["rounds"] == record["rounds"]
    assert record["ways"] or record["facts"]
    for line in lines_of(row, record):
        assert line["seconds"] > 0
        assert line["ratio"] > 0
    assert row in markdown({file.stem: record})
    assert run_row(None, Setting(precision, quick=True), 1, file) == record  # what was measured stays


def test_a_profile_divides_the_time_among_the_parts_of_the_model():
    parts = profile_row(["masked_signal_8", "bf16", "--quick"])["parts"]
    assert {"experts", "feed-forward of one modality", "pixel decoder", "router", "layer norms"} <= set(parts)
    assert sum(share for _, share in parts.values()) == pytest.approx(1)
