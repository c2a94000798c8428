"""A language model behind a server that speaks OpenAI's chat protocol (POST /chat/completions)."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from evle.errors import ConfigError, ServiceError

Messages = list[dict[str, str]]
"""A conversation: {"role": "system" or "user", "content": text}, in order."""

MAX_REPLY = 10_000_000
"""Bytes of a server's reply that are read at most."""

LONGEST_WAIT = 60.0
"""Seconds waited before another try at most, whatever the server asks for."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another place than the one it was meant for."""

    def redirect_request(self, *args: Any) -> None:
        return None


@dataclass(frozen=True)
class ChatEndpoint:
    """A server that speaks OpenAI's chat protocol: a company's, or one of your own (vLLM, llama.cpp, Ollama ...).

    `url` is its base URL, to which /chat/completions is added, `model` the model's name there. The key is read from
    the environment variable `key_variable` when it is needed, sent to this URL alone, and never stored or shown;
    without one, none is sent. `timeout` seconds are waited for each reply; after a refused connection, a time-out or a
    busy or failing server (408, 429, 5xx) there are `retries` more tries, `backoff` seconds later and twice as long
    each time, or as long as the server says, up to a minute. `options` are further fields of the request, such as
    {"temperature": 0, "max_tokens": 60}.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 30.0
    retries: int = 3
    backoff: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a broken IPv6 address, a port that is no number
            is_address = False
        if not is_address or not self.url.isascii():
            raise ConfigError(
                f"{self.url!r} is no base URL of a chat server; give one such as http://localhost:8000/v1"
            )
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                f"the URL for {parts.hostname} holds a name, password or query; put the key into the environment "
                f"variable {self.key_variable}"
            )
        if self.timeout <= 0 or self.retries < 0 or self.backoff < 0:
            raise ConfigError(
                f"timeout={self.timeout}, retries={self.retries}, backoff={self.backoff}: a time-out above 0 and "
                "nothing below 0 is needed"
            )
        if self.options.get("stream"):
            raise ConfigError("options stream: a reply is read whole, not in parts; leave it out")
        try:
            json.dumps(dict(self.options))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"options: they cannot be sent as JSON ({error})") from None

    def complete(self, messages: Messages) -> str:
        """The server's reply. Raises ServiceError, saying what happened and what to do."""
        address = f"{self.url.rstrip('/')}/chat/completions"
        body = json.dumps({"model": self.model, "messages": messages, **self.options}).encode()
        headers = {"Content-Type": "application/json", **self._authorization()}
        request = urllib.request.Request(address, body, headers, method="POST")
        wait = self.backoff
        for turn in range(self.retries + 1):
            problem, asked_wait = "", 0.0
            try:
                return self._content(self._send(request))
            except urllib.error.HTTPError as error:
                problem = self._http_problem(error)
                if error.code not in (408, 429) and error.code < 500:
                    raise ServiceError(f"{address}: {problem}") from None
                asked_wait = _seconds(error.headers.get("Retry-After"))
            except TimeoutError:
                problem = f"no whole reply within {self.timeout:g} s; raise timeout, or look at the server"
            except (OSError, http.client.HTTPException) as error:  # refused, reset, unknown host, broken off
                reason = getattr(error, "reason", error)
                if isinstance(reason, TimeoutError):
                    problem = f"no connection within {self.timeout:g} s; is the server running?"
                else:
                    problem = f"no connection ({self._hidden(str(reason) or type(reason).__name__)}); is it running?"
            if turn < self.retries:
                time.sleep(min(max(wait, asked_wait), LONGEST_WAIT))
                wait *= 2
        raise ServiceError(f"{address}: {problem} ({self.retries + 1} tries)")

    def _send(self, request: urllib.request.Request) -> bytes:
        """The body of the reply, all of it within the time-out, however slowly it trickles."""
        end = time.monotonic() + self.timeout
        opener = urllib.request.build_opener(_NoRedirect)
        with opener.open(request, timeout=self.timeout) as reply:
            parts, size = [], 0
            while part := reply.read1(65536):
                parts.append(part)
                size += len(part)
                if size > MAX_REPLY:
                    raise ServiceError(f"{request.full_url}: a reply of over {MAX_REPLY:,} bytes is no answer")
                if time.monotonic() > end:
                    raise TimeoutError
            if reply.length:  # the server promised more
                raise http.client.IncompleteRead(b"", reply.length)
        return b"".join(parts)

    def _content(self, body: bytes) -> str:
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            start = self._hidden(" ".join(body[:200].decode("utf-8", "replace").split()))
            raise ServiceError(
                f"{self.url}: the reply is not of OpenAI's chat form (choices[0].message.content); it begins "
                f"{start!r}: is this the base URL of a chat server?"
            ) from None
        if not isinstance(content, str) or not content.strip():
            raise ServiceError(f"{self.url}: the model {self.model!r} replied with nothing; raise max_tokens, if set")
        return content.strip()

    def _authorization(self) -> dict[str, str]:
        key = os.environ.get(self.key_variable, "").strip()
        if not key.isascii() or not key.isprintable():  # http.client would quote it in its error
            raise ConfigError(
                f"the environment variable {self.key_variable} holds no key: it has unprintable characters"
            )
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _http_problem(self, error: urllib.error.HTTPError) -> str:
        """What a status says, with what the server says of it."""
        said = ""
        try:
            found = json.loads(error.read(MAX_REPLY))
            said = found["error"]["message"] if isinstance(found["error"], dict) else found["error"]
        except (ValueError, KeyError, TypeError, RecursionError, OSError, http.client.HTTPException):
            pass  # no JSON, no more to say than the status
        cures = {
            400: "it does not take this request: are options right?",
            401: f"the key is wrong or missing: set the environment variable {self.key_variable}",
            403: f"the key in {self.key_variable} may not use this model",
            404: f"there is no such path, or no model {self.model!r}: is the base URL right?",
            429: "too many requests, or no credit left",
        }
        redirect = "it redirects to another place, which is not followed: give that base URL"
        cure = cures.get(error.code, redirect if error.code < 400 else "the server failed" if error.code >= 500 else "")
        words = f"status {error.code}" + (f", {cure}" if cure else "")
        return words + (f" (it says: {self._hidden(' '.join(str(said).split()))[:300]})" if said else "")

    def _hidden(self, text: str) -> str:
        """`text` without the key, should a server repeat it."""
        key = os.environ.get(self.key_variable, "").strip()
        return text.replace(key, "***") if key else text


def _seconds(header: str | None) -> float:
    """A Retry-After header in seconds, 0 where it is absent or a date."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
