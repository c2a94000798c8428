"""Several runs of a recipe at once, each in a process of its own with its share of the threads, or a GPU of its own: a
small model makes little use of many threads.

recipe -> waiting runs -> processes, each with a configuration on its stdin -> folders

A process ends in good order when its stdin ends, so none is left when this one dies.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from evle.engine.failures import Diverged, Interrupted
from evle.engine.stop import StopSignal
from evle.errors import EvleError
from evle.machine import settle
from evle.run.config import RunConfig, Stage
from evle.run.training import train_run
from evle.storage import session
from evle.terminal import ProgressLine, log_to_terminal

SECONDS_BETWEEN_LOOKS = 0.2
TAIL = 4096
"""Bytes at the end of a run's output in which its step, or its error, is looked for."""
OUTPUT = ".output.txt"
SKIPPED = "skipped, because a run that it reads diverged"
SHOWN_CHARACTERS = 60
"""Of what is running, beside the progress."""
_STEP = re.compile(r"([\d,]+/[\d,]+) steps")


@dataclass(frozen=True)
class _Job:
    """A run in a process, whose output goes to the end of a file beside the run's folder."""

    stage: Stage
    process: subprocess.Popen[bytes]
    output: Path
    start: int = 0
    """Bytes of the file that are from earlier."""

    def now(self) -> str:
        """The run's name and the step it is at."""
        steps = _STEP.findall(self._tail())
        return f"{self.stage.name} {steps[-1]}" if steps else self.stage.name

    def error(self) -> str:
        """Why it failed, in one line."""
        lines = [line.strip() for line in self._tail().split("\n") if line.strip()]
        ours = [line.removeprefix("evle: ") for line in lines if line.startswith("evle: ")]
        last = (ours or lines or ["ended without a word"])[-1]
        if self.process.returncode < 0:
            last = f"ended by signal {-self.process.returncode}"
            if self.process.returncode == -9:
                last += ", which the system sends when memory runs out; run fewer at once"
        return f"{self.stage.name}: {last} (all that it printed: {self.output})"

    def ask_to_stop(self) -> None:
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()

    def _tail(self) -> str:
        with self.output.open("rb") as opened:
            opened.seek(max(self.start, self.output.stat().st_size - TAIL))
            return opened.read().decode(errors="replace")


def train_at_once(
    stages: Sequence[Stage],
    jobs: int,
    *,
    replaced: Collection[str],
    lost: Collection[str],
    alone: Collection[str],
    say: Callable[..., None],
) -> set[str]:
    """Train runs of a recipe, at most `jobs` at a time; one whose model or teacher comes from another waits for it.

    What a run prints is in a file beside its folder, of the same name with `.output.txt`. The first run that fails, and
    a request to stop, ends the others, which save their state. One that diverges does not, but those that read it are
    left out.

    Args:
        stages: the runs, each after those that it reads; runs that they read and that are not among them are finished.
        jobs: how many at a time.
        replaced: names of runs whose folder is emptied first.
        lost: names of earlier runs that diverged.
        alone: names of runs during which no other one trains.
        say: called with each run before it starts, and with one that diverges or is left out and a word for it.

    Returns the names of the runs that diverged or were left out.

    Raises:
        EvleError: a run failed; the message is its own.
        Interrupted: SIGINT or SIGTERM came.
    """
    waiting, finished, without = list(stages), set[str](), set(lost)
    running: dict[int, _Job] = {}  # by slot; where there are several GPUs, each slot has one
    names = {stage.name for stage in stages}
    slots = range(min(jobs, len(stages)))
    with StopSignal() as stop, _ended(running), ProgressLine(len(stages), "runs") as progress:
        while waiting or running:
            for stage in [stage for stage in waiting if stage.reads & without]:
                waiting.remove(stage)
                without.add(stage.name)
                say(stage, SKIPPED)
            ready = [stage for stage in waiting if not stage.reads & names - finished]
            free = [slot for slot in slots if slot not in running]
            for slot, stage in zip(free, _startable(ready, running, alone), strict=False):
                say(stage)
                environment = _environment(slot, 1 if stage.name in alone else len(slots))
                running[slot] = _start(stage, environment, overwrite=stage.name in replaced)
                waiting.remove(stage)
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if stop.came:
                raise Interrupted(
                    f"stopped with {len(finished)} of {len(stages)} runs finished; the command without --overwrite "
                    "resumes them"
                )
            for slot, job in list(running.items()):
                if job.process.poll() is not None:
                    del running[slot]
                    job.ask_to_stop()  # it has ended: this closes its stdin
                    if job.process.returncode == Diverged.exit_code:
                        without.add(job.stage.name)
                        say(job.stage, f"diverged (all that it printed: {job.output})")
                    elif job.process.returncode:
                        raise EvleError(job.error())
                    else:
                        finished.add(job.stage.name)
            progress.update(len(finished), _short(", ".join(job.now() for job in running.values())))
    return without


