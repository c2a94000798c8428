"""A limit on how long remote storage may keep a command waiting, whatever the library of its scheme does.

Libraries limit at best the wait for the next bytes. A server that now and then sends one header, one `100 Continue` or
one byte keeps them waiting for ever.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
SECONDS = 60.0
"""The longest wait for an answer, or for `SLOWEST` times as many bytes of a file."""
SLOWEST = 10_000
"""Bytes per second below which a transfer counts as hanging."""


class TooSlowError(Exception):
    """Storage that gives no answer in time."""


def in_time(work: Callable[[], T], received: Callable[[], int] | None = None, size: int = 0) -> T:
    """The result of `work`, for which `SECONDS` are waited.

    An upload of `size` bytes may take longer by the time that these need at the slowest rate. For a download,
    `received` counts the bytes so far: it may continue for as long as enough of them arrive. A call that hangs is left
    behind in its thread, which does not keep the process from ending. Raises TooSlowError.
    """
    outcome: list[tuple[bool, T | BaseException]] = []

    def run() -> None:
        try:
            outcome.append((True, work()))
        except BaseException as error:  # raised again below
            outcome.append((False, error))

    thread = threading.Thread(target=run, name="storage", daemon=True)
    thread.start()
    before, wait = 0, SECONDS + size / SLOWEST
    while True:
        thread.join(wait)
        if outcome:
            is_result, value = outcome[0]
            if is_result:
                return value  # type: ignore[return-value]
            raise value  # type: ignore[misc]
        now = received() if received is not None else 0
        if now - before < SECONDS * SLOWEST:
            rate = f"fewer than {SLOWEST:,} bytes per second" if received is not None else "no answer"
            raise TooSlowError(f"{rate} for {wait:g} s")
        before, wait = now, SECONDS
