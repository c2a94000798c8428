"""A language model behind a server that speaks OpenAI's chat protocol (POST /chat/completions).

The requests are made by the `openai` client library, which the extra "language" installs.
"""

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from evle.errors import ConfigError, ServiceError

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

Messages = list[dict[str, str]]
"""A conversation: {"role": "system" or "user", "content": text}, in order."""

MAX_REPLY = 10_000_000
"""Largest reply that is read, in bytes."""

LONGEST_WAIT = 60.0
"""Longest pause before another attempt, in seconds, whatever the server asks for."""


@dataclass(frozen=True)
class ChatEndpoint:
    """A server that speaks OpenAI's chat protocol: a company's, or one of your own (vLLM, llama.cpp, Ollama ...).

    `url` is its base URL, to which /chat/completions is added; `model` is the model's name there. The key is read from
    the environment variable `key_variable` when it is needed, sent to this URL alone, and never stored or shown.
    Without a key none is sent. Each reply must be complete after `timeout` seconds. After a refused connection, a
    time-out or the statuses 408, 429 and 5xx there are `retries` more attempts. The pause before them starts at
    `backoff` seconds and doubles each time, or is as long as the server asks, up to a minute. `options` are further
    fields of the request, such as {"temperature": 0, "max_tokens": 60}.
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
                f"{self.url!r} is not the base URL of a chat server; give one such as http://localhost:8000/v1"
            )
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                f"the URL for {parts.hostname} contains a name, a password or a query; put the key into the "
                f"environment variable {self.key_variable}"
            )
        if self.timeout <= 0 or self.retries < 0 or self.backoff < 0:
            raise ConfigError(
                f"timeout={self.timeout}, retries={self.retries}, backoff={self.backoff}: timeout must be above 0, "
                "and the others not below 0"
            )
        if self.options.get("stream"):
            raise ConfigError("options.stream: a reply is read whole, not in parts; remove this option")
        try:
            json.dumps(dict(self.options))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"options: cannot be sent as JSON ({error}); use plain values") from None

    def complete(self, messages: Messages) -> str:
        """The server's reply. Raises ServiceError with what happened and what to do."""
        try:
            from openai import APIConnectionError, APIStatusError, APITimeoutError
        except ImportError:
            raise ConfigError("a chat server needs the package openai; pip install 'evle[language]'") from None
        address = f"{self.url.rstrip('/')}/chat/completions"
        wait = self.backoff
        for attempt in range(self.retries + 1):
            problem, asked_wait = "", 0.0
            try:
                return self._content(self._post(messages))
            except APIStatusError as error:
                problem = self._status_problem(error)
                if error.status_code not in (408, 429) and error.status_code < 500:
                    raise ServiceError(f"{address}: {problem}") from None
                asked_wait = _seconds(error.response.headers.get("Retry-After"))
            except (APITimeoutError, TimeoutError):
                problem = f"no complete reply within {self.timeout:g} s; raise timeout, or check the server"
            except (APIConnectionError, OSError) as error:  # refused, reset, unknown host, broken off
                reason = self._hidden(str(error.__cause__ or error) or type(error).__name__)
                problem = f"no connection ({reason}); is the server running?"
            if attempt < self.retries:
                time.sleep(min(max(wait, asked_wait), LONGEST_WAIT))
                wait *= 2
        raise ServiceError(f"{address}: {problem} ({self.retries + 1} attempts)")

    def _post(self, messages: Messages) -> bytes:
        """The body of the reply. Raises TimeoutError when it is not complete in time, however slowly it trickles.

        The client's own time-out starts again with every byte, so the request runs in a thread that is abandoned.
        """
        from openai import OpenAIError

        client = self._client()
        results: list[bytes | Exception] = []

        def post() -> None:
            try:
                results.append(self._read(client, messages))
            except (OpenAIError, ServiceError) as error:
                results.append(error)
            except Exception as error:  # of the library below the client, while a body is read
                results.append(ConnectionError(str(error) or type(error).__name__))

        thread = threading.Thread(target=post, daemon=True, name="evle-chat")
        thread.start()
        thread.join(self.timeout)
        client.close()
        if not results:
            raise TimeoutError
        if isinstance(results[0], Exception):
            raise results[0]
        return results[0]

    def _client(self) -> "OpenAI":
        from openai import DefaultHttpxClient, OpenAI

        key = os.environ.get(self.key_variable, "").strip()
        if not key.isascii() or not key.isprintable():  # an error of the client would quote it
            raise ConfigError(f"the environment variable {self.key_variable} is no key: it has unprintable characters")
        return OpenAI(
            base_url=self.url,
            api_key=key or "none",  # never sent, see `_read`
            http_client=DefaultHttpxClient(follow_redirects=False),  # a redirect would carry the key to another host
            timeout=self.timeout,
            max_retries=0,
        )

    def _read(self, client: "OpenAI", messages: Messages) -> bytes:
        from openai import Omit

        # The account is that of OpenAI's own service, which the library reads from the environment.
        headers: dict[str, Any] = {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
        if not os.environ.get(self.key_variable, "").strip():
            headers["Authorization"] = Omit()
        create: Any = client.chat.completions.with_streaming_response.create
        options = dict(self.options)
        with create(model=self.model, messages=messages, extra_body=options, extra_headers=headers) as reply:
            parts, size = [], 0
            for part in reply.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > MAX_REPLY:
                    raise ServiceError(f"{self.url}: a reply of over {MAX_REPLY:,} bytes is not an answer")
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

    def _status_problem(self, error: "APIStatusError") -> str:
        """What a status means, with the server's own message."""
        message = error.body
        for key in ("error", "message"):
            message = message.get(key, message) if isinstance(message, dict) else message
        cures = {
            400: "the request is refused: check options",
            401: f"the key is wrong or missing: set the environment variable {self.key_variable}",
            403: f"the key in {self.key_variable} may not use this model",
            404: f"there is no such path, or no model {self.model!r}: check the base URL",
            429: "too many requests, or no credit left",
        }
        redirect = "it redirects to another address, which is not followed: give that base URL"
        code = error.status_code
        cure = cures.get(code, redirect if code < 400 else "the server failed" if code >= 500 else "")
        words = f"status {code}" + (f", {cure}" if cure else "")
        reported = isinstance(message, str) and not message.lstrip().startswith("<") and " ".join(message.split())
        return words + (f" (it reports: {self._hidden(reported)[:300]})" if reported else "")

    def _hidden(self, text: str) -> str:
        """`text` without the key, in case a server repeats it."""
        key = os.environ.get(self.key_variable, "").strip()
        return text.replace(key, "***") if key else text


def _seconds(header: str | None) -> float:
    """A Retry-After header in seconds, 0 where it is absent or a date."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
