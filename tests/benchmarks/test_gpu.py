"""What a person with a GPU runs: which steps, how they are shown, and all of them on the CPU."""

import json
import os
import subprocess
import sys

import pytest
from benchmarks.gpu import main, problem_in, steps, table

from benchmarks import gpu

STEP = {"seconds": 0.5, "samples": 64, "processes": 2, "memory": 3e9, "flops": 1e12, "peak": 8e12}


def test_a_cpu_has_the_steps_of_two_devices_without_fp16():
    names = [step.name for step in steps(1, "cpu")]
    assert names == [step.name for step in steps(2, "cuda") if step.name != "fp16"]
    assert {"fp32", "bf16", "compile", "fsdp2 on one", "fsdp2", "divided experts"} < set(names)
    assert not any(step.processes > 1 for step in steps(1, "cuda"))


def test_the_table_has_rates_and_compares_losses_with_those_of_float32():
    records = {
        "fp32": {**STEP, "losses": [4.0, 2.0]},
        "bf16": {**STEP, "losses": [4.04, 2.0], "memory": None},
        "eve": {"differences": {"loss": 1e-6, "logits": 3e-6}},
        "fp16": {"problem": "torch.OutOfMemoryError: no"},
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(records).splitlines()[2:]]
    assert rows == [
        ["fp32", "2", "0.500", "128", "3.00", "2", "25%", "loss 4.0000 to 2.0000"],
        ["bf16", "2", "0.500", "128", "", "2", "25%", "losses within 1.0e-02 of fp32"],
        ["eve", "1", "", "", "", "", "", "differs from the CPU by at most 3.0e-06 (logits)"],
        ["fp16", "1", "", "", "", "", "", "FAILED: torch.OutOfMemoryError: no"],
    ]


def test_the_problem_of_a_step_is_the_line_that_names_an_error():
    log = "W1129 warning\nTraceback (most recent call last):\n  File x\nRuntimeError: no kernel\nmore\n"
    assert problem_in(log) == "RuntimeError: no kernel"
    assert problem_in("") == "it printed nothing"


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path)]) == 1
    assert "run with --device cpu --small" in capsys.readouterr().err
    assert main(["--device", "cpu", "--only", "fp31", "--out", str(tmp_path)]) == 1
    assert "no such step; choose from eve on the device" in capsys.readouterr().err


@pytest.mark.slow
def test_all_steps_run_on_a_cpu(tmp_path):
    script = gpu.__file__.replace("gpu.py", "gpu.sh")
    command = ["bash", script, "--device", "cpu", "--small", "--out", str(tmp_path)]
    ran = subprocess.run(
        command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
    records = json.loads((tmp_path / "table.json").read_text())["records"]
    assert list(records) == [step.name for step in steps(1, "cpu")]
    for name in ("eve on the device", "vle on the device"):
        assert max(records[name]["differences"].values()) == 0  # the device is the CPU
    expected = records["fp32"]["losses"]
    for found in records.values():
        if "losses" in found:
            assert found["losses"] == pytest.approx(expected, rel=0.02)
            assert found["losses"][-1] < found["losses"][0]
            assert found["flops"] == pytest.approx(records["fp32"]["flops"] / found["processes"], rel=0.2)
    assert (tmp_path / "table.md").read_text() in ran.stdout + "\n"
