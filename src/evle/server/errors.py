"""Answers other than 200: an HTTP status and one line."""

from typing import Any

from evle.errors import EvleError

TYPES = {
    400: "bad_request",
    401: "unauthorized",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "too_many_requests",
    500: "internal_error",
    503: "unavailable",
}
RETRY_SECONDS = 1


class RefusedError(EvleError):
    """A request that is not answered: its status, and why in one line."""

    def __init__(self, status: int, message: str):
        super().__init__(" ".join(message.split())[:500])
        self.status = status


def headers_of(status: int) -> dict[str, str]:
    """The headers that a status needs beside the body."""
    if status in (429, 503):
        return {"Retry-After": str(RETRY_SECONDS)}
    if status in (408, 413):
        return {"Connection": "close"}  # the rest of the body is not wanted
    return {"WWW-Authenticate": "Bearer"} if status == 401 else {}


def body_of(status: int, message: str, request_id: str) -> dict[str, Any]:
    """The JSON of an error, in the form of OpenAI's API.

    >>> body_of(404, "no such model", "1")["error"]["type"]
    'not_found'
    """
    return {"error": {"message": message, "type": TYPES.get(status, "error"), "request_id": request_id}}
