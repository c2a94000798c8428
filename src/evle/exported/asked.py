"""What a caller asks a pipeline, as lists, checked before any work is done for it."""

from collections.abc import Callable, Sequence
from typing import Any

from evle.data.requests import Images, Texts, as_images, as_texts
from evle.data.samples import ImageSource
from evle.errors import ConfigError, DataError


def images_of(images: Images) -> list[ImageSource]:
    """One image or many as a list. Encoded bytes may also be a bytearray or a memoryview."""
    return [as_bytes(each) for each in as_images(as_bytes(images))]


def as_bytes(source: Any) -> Any:
    """Encoded bytes as `bytes`, anything else as it is."""
    return bytes(source) if isinstance(source, bytearray | memoryview) else source


def texts_of(texts: Texts) -> list[str]:
    """One text or many as a list. Raises DataError for what is no text, or has half a character (a lone surrogate)."""
    if texts is None or isinstance(texts, bytes | bytearray | memoryview):
        raise DataError(f"{_kind(texts)} is no text; give a str, or a list of them")
    try:
        listed = as_texts(texts)
    except TypeError:
        raise DataError(f"{_kind(texts)} is no text; give a str, or a list of them") from None
    for row, text in enumerate(listed):
        if not isinstance(text, str):
            raise DataError(f"text {row} is {_kind(text)}, which is no text; give a str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"text {row} ({text[:40]!a}) has half a character at {error.start}; decode it again, as UTF-8"
            ) from None
    return listed


def label_texts(labels: Texts, template: str, read: Callable[[str], Sequence[int]]) -> tuple[list[str], list[str]]:
    """The labels, and the text of each: `template` with the label for {}. `read` gives the tokens of a text.

    Raises ConfigError without a label or {}, and for two labels whose texts have the same tokens.
    """
    names = texts_of(labels)
    if not names:
        raise ConfigError("there is no label; give at least one")
    if not isinstance(template, str) or "{}" not in template:
        raise ConfigError(f"template {template!r} has no {{}}, where the label goes")
    texts = [template.replace("{}", name) for name in names]
    known: dict[tuple[int, ...], str] = {}
    for name, text in zip(names, texts, strict=True):
        tokens = tuple(read(text))
        if tokens in known:
            cure = "leave one of them out"
            if tuple(read(name)) != tuple(read(known[tokens])):
                cure = f"their texts are cut after {len(tokens)} tokens, before they differ: shorten the template"
            raise ConfigError(f"the labels {known[tokens]!r} and {name!r} are read as one text; {cure}")
        known[tokens] = name
    return names, texts


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
