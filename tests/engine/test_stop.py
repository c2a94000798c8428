"""A request to stop: the first one is noted, one that follows at once is the same, and a later one acts."""

import os
import signal

import pytest

from evle.engine import stop
from evle.engine.stop import StopSignal


def test_signals_that_come_together_are_one_request(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with StopSignal() as request:
        assert not request.came
        os.kill(os.getpid(), signal.SIGTERM)  # as a scheduler sends it to a launcher and to its processes,
        os.kill(os.getpid(), signal.SIGINT)  # to which the launcher passes it on
        assert request.came
        monkeypatch.setattr(stop, "SECONDS_OF_ONE_REQUEST", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
