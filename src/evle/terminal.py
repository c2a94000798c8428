"""What a person at a terminal sees: progress, log lines, and text without control codes."""

import importlib.util
import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0
CONTROL_CODES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Everything but tab and line feed that moves the cursor, recolours, or reorders the text of a terminal."""

logger = logging.getLogger(__name__)


def printable(text: str) -> str:
    """`text` with each control code shown as U+FFFD, so that a file's name cannot steer the terminal.

    >>> printable("a\\x1b[31mb.png")
    'a\ufffd[31mb.png'
    """
    return CONTROL_CODES.sub("\ufffd", text)


def one_line(text: str) -> str:
    """`printable` text in one line: a line feed, a tab or a carriage return of a name is shown as its escape.

    >>> one_line("a\\nb.png")
    'a\\\\nb.png'
    """
    return printable(text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r"))


class PrintableStream:
    """A text stream that writes `printable` text, changed by `edit`, and otherwise behaves as the one it wraps."""

    def __init__(self, stream: TextIO, edit: Callable[[str], str] = str):
        self._stream, self._edit = stream, edit

    def write(self, text: str) -> int:
        return self._stream.write(printable(self._edit(text)))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """False: no library is to colour its output with the codes that `write` replaces."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _TerminalHandler(logging.StreamHandler[TextIO]):
    """Log lines as the command line shows them: "evle: message", on whatever stderr is at that moment."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # StreamHandler's own would keep today's stderr, which a progress bar replaces

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record))
        return text if record.levelno <= logging.INFO else f"evle: {text}"


def log_to_terminal() -> None:
    """Show evle's log lines (INFO and above) and Python's warnings on stderr. Only the command line calls this: a
    program that imports evle sets up logging as it likes."""
    logging.captureWarnings(True)
    for name, level in (("evle", logging.INFO), ("py.warnings", logging.WARNING)):
        log = logging.getLogger(name)
        log.setLevel(level)
        if not any(isinstance(handler, _TerminalHandler) for handler in log.handlers):
            log.addHandler(_TerminalHandler())


class ProgressLine:
    """Progress of one long job: a bar on a terminal or in a notebook, elsewhere a log line every 30 seconds.

    Use it as a context manager. `total` counts the job's `unit`s, of which `done` are behind it when it starts; it may
    be set again where it is only known in the course of the job. Nothing is shown where `visible` is false (all
    processes but the main one).

    >>> with ProgressLine(2, "images") as progress:
    ...     progress.advance()
    ...     progress.update(2)
    """

    def __init__(self, total: int, unit: str, *, done: int = 0, visible: bool = True):
        self.total, self.unit, self.done, self.first, self.visible = total, unit, done, done, visible
        self.started = self.last_line = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        console = Console(stderr=True)
        if self.visible and self.total and _draws_bars(console):
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self.unit),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            shows_prints = sys.__stdout__ is not None and sys.__stdout__.isatty()  # not those into a file
            self._bar = Progress(*columns, console=console, redirect_stdout=shows_prints)
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total, completed=self.done)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""
        self.update(self.done + count)

    def update(self, done: int, text: str = "") -> None:
        """`done` units are done; `text` is shown beside the bar."""
        self.done = done
        if not self.visible:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total, description=escape(printable(text)))
        elif time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            left = ""
            if done > self.first:
                seconds = (self.last_line - self.started) / (done - self.first) * (self.total - done)
                left = f"{_duration(seconds)} left"
            logger.info("%s", "  ".join(filter(None, [f"{done:,}/{self.total:,} {self.unit}", text, left])))

    def say(self, message: str) -> None:
        """Log one line that stays above the bar."""
        if self.visible:
            logger.info("%s", message)


class Watch:
    """Logs a warning when one piece of work takes long: first after `seconds`, then after twice as long, and so on.

    `begin` and `end` cost next to nothing; a thread looks at them. `what` is called when there is something to report.
    """

    def __init__(self, seconds: float = 60.0):
        self._seconds = seconds
        self._work: tuple[float, Callable[[], str]] | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, what: Callable[[], str]) -> None:
        self._work = (time.monotonic(), what)
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
            self._thread.start()

    def end(self) -> None:
        self._work = None

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _look(self) -> None:
        reported: tuple[float, Callable[[], str]] | None = None
        wait = self._seconds
        while not self._closed.wait(self._seconds / 4):
            work = self._work
            if work is not reported:
                reported, wait = work, self._seconds
            if work is not None and time.monotonic() - work[0] >= wait:
                logger.warning("waiting for %.0f s for %s", time.monotonic() - work[0], work[1]())
                wait *= 2


def _draws_bars(console: Console) -> bool:
    """A notebook needs ipywidgets for a bar that moves; without it, it gets log lines as a file does."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _duration(3725)
    '1:02:05'
    """
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02}:{int(seconds % 60):02}"
