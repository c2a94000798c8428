"""Masks for masked signal modelling: random patches of an image (EVE: 75 %) and random tokens of a text (EVE: 50 %)."""

from collections.abc import Collection, Sequence

import numpy as np

from evle.errors import ConfigError

IGNORED = -100
"""The label of a token that is not predicted, as in torch's cross-entropy."""


def mask_patches(num_patches: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """bool (num_patches,), True = masked: exactly round(num_patches * ratio) patches, drawn uniformly (as in MAE).

    The count is not random, so the rows of a batch have the same number of visible patches. Raises ConfigError for a
    ratio that leaves nothing to see or nothing to predict.
    """
    num_masked = round(num_patches * ratio)
    if not 0 < num_masked < num_patches:
        raise ConfigError(
            f"a mask ratio of {ratio:g} hides {num_masked} of {num_patches} patches: some must be hidden and some seen"
        )
    mask = np.zeros(num_patches, dtype=bool)
    mask[rng.permutation(num_patches)[:num_masked]] = True
    return mask


def mask_tokens(
    ids: Sequence[int],
    ratio: float,
    rng: np.random.Generator,
    *,
    mask_id: int,
    vocab_size: int,
    special_ids: Collection[int],
    replace: tuple[float, float, float] = (1.0, 0.0, 0.0),
    word_starts: Sequence[bool] | None = None,
) -> tuple[list[int], list[int]]:
    """Tokens with round(maskable * ratio) of them masked (at least one, if any can be), and labels: the original token
    at masked positions, else -100.

    Tokens in `special_ids` are never masked. With the three probabilities in `replace`, a masked token becomes
    `mask_id`, becomes a random token that is not special, or stays unchanged: EVE's figure shows (1, 0, 0), BERT uses
    (0.8, 0.1, 0.1). With `word_starts` (True where a word begins) whole words are masked in random order until the
    count is reached, which may hide up to one word more.
    """
    if not 0 <= ratio <= 1:
        raise ConfigError(f"a text mask ratio of {ratio:g} is not a fraction; choose one between 0 and 1")
    special = set(special_ids)
    maskable = [position for position, token in enumerate(ids) if token not in special]
    masked_ids, labels = list(ids), [IGNORED] * len(ids)
    if not maskable:
        return masked_ids, labels
    for position in _pick_positions(maskable, max(1, round(len(maskable) * ratio)), rng, word_starts):
        labels[position] = ids[position]
        kind = rng.random() * sum(replace)
        if kind < replace[0]:
            masked_ids[position] = mask_id
        elif kind < replace[0] + replace[1]:
            masked_ids[position] = _random_token(vocab_size, special, rng)
    return masked_ids, labels


def _pick_positions(
    maskable: list[int], count: int, rng: np.random.Generator, word_starts: Sequence[bool] | None
) -> list[int]:
    words: list[list[int]] = []
    for position in maskable:
        if word_starts is None or word_starts[position] or not words:
            words.append([])
        words[-1].append(position)
    picked: list[int] = []
    for index in rng.permutation(len(words)):
        if len(picked) >= count:
            break
        picked += words[index]
    return picked


def _random_token(vocab_size: int, special: set[int], rng: np.random.Generator) -> int:
    assert len(special) < vocab_size
    while (token := int(rng.integers(vocab_size))) in special:
        pass
    return token
