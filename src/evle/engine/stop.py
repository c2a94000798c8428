"""Stopping a training in good order when the person, or the machine's scheduler, asks for it."""

import os
import signal
import threading
import time
from typing import Any, Self

SECONDS_OF_ONE_REQUEST = 1.0
"""A terminal, a launcher and a scheduler may each pass on the same request: signals so close together count as one."""


class StopSignal:
    """Catches the first SIGINT or SIGTERM, so that a step can end and be saved; a second request acts at once."""

    def __init__(self) -> None:
        self.came = False
        self._former: dict[int, Any] = {}
        self._when = 0.0
        self._process = os.getpid()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _stop(self, number: int, _: object) -> None:
        if os.getpid() == self._process:
            if not self._when:
                self.came, self._when = True, time.monotonic()
            elif time.monotonic() - self._when >= SECONDS_OF_ONE_REQUEST:
                self.__exit__()
                signal.raise_signal(number)
        elif number == signal.SIGTERM:  # a forked data worker inherits this: Ctrl-C is not its business, its end is
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
