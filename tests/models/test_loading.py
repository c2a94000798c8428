"""Model folders with their processors."""

import torch

from evle.models.eve import EVEForRetrieval
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
