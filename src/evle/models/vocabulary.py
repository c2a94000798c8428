"""Which tokenizer a model was trained with: a sample of its tokens, and how it splits one sentence, in the weights'
header, compared at loading.

The number of word embeddings tells too little: models have more of them than tokens, so that they are a multiple of 64.
The same tokens split a text otherwise under another class or normalisation, which files beside tokenizer.json name. The
note is written with the weights by evle alone; weights that another tool has written since have none.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evle.errors import CheckpointError, in_one_line
from evle.models.checksums import NOTE, note_in, weights_in
from evle.models.folders import is_panic

log = logging.getLogger(__name__)

SAMPLED = 32
"""The tokens that are sampled evenly, and again from the end: all byte-level tokenizers begin with the same bytes."""
DIFFERING = 1 / 8
"""The share of the sampled tokens that a person may have renamed or removed; above it, the tokenizer is another one."""
PROBE = "Übrigens: Quizzical ZEBRAFISH aren't 27.5% red-ish"
"""The sentence whose tokens are noted: capitals, an accent, marks and digits, in words that nobody adds as tokens."""
PADDING = 1 / 10
"""The share of word embeddings that may be without a token before that is reported."""


@contextmanager
def tokens_noted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """A context in which `save_pretrained` of `model` notes the tokens of the tokenizer that it was trained with, and
    how it splits `PROBE`."""
    count = len(tokenizer)
    numbers = sorted({*range(max(0, count - SAMPLED), count), *range(0, count, -(-count // SAMPLED))})
    tokens = tokenizer.convert_ids_to_tokens(numbers)  # None where a number has no token
    sample = {number: token for number, token in zip(numbers, tokens, strict=True) if token is not None}
    note: dict[str, Any] = {"tokens": count, "sample": sample}
    with suppress(CheckpointError):  # a tokenizer without a token for unknown words cannot split every text
        note |= {"text": PROBE, "split": encoded(tokenizer, PROBE, "")}
    setattr(model, NOTE, json.dumps(note))
    try:
        yield
    finally:
        delattr(model, NOTE)  # the next tokenizer may be another one


def refuse_other_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
    """Raise CheckpointError where the tokenizer in a model folder has other tokens than the one of the training.

    Without a note of the training, a tokenizer that leaves many word embeddings without a token is reported in the log.
    """
    noted = _noted(folder)
    if noted is None:
        report_few_tokens(folder, tokenizer, num_embeddings)
        return
    known, sample = noted.tokens, noted.sample
    found = {number: _token(tokenizer, number) for number in sample}
    differing = [number for number, token in sample.items() if found[number] != token]
    if len(differing) > DIFFERING * len(sample):
        first = differing[0]
        raise CheckpointError(
            f"{folder}: not the tokenizer that the model was trained with ({len(tokenizer):,} tokens instead of "
            f"{known:,}; number {first} is {found[first]!r} instead of {sample[first]!r}); copy the tokenizer that "
            "belongs to it"
        )
    if noted.split is None:
        return
    split = encoded(tokenizer, noted.text, str(folder))
    if split != noted.split and max(split, default=0) < known:  # a person's own token may be a part of the sentence
        raise CheckpointError(
            f"{folder}: the tokenizer splits a text into {len(split)} tokens instead of {len(noted.split)}, or into "
            "others than in training; copy tokenizer.json and tokenizer_config.json that belong to the model"
        )


def encoded(tokenizer: Any, text: str, where: str) -> list[int]:
    """The tokens of one text. Raises CheckpointError, which names `where`, for a tokenizer that encodes none."""
    try:
        return [int(token) for token in tokenizer(text)["input_ids"]]
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise CheckpointError(
            f"{where}: the tokenizer encodes no text ({in_one_line(error)}); copy its files again"
        ) from None


def report_few_tokens(where: str | Path, tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> None:
    """Log a warning for a tokenizer that leaves more word embeddings without a token than padding does."""
    if len(tokenizer) < (1 - PADDING) * num_embeddings:
        log.warning(
            "%s: the tokenizer has %s tokens, and the model knows %s; is it the tokenizer that it was trained with?",
            where,
            f"{len(tokenizer):,}",
            f"{num_embeddings:,}",
        )


def _token(tokenizer: PreTrainedTokenizerBase, number: int) -> str | None:
    return tokenizer.convert_ids_to_tokens([number])[0] if number < len(tokenizer) else None


class _Note(NamedTuple):
    """The number of tokens, a sample of them, and the tokens of a text; earlier notes have no text."""

    tokens: int
    sample: dict[int, str]
    text: str
    split: list[int] | None


def _noted(folder: Path) -> _Note | None:
    """What the first file of weights with a note has noted."""
    note = next(filter(None, map(note_in, weights_in(folder))), "")
    try:
        fields: Any = json.loads(note)
        sample = {int(number): str(token) for number, token in fields["sample"].items()}
        split = [int(token) for token in fields["split"]] if "split" in fields else None
        return _Note(int(fields["tokens"]), sample, str(fields.get("text", "")), split)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
