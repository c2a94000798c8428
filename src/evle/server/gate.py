"""What every request passes: its id, the key, the limits, and after its answer the log and the metrics."""

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evle.server.errors import RefusedError, body_of, headers_of
from evle.server.limits import Limits
from evle.server.observing import Metrics, access

REQUEST_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)
OPEN_PATHS = {"/", "/healthz", "/readyz", "/docs", "/openapi.json"}
"""Answered without a key, and however many requests are in work."""
log = logging.getLogger(__name__)


class Gate:
    """ASGI middleware. The body is read here, whole and within the limits, before the application sees the request."""

    def __init__(self, app: ASGIApp, *, limits: Limits, metrics: Metrics, key: str | None = None):
        self.app, self.limits, self.metrics = app, limits, metrics
        self.key_digest = None if key is None else _digest(key.encode())
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        fields: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "path": scope["path"][:200]}
        scope.setdefault("state", {}).update(
            request_id=request_id, deadline=started + self.limits.seconds, log_fields=fields
        )
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        try:
            try:
                await self._pass(scope, headers, receive, answer)
            except RefusedError as refused:
                await self._refuse(refused.status, str(refused), scope, receive, answer)
            except Exception:
                log.exception("the request failed", extra={"fields": {"request_id": request_id}})
                if status:
                    raise
                await self._refuse(500, "the server failed; its log has the reason", scope, receive, answer)
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.set(self.in_flight)
            seconds = time.monotonic() - started
            path = getattr(scope.get("route"), "path", "unknown")
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            fields.update(status=status, milliseconds=round(1000 * seconds, 1))
            access.info("request", extra={"fields": fields})

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        if scope["path"] not in OPEN_PATHS:
            self._check_key(headers.get("authorization", ""))
            if self.in_flight > self.limits.requests:
                raise RefusedError(429, f"{self.limits.requests} requests are in work, which is the most; try later")
        body = await self._body(headers, receive)
        scope["state"]["log_fields"]["bytes"] = len(body)
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()  # the client's disconnect
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    def _check_key(self, given: str) -> None:
        if self.key_digest is None:
            return
        scheme, _, token = given.partition(" ")
        # Digests are of one length, and are compared in a time that does not depend on where they differ.
        right = hmac.compare_digest(_digest(token.strip().encode("latin-1", "replace")), self.key_digest)
        if not right or scheme.lower() != "bearer":
            raise RefusedError(401, "the key is missing or wrong; send the header Authorization: Bearer KEY")

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        most = self.limits.body_bytes
        too_large = RefusedError(413, f"the body has more than {most:,} bytes; send smaller images, or fewer")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > most:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusedError(400, "the client closed the connection before its request was complete")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise RefusedError(408, f"the body did not arrive in {self.limits.seconds:g} seconds") from None

    async def _refuse(self, status: int, message: str, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["log_fields"]["reason"] = message
        body = body_of(status, message, scope["state"]["request_id"])
        await JSONResponse(body, status, headers_of(status))(scope, receive, send)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
