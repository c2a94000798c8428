"""What an operator sees: metrics for Prometheus, and one JSON line per event on stderr."""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
access = logging.getLogger("evle.server.access")


class Metrics:
    """The counters of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "evle_requests", "Requests answered, by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "evle_request_seconds", "From first byte to answer.", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("evle_requests_in_flight", "Requests in work.", registry=self.registry)
        self.batch_rows = Histogram(
            "evle_batch_rows",
            "Rows that went through a model together.",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self.queue_rows = Gauge("evle_queue_rows", "Rows that wait for a model.", ["model"], registry=self.registry)

    def watch_queue(self, model: str, waiting: Callable[[], float]) -> None:
        """Report `waiting()` as the queue of `model`."""
        self.queue_rows.labels(model).set_function(waiting)

    def observe_batch(self, model: str, rows: int) -> None:
        """Count one batch."""
        self.batch_rows.labels(model).observe(rows)


class JSONLines(logging.Formatter):
    """A log record as one JSON object; what is given as `extra={"fields": {...}}` is included."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json(stream: TextIO | None = None) -> None:
    """Write the log of the server, of evle and of uvicorn as JSON lines to `stream` (stderr), instead of as text."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JSONLines())
    for name in ("evle", "uvicorn", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
