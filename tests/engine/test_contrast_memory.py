"""Contrast with embeddings of past steps: which pairs it compares, what it keeps, and that a run resumes exactly."""

import pytest
import torch

import vle_models
from evle.engine.contrast_memory import ContrastMemory
from evle.engine.failures import Interrupted
from evle.engine.run_folder import read_log
from evle.errors import CheckpointError, ConfigError
from evle.models.contrast import Embedded, PastContrast, compare
from evle.models.vle import VLEForRetrieval, VLEForVQA
from toy_training import contrastive_batch, make_loader, stop_at, train, weights

TEMPERATURE = torch.tensor(0.1)


def embedded(seed: int, ids: list[int]) -> Embedded:
    vectors = torch.randn(2, len(ids), 5, generator=torch.Generator().manual_seed(seed))
    image, text = torch.nn.functional.normalize(vectors, dim=-1)
    return Embedded(image, text, torch.tensor(ids))


def test_a_step_is_compared_with_the_last_pairs_of_earlier_steps():
    past = PastContrast(3)
    first, second, third = (embedded(seed, ids) for seed, ids in enumerate(([1, 2], [3, 1], [2, 9])))
    assert past.loss(first, first, TEMPERATURE) == compare(first, first, TEMPERATURE).loss
    both = Embedded.joined([second, first])
    assert past.loss(second, second, TEMPERATURE) == compare(second, both, TEMPERATURE).loss
    kept = Embedded.joined([third, second, Embedded(*(each[:1] for each in first))])  # 3 pairs beside its own
    assert past.loss(third, third, TEMPERATURE) == compare(third, kept, TEMPERATURE).loss


def test_the_past_has_no_gradient():
    past, first = PastContrast(4), embedded(0, [1, 2])
    first.image.requires_grad_()
    past.loss(first, first, TEMPERATURE)
    second = embedded(1, [3, 4])
    second.image.requires_grad_()
    past.loss(second, second, TEMPERATURE).backward()
    assert second.image.grad is not None
    assert first.image.grad is None


def test_pairs_without_match_ids_never_match_those_of_another_step():
    memory = ContrastMemory(vle_models.build(VLEForRetrieval), 8)
    batch = {"input_ids": torch.zeros(3, 2, dtype=torch.long)}
    steps = [memory.with_ids(batch, step)["match_ids"].tolist() for step in range(3)]
    assert len({number for step in steps for number in step}) == 9


def learn(folder, stop=None, seed=0, **options):
    model = vle_models.build(VLEForRetrieval, seed=seed, objective_weights={"itm": 0.0})
    loader = make_loader(4, num_samples=12)
    loader._maker.collate = contrastive_batch
    loader = loader if stop is None else stop_at(loader, stop)
    train(model, folder, steps=6, loader=loader, lr=1e-3, **options)
    return model


def test_a_resumed_run_remembers_the_same_pairs(tmp_path):
    straight = learn(tmp_path / "straight", contrast_memory=6)
    with pytest.raises(Interrupted):
        learn(tmp_path / "two", stop=4, contrast_memory=6)
    resumed = learn(tmp_path / "two", seed=9, contrast_memory=6)
    log = read_log(tmp_path / "straight")["loss"]
    assert read_log(tmp_path / "two")["loss"] == log
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name]), name
    learn(tmp_path / "without")
    alone = read_log(tmp_path / "without")["loss"]
    assert log[0] == alone[0]
    assert log[1][1] > alone[1][1]  # more pairs to be confused with


def test_a_memory_of_another_model_is_refused():
    memory = ContrastMemory(vle_models.build(VLEForRetrieval), 8)
    with pytest.raises(CheckpointError, match="memory: embeddings of another model"):
        memory.load({"1.image": torch.zeros(1)}, "memory")


def test_what_cannot_remember_is_refused():
    with pytest.raises(ConfigError, match="VLEForVQA has no contrast; set it to 0"):
        ContrastMemory(vle_models.build(VLEForVQA), 8)
    with pytest.raises(ValueError, match="contrast_memory works with accumulation=1"):
        train(None, None, contrast_memory=8, accumulation=2, steps=1)
