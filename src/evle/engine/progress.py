"""How a run is doing, for a person: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


class ProgressLine:
    """Steps done, rate in samples a second, time left, losses. Silent in all processes but the main one (`visible`)."""

    def __init__(self, num_steps: int, step: int, *, visible: bool):
        self.num_steps = num_steps
        self.first_step = step
        self.visible = visible
        self.started = time.perf_counter()
        self.last_line = self.started
        self.console = Console(stderr=True)
        self.bar: Progress | None = None

    def __enter__(self) -> Self:
        if self.visible and self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self.bar = Progress(*columns, console=self.console)
            self.bar.start()
            self.task = self.bar.add_task("", total=self.num_steps, completed=self.first_step)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: int, losses: Mapping[str, float], rate: float) -> None:
        """After optimizer step `step`: `rate` is in samples a second."""
        if not self.visible:
            return
        text = "  ".join([f"{rate:.0f} samples/s", *(f"{name} {value:.3f}" for name, value in losses.items())])
        if self.bar is not None:
            self.bar.update(self.task, completed=step, description=text)
        elif time.perf_counter() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.perf_counter()
            left = (self.last_line - self.started) / max(1, step - self.first_step) * (self.num_steps - step)
            print(f"step {step}/{self.num_steps}  {text}  {_duration(left)} left", file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """One line that stays."""
        if self.visible and self.bar is not None:
            self.bar.console.print(message, markup=False, highlight=False)
        elif self.visible:
            print(message, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _duration(3725)
    '1:02:05'
    """
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02}:{int(seconds % 60):02}"
