"""Stopping a training in good order when the person, or the machine's scheduler, asks for it."""

import signal
import threading
from typing import Any, Self


class StopSignal:
    """Catches the first SIGINT or SIGTERM, so that a step can end and be saved; the second one acts at once."""

    def __init__(self) -> None:
        self.came = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _stop(self, *_: object) -> None:
        self.came = True
        self.__exit__()
