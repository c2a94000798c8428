"""Requests that arrive together go through the model together.

One thread per model takes the oldest job, waits a few milliseconds for others of the same kind, and runs them as one
batch. If the batch fails, each job runs again by itself, so that a fault in one does not touch the others.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from evle.server.errors import RefusedError

Run = Callable[[Sequence[Any]], Sequence[Any]]
"""One result per payload, in order."""


@dataclass(eq=False)
class Job:
    """`rows` rows of work. Jobs with an equal `key` may share a batch; None shares with nobody."""

    key: Hashable
    run: Run
    payload: Any
    rows: int
    future: "Future[Any]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """A bounded queue of jobs and the thread that runs them.

    A batch has at most `max_rows` rows (one larger job runs alone) and begins at most `max_wait` seconds after its
    first job arrived, if the thread is free. At most `max_queue` rows wait. `observe` is called with the rows of each
    batch.
    """

    def __init__(
        self,
        name: str,
        *,
        max_rows: int,
        max_wait: float,
        max_queue: int,
        observe: Callable[[int], None] = lambda rows: None,
    ):
        self.name, self.max_rows, self.max_wait, self.max_queue, self.observe = (
            name,
            max_rows,
            max_wait,
            max_queue,
            observe,
        )
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"batches of {name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        with self._changed:
            return self._rows()

    def submit(self, key: Hashable, run: Run, payload: Any, rows: int) -> "Future[Any]":
        """The result of `payload`, once its batch has run; cancel it to leave the queue.

        Raises RefusedError, status 429 when the queue is full and 503 when the server is shutting down.
        """
        job = Job(key, run, payload, rows)
        with self._changed:
            if self._closed:
                raise RefusedError(503, "the server is shutting down; send the request to another one")
            if self._rows() + rows > self.max_queue:
                raise RefusedError(
                    429, f"{self._rows()} rows wait for the model {self.name!r}, of at most {self.max_queue}; try later"
                )
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Refuse new jobs, run those that wait, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _rows(self) -> int:
        return sum(job.rows for job in self._jobs if not job.future.cancelled())

    def _work(self) -> None:
        while batch := self._next():
            running = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if running:
                self.observe(sum(job.rows for job in running))
                self._run(running)

    def _next(self) -> list[Job]:
        """The jobs of the next batch; empty when the batcher is closed and nothing waits."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if not self._jobs:
                return []
            begin = self._jobs[0].arrived + self.max_wait
            while True:
                batch = self._matching()
                left = begin - time.monotonic()
                if batch[0].key is None or sum(job.rows for job in batch) >= self.max_rows or left <= 0 or self._closed:
                    break
                self._changed.wait(left)
            taken = set(map(id, batch))
            self._jobs = deque(job for job in self._jobs if id(job) not in taken)
            return batch

    def _matching(self) -> list[Job]:
        """The oldest job, and others of its kind in order, as many as fit."""
        first = self._jobs[0]
        batch, rows = [first], first.rows
        if first.key is None:
            return batch
        for job in list(self._jobs)[1:]:
            if job.key == first.key and rows + job.rows <= self.max_rows:
                batch.append(job)
                rows += job.rows
        return batch

    def _run(self, jobs: list[Job]) -> None:
        try:
            results = list(jobs[0].run([job.payload for job in jobs]))
            assert len(results) == len(jobs), f"{len(results)} results for {len(jobs)} jobs"
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:
                self._run([job])
            return
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)
