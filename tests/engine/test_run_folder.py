"""The run's folder: what it tells, what it refuses, what survives a cut."""

import os
import resource

import pytest

from evle.engine.checkpoint import Position
from evle.engine.run_folder import Run, make_output, read_events, read_log, standing, write_folder
from evle.errors import ConfigError

CONFIG = {"optim": {"lr": 0.1, "betas": (0.9, 0.98)}, "train": {"log_every": 10}, "output": "somewhere"}


def test_a_run_writes_down_what_was_asked_and_where_it_ran(tmp_path):
    run = Run.start(tmp_path / "run", CONFIG, seed=7, data_hash="abc")
    assert run.config() == {
        "optim": {"lr": 0.1, "betas": [0.9, 0.98]},
        "train": {"log_every": 10},
        "output": "somewhere",
    }
    environment = run.environment()
    assert (environment["seed"], environment["data_hash"]) == (7, "abc")
    assert {
        "evle",
        "torch",
        "transformers",
        "accelerate",
        "python",
        "git",
        "command",
        "time",
        "threads",
    } <= environment.keys()
    assert run.status()["state"] == "running"
    assert Run(tmp_path / "none").status() == {}


def test_a_folder_with_a_finished_run_is_not_written_over_unless_asked(tmp_path):
    run = Run.start(tmp_path / "run", CONFIG, seed=0)
    run.set_status("finished", 12)
    run.log("train", {"step": 1})
    (tmp_path / "run" / "report.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds a finished run of this configuration \(12 steps\).*--overwrite"):
        Run.start(tmp_path / "run", CONFIG, seed=0)
    with pytest.raises(ConfigError, match=r"a finished run of another configuration \(optim.lr: 0.1 -> 0.2\); choose"):
        Run.start(tmp_path / "run", {**CONFIG, "optim": {"lr": 0.2, "betas": [0.9, 0.98]}}, seed=0)
    again = Run.start(tmp_path / "run", CONFIG, seed=0, overwrite=True)
    assert not again.log_file.exists()
    assert again.status()["step"] == 0


def test_a_folder_of_something_else_is_never_touched(tmp_path):
    (tmp_path / "holiday.jpg").write_text("precious")
    with pytest.raises(ConfigError, match="not empty and holds no run"):
        Run.start(tmp_path, CONFIG, seed=0, overwrite=True)
    assert (tmp_path / "holiday.jpg").exists()
    with pytest.raises(ConfigError, match=r"holiday\.jpg is a file: choose another output"):
        Run.start(tmp_path / "holiday.jpg", CONFIG, seed=0)


def test_a_resumed_run_keeps_its_configuration_and_data(tmp_path):
    Run.start(tmp_path / "run", CONFIG, seed=0, data_hash="abc").set_status("interrupted", 5)
    changed = {**CONFIG, "optim": {"lr": 0.2}}
    with pytest.raises(ConfigError, match=r"optim.betas: \[0.9, 0.98\] -> None, optim.lr: 0.1 -> 0.2"):
        Run.start(tmp_path / "run", changed, seed=0, data_hash="abc")
    with pytest.raises(ConfigError, match="the data changed"):
        Run.start(tmp_path / "run", CONFIG, seed=0, data_hash="xyz")
    rarer = {**CONFIG, "train": {"log_every": 50}, "output": "elsewhere"}
    run = Run.start(tmp_path / "run", rarer, seed=0, data_hash="abc")
    assert run.status()["step"] == 5
    assert len(run.environment()["resumed"]) == 1


def test_a_run_in_a_new_folder_starts(tmp_path):
    assert Run.start(tmp_path / "run", CONFIG, seed=0).status()["state"] == "running"


def test_the_log_becomes_curves_and_a_line_cut_short_is_left_out(tmp_path):
    run = Run.start(tmp_path / "run", CONFIG, seed=0)
    run.log("train", {"step": 10, "loss": 3.0, "losses": {"itc": 2.0, "itm": 1.0}, "lr": 0.1})
    run.log("eval", {"step": 10, "scores": {"r1": 50.0}})
    run.log("train", {"step": 20, "loss": 2.0, "losses": {"itc": 1.5, "itm": 0.5}, "lr": 0.05})
    with open(run.log_file, "a") as file:
        file.write('{"event": "train", "step": 30, "lo')
    curves = read_log(run)
    assert curves["loss"] == [(10, 3.0), (20, 2.0)]
    assert curves["loss/itc"] == [(10, 2.0), (20, 1.5)]
    assert curves["eval/r1"] == [(10, 50.0)]

    run.rewind_log(10)
    assert [event["step"] for event in read_events(run)] == [10, 10]


