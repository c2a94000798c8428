"""FSDP2 with activation checkpointing, in float32 and bfloat16, learns what one process does (gloo, CPU)."""

import math

import pytest
import torch
from safetensors.torch import load_file

from evle.engine.run_folder import Run, read_log
from evle.models.eve.pretraining import EVEForPreTraining
from expert_processes import continue_training
from processes import run_on

SLOW = pytest.mark.slow


def follow(folder, *legs, **options):
    """Train through the legs, each (processes, engine, batch to stop at); the last to the end."""
    for num_processes, engine, stop in legs:
        arguments = str(folder), num_processes, 1, {**options, "engine": engine, "stop": stop}
        if num_processes == 1:
            continue_training(0, *arguments)
        else:
            run_on(num_processes, continue_training, *arguments)
        assert Run(folder).status()["state"] == ("finished" if stop is None else "interrupted")
    assert EVEForPreTraining.from_pretrained(folder / "model").num_parameters()


def kept(folder, file):
    """The tensors of the last checkpoint; of the optimizer, the running means of the gradients."""
    tensors = load_file(folder / "checkpoints" / "last" / f"{file}.safetensors")
    return {name: each for name, each in tensors.items() if file != "optimizer" or name.endswith(".exp_avg")}


def distance(found, expected):
    """The distance of all tensors together, as a share of their length."""
    assert found.keys() == expected.keys()
    squares = (float((found[name] - value).square().sum()) for name, value in expected.items())
    return math.sqrt(sum(squares) / sum(float(value.square().sum()) for value in expected.values()))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """By precision: the folder of a run of one process."""
    root = tmp_path_factory.mktemp("fsdp")

    def run(precision):
        if not (root / precision).exists():
            follow(root / precision, (1, "one", None), precision=precision)
        return root / precision

    return run


# bfloat16 has 8 bits, and sums are added in another order.
CLOSE = {"no": 1e-5, "bf16": 1e-2}
FOUR = (4, "fsdp2", None)


@pytest.mark.parametrize(
    ("precision", "legs"),
    [
        ("bf16", [(2, "fsdp2", None)]),
        pytest.param("bf16", [FOUR], marks=SLOW),
        pytest.param("no", [(2, "fsdp2", None)], marks=SLOW),
        pytest.param("no", [FOUR], marks=SLOW),
        pytest.param("no", [(4, "fsdp2", 4), (2, "ddp", None)], marks=SLOW),
        pytest.param("bf16", [(2, "fsdp2", 4), (1, "one", None)], marks=SLOW),
        pytest.param("bf16", [(1, "one", 4), (2, "fsdp2", None)], marks=SLOW),
    ],
    ids=str,
)
def test_sharded_checkpointed_layers_learn_what_one_process_does(precision, legs, one, tmp_path):
    follow(tmp_path / "run", *legs, precision=precision, gradient_checkpointing=True)
    folder, close = one(precision), CLOSE[precision]
    for file in ("model", "ema", "optimizer"):
        found = kept(tmp_path / "run", file)
        assert distance(found, kept(folder, file)) < close
        assert {each.dtype for each in found.values()} == {torch.float32}
    ours, theirs = read_log(tmp_path / "run"), read_log(folder)
    losses = torch.tensor([value for _, value in ours["loss"]])
    assert not torch.equal(losses, losses.bfloat16().float())  # losses are float32, whatever the layers compute in
    for curve in ("loss", "grad_norm", "eval/score"):
        assert [value for _, value in ours[curve]] == pytest.approx([value for _, value in theirs[curve]], rel=close)
