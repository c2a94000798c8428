"""A group of verbs: help lists them by panel, and what a user can cause becomes one line on stderr."""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from evle.cli.shared import print_error
from evle.errors import EvleError
from evle.terminal import PrintableStream, log_to_terminal

DEBUG = "EVLE_DEBUG"
"""The environment variable that shows where an error arose."""
AFTER_INTERRUPT = {
    "train": "repeat the command to resume the run from its last checkpoint",
    "index": "what was embedded is kept: repeat the command for the rest",
}
"""What to do next, by verb."""
TRAIN, USE, DATA, SHARE = PANELS = ("Train", "Use", "Data", "Share")
"""The groups of verbs, in the order of the help."""
STYLE: dict[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
}


class Terminated(KeyboardInterrupt):
    """SIGTERM: a scheduler or a container asks the command to end, as a person does by Ctrl+C."""


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Raises Terminated where SIGTERM would end this process at once, so that what is done is kept."""

    def end(number: int, _: object) -> NoReturn:
        if os.getpid() == process:
            raise Terminated
        signal.signal(number, signal.SIG_DFL)  # a forked data worker inherits this: its end is its own
        os.kill(os.getpid(), number)
        raise AssertionError("a process outlived SIGTERM")

    process = os.getpid()
    is_main = threading.current_thread() is threading.main_thread()
    is_ours = is_main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if is_ours:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Verbs(TyperGroup):
    """The group of all verbs: errors become one line, and help lists the verbs by panel."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panel = getattr(command, "rich_help_panel", None)
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, _short(command)))
        for panel in sorted(panels, key=lambda name: [*PANELS, name].index(name)):
            with formatter.section(panel):
                formatter.write_dl(panels[panel])

    def invoke(self, ctx: Any) -> Any:
        from evle.storage import session, with_urls

        log_to_terminal()
        try:
            with (
                contextlib.redirect_stdout(PrintableStream(sys.stdout, with_urls)),
                terminated_as_interrupted(),
                session(),
            ):
                return super().invoke(ctx)
        except EvleError as error:
            if os.environ.get(DEBUG):
                raise
            raise _end(str(error), error.exit_code) from None
        except KeyboardInterrupt as error:
            raise _interrupted(error, ctx) from None
        except ModuleNotFoundError as error:
            if os.environ.get(DEBUG) or (error.name or "evle").startswith("evle"):
                raise
            raise _end(
                f"{error.name} is not installed, and this command needs it here; run: pip install evle (without torch, "
                "models that `evle export` wrote can be searched and asked)",
                2,
            ) from None
        except (MemoryError, RuntimeError) as error:
            if (stopped := _interrupt_before(error)) is not None:
                raise _interrupted(stopped, ctx) from None
            if os.environ.get(DEBUG) or not (isinstance(error, MemoryError) or "can't allocate memory" in str(error)):
                raise
            raise _end("out of memory: take a smaller model, smaller images or a smaller batch", 2) from None
        except OSError as error:
            if os.environ.get(DEBUG) or error.errno == errno.EPIPE:
                raise
            if error.errno == errno.ENOSPC:
                where = f" ({error.filename})" if error.filename else ""
                raise _end(
                    f"the disk is full{where}: make room and repeat the command, which resumes a run", 2
                ) from None
            raise _end(_in_words(error), 2) from None


def _interrupted(error: KeyboardInterrupt, ctx: Any) -> typer.Exit:
    word, code = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
    return _end(f"{word}; {AFTER_INTERRUPT.get(ctx.invoked_subcommand, 'repeat the command')}", code)


def _interrupt_before(error: BaseException) -> KeyboardInterrupt | None:
    """The interrupt during which `error` came, if there was one: a scheduler stops data workers together with their
    process, and torch then reports that they died."""
    before = error.__context__
    while before is not None and not isinstance(before, KeyboardInterrupt):
        before = before.__context__
    return before


def _in_words(error: OSError) -> str:
    """What the machine refused, of which file, and where there is one, the cure."""
    if not error.filename:
        return str(error)
    if isinstance(error, PermissionError):
        return f"{error.filename}: may not be read or written; change its permissions, or choose another path"
    if isinstance(error, IsADirectoryError):
        return f"{error.filename}: is a folder, where a file is needed; name the file, or move the folder away"
    if isinstance(error, FileExistsError):
        return f"{error.filename}: is a file, where a folder is needed; choose another output"
    return f"{error.strerror}: {error.filename}"


def _end(message: str, exit_code: int) -> typer.Exit:
    print_error(message)
    return typer.Exit(exit_code)


def _short(command: Any) -> str:
    """The first sentence of a verb's help."""
    first: str = (command.help or "").strip().splitlines()[0]
    return first.rstrip(".")
