"""What one request, and all of them together, may cost."""

from dataclasses import dataclass, fields

from evle.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bounds of the server. All are at least 1 except `wait_ms`; memory for waiting requests is at most
    `requests` x `body_bytes`."""

    body_bytes: int = 10_000_000
    """Bytes of a request's body."""
    pixels: int = 25_000_000
    """Pixels of an image."""
    side_ratio: int = 100
    """Longer side of an image, as a multiple of the shorter one. Resizing the shorter side makes thin images huge."""
    texts: int = 64
    """Texts, labels, documents or candidates of one request."""
    text_length: int = 2_000
    """Characters of a text. What is above a model's number of tokens is cut."""
    requests: int = 128
    """Requests in work at once, from their first byte to their answer. More get 429."""
    queue: int = 512
    """Rows (an image, a text, or a pair) that wait for one model. More get 429."""
    batch_rows: int = 16
    """Rows of one batch through a model."""
    wait_ms: float = 5.0
    """Milliseconds that the first row of a batch waits for others."""
    seconds: float = 30.0
    """From a request's first byte to its answer. A slow body gets 408, a slow answer 503."""

    def __post_init__(self) -> None:
        for field in fields(self):
            lowest = {"wait_ms": 0.0, "seconds": 0.05}.get(field.name, 1)
            if not getattr(self, field.name) >= lowest:
                raise ConfigError(f"{field.name} is {getattr(self, field.name)}; at least {lowest} is needed")
        if self.queue < self.texts:
            raise ConfigError(
                f"queue is {self.queue}, less than the {self.texts} texts of one request; raise queue or lower texts"
            )
