"""Jobs share batches by kind, within bounds, and each gets its own result."""

import threading
import time

import pytest

from evle.server.batching import Batcher
from evle.server.errors import RefusedError


class Recorder:
    """Doubles numbers, and remembers the batches; 0 is a fault. The first batch waits until it is released."""

    def __init__(self):
        self.batches = []
        self.release = threading.Event()

    def __call__(self, payloads):
        self.batches.append(list(payloads))
        self.release.wait(5)
        if 0 in payloads:
            raise ValueError("zero")
        return [2 * payload for payload in payloads]


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def batcher():
    made = Batcher("m", max_rows=4, max_wait=0.0, max_queue=8)
    yield made
    made.close()


def submit_while_busy(batcher, recorder, *jobs):
    """The futures of `jobs` (key, payload, rows), submitted while the thread is busy with another."""
    first = batcher.submit("first", recorder, 100, 1)
    while not recorder.batches:
        time.sleep(0.001)
    futures = [batcher.submit(key, recorder, payload, rows) for key, payload, rows in jobs]
    recorder.release.set()
    assert first.result(5) == 200
    return futures


def test_jobs_of_one_kind_share_a_batch_in_order(batcher, recorder):
    futures = submit_while_busy(batcher, recorder, ("a", 1, 1), ("b", 2, 1), ("a", 3, 1), (None, 4, 1), (None, 5, 1))
    assert [future.result(5) for future in futures] == [2, 4, 6, 8, 10]
    assert recorder.batches == [[100], [1, 3], [2], [4], [5]]


def test_a_batch_has_at_most_its_rows(batcher, recorder):
    futures = submit_while_busy(batcher, recorder, ("a", 1, 3), ("a", 2, 2), ("a", 3, 1), ("a", 4, 2))
    assert [future.result(5) for future in futures] == [2, 4, 6, 8]
    assert recorder.batches[1:] == [[1, 3], [2, 4]]


def test_a_batch_that_fails_is_run_job_by_job(batcher, recorder):
    futures = submit_while_busy(batcher, recorder, ("a", 1, 1), ("a", 0, 1), ("a", 3, 1))
    assert futures[0].result(5) == 2
    assert futures[2].result(5) == 6
    with pytest.raises(ValueError, match="zero"):
        futures[1].result(5)


def test_a_cancelled_job_is_not_run(batcher, recorder):
    first = batcher.submit("first", recorder, 100, 1)
    while not recorder.batches:
        time.sleep(0.001)
    dropped, kept = batcher.submit("a", recorder, 1, 8), None
    dropped.cancel()
    kept = batcher.submit("a", recorder, 2, 1)  # the cancelled rows do not fill the queue
    recorder.release.set()
    assert (first.result(5), kept.result(5)) == (200, 4)
    assert recorder.batches == [[100], [2]]


def test_a_full_queue_refuses(batcher, recorder):
    futures = []
    first = batcher.submit("first", recorder, 100, 1)
    while not recorder.batches:
        time.sleep(0.001)
    futures = [batcher.submit("a", recorder, number, 4) for number in (1, 2)]
    with pytest.raises(RefusedError, match="8 rows wait for the model 'm', of at most 8") as refused:
        batcher.submit("a", recorder, 3, 1)
    assert refused.value.status == 429
    recorder.release.set()
    assert [future.result(5) for future in (first, *futures)] == [200, 2, 4]


def test_a_lone_job_waits_no_longer_than_it_should(recorder):
    recorder.release.set()
    batcher = Batcher("m", max_rows=4, max_wait=0.05, max_queue=8)
    started = time.monotonic()
    assert batcher.submit("a", recorder, 1, 1).result(5) == 2
    assert 0.04 < time.monotonic() - started < 2
    batcher.close()


def test_a_full_batch_does_not_wait(recorder):
    recorder.release.set()
    batcher = Batcher("m", max_rows=2, max_wait=60, max_queue=8)
    futures = [batcher.submit("a", recorder, number, 1) for number in (1, 2)]
    assert [future.result(5) for future in futures] == [2, 4]
    batcher.close()


def test_closing_answers_what_waits(recorder):
    recorder.release.set()
    batcher = Batcher("m", max_rows=2, max_wait=60, max_queue=8)
    future = batcher.submit("a", recorder, 1, 1)
    batcher.close()
    assert future.result(0) == 2
    with pytest.raises(RefusedError, match="shutting down") as refused:
        batcher.submit("a", recorder, 1, 1)
    assert refused.value.status == 503
