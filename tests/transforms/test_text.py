"""Clean-up as X-VLM has it, and a tokenizer that reads every script, is the same everywhere, and knows its words."""

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import AutoTokenizer

from evle.errors import ConfigError, DataError
from evle.transforms.tagged import encode_tagged
from evle.transforms.text import (
    LONGEST_WORD,
    MIN_VOCAB_SIZE,
    SPECIAL_TOKENS,
    encode,
    encode_with_slot,
    encode_words,
    train_tokenizer,
)
from evle.transforms.words import clean_caption, clean_question

CORPUS = [
    "a red ball on the table",
    "two blue balls",
    "the grinning face",
    "ein roter Ball",
    "赤いボール",
    "🎈 balloon",
] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CORPUS, 320)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("A man, riding a horse.", "a man riding a horse"),
        ("It's a dog's life!", "its a dogs life"),
        ("black-and-white and/or grey", "black and white and or grey"),
        ("<person> waves at <person>", "person waves at person"),
        ('"quoted" (said) *he* #1: yes; ~ok`?', "quoted said he 1 yes ok"),
        ("  many   blanks\n\tand lines ", "many blanks and lines"),
        ("ÄRGER Überall 100%", "ärger überall 100%"),
        ("赤い ボール", "赤い ボール"),
        ("...", ""),
        ("", ""),
    ],
)
def test_captions_are_cleaned_by_the_published_rule(text, clean):
    assert clean_caption(text) == clean
    assert clean_caption(clean) == clean


def test_captions_end_after_thirty_words_and_questions_where_asked():
    words = [f"w{i}" for i in range(60)]
    assert clean_caption(" ".join(words)).split() == words[:30]
    assert clean_question(" ".join(words)).split() == words[:30]
    assert clean_question(" ".join(words), max_words=50).split() == words[:50]
    assert clean_caption(" ".join(words), max_words=None).split() == words


def test_special_tokens_have_the_first_ids_and_frame_the_text(tokenizer):
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 4)
    ids = encode(tokenizer, "a red ball", 20)
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    pair = tokenizer("red", "blue")["input_ids"]
    assert pair.count(tokenizer.sep_token_id) == 2


@pytest.mark.parametrize(
    "text",
    ["a red ball", "Unseen Wörds, with: punctuation!", "赤いボール", "😀🎈 ok", "Привет мир", "שלום", "\x00 odd"],
)
def test_every_script_is_read_without_unknown_tokens_and_comes_back(tokenizer, text):
    ids = encode(tokenizer, text, 200)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_the_first_word_is_the_same_token_as_in_the_middle(tokenizer):
    assert encode(tokenizer, "ball", 9)[1:-1] == encode(tokenizer, "red ball", 9)[-2:-1]


def test_a_mask_in_a_text_takes_the_place_of_one_token(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        told = each.convert_ids_to_tokens(each("a [MASK] ball")["input_ids"])
        whole = each.convert_ids_to_tokens(each("a ball")["input_ids"])
        assert told == [*whole[:2], "[MASK]", *whole[2:]]


def test_an_empty_text_is_only_its_frame(tokenizer):
    assert encode(tokenizer, "", 9) == [tokenizer.cls_token_id, tokenizer.sep_token_id]


@pytest.mark.parametrize("text", ["ball " * 20_000, "x" * 100_000])
def test_an_overlong_text_is_cut_with_its_frame_kept(tokenizer, text):
    ids = encode(tokenizer, text, 12)
    assert len(ids) == 12
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_is_cut_as_the_tokenizer_itself_would(tokenizer, side):
    other = copy.deepcopy(tokenizer)
    other.truncation_side = side
    texts = ["", "a red circle on a blue ground, twice", "[CLS] and [SEP] as words " * 3]
    for text in texts:
        for length in (3, 7, 12, 60):
            expected = copy.deepcopy(other)(text, truncation=True, max_length=length)["input_ids"]
            assert encode(other, text, length) == expected
            assert encode_words(other, text, length)[0] == expected


def test_encoding_leaves_no_setting_in_the_tokenizer(tokenizer):
    """Pipelines in several threads share a tokenizer: a setting of one call must not reach another."""
    before = tokenizer.backend_tokenizer.to_str()
    encode(tokenizer, "a red circle on a blue ground", 4)
    encode_with_slot(tokenizer, "a red circle on a blue ground", 4)
    encode_words(tokenizer, "a red circle on a blue ground", 4)
    encode_tagged(tokenizer, [[("red", None), ("circle", 0)]], 4)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.backend_tokenizer.truncation is None


def test_threads_may_cut_at_different_lengths_with_one_tokenizer(tokenizer):
    texts = [f"what is the colour of circle {number}? " * 3 for number in range(20)]
    expected = {length: [encode(tokenizer, text, length) for text in texts] for length in (8, 20)}
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: [encode(tokenizer, text, (8, 20)[n % 2]) for text in texts], range(40)))
    assert all(result == expected[(8, 20)[number % 2]] for number, result in enumerate(results))


