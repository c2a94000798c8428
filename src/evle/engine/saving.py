"""Writing checkpoints in the background, whole or not at all."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from safetensors import SafetensorError

from evle.engine.run_folder import write_folder


class FolderWriter:
    """Writes one folder at a time in a thread, while training continues. A full disk is reported, and ends nothing."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._running: Future[str] | None = None

    def start(self, target: Path, write: Callable[[Path], None], finish: Callable[[str], None]) -> None:
        """Replace `target` by what `write` puts into a fresh folder, after the folder before it.

        `finish` is called in the thread with the problem in words, or an empty string. `write` must hold copies: the
        weights change meanwhile.
        """
        self.wait()

        def work() -> str:
            problem = try_to_write(target, write)
            finish(problem)
            return problem

        self._running = self._executor.submit(work)

    def wait(self) -> str:
        """Wait for the folder that is being written; the problem of the last one in words, or an empty string."""
        return self._running.result() if self._running is not None else ""

    def close(self) -> None:
        """Wait, and end the thread."""
        self._executor.shutdown()


def try_to_write(target: Path, write: Callable[[Path], None]) -> str:
    """`write_folder`; the problem in words where the disk refuses, or an empty string."""
    try:
        write_folder(target, write)
    except (OSError, SafetensorError) as error:  # a full disk, in the words of Python and of safetensors
        return str(error).splitlines()[0]
    return ""
