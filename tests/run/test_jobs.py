"""Runs of a recipe at once: order, shares of the machine, failures and requests to stop."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from evle.config import merge
from evle.errors import ConfigError, EvleError
from evle.run import jobs
from evle.run.config import read_stages
from evle.run.stages import _timed, train
from micro import COLOURS, SAMPLES, plain_image
from staged import DEFAULTS, TWO, VQA, write


def test_runs_at_once_are_those_of_one_after_the_other(tmp_path):
    tree = merge(TWO, {"stages": {"vqa": {"seeds": [0, 1]}}})
    path = write(tmp_path, tree)
    lines: list[str] = []
    report = train(path, [f"output={tmp_path / 'at-once'}"], jobs=2, on_stage=lines.append)
    names = [re.match(r"\[\d/3\] ([\w/-]+): ", line)[1] for line in lines]  # type: ignore[index]
    assert names == ["pretrain", "vqa/seed-0", "vqa/seed-1"]
    alone = train(path, [f"output={tmp_path / 'alone'}"])
    assert report.scores == alone.scores
    assert "accuracy" in (tmp_path / "at-once" / "vqa" / "seed-1.output.txt").read_text()
    lines.clear()
    train(path, [f"output={tmp_path / 'at-once'}"], jobs=2, on_stage=lines.append)
    assert len(lines) == 3
    assert all(line.endswith("finished before, kept") for line in lines)


@pytest.mark.slow
def test_a_stage_whose_start_ran_again_runs_again(tmp_path):
    path = write(tmp_path, TWO)
    out = tmp_path / "out"
    train(path, [f"output={out}"])
    (out / "pretrain" / "report.json").unlink()
    lines: list[str] = []
    train(path, [f"output={out}"], jobs=2, on_stage=lines.append)
    assert lines == [f"[1/2] pretrain: {out}/pretrain", f"[2/2] vqa: {out}/vqa"]


def test_a_failed_run_ends_the_others_and_says_why(tmp_path):
    tree = {"defaults": DEFAULTS, "stages": {"long": VQA, "wrong": VQA, "after": VQA}}
    tree = merge(tree, {"stages": {"long": {"train": {"steps": 5000}}, "after": {"model": {"init": "stage:wrong"}}}})
    tree = merge(tree, {"stages": {"wrong": {"tokenizer": {"path": "nowhere"}}}})
    out = tmp_path / "out"
    with pytest.raises(
        EvleError, match=r"^wrong: tokenizer.path=nowhere.* \(all that it printed: .*wrong.output.txt\)$"
    ):
        train(write(tmp_path, tree), [f"output={out}"], jobs=2)
    assert not (out / "after").exists()
    assert not (out / "long" / "report.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_no_run_outlives_the_command_and_all_are_saved(tmp_path, number):
    tree = {"defaults": DEFAULTS, "stages": {"one": VQA, "two": VQA}}
    path = write(tmp_path, merge(tree, {"defaults": {"train": {"steps": 50000, "log_every": 1}}}))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "evle", "train", str(path), f"output={out}", "--jobs", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for name in ("one", "two"):
        wait_for(lambda log=out / name / "log.jsonl": log.exists() and log.read_text())
    assert process.poll() is None
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "evle: stopped with 0 of 2 runs finished; the command without --overwrite resumes them" in errors
    for name in ("one", "two"):
        wait_for(lambda file=out / name / "status.json": json.loads(file.read_text())["state"] == "interrupted")
        assert (out / name / "checkpoints" / "last").exists()
        assert json.loads((out / name / "environment.json").read_text())["command"][1:] == command[3:]


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError("nothing happened for two minutes")


@pytest.mark.parametrize(
    ("tree", "number", "message"),
    [
        (TWO, 0, "jobs=0 must be at least 1"),
        ({**DEFAULTS, **VQA}, 2, "jobs=2: the recipe has a single run; give it seeds"),
    ],
)
def test_runs_that_cannot_train_at_once_are_refused(tmp_path, tree, number, message):
    with pytest.raises(ConfigError, match=message):
        train(write(tmp_path, tree), [f"output={tmp_path / 'out'}"], jobs=number)
    assert not (tmp_path / "out").exists()


def test_samples_of_this_process_cannot_train_in_others(tmp_path):
    path = write(tmp_path, {**DEFAULTS, **VQA, "seeds": [0, 1]})
    with pytest.raises(ConfigError, match="jobs=2: processes of their own do not see task and samples"):
        train(path, samples={"train": SAMPLES["vqa"]()}, jobs=2)


def test_each_run_gets_its_share_of_the_threads_and_one_of_several_gpus(monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert jobs._environment(2, 3) == {"OMP_NUM_THREADS": "2"}
    assert jobs._environment(2, 20) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [jobs._environment(slot, 4)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,-1")
    assert jobs._environment(1, 2) == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "7"}
    assert jobs._environment(2, 2) == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "5"}
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "3,4")
    assert jobs._environment(1, 2) == {"OMP_NUM_THREADS": "4", "HIP_VISIBLE_DEVICES": "4"}


def test_a_run_whose_time_counts_trains_alone(tmp_path):
    tree = merge(TWO, {"stages": {"timed": {**VQA, "train": {"minutes": 1}}, "other": VQA}})
    tree["claims"] = {"fast": {"text": "Faster", "of": "vqa", "than": "other", "score": "samples_per_second"}}
    recipe = read_stages(write(tmp_path, tree))
    assert _timed(recipe) == {"timed", "vqa", "other"}
    pretrain, vqa, timed, other = recipe.stages
    alone = {"timed"}
    assert jobs._startable([pretrain, timed, other], {}, alone) == [pretrain, other]
    job = jobs._Job(pretrain, None, tmp_path)  # type: ignore[arg-type]
    assert jobs._startable([timed], {0: job}, alone) == []
    assert jobs._startable([timed], {}, alone) == [timed]
    job = jobs._Job(timed, None, tmp_path)  # type: ignore[arg-type]
    assert jobs._startable([vqa, other], {0: job}, alone) == []


@pytest.mark.slow
def test_a_path_that_one_stage_does_not_read_is_no_error_of_that_stage(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rows = ["image,question,answer,split"]
    for colour in COLOURS:
        plain_image(colour).save(images / f"{colour}.png")
        rows.append(f"{colour}.png,which colour is it,{colour},train")
    (images / "questions.csv").write_text("\n".join(rows) + "\n")
    defaults = {key: value for key, value in DEFAULTS.items() if key != "data"}
    own = {"data": {"train": {"source": "folder", "split": "train"}}, "tokenizer": {"reads": ["vqa"]}}
    tree = {"defaults": defaults, "stages": {"scenes": {**VQA, "data": DEFAULTS["data"]}, "own": {**VQA, **own}}}
    out = tmp_path / "out"
    train(write(tmp_path, tree), [f"output={out}", f"data.path={images}"], jobs=2)
    assert (out / "own" / "report.html").is_file()


def test_a_run_that_the_system_ended_says_so(tmp_path):
    recipe = read_stages(write(tmp_path, TWO), [f"output={tmp_path / 'out'}"])
    (tmp_path / "run.txt").write_text("3/10 steps  loss 1\n1,200/2,000 steps  loss 0.5\n")
    process = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    job = jobs._Job(recipe.stages[0], process, tmp_path / "run.txt")
    assert job.now() == "pretrain 1,200/2,000"
    process.wait()
    assert "pretrain: ended by signal 9, which the system sends when memory runs out" in job.error()
