"""Tagged text: names, types, and truncation, worked out by hand."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evle.errors import ConfigError
from evle.transforms.tagged import PERSON_NAMES, cleaned, encode_tagged, object_names, spoken
from evle.transforms.text import train_tokenizer

NAMES = ["Casey", "dining table", "Riley"]
LETTERS = list("abcdefgh")


def word_tokenizer():
    """A token a word."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, "Casey", "Riley", "and"]
    words += ["dining", "table"]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")


def words_of(tokenizer, candidate):
    return tokenizer.convert_ids_to_tokens(candidate.tokens)


def test_persons_take_names_in_turn_and_start_over():
    labels = ["cat", *["person"] * 17]
    assert object_names(labels) == ["cat", *PERSON_NAMES, "Casey", "Riley"]
    assert object_names(labels) == object_names(labels)  # nothing is remembered


def test_several_objects_are_joined_with_and():
    assert [word for word, _ in spoken([(0, 1, 2), "a"], NAMES)] == [
        "Casey",
        "and",
        "dining table",
        "and",
        "Riley",
        "a",
    ]


def test_objects_get_types_in_the_order_of_the_images_list():
    tokenizer = word_tokenizer()
    parts = [spoken(["a", (2,), "b"], NAMES), spoken([(1, 2)], NAMES)]
    found = encode_tagged(tokenizer, parts, 80)
    assert words_of(tokenizer, found) == (
        ["[CLS]", "a", "Riley", "b", "[SEP]", "dining", "table", "and", "Riley", "[SEP]"]
    )
    assert found.types == [0, 0, 3, 0, 0, 2, 2, 0, 3, 0]
    assert found.objects == [1, 2]


def test_the_longest_part_loses_its_end():
    """Parts of 5, 2 and 4 words and 4 special tokens make 15; the first loses e, then of the two with four the later
    one loses h, and so on."""
    tokenizer = word_tokenizer()
    parts = [spoken(LETTERS[:5], []), spoken(LETTERS[:2], []), spoken(LETTERS[4:], [])]
    kept = {
        15: ["a b c d e", "a b", "e f g h"],
        14: ["a b c d", "a b", "e f g h"],
        13: ["a b c d", "a b", "e f g"],
        12: ["a b c", "a b", "e f g"],
        9: ["a b", "a b", "e"],
    }
    for max_length, expected in kept.items():
        found = encode_tagged(tokenizer, parts, max_length)
        assert " ".join(words_of(tokenizer, found)) == f"[CLS] {' [SEP] '.join(expected)} [SEP]"
        assert len(found.types) == len(found.tokens) == max_length


def test_a_question_is_shortened_for_one_candidate_alone():
    tokenizer = word_tokenizer()
    question = spoken(LETTERS[:4], [])
    long, short = (encode_tagged(tokenizer, [question, spoken(answer, [])], 8) for answer in (LETTERS[4:], ["e"]))
    assert " ".join(words_of(tokenizer, long)) == "[CLS] a b c [SEP] e f [SEP]"
    assert " ".join(words_of(tokenizer, short)) == "[CLS] a b c d [SEP] e [SEP]"


def test_objects_keep_the_order_of_the_list_also_beyond_eight():
    """Python goes through the set {1, 4, 9} as 9, 4, 1 or 9, 1, 4."""
    found = encode_tagged(word_tokenizer(), [spoken([(9,), (1,), (4,)], list("abcdefghij"))], 80)
    assert found.types == [0, 4, 2, 3, 0]
    assert found.objects == [1, 4, 9]


def test_words_of_private_characters_are_read():
    tokenizer = word_tokenizer()
    found = encode_tagged(tokenizer, [spoken(["a", "\ue000", "b"], [])], 80)
    assert words_of(tokenizer, found) == ["[CLS]", "a", "[UNK]", "b", "[SEP]"]


def test_an_object_whose_words_were_cut_off_is_not_named():
    found = encode_tagged(word_tokenizer(), [spoken(["a", (0,), "b", (2,)], NAMES)], 5)
    assert found.types == [0, 0, 2, 0, 0]
    assert found.objects == [0]


def test_tokens_are_those_of_the_plain_text_and_every_piece_of_a_name_has_its_type():
    tokenizer = train_tokenizer(["what is this", "a dining table stands here"], 280)
    part = spoken(["what", "is", (1,), "'s", (0,), "?"], NAMES)
    found = encode_tagged(tokenizer, [part], 80)
    assert found.tokens == tokenizer("what is dining table 's Casey ?")["input_ids"]
    pieces = {kind: [token for token, its in zip(found.tokens, found.types) if its == kind] for kind in (2, 3)}
    assert len(pieces[3]) > 2  # the table is written in several pieces
    assert tokenizer.decode(pieces[3]).strip() == "dining table"
    assert tokenizer.decode(pieces[2]).strip() == "Casey"


def test_clean_words_name_what_the_word_named():
    words = [("Casey-Lee", 3), ("?", None), ("IS", None)]
    words = cleaned(words, lambda text: text.lower().replace("-", " ").strip("?"))
    assert words == [("casey", 3), ("lee", 3), ("is", None)]


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match="Slow is not one; load its fast form"):
        encode_tagged(Slow(), [[("a", None)]], 8)
