"""Model folders with their processors."""

import json

import pytest
import torch

from evle.errors import CheckpointError
from evle.models.eve import EVEForRetrieval, EVEForVQA
from evle.models.loading import load_model
from evle.pipelines import EmbedPipeline
from retrieval_models import save_retrieval_model


def test_half_precision_weights_are_loaded_in_float32_on_a_cpu(tmp_path, monkeypatch):
    save_retrieval_model(tmp_path)
    EVEForRetrieval.from_pretrained(tmp_path).half().save_pretrained(tmp_path)
    assert EVEForRetrieval.from_pretrained(tmp_path).dtype == torch.float16
    for accelerator, dtype in ((None, torch.float32), (torch.device("cuda"), torch.float16)):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False, a=accelerator: a)
        assert load_model(tmp_path, {"eve": EVEForRetrieval})[0].dtype == dtype
        assert load_model(tmp_path, {"eve": EVEForRetrieval}, "cuda")[0].dtype == torch.float16
        assert load_model(tmp_path, {"eve": EVEForRetrieval}, torch.device("cpu"))[0].dtype == torch.float32
        assert EmbedPipeline(tmp_path, device="cpu").model.dtype == torch.float32


def test_a_tokenizer_that_cannot_serve_the_model_is_refused(tmp_path):
    save_retrieval_model(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    whole = file.read_text()
    file.write_text(json.dumps({**json.loads(whole), "pad_token": None}))
    with pytest.raises(CheckpointError, match="the tokenizer has no padding token"):
        load_model(tmp_path, {"eve": EVEForRetrieval})
    file.write_text(json.dumps({**json.loads(whole), "model_max_length": "x"}))
    with pytest.raises(CheckpointError, match="the tokenizer encodes no text"):
        load_model(tmp_path, {"eve": EVEForRetrieval})
    file.write_text(whole)
    words = json.loads((tmp_path / "tokenizer.json").read_text())
    words["model"]["vocab"]["zebra"] = 5_000_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(CheckpointError, match="has a token of number 5,000,000, and the model knows"):
        load_model(tmp_path, {"eve": EVEForRetrieval})


def test_a_tokenizer_on_which_its_library_panics_is_one_line(tmp_path, monkeypatch):
    class PanicException(BaseException):
        """As pyo3's, which is no Exception."""

    def panic(*_, **__):
        raise PanicException("range end index 18446744073709546619 out of range")

    save_retrieval_model(tmp_path)
    monkeypatch.setattr("evle.models.eve.processing.EVEProcessor.from_pretrained", panic)
    with pytest.raises(CheckpointError, match=r"the tokenizer is damaged \(range end index"):
        load_model(tmp_path, {"eve": EVEForRetrieval})


def test_a_model_that_answers_at_a_mask_needs_a_mask_token(tmp_path):
    save_retrieval_model(tmp_path)
    config = EVEForRetrieval.from_pretrained(tmp_path).config
    EVEForVQA(config.with_changes(vqa_slot=True, num_labels=3)).save_pretrained(tmp_path)
    load_model(tmp_path, {"eve": EVEForVQA})
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "mask_token": None}))
    with pytest.raises(CheckpointError, match=r"the tokenizer has no mask token, where this model reads the answer"):
        load_model(tmp_path, {"eve": EVEForVQA})
    EVEForVQA(config.with_changes(num_labels=3)).save_pretrained(tmp_path)
    load_model(tmp_path, {"eve": EVEForVQA})
