"""Serve an application until it receives a signal to stop; answer accepted requests first."""

import contextlib
import errno
import logging
import socket

import uvicorn
from fastapi import FastAPI

from evle.errors import ConfigError
from evle.server.observing import log_as_json

log = logging.getLogger(__name__)


def serve(app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve `app` until SIGINT or SIGTERM; `port` 0 takes a free one.

    New connections are then refused, and requests in work are answered, within the limit of seconds. Raises
    ConfigError for an address that cannot be listened at.
    """
    seconds = app.state.server.limits.seconds
    log_as_json()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # the gate logs requests, with their ids
        server_header=False,
        timeout_graceful_shutdown=int(seconds) + 5,
        h11_max_incomplete_event_size=65536,
    )
    with contextlib.closing(listen(host, port)) as listening:
        log.info("listening at %s port %s", *listening.getsockname()[:2])
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the address. Raises ConfigError with the reason."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        reason = "is in use; choose another --port" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
        raise ConfigError(f"the address {host}:{port} {reason}") from None
    return listening
