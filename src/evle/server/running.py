"""Serve an application until it receives a signal to stop; answer accepted requests first."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from evle.errors import ConfigError
from evle.server.observing import log_as_json

log = logging.getLogger(__name__)


BACKLOG = 2048
"""Connections that the system keeps until they are accepted."""


class Connection(H11Protocol):
    """A connection that is closed when the head of a request takes longer than `seconds`.

    The gate bounds the time of a body. Without this class, clients that send headers byte by byte, or nothing at all,
    could keep every connection that the system allows.
    """

    seconds = 30.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        self._await_head()
        super().data_received(data)
        if self._in_request():
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        if self._deadline is None and not self._in_request():
            self._deadline = self.loop.call_later(self.seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self._in_request():
            self.transport.close()


class Server(uvicorn.Server):
    """A uvicorn server for which a signal to stop is no failure: after it, the process ends with exit code 0.

    uvicorn raises the signal again when all is answered, so that the process would end by it.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def server_of(app: FastAPI) -> Server:
    """The server of an application that `build_app` made."""
    seconds = app.state.server.limits.seconds
    config = uvicorn.Config(
        app,
        http=type("LimitedConnection", (Connection,), {"seconds": seconds}),
        log_config=None,
        access_log=False,  # the gate logs requests, with their ids
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=int(seconds) + 5,
        h11_max_incomplete_event_size=65536,
    )
    return Server(config)


def serve(app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve `app` until SIGINT or SIGTERM; `port` 0 takes a free one.

    New connections are then refused, requests in work are answered, within the limit of seconds, and the process can
    end with exit code 0. Raises ConfigError for an address that cannot be listened at.
    """
    with contextlib.closing(listen(host, port)) as listening:
        log_as_json()
        log.info("listening at %s port %s", *listening.getsockname()[:2])
        server_of(app).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the address. Raises ConfigError with the reason."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)  # a client that reads the log may connect before the application is ready
    except OSError as error:
        reason = "is in use; choose another --port" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
        raise ConfigError(f"the address {host}:{port} {reason}") from None
    return listening
