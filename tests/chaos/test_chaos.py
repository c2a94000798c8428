"""Processes killed at random moments lose nothing: a resumed run is bit-equal, an index holds every image once."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from chaos_targets import STEPS, add_to_index, run_in_group, run_locked
from evle.engine.run_folder import read_events
from evle.search import ImageIndex, build_index
from processes import free_port
from retrieval_models import save_retrieval_model
from tars import encoded

pytestmark = pytest.mark.slow
KILLS = 20
FORK = multiprocessing.get_context("fork")

SETTINGS = {
    "no workers": (1, 0, {}),
    "two workers": (1, 2, {}),
    "bfloat16": (1, 0, {"precision": "bf16"}),
    "accumulation": (1, 0, {"accumulation": 2}),
    "moving average": (1, 0, {"ema": 0.9}),
    "all of it": (1, 2, {"precision": "bf16", "accumulation": 2, "ema": 0.9, "eval_every": 5}),
    "two processes": (2, 0, {}),
}
"""Number of processes, of data workers, and further options of training."""


def start(target: Callable, *arguments: Any) -> Any:
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


def kill(process: Any) -> None:
    """Kill a process with its data workers."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # not in its own group yet, or ended
        process.kill()
    process.join(30)


def steps_in(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def outcome(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the bytes of all weights and optimizer states, the log without times)."""
    files: dict[str, Any] = {}
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            name = str(path.relative_to(folder))
            files[name] = file.metadata()
            for key in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(key)
                files[f"{name}: {key}"] = (
                    tensor.dtype,
                    tensor.shape,
                    tensor.reshape(-1).view(torch.uint8).numpy().tobytes(),
                )
    events = [
        {name: value for name, value in event.items() if "second" not in name and name not in ("time", "readings")}
        for event in read_events(folder)
    ]
    return files, events


def begin(folder: Path, processes: int, workers: int, options: dict[str, Any]) -> list[Any]:
    port = free_port()
    return [start(run_in_group, rank, processes, port, str(folder), options, workers) for rank in range(processes)]


def finish(started: list[Any]) -> None:
    for process in started:
        process.join(120)
        assert process.exitcode == 0, f"ended with {process.exitcode}"


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_killed_twenty_times_equals_an_undisturbed_one(setting, tmp_path):
    processes, workers, options = SETTINGS[setting]
    rng = random.Random(setting)
    finish(begin(tmp_path / "whole", processes, workers, options))
    killed, kills = tmp_path / "killed", 0
    while kills < KILLS:
        started = begin(killed, processes, workers, options)
        goal, deadline = min(STEPS - 1, steps_in(killed) + rng.randint(0, 4)), time.monotonic() + 60
        while steps_in(killed) < goal and all(each.is_alive() for each in started):
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.001)
        time.sleep(rng.random() * 0.03)
        ended = [each.exitcode for each in started if not each.is_alive()]
        assert not any(ended), f"a resume failed with {ended}"
        for process in rng.sample(started, len(started)):
            kill(process)
        kills += 1
    finish(begin(killed, processes, workers, options))
    (files, events), (whole_files, whole_events) = outcome(killed), outcome(tmp_path / "whole")
    assert files.keys() == whole_files.keys()
    assert [name for name in files if files[name] != whole_files[name]] == []
    assert events == whole_events


def test_two_runs_in_one_folder_leave_one_whole_run(tmp_path):
    finish(begin(tmp_path / "whole", 1, 0, {}))
    started = [start(run_locked, str(tmp_path / "shared")) for _ in range(2)]
    for process in started:
        process.join(120)
    assert sorted(process.exitcode for process in started)[0] == 0
    assert outcome(tmp_path / "shared") == outcome(tmp_path / "whole")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_retrieval_model(tmp_path_factory.mktemp("models") / "retrieval"))


def draw(folder: Path, first: int, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        (folder / f"{number}.jpg").write_bytes(encoded(number))


def vectors(index: Path, model: str) -> dict[str, np.ndarray]:
    loaded = ImageIndex.load(index, model=model)
    keys = [Path(key).name for key in loaded.keys]
    assert len(keys) == len(set(keys)), "an image is in the index twice"
    return dict(zip(keys, loaded.store.vectors(range(len(keys))), strict=True))


def check_equal(index: Path, photos: Path, home: Path, model: str) -> None:
    """The index holds the same vectors as one that was built undisturbed."""
    build_index(model, photos, home / "whole", batch_size=4, num_workers=0, progress=False)
    found, expected = vectors(index, model), vectors(home / "whole", model)
    assert found.keys() == expected.keys()
    for name, vector in expected.items():
        assert np.allclose(np.asarray(found[name], np.float32), np.asarray(vector, np.float32), atol=2e-3), name


def test_an_index_killed_twenty_times_while_growing_is_whole(tmp_path, model):
    rng = random.Random(0)
    draw(tmp_path / "photos", 0, 60)
    for _ in range(KILLS):
        process = start(add_to_index, model, str(tmp_path / "photos"), str(tmp_path / "index"), 4)
        time.sleep(0.05 + rng.random() * 0.5)
        kill(process)
        assert process.exitcode in (0, -signal.SIGKILL)
        if (tmp_path / "index" / "index.json").exists():
            vectors(tmp_path / "index", model)
    finish([start(add_to_index, model, str(tmp_path / "photos"), str(tmp_path / "index"), 4)])
    check_equal(tmp_path / "index", tmp_path / "photos", tmp_path, model)


def test_adds_at_the_same_time_lose_no_image(tmp_path, model):
    for attempt in range(3):
        home = tmp_path / str(attempt)
        draw(home / "photos", 0, 40)
        finish([start(add_to_index, model, str(home / "photos"), str(home / "index"), 4) for _ in range(3)])
        check_equal(home / "index", home / "photos", home, model)
