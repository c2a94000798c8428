"""What a run says of its tokenizer: ends of texts that are cut off, words in pieces."""

from evle.run.prepare import prepare
from evle.run.tokenizer import text_notes
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
