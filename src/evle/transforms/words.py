"""What is done to a text before and after a tokenizer reads it: plain Python, which needs no torch."""

import re
from collections.abc import Sequence

DROPPED = re.compile(r"[,.'!?\"()*#:;~`]")


def clean_caption(text: str, max_words: int | None = 30) -> str:
    """Lower case without punctuation, `-` and `/` as blanks, at most `max_words` words (X-VLM's rule, which EVE uses
    for captions).

    The result is empty if the text holds nothing but punctuation: the caller decides whether that is an error.

    >>> clean_caption("A <person>'s well-known dog, asleep!")
    'a persons well known dog asleep'
    """
    text = DROPPED.sub("", text.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(text.split()[:max_words])


def clean_question(text: str, max_words: int | None = 30) -> str:
    """The rule of `clean_caption` for a question; EVE keeps 30 words in training and 50 at test."""
    return clean_caption(text, max_words)


def kept_tokens(special: Sequence[int], max_length: int, side: str) -> list[int]:
    """The indices of at most `max_length` tokens: the special tokens at both ends, and of the tokens between them the
    first, or the last if `side` is "left". `special` marks the tokens that the tokenizer added."""
    if len(special) <= max_length:
        return list(range(len(special)))
    first = next((index for index, mark in enumerate(special) if not mark), len(special))
    last = len(special) - next((index for index, mark in enumerate(reversed(special)) if not mark), 0)
    room = max(0, max_length - first - (len(special) - last))
    between = range(last - room, last) if side == "left" else range(first, first + room)
    return [*range(first), *between, *range(last, len(special))]
