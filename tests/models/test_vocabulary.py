"""The tokenizer of a model's training: another one is refused, padding and a person's own changes are not."""

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from evle import train
from evle.errors import CheckpointError
from evle.models.checksums import NOTE
from evle.models.eve import EVEForRetrieval
from evle.models.loading import load_model
from evle.models.vocabulary import refuse_other_tokenizer, tokens_noted
from evle.run.prepare import prepare
from evle.transforms.text import train_tokenizer
from micro import SAMPLES, micro_run
from retrieval_models import save_retrieval_model

OTHER = ["seven zebras quickly jumped over that vexing fox", "pack my box with dozens of liquor jugs"]


def load(folder):
    return load_model(folder, {"eve": EVEForRetrieval})


def save(folder, num_embeddings):
    """A model folder as a run writes it, with that number of word embeddings."""
    save_retrieval_model(folder)
    model, tokenizer = EVEForRetrieval.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    model.resize_token_embeddings(num_embeddings)
    with tokens_noted(model, tokenizer):
        model.save_pretrained(folder)
    return tokenizer


def test_another_tokenizer_is_refused_whatever_its_size(tmp_path):
    tokenizer = save(tmp_path, 320)
    load(tmp_path)
    for size in (262, len(tokenizer), 320):
        train_tokenizer(OTHER * 9, size).save_pretrained(tmp_path)
        words = (
            rf"not the tokenizer that the model was trained with \({size} tokens instead of {len(tokenizer)}; number"
        )
        with pytest.raises(CheckpointError, match=words):
            load(tmp_path)


def test_a_run_notes_its_tokenizer_and_refuses_to_start_with_another(tmp_path):
    train(micro_run(tmp_path / "a", "vqa", {"train": {"steps": 1}}), samples={"train": SAMPLES["vqa"]()})
    start = micro_run(tmp_path / "b", "vqa", {"model": {"init": str(tmp_path / "a"), "preset": None}})
    prepare(start, samples={"train": SAMPLES["vqa"]()})
    train_tokenizer(OTHER * 9, 290).save_pretrained(tmp_path / "a/model")
    with pytest.raises(CheckpointError, match=r"a/model: not the tokenizer that the model was trained with"):
        prepare(start, samples={"train": SAMPLES["vqa"]()})


def test_padding_added_tokens_and_a_renamed_one_are_no_other_tokenizer(tmp_path):
    tokenizer = save(tmp_path, 384)
    assert len(load(tmp_path)[1].tokenizer) == len(tokenizer)
    tokenizer.add_tokens(["<box>", "<mask>"])
    tokenizer.save_pretrained(tmp_path)
    load(tmp_path)
    with tokens_noted(model := load(tmp_path)[0], tokenizer):
        model.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<mask>", "<mine>"))
    assert "<mine>" in load(tmp_path)[1].tokenizer.get_vocab()


def test_a_tokenizer_with_gaps_between_its_numbers_is_its_own(tmp_path):
    tokenizer = save(tmp_path, 320)
    sparse = {token: 3 * number for token, number in tokenizer.get_vocab().items()}
    sparse = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(sparse, unk_token="[UNK]")))
    with tokens_noted(model := load(tmp_path)[0], sparse):
        model.save_pretrained(tmp_path)
    refuse_other_tokenizer(tmp_path, sparse, 960)
    with pytest.raises(CheckpointError, match="not the tokenizer that the model was trained with"):
        refuse_other_tokenizer(tmp_path, tokenizer, 960)


def test_weights_that_another_tool_wrote_have_no_tokenizer_of_their_own(tmp_path, caplog):
    save(tmp_path, 320)
    model = EVEForRetrieval.from_pretrained(tmp_path)
    for write in (model.save_pretrained, lambda folder: PreTrainedModel.save_pretrained(model, folder)):
        save(tmp_path, 320)
        write(tmp_path)
        train_tokenizer(OTHER * 9, 300).save_pretrained(tmp_path)
        load(tmp_path)
    assert "is it the tokenizer" not in caplog.text
    train_tokenizer(OTHER * 9, 262).save_pretrained(tmp_path)
    load(tmp_path)
    assert "the tokenizer has 262 tokens, and the model knows 320; is it the tokenizer" in caplog.text


def test_the_same_tokens_under_another_class_are_another_tokenizer(tmp_path, monkeypatch):
    save(tmp_path, 320)
    file = tmp_path / "tokenizer_config.json"
    other = json.dumps({**json.loads(file.read_text()), "tokenizer_class": "BertTokenizer"})
    whole = file.read_text()
    file.write_text(other)
    with pytest.raises(CheckpointError, match=r"the tokenizer splits a text into \d+ tokens instead of \d+"):
        load(tmp_path)
    # Weights that were written before notes had a text.
    file.write_text(whole)
    model, processor = load(tmp_path)
    with tokens_noted(model, processor.tokenizer):
        note = json.loads(getattr(model, NOTE))
        setattr(model, NOTE, json.dumps({name: note[name] for name in ("tokens", "sample")}))
        model.save_pretrained(tmp_path)
    file.write_text(other)
    load(tmp_path)


def test_a_persons_own_token_in_the_noted_text_is_no_other_tokenizer(tmp_path):
    tokenizer = save(tmp_path, 384)
    tokenizer.add_tokens(["ZEBRA"])
    tokenizer.save_pretrained(tmp_path)
    load(tmp_path)