def test_training_survives_endless_words_and_learns_nothing_from_their_length():
    tokenizer = train_tokenizer(["x" * 100_000, "red ball"], 400)
    assert max(len(token) for token in tokenizer.get_vocab()) <= LONGEST_WORD + 1  # and the blank before it


def test_a_saved_tokenizer_is_read_by_auto_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*CORPUS, "unseen 😀 text", ""):
        assert encode(again, text, 30) == encode(tokenizer, text, 30)
    assert again.pad_token_id == 0
    assert again.mask_token == "[MASK]"


def test_a_tiny_corpus_gives_a_smaller_vocabulary():
    assert len(train_tokenizer(["a b"], 5000)) < MIN_VOCAB_SIZE + 10


def test_the_vocabulary_never_exceeds_what_was_asked():
    assert len(train_tokenizer(CORPUS, MIN_VOCAB_SIZE + 7)) == MIN_VOCAB_SIZE + 7


def test_the_same_texts_give_the_same_tokenizer_in_another_process_without_threads():
    script = (
        "from evle.transforms.text import train_tokenizer\n"
        f"print(train_tokenizer({CORPUS!r}, 320).backend_tokenizer.to_str())"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        check=True,
        encoding="utf-8",
        env={"TOKENIZERS_PARALLELISM": "false", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"},
    )
    assert run.stdout.strip() == train_tokenizer(CORPUS, 320).backend_tokenizer.to_str()


def test_the_corpus_is_read_lazily_and_once():
    read = []
    train_tokenizer((read.append(text) or text for text in CORPUS), 300)
    assert read == CORPUS


def test_lowercase_is_an_option():
    tokenizer = train_tokenizer(["a red ball"], 300, lowercase=True)
    assert encode(tokenizer, "RED Ball", 9) == encode(tokenizer, "red ball", 9)


def test_impossible_wishes_are_refused_in_words():
    with pytest.raises(ConfigError, match=f"vocab_size=100 is too small.* {MIN_VOCAB_SIZE}"):
        train_tokenizer(CORPUS, 100)
    with pytest.raises(DataError, match="holds no text"):
        train_tokenizer(["", "  "], 300)


def test_words_start_where_blanks_do(tokenizer):
    ids, starts = encode_words(tokenizer, "unheardof balls", 30)
    assert ids == encode(tokenizer, "unheardof balls", 30)
    text = [tokenizer.decode([token]) for token in ids]
    begins = [piece for piece, is_start in zip(text, starts) if is_start]
    assert begins[0] == "[CLS]"
    assert begins[-1] == "[SEP]"
    assert len(begins) == 4  # the frame and two words
    assert all(piece.startswith(" ") for piece in begins[1:-1])
    assert sum(not start for start in starts) > 0  # "unheardof" is several tokens


def test_words_need_a_fast_tokenizer():
    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match="fast tokenizer, and Slow"):
        encode_words(Slow(), "text", 9)


def test_a_slot_stands_before_the_last_token_and_is_never_cut_off(tokenizer):
    plain = encode(tokenizer, "a red circle", 20)
    assert encode_with_slot(tokenizer, "a red circle", 20) == [*plain[:-1], tokenizer.mask_token_id, plain[-1]]
    cut = encode_with_slot(tokenizer, "red " * 50, 8)
    assert len(cut) == 8
    assert cut[-2] == tokenizer.mask_token_id


@pytest.mark.parametrize("length", [2, 3, 5, 40])
@pytest.mark.parametrize("text", ["", "a", "a red ball on a [MASK]", "red [SEP] blue ball ball ball ball"])
def test_texts_are_cut_as_the_tokenizer_cuts_them_without_changing_its_state(text, length):
    tokenizer = train_tokenizer(["a red ball on a blue ball"], 300)
    tokens = encode(tokenizer, text, length)
    assert tokenizer.backend_tokenizer.truncation is None
    assert encode_words(tokenizer, text, length)[0] == tokens
    assert tokens == tokenizer(text, truncation=True, max_length=length)["input_ids"]
