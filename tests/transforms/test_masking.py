"""Masks of exactly the asked size, each choice equally likely, whole words whole, and special tokens never."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evle.errors import ConfigError
from evle.transforms.masking import IGNORED, mask_patches, mask_tokens

SPECIAL = {0, 1, 2, 3, 4}
CHOICES = {"mask_id": 4, "vocab_size": 50, "special_ids": SPECIAL}


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("num_patches", "ratio", "masked"), [(196, 0.75, 147), (16, 0.75, 12), (36, 0.5, 18), (9, 0.1, 1)]
)
def test_exactly_the_asked_share_of_patches_is_masked(num_patches, ratio, masked):
    mask = mask_patches(num_patches, ratio, rng())
    assert mask.shape == (num_patches,)
    assert mask.dtype == bool
    assert mask.sum() == masked


def test_every_patch_is_masked_equally_often():
    share = np.mean([mask_patches(16, 0.75, rng(seed)) for seed in range(2000)], axis=0)
    assert np.abs(share - 0.75).max() < 0.05  # five standard deviations


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.99, 1.0, 1.5])
def test_a_mask_that_hides_all_or_nothing_is_refused(ratio):
    with pytest.raises(ConfigError, match="some must be hidden and some seen"):
        mask_patches(16, ratio, rng())


@given(
    ids=st.lists(st.integers(0, 49), max_size=40),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 1000),
    replace=st.sampled_from([(1.0, 0.0, 0.0), (0.8, 0.1, 0.1), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]),
)
def test_labels_hold_exactly_what_is_hidden(ids, ratio, seed, replace):
    before = list(ids)
    masked, labels = mask_tokens(ids, ratio, rng(seed), replace=replace, **CHOICES)
    assert ids == before
    maskable = sum(token not in SPECIAL for token in ids)
    hidden = [place for place, label in enumerate(labels) if label != IGNORED]
    assert len(hidden) == (max(1, round(maskable * ratio)) if maskable else 0)
    for place, token in enumerate(ids):
        if place in hidden:
            assert labels[place] == token
            assert token not in SPECIAL
            assert masked[place] == 4 or replace[0] < 1
            assert masked[place] not in SPECIAL or masked[place] == 4
        else:
            assert masked[place] == token


def test_the_three_replacements_come_in_their_shares():
    ids = [7] * 4000
    masked, _ = mask_tokens(ids, 1.0, rng(), replace=(0.8, 0.1, 0.1), **CHOICES)
    assert abs(masked.count(4) / 4000 - 0.8) < 0.03
    assert abs(masked.count(7) / 4000 - 0.1) < 0.03
    assert not (set(masked) - {4}) & SPECIAL


@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=12), ratio=st.floats(0, 1), seed=st.integers(0, 1000))
def test_whole_words_are_masked_whole(lengths, ratio, seed):
    """Word w is `lengths[w]` tokens numbered 10 + w, between [CLS] and [SEP]."""
    words = [[10 + word] * length for word, length in enumerate(lengths)]
    ids = [2, *[token for word in words for token in word], 3]
    starts = [True, *[place == 0 for word in words for place in range(len(word))], True]
    _, labels = mask_tokens(ids, ratio, rng(seed), word_starts=starts, **CHOICES)
    for word, length in enumerate(lengths):
        assert labels.count(10 + word) in (0, length)
    hidden = sum(label != IGNORED for label in labels)
    count = max(1, round(sum(lengths) * ratio))
    assert count <= hidden < count + max(lengths)


def test_a_text_of_special_tokens_has_nothing_to_mask():
    assert mask_tokens([2, 3], 0.5, rng(), **CHOICES) == ([2, 3], [IGNORED, IGNORED])


def test_a_short_text_has_one_token_masked():
    _, labels = mask_tokens([2, 9, 8, 3], 0.01, rng(), **CHOICES)
    assert sum(label != IGNORED for label in labels) == 1


def test_the_generator_decides():
    ids = list(range(5, 45))
    assert mask_tokens(ids, 0.5, rng(1), **CHOICES) == mask_tokens(ids, 0.5, rng(1), **CHOICES)
    assert mask_tokens(ids, 0.5, rng(1), **CHOICES) != mask_tokens(ids, 0.5, rng(2), **CHOICES)


def test_a_ratio_that_is_no_share_is_refused():
    with pytest.raises(ConfigError, match=r"ratio of 1\.5"):
        mask_tokens([9], 1.5, rng(), **CHOICES)
