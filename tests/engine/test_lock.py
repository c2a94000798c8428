"""The lock on a run's folder: one process at a time, and none is left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evle.engine.lock import LOCK, locked
from evle.engine.run_folder import Run
from evle.errors import ConfigError

HOLD = """
import sys, time
from pathlib import Path
from evle.engine.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    holder = hold(tmp_path / "run")
    try:
        with pytest.raises(ConfigError, match=rf"another process is training this run \(process {holder.pid} on "):
            locked(tmp_path / "run").__enter__()
    finally:
        holder.kill()
        holder.wait()
    assert (tmp_path / "run" / LOCK).exists()  # what a killed process leaves locks nothing
    with locked(tmp_path / "run"):
        pass


def test_the_same_process_is_refused_too_and_the_lock_ends_with_the_block(tmp_path):
    with locked(tmp_path), pytest.raises(ConfigError, match="this process is already training"):
        locked(tmp_path).__enter__()
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    """As data workers, which outlive a killed process by seconds."""
    with locked(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            import time

            time.sleep(20)
            os._exit(0)
    try:
        with locked(tmp_path / "run"):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_an_empty_folder_is_removed_again_and_a_file_is_refused(tmp_path):
    with locked(tmp_path / "a"):
        pass
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="is a file"):
            locked(path).__enter__()


START = """
import sys, time
from evle.engine.run_folder import Run
Run.start(sys.argv[1], {"a": 1}, seed=0)
print("held", flush=True)
time.sleep(60)
"""


def test_a_run_that_is_started_without_train_locks_its_folder_too(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", START, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"another process is training this run \(process {process.pid} on "):
            Run.start(tmp_path, {"a": 1}, seed=0)
    finally:
        process.kill()
        process.wait()
    run = Run.start(tmp_path, {"a": 1}, seed=0)
    assert Run.start(tmp_path, {"a": 1}, seed=0).resumes  # the same process may look again
    run.close()
    with locked(tmp_path):
        pass