@pytest.mark.parametrize("line", ['{"event"', "5", "[]", '{"event": "train"}', '{"event": 3, "step": 1}', "[" * 5000])
def test_a_damaged_line_inside_the_log_is_named_and_left_out(tmp_path, caplog, line):
    run = Run.start(tmp_path / "run", CONFIG, seed=0)
    run.log_file.write_text(line + '\n{"event": "train", "step": 1, "loss": 2.0, "losses": 3}\n')
    assert read_log(run) == {"loss": [(1, 2.0)]}
    assert "log.jsonl, line 1" in caplog.text
    run.rewind_log(1)
    assert len(run.log_file.read_text().splitlines()) == 1


def test_a_log_that_cannot_be_written_is_said_once(tmp_path, caplog):
    run = Run.start(tmp_path / "run", CONFIG, seed=0)
    run.log_file.symlink_to("/dev/full")
    run.log("train", {"step": 1})
    run.log("train", {"step": 2})
    assert caplog.text.count("No space left on device") == 1
    (tmp_path / "run" / f".status.json.{os.getpid()}.part").symlink_to("/dev/full")
    run.set_status("running", 3)
    assert "status.json cannot be written (No space left on device)" in caplog.text


def test_a_log_goes_on_behind_a_line_that_a_full_disk_cut_short(tmp_path, caplog):
    run = Run.start(tmp_path / "run", CONFIG, seed=0)
    run.log("train", {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (run.log_file.stat().st_size + 10, hard))  # room for ten bytes
    try:
        run.log("train", {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "log.jsonl cannot be written" in caplog.text
    run.log("train", {"step": 3})
    assert [event["step"] for event in read_events(run)] == [1, 3]


def test_a_folder_is_replaced_only_by_a_whole_one(tmp_path):
    target = tmp_path / "last"
    write_folder(target, lambda folder: (folder / "a").write_text("1"))

    def half(folder):
        (folder / "a").write_text("2")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_folder(target, half)
    assert (standing(target) / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]

    # The machine stops between the two renames: the former folder is found.
    target.rename(tmp_path / "last.old")
    assert (standing(target) / "a").read_text() == "1"
    write_folder(target, lambda folder: (folder / "a").write_text("3"))
    assert (standing(target) / "a").read_text() == "3"
    assert standing(tmp_path / "never") is None


@pytest.mark.parametrize("damage", ["", "{", "[]", "\0\0", '{"state": "running", "step": "abc"}', None])
def test_a_lost_status_does_not_lose_the_run(tmp_path, caplog, damage):
    run = Run.start(tmp_path / "run", CONFIG, seed=0, data_hash="abc")
    write_folder(run.checkpoints / "last", Position(step=6, num_batches=9).write)
    status = run.folder / "status.json"
    status.unlink() if damage is None else status.write_text(damage)
    assert (run.status()["state"], run.status()["step"]) == ("interrupted", 6)
    assert "status.json" in caplog.text
    again = Run.start(tmp_path / "run", CONFIG, seed=0, data_hash="abc")
    assert again.resumes
    assert again.status()["state"] == "running"
    assert standing(again.checkpoints / "last") is not None


@pytest.mark.parametrize("damage", ["", "[]", "[" * 5000])
def test_a_damaged_environment_does_not_lose_the_run(tmp_path, caplog, damage):
    run = Run.start(tmp_path / "run", CONFIG, seed=0, data_hash="abc")
    (run.folder / "environment.json").write_text(damage)
    again = Run.start(tmp_path / "run", CONFIG, seed=0, data_hash="other")
    assert "environment.json" in caplog.text
    assert len(again.environment()["resumed"]) == 1


def test_an_output_that_takes_no_report_is_refused_before_the_work(tmp_path, monkeypatch):
    assert make_output(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is a file, or below one: choose another output"):
            make_output(place)
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root, who may write anywhere
    with pytest.raises(ConfigError, match="a may not be written to: choose another output"):
        make_output(tmp_path / "a")
