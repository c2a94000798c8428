"""What a run says of its tokenizer: ends of texts that are cut off, words in pieces; and damaged files of one."""

import json
import struct

import pytest

from evle.errors import EvleError
from evle.models.eve import EVEProcessor
from evle.run.prepare import prepare
from evle.run.tokenizer import read_tokenizer, text_notes
from evle.run.weights import read_processor
from evle.transforms.text import train_tokenizer
from micro import SAMPLES, micro_run

TEXTS = ["the purple triangle is left of the yellow square", "the yellow square is above the purple triangle"]


def test_texts_that_are_cut_are_counted():
    tokenizer = train_tokenizer(TEXTS, 600)
    longest = max(len(tokenizer(text)["input_ids"]) for text in TEXTS)
    assert text_notes(TEXTS, tokenizer, longest, is_new=True) == []
    found = text_notes(TEXTS, tokenizer, longest - 1, is_new=True)
    assert found == [
        f"text.max_length={longest - 1} cuts the ends off 1 of 2 texts that were looked at; the longest has "
        f"{longest} tokens"
    ]


def test_words_in_pieces_are_noticed_where_the_tokenizer_is_trained_here():
    letters = train_tokenizer(TEXTS, 261)
    found = text_notes(TEXTS, letters, 100, is_new=True)
    assert len(found) == 1
    assert "because the tokenizer has 261 in all; a larger tokenizer.vocab_size" in found[0]
    assert text_notes(TEXTS, letters, 100, is_new=False) == []


def test_a_run_reports_both(tmp_path):
    run = micro_run(tmp_path / "run", "vqa", {"tokenizer": {"vocab_size": 261}, "text": {"max_length": 4}})
    notes = "\n".join(prepare(run, samples={"train": SAMPLES["vqa"]()}).notes)
    assert "text.max_length=4 cuts the ends off" in notes
    assert "a word has" in notes


DAMAGED = {
    "empty": ("tokenizer.json", "{}"),
    "list": ("tokenizer_config.json", "[]"),
    "deep": ("tokenizer_config.json", "[" * 100_000),
    "dict-for-token": ("tokenizer_config.json", '{"cls_token": {"content": "[CLS]"}}'),
}


@pytest.mark.parametrize(("name", "content"), DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("part", ["tokenizer", "processor"])
def test_a_damaged_file_of_a_tokenizer_is_one_line(part, name, content, tmp_path):
    EVEProcessor.for_size(16, train_tokenizer(TEXTS, 261)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "eve"}', encoding="utf-8")
    if name == "tokenizer_config.json" and content.startswith("{"):
        content = json.dumps({**json.loads((tmp_path / name).read_text(encoding="utf-8")), **json.loads(content)})
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(EvleError) as caught:
        read_tokenizer(tmp_path) if part == "tokenizer" else read_processor(tmp_path, "eve")
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(caught.value)


def field(number: int, content: bytes) -> bytes:
    """A field of bytes in a message of Protocol Buffers, of at most 127 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def piece(text: str, score: float, kind: int = 1) -> bytes:
    return field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([3 << 3, kind]))


PIECES = b"".join(piece(text, 0.0, 2 if text == "[UNK]" else 3) for text in ("[PAD]", "[CLS]", "[SEP]", "[UNK]"))
PIECES += piece("\u2581red", -1.0)
ODD_PIECES = {
    "no-text": (PIECES + field(1, b"\x15" + bytes(4)), {}, {}, "a piece without text"),
    "number-for-text": (PIECES + field(1, b"\x08\x01"), {}, {}, "a piece without text"),
    "number-for-score": (PIECES + field(1, field(1, b"a") + b"\x10\x01"), {}, {}, "not a SentencePiece model"),
    "nan": (PIECES + piece("a", float("nan")), {}, {}, r"the piece 'a' has the score nan\); copy it again"),
    "table": (PIECES + field(3, field(2, b"junk")), {}, {}, "no tokenizer can be built"),
    "number-for-table": (PIECES + field(3, b"\x10\x01"), {}, {}, "no tokenizer can be built"),
    "null-id": (PIECES, {}, {"[MASK]": None, "x": 3}, r"gives '\[MASK\]' the id null, where a whole number"),
    "text-id": (PIECES, {}, {"[MASK]": "5"}, r"gives '\[MASK\]' the id \"5\", where a whole number"),
    "no-content": (PIECES, {"cls_token": {"x": 1}}, {}, 'has the cls_token {"x": 1}, which is no text'),
    "list-token": (PIECES, {"cls_token": ["a"]}, {}, r'has the cls_token \["a"\], which is no text'),
    "deep": (PIECES, "[" * 100_000, {}, "tokenizer_config.json: not JSON"),
}


@pytest.mark.parametrize(("pieces", "settings", "added", "words"), ODD_PIECES.values(), ids=ODD_PIECES)
def test_a_damaged_sentencepiece_model_is_one_line(pieces, settings, added, words, tmp_path):
    (tmp_path / "spm.model").write_bytes(PIECES)
    assert len(read_tokenizer(tmp_path)) == 6
    (tmp_path / "spm.model").write_bytes(pieces)
    for name, content in (("tokenizer_config.json", settings), ("added_tokens.json", added)):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(EvleError, match=words) as caught:
        read_tokenizer(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