def _startable(ready: Sequence[Stage], running: Mapping[int, _Job], alone: Collection[str]) -> Sequence[Stage]:
    """Those of `ready` that may start now: first all that share the machine, then one alone at a time."""
    if any(job.stage.name in alone for job in running.values()):
        return []
    shared = [stage for stage in ready if stage.name not in alone]
    return shared if shared or running else ready[:1]


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def _start(stage: Stage, environment: Mapping[str, str], overwrite: bool) -> _Job:
    output = stage.output.with_name(stage.output.name + OUTPUT)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as file:
        file.write(f"--- {stage.name}, {datetime.now().astimezone():%Y-%m-%d %H:%M:%S}\n".encode())
        file.flush()
        start = file.tell()
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from evle.run.jobs import run_from_stdin; run_from_stdin()"],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C comes by way of this process
        )
    assert process.stdin is not None
    order = {"config": stage.config.plain(), "overwrite": overwrite, "command": sys.argv}
    with suppress(BrokenPipeError):  # it ended at once; its output says why
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    return _Job(stage, process, output, start)


def _environment(slot: int, share: int) -> dict[str, str]:
    """Environment variables of the run in a slot: a share of this process's threads, and one GPU of several."""
    found = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // share))}
    count = torch.cuda.device_count()
    if count > 1:  # torch's name also for AMD's GPUs, which have a variable of their own
        name = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in os.environ else "CUDA_VISIBLE_DEVICES"
        given = os.environ.get(name)
        devices = given.split(",")[:count] if given else [str(number) for number in range(count)]
        found[name] = devices[slot % len(devices)]
    return found


@contextmanager
def _ended(running: Mapping[int, _Job]) -> Iterator[None]:
    """Ask the runs that are left to stop, and wait until they have saved their state; at a second Ctrl-C, end them."""
    try:
        yield
    finally:
        for job in running.values():
            job.ask_to_stop()
        try:
            for job in running.values():
                job.process.wait()
        except BaseException:
            for job in running.values():
                job.process.kill()
            raise


def run_from_stdin() -> None:
    """The process of one run: its configuration is the first line of stdin, whose end asks it to stop."""
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        order = json.loads(stdin.readline())
    sys.argv = order["command"]  # what the run's environment.json records
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background commands ignore it
    threading.Thread(target=_stop_at_end_of_stdin, daemon=True).start()
    settle()
    log_to_terminal()
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    try:
        with session():
            report = train_run(RunConfig.build(order["config"], "the configuration"), overwrite=order["overwrite"])
    except EvleError as error:
        print(f"evle: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    print("\n".join(report.summary))


def _stop_at_end_of_stdin() -> None:
    while os.read(0, 1):
        pass
    if os.name == "posix":
        os.kill(os.getpid(), signal.SIGINT)  # also ends a system call that waits
    else:
        signal.raise_signal(signal.SIGINT)
