"""Several runs of a recipe at once, each in a process of its own with its share of the threads, or a GPU of its own: a
small model makes little use of many threads.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from evle.config import dump_yaml
from evle.engine.failures import Interrupted
from evle.engine.stop import StopSignal
from evle.errors import EvleError
from evle.run.config import Stage
from evle.terminal import ProgressLine

SECONDS_BETWEEN_LOOKS = 0.2
TAIL = 4096
"""Bytes at the end of a run's output in which its step, or its error, is looked for."""
_STEP = re.compile(r"([\d,]+/[\d,]+) steps")


@dataclass(frozen=True)
class _Job:
    """A run in a process, whose output goes to a file beside the run's folder."""

    stage: Stage
    process: subprocess.Popen[bytes]
    output: Path

    def now(self) -> str:
        """The run's name and the step it is at."""
        steps = _STEP.findall(_tail(self.output))
        return f"{self.stage.name} {steps[-1]}" if steps else self.stage.name

    def error(self) -> str:
        """Why it failed, in one line."""
        lines = _tail(self.output).split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "").strip().removeprefix("evle: ")
        if self.process.returncode < 0:
            last = f"ended by signal {-self.process.returncode}"
            if self.process.returncode == -signal.SIGKILL:
                last += ", which the system sends when memory runs out; run fewer at once"
        return f"{self.stage.name}: {last} (all that it printed: {self.output})"


def train_at_once(
    stages: Sequence[Stage], jobs: int, *, replaced: Collection[str], on_start: Callable[[Stage], None]
) -> None:
    """Train runs of a recipe, at most `jobs` at a time; one whose model or teacher comes from another waits for it.

    What a run prints is in a file beside its folder, of the same name with `.txt`. The first run that fails, and a
    request to stop, ends the others, which save their state.

    Args:
        stages: the runs, each after those that it reads; runs that they read and that are not among them are finished.
        jobs: how many at a time.
        replaced: names of runs whose folder is to be deleted first.
        on_start: called with each run before it starts.

    Raises:
        EvleError: a run failed; the message is its own.
        Interrupted: SIGINT or SIGTERM came.
    """
    waiting, finished = list(stages), set[str]()
    running: dict[int, _Job] = {}  # by slot, of which each has a GPU where there are several
    names = {stage.name for stage in stages}
    with (
        tempfile.TemporaryDirectory(prefix="evle-") as folder,
        StopSignal() as stop,
        _ended(running),
        ProgressLine(len(stages), "runs") as progress,
    ):
        while waiting or running:
            ready = [stage for stage in waiting if not {stage.after, stage.teacher} & names - finished]
            for slot, stage in zip([slot for slot in range(jobs) if slot not in running], ready, strict=False):
                on_start(stage)
                running[slot] = _start(stage, Path(folder), _environment(slot, jobs), stage.name in replaced)
                waiting.remove(stage)
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if stop.came:
                raise Interrupted(
                    f"stopped with {len(finished)} of {len(stages)} runs finished; repeat the command to resume"
                )
            for slot, job in list(running.items()):
                if job.process.poll() is not None:
                    del running[slot]
                    if job.process.returncode:
                        raise EvleError(job.error())
                    finished.add(job.stage.name)
            progress.update(len(finished), ", ".join(job.now() for job in running.values()))


def _start(stage: Stage, folder: Path, environment: Mapping[str, str], overwrite: bool) -> _Job:
    recipe = folder / f"{stage.name.replace('/', '-')}.yaml"
    recipe.write_text(dump_yaml(stage.config.plain()), encoding="utf-8")
    output = stage.output.with_name(f"{stage.output.name}.txt")
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "evle", "train", str(recipe), *(["--overwrite"] if overwrite else [])]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C comes from this process alone, and once
        )
    return _Job(stage, process, output)


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """Environment variables of the run in a slot: its share of this process's threads, and one GPU of several."""
    found = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))}
    if torch.cuda.device_count() > 1:  # torch's name also for AMD's GPUs
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
        found["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return found


@contextmanager
def _ended(running: Mapping[int, _Job]) -> Iterator[None]:
    """Ask the runs that are left to stop, and wait until they have saved their state; at a second Ctrl-C, end them."""
    try:
        yield
    finally:
        for job in running.values():
            job.process.send_signal(signal.SIGINT)
        try:
            for job in running.values():
                job.process.wait()
        except BaseException:
            for job in running.values():
                job.process.kill()
            raise


def _tail(file: Path) -> str:
    """The end of a text file."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - TAIL))
        return opened.read().decode(errors="replace")
