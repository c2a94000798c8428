"""Two processes (gloo, CPU) learn what one learns from the same total batch, whole or sharded."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from evle.engine import checkpoint
from evle.engine.run_folder import Run, read_log
from processes import run_on_two
from toy_training import ToyModel, make_model, train, train_contrastive, train_in_two_processes, train_sharded, weights


def assert_learned_the_same(folder, one, one_folder):
    learned = weights(ToyModel.from_pretrained(folder / "model"))
    for name, value in weights(one).items():
        torch.testing.assert_close(learned[name], value, atol=1e-6, rtol=1e-5)
    two_losses, one_losses = ([loss for _, loss in read_log(run)["loss"]] for run in (folder, one_folder))
    assert two_losses == pytest.approx(one_losses, rel=1e-5)
    assert Run(folder).status()["state"] == "finished"


def test_two_processes_learn_what_one_does_from_the_same_batch(tmp_path):
    # 19 samples, 8 per step: the last step of an epoch has 3, two in one process and one in the other.
    one = make_model()
    train(one, tmp_path / "one", epochs=2, batch_size=8, num_samples=19)
    options = {"epochs": 2, "accumulation": 2, "num_samples": 19}
    run_on_two(train_in_two_processes, str(tmp_path / "two"), 8, options)
    assert_learned_the_same(tmp_path / "two", one, tmp_path / "one")


@pytest.mark.slow
def test_sharded_parameters_learn_are_averaged_saved_and_resumed_as_whole_ones_are(tmp_path):
    options = {"steps": 6, "ema": 0.9, "save_every": 2, "eval_every": 3, "keep": "last"}
    one = make_model()
    train(one, tmp_path / "one", batch_size=8, **options)
    run_on_two(train_sharded, str(tmp_path / "two"), 8, options)
    assert_learned_the_same(tmp_path / "two", one, tmp_path / "one")
    last = load_file(tmp_path / "two" / "checkpoints" / "last" / "model.safetensors")
    for name, value in load_file(tmp_path / "one" / "checkpoints" / "last" / "model.safetensors").items():
        torch.testing.assert_close(last[name], value, atol=1e-6, rtol=1e-5)
    assert json.loads((tmp_path / "two" / "model" / "config.json").read_text())["architectures"] == ["ToyModel"]


@pytest.mark.slow
@pytest.mark.parametrize(("sharded", "accumulation"), [(False, 1), (True, 1), (False, 2), (True, 4)])
def test_a_contrastive_loss_over_two_processes_is_that_of_the_whole_batch(tmp_path, sharded, accumulation):
    train_contrastive(0, str(tmp_path / "one"), 1)
    run_on_two(train_contrastive, str(tmp_path / "two"), 2, sharded, accumulation)
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    # Only nearly: the balance loss, a thousandth of the whole, is over each process's own tokens.
    for curve in ("loss/itc", "grad_norm"):
        assert [value for _, value in two[curve]] == pytest.approx([value for _, value in one[curve]], rel=1e-3)
    # The same names and shapes, a temperature's among them, whatever sharding needed in between.
    for file in ("model", "checkpoints/last", "checkpoints/best"):
        whole, parted = (load_file(tmp_path / run / file / "model.safetensors") for run in ("one", "two"))
        assert [(name, parted[name].shape) for name in whole] == [(name, each.shape) for name, each in whole.items()]
        torch.testing.assert_close(parted["contrast.temperature"], whole["contrast.temperature"], atol=1e-5, rtol=1e-4)


def test_a_scalar_that_was_widened_for_sharding_goes_on_as_one():
    def build() -> tuple[nn.Module, torch.optim.AdamW]:
        model = nn.Linear(1, 1)
        model.temperature = nn.Parameter(torch.tensor(0.07))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model: nn.Module, optimizer: torch.optim.AdamW) -> float:
        (model(torch.ones(1, 1)) / model.temperature).sum().backward()
        optimizer.step()
        return model.temperature.item()

    torch.manual_seed(0)
    (model, optimizer), (other, its_optimizer) = build(), build()
    scalars = checkpoint.widen_scalars(model)
    assert scalars == {"temperature"}
    step(model, optimizer)
    state = checkpoint.model_state(model, scalars)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "weight": (1, 1), "bias": (1,), "temperature": ()
    }  # fmt: skip
    checkpoint.load_model_state(other, state, "model")
    checkpoint.load_optimizer_state(its_optimizer, checkpoint.optimizer_state(optimizer), "optimizer")
    checkpoint.load_model_state(model, state, "model")
    optimizer.zero_grad()
    assert step(other, its_optimizer) == pytest.approx(step(model, optimizer))
    checkpoint.narrow_scalars(model, scalars)
    assert model.temperature.shape == other.temperature.shape == ()
