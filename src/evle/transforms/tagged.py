"""Turn tagged text into tokens: names for the objects that a text points at, and which tokens name which object (VCR).

A tagged text is a sequence of words and of tuples of indices into an image's objects: ("why", "is", (0, 2), "here").
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from evle.errors import ConfigError
from evle.transforms.text import readable_part

PERSON_NAMES = (
    *("Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton", "Kerry"),
    *("Jody", "Kendall", "Payton", "Skyler", "Frankie", "Pat", "Quinn"),
)
"""Gender-neutral names that persons take in turn (VLE's release, after VCR's)."""

FIRST_OBJECT_TYPE = 2
"""The token type of the first object; 0 is text and 1 is image."""

Spoken = list[tuple[str, int | None]]
"""Words, each with the index of the object that it names."""


class Candidate(NamedTuple):
    """A text as tokens: `tokens` and their `types` have the same length. `objects` are the indices of the named objects
    in ascending order; the first has the type `FIRST_OBJECT_TYPE`, the next one the following type."""

    tokens: list[int]
    types: list[int]
    objects: list[int]


def object_names(labels: Sequence[str]) -> list[str]:
    """The names of an image's objects: the n-th person gets the n-th of `PERSON_NAMES`, anything else its class.

    The names depend only on the image. (The released code continues counting persons from call to call, so that a
    prediction depends on earlier questions; this is fixed here.)

    >>> object_names(["person", "dog", "person"])
    ['Casey', 'dog', 'Riley']
    """
    num_persons = 0
    names = []
    for label in labels:
        names.append(PERSON_NAMES[num_persons % len(PERSON_NAMES)] if label == "person" else label)
        num_persons += label == "person"
    return names


def spoken(tagged: Sequence[str | Sequence[int]], names: Sequence[str]) -> Spoken:
    """The words of a tagged text with names for its tags; several names are joined with "and".

    Raises IndexError for a tag without a name, including negative ones.

    >>> spoken(["why", "is", (0, 1), "here"], ["Casey", "dog"])
    [('why', None), ('is', None), ('Casey', 0), ('and', None), ('dog', 1), ('here', None)]
    """
    words: Spoken = []
    for word in tagged:
        if isinstance(word, str):
            words.append((word, None))
            continue
        for number, index in enumerate(word):
            if index < 0:
                raise IndexError(index)
            words += [("and", None)] if number else []
            words.append((names[index], index))
    return words


def cleaned(words: Spoken, clean: Callable[[str], str]) -> Spoken:
    """The words after `clean`, which may turn one word into none or several; these name the same object."""
    return [(piece, index) for word, index in words for piece in clean(word).split()]


def encode_tagged(tokenizer: PreTrainedTokenizerBase, parts: Sequence[Spoken], max_length: int) -> Candidate:
    """`[CLS] part [SEP] part [SEP]` in at most `max_length` tokens; the end of the longest part is cut off.

    Named objects have types in the order of the image's list, as in released models; those that were cut off are not
    named. (In images with more than eight objects the released code may number them differently: in the iteration order
    of a Python set of their indices.) Raises ConfigError for a tokenizer without a fast backend, which does not know
    the position of its tokens in the text.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"tagged text needs a fast tokenizer, and {type(tokenizer).__name__} is not one; load its fast form"
        )
    encoded = [_encode_part(tokenizer, part) for part in parts]
    while 1 + sum(len(part) + 1 for part in encoded) > max_length and any(encoded):
        max(reversed(encoded), key=len).pop()
    objects = sorted({index for part in encoded for _, index in part if index is not None})
    tokens, types = [tokenizer.cls_token_id], [0]
    for part in encoded:
        for token, index in part:
            tokens.append(token)
            types.append(0 if index is None else FIRST_OBJECT_TYPE + objects.index(index))
        tokens.append(tokenizer.sep_token_id)
        types.append(0)
    return Candidate(tokens, types, objects)


def _encode_part(tokenizer: PreTrainedTokenizerBase, words: Spoken) -> list[tuple[int, int | None]]:
    """The tokens of the plain text of some words, each with the object that its last character names."""
    named: list[int | None] = []  # by character
    for word, index in words:
        named += ([None] if named else []) + [index] * len(word)
    text = readable_part(tokenizer, " ".join(word for word, _ in words))
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        (token, named[end - 1] if end else None)
        for token, (_, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]
