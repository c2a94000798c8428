"""Experts divided over processes (gloo, CPU) compute and learn what one process does that holds them all."""

import pytest
import torch
from safetensors.torch import load_file

from evle.engine.devices import build_accelerator, divide_experts
from evle.engine.run_folder import Run, read_log
from evle.engine.train_config import TrainConfig
from evle.errors import ConfigError
from evle.models.eve.pretraining import EVEForPreTraining
from expert_processes import check_layer, continue_training, make_model
from processes import run_on
from toy_training import make_model as make_toy
from toy_training import weights

FOUR = pytest.mark.slow


@pytest.mark.parametrize(
    ("num_processes", "num_parts"), [(2, 2), pytest.param(4, 2, marks=FOUR), pytest.param(4, 4, marks=FOUR)]
)
def test_a_block_with_divided_experts_is_the_whole_block_in_outputs_and_gradients(num_processes, num_parts):
    run_on(num_processes, check_layer, num_parts)


def follow(folder, *legs, **options):
    """Train through the legs, each (processes, parts, batch to stop at); the last to the end."""
    for num_processes, num_parts, stop in legs:
        arguments = str(folder), num_processes, num_parts, {**options, "stop": stop}
        if num_processes == 1:
            continue_training(0, *arguments)
        else:
            run_on(num_processes, continue_training, *arguments)
        assert Run(folder).status()["state"] == ("finished" if stop is None else "interrupted")
    return weights(EVEForPreTraining.from_pretrained(folder / "model"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts") / "whole"
    return folder, follow(folder, (1, 1, None))


@pytest.mark.parametrize(
    "legs",
    [
        ((1, 1, 4), (2, 2, None)),
        pytest.param(((2, 2, 4), (1, 1, None)), marks=FOUR),
        pytest.param(((4, 2, 4), (2, 2, None)), marks=FOUR),
        pytest.param(((4, 4, 4), (4, 1, None)), marks=FOUR),
    ],
    ids=lambda legs: "-".join(f"{processes}x{parts}" for processes, parts, _ in legs),
)
@pytest.mark.parametrize("shard", [False, pytest.param(True, marks=FOUR)], ids=["whole", "sharded"])
def test_a_run_with_divided_experts_learns_what_one_process_does_and_moves(legs, shard, whole, tmp_path):
    learned = follow(tmp_path / "run", *legs, shard_checkpoints=shard)
    for name, value in whole[1].items():  # AdamW enlarges what rounding changes in a gradient near 0
        torch.testing.assert_close(learned[name], value, atol=1e-5, rtol=1e-5)
    ours, theirs = read_log(tmp_path / "run"), read_log(whole[0])
    for curve in ("loss", "grad_norm", "eval/score"):
        assert [value for _, value in ours[curve]] == pytest.approx([value for _, value in theirs[curve]], rel=1e-5)
    if not shard:
        assert_same_files(tmp_path / "run", whole[0], "best/model", "last/model", "last/ema", "last/optimizer")


def assert_same_files(ours, theirs, *names):
    """Checkpoints of divided experts hold them whole, with their averages and moments."""
    for name in names:
        found, expected = (load_file(run / "checkpoints" / f"{name}.safetensors") for run in (ours, theirs))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-4)


def accelerator(tmp_path):
    return build_accelerator("no", (), tmp_path)


def test_what_cannot_be_divided_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"expert_parallel=2: ToyModel has no experts to divide; set it to 1"):
        divide_experts(accelerator(tmp_path), make_toy(), 2)
    with pytest.raises(ConfigError, match=r"=2 does not divide the number of processes \(1\); choose one of 1$"):
        divide_experts(accelerator(tmp_path), make_model(), 2)
    assert divide_experts(accelerator(tmp_path), make_toy(), 1) is None


def test_a_number_of_experts_that_does_not_divide_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("evle.engine.experts.world_size", lambda: 6)
    with pytest.raises(ConfigError, match=r"=3 does not divide the number of experts per block \(4\); .* 1, 2, 4$"):
        divide_experts(accelerator(tmp_path), make_model(), 3)


def test_divided_experts_are_not_compiled():
    with pytest.raises(ValueError, match="expert_parallel=2: tokens that travel between processes cannot be compiled"):
        TrainConfig(steps=1, expert_parallel=2, compile=True)
