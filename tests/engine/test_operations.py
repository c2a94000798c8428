"""Counting operations: the counter, and training for a number of them."""

import pytest
import torch

from evle.engine.operations import operations_per_batch
from evle.errors import ConfigError
from evle.run.prepare import prepare
from micro import SAMPLES, micro_run


class Product(torch.nn.Module):
    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(5, 7, bias=False)

    def forward(self, inputs):
        return type("Output", (), {"loss": self.linear(inputs).sum()})


def test_operations_are_those_of_products_forward_and_backward():
    model, batches = Product(), [{"inputs": torch.randn(rows, 5)} for rows in (2, 4)]
    before = torch.random.get_rng_state()
    # Forward: rows x 5 x 7 multiplications and additions. Backward: the same for the weights; the inputs need none.
    assert operations_per_batch(model, batches) == 2 * 2 * 3 * 5 * 7  # type: ignore[arg-type]
    assert model.linear.weight.grad is None
    assert model.training
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_for_operations_takes_the_steps_that_they_are_enough_for(tmp_path, monkeypatch):
    config = micro_run(tmp_path, "vqa", {"train": {"steps": 2}})
    samples = {"train": SAMPLES["vqa"]()}
    ready = prepare(config, samples=samples)
    per_step = operations_per_batch(
        ready.loaded.model, (ready.task.on_device(b, "cpu") for b in ready.loader.batches(0))
    )
    train = config.train.model_copy(update={"steps": None, "teraflops": 3.2 * per_step / 1e12})
    again = prepare(config.model_copy(update={"train": train}), samples=samples)
    assert again.train.steps == 3
    # Two more processes, whose texts are longer: all train as many steps as the operations of all are enough for.
    monkeypatch.setattr("evle.run.prepare.gather_objects", lambda own: [*own, own[0], 1.2 * own[0]])
    assert prepare(config.model_copy(update={"train": train}), samples=samples).train.steps == 1
    with pytest.raises(ConfigError, match="give one of steps, epochs and teraflops"):
        micro_run(tmp_path, "vqa", {"train": {"steps": 2, "teraflops": 1.0}})
