"""Two processes (gloo, CPU) learn what one learns from the same total batch."""

import pytest
import torch
from safetensors.torch import load_file

from evle.engine.run import Run, read_log
from processes import run_on_two
from toy_training import make_model, train, train_in_two_processes, weights


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_learn_what_one_does_from_the_same_batch(tmp_path, accumulation):
    # 20 samples, 8 a step: the last step of an epoch has 4.
    one = make_model()
    train(one, tmp_path / "one", epochs=2, batch_size=8)
    run_on_two(train_in_two_processes, str(tmp_path / "two"), {"epochs": 2, "accumulation": accumulation}, 8)
    for name, value in load_file(tmp_path / "two.safetensors").items():
        torch.testing.assert_close(value, weights(one)[name], atol=1e-6, rtol=1e-5)
    losses = [[loss for _, loss in read_log(tmp_path / which)["loss"]] for which in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert Run(tmp_path / "two").status() | {"time": ""} == Run(tmp_path / "one").status() | {"time": ""}
