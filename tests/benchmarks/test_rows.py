"""Every row of the benchmark, on the smallest sizes: it runs, and the textbook computes what ours computes."""

import json
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from benchmarks.__main__ import main, precisions_of, row_names
from benchmarks.case import Setting
from benchmarks.eve_batches import eve_config, masked_pairs
from benchmarks.measuring import count_flops, run_row
from benchmarks.profile_row import main as profile_row
from benchmarks.rows.masked_signal_memory import kept_bytes
from benchmarks.table import lines_of, markdown

import benchmarks
from evle.models.eve import EVEForPreTraining

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


SLOW = {("tiny_training", "bf16")}  # twenty times as long as in fp32 on processors without bfloat16


@pytest.mark.parametrize(
    ("row", "precision"),
    [
        pytest.param(row, precision, marks=[pytest.mark.slow] * ((row, precision) in SLOW))
        for row in row_names()
        for precision in precisions_of(row)
    ],
)
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


def test_the_experts_kernel_does_not_change_the_count_of_operations():
    case = build("masked_signal_8", Setting(quick=True, exact=True))
    step = next(iter(case.ways.values()))
    counts = []
    for experts in ("eager", "grouped_mm"):
        case.model.set_experts_implementation(experts)
        counts.append(count_flops(step))
    assert counts[0] == counts[1] > 0


def test_activations_grow_on_a_line():
    """Two batch sizes are enough to predict a third one."""
    setting = Setting(quick=True)  # in bf16 added rows would count at these sizes
    config = eve_config(setting, 224)
    model = EVEForPreTraining(config).train()
    small, middle, large = (kept_bytes(model, masked_pairs(config, size), setting) for size in (2, 4, 6))
    assert middle - small == pytest.approx(large - middle, rel=0.05)


def test_new_conditions_start_a_row_again(tmp_path):
    file = tmp_path / "eve_forward.fp32.json"
    first = run_row(import_module("benchmarks.rows.eve_forward").build, Setting(quick=True), 1, file)
    file.write_text(file.read_text(encoding="utf-8").replace(torch.__version__, "0.1"), encoding="utf-8")
    again = run_row(import_module("benchmarks.rows.eve_forward").build, Setting(quick=True), 1, file)
    assert again["conditions"] == first["conditions"]
    assert again["rounds"] != first["rounds"]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_share_of_the_peak_and_the_ratio_are_taken_round_by_round(threads):
    def ran(seconds, peak):
        """One thread is judged by its processor time, several by the clock."""
        times = {"processor_seconds": seconds, "seconds": 99 + seconds**3}
        return times | {"peak": peak} if threads == 1 else {"processor_seconds": 7, "seconds": seconds, "peak": peak}

    record = {
        "conditions": {"dtype": "fp32", "threads": threads},
        "bases": {"ours": "ours", "textbook": "ours"},
        "ways": {"ours": {"flops": 10, "memory": 2e9}, "textbook": {"flops": 20, "memory": 3e9}},
        "rounds": [{"ours": ran(1, 20), "textbook": ran(3, 20)}, {"ours": ran(2, 10), "textbook": ran(4, 10)}],
        "unit": "pairs",
        "units": {"ours": 6.0},
        "facts": {},
    }
    (line,) = lines_of("row", record)
    assert line["ratio"] == 2.5  # 3 / 1 and 4 / 2
    assert line["ratio_range"] == [2, 3]
    assert line["share_of_peak"] == 0.5  # 10 / 1 / 20 and 10 / 2 / 10
    assert line["rate"] == 4
    assert "| row | fp32 | 1.5 s (4 pairs/s) | textbook | **2.50** (2.00 to 3.00) |" in markdown({"row.fp32": record})


def test_no_module_hides_one_of_the_standard_library():
    """`python benchmarks/serving.py` puts the folder first on the path: a `profile.py` there breaks importing torch."""
    names = {file.stem for file in Path(benchmarks.__path__[0]).iterdir()}
    assert "serving" in names
    assert not names & sys.stdlib_module_names


def test_a_row_that_the_system_stops_is_reported_as_short_of_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: subprocess.CompletedProcess([], -signal.SIGKILL))
    assert main(["--rows", "soft_layer", "--dtypes", "fp32", "--out", str(tmp_path)]) == 1
    assert "soft_layer, fp32: failed; stopped by the system" in capsys.readouterr().err
