"""Checkpoints in parts resume on another number of processes and another engine, bit for bit within a size."""

import json

import pytest
import torch
from safetensors.torch import load_file

from evle.engine import checkpoint, sharded
from evle.engine.checkpoint import Average
from evle.engine.run_folder import Run, read_log
from evle.errors import CheckpointError
from processes import run_on
from sharded_processes import continue_training
from toy_training import ToyModel, make_model, train, weights

ONE, DDP, FSDP2 = (1, "one"), (2, "ddp"), (2, "fsdp2")


def follow(folder, *legs):
    """Train through the legs, each (number of processes, engine) until its batch; the last to the end."""
    for number, (leg, stop) in enumerate(legs):
        count, engine = leg
        run_on(count, continue_training, str(folder), count, engine, stop)
        state = Run(folder).status()["state"]
        assert state == ("finished" if number == len(legs) - 1 else "interrupted"), (leg, state)
    return weights(ToyModel.from_pretrained(folder / "model"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded") / "whole"
    return folder, follow(folder, (ONE, None))


@pytest.mark.parametrize(
    "legs",
    [
        ((FSDP2, 4), (ONE, None)),
        pytest.param(((ONE, 4), (FSDP2, None)), marks=pytest.mark.slow),
        pytest.param(((DDP, 4), (FSDP2, 2), (ONE, None)), marks=pytest.mark.slow),
        pytest.param((((4, "fsdp2"), 4), (DDP, None)), marks=pytest.mark.slow),
        pytest.param((((2, "fsdp2"), 4), ((4, "fsdp2"), None)), marks=pytest.mark.slow),
    ],
    ids=lambda legs: "-".join(f"{count}{engine}" for (count, engine), _ in legs),
)
def test_a_run_moves_between_engines_and_numbers_of_processes(legs, whole, tmp_path):
    learned = follow(tmp_path / "run", *legs)
    for name, value in whole[1].items():
        torch.testing.assert_close(learned[name], value, atol=1e-6, rtol=1e-5)
    losses = [[loss for _, loss in read_log(folder)["loss"]] for folder in (tmp_path / "run", whole[0])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_within_a_size_an_interrupted_run_is_the_uninterrupted_one_bit_for_bit(whole, tmp_path):
    learned = follow(tmp_path / "run", (ONE, 4), (ONE, None))
    assert all(torch.equal(learned[name], value) for name, value in whole[1].items())


@pytest.mark.slow
@pytest.mark.parametrize("leg", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_so_it_is_with_several_processes(leg, tmp_path):
    parted, one = follow(tmp_path / "parted", (leg, 4), (leg, None)), follow(tmp_path / "one", (leg, None))
    assert all(torch.equal(parted[name], value) for name, value in one.items())


def test_checkpoints_in_parts_hold_no_pickle_and_are_checked(whole):
    last = whole[0] / "checkpoints" / "last"
    assert {file.suffix for file in last.iterdir()} == {".safetensors", ".json", ""}
    checkpoint.verify(last, "restore it")
    names = {name for file in last.glob("*.safetensors") for name in load_file(file)}
    assert {name.split(".")[0] for name in names} == {"model", "ema", "optimizer"}


@pytest.mark.parametrize("shard", [True, False])
def test_either_kind_of_checkpoint_resumes_with_the_other_setting(shard, tmp_path):
    whole = make_model()
    train(whole, tmp_path / "whole", steps=6, ema=0.5, keep="last")
    first = make_model()
    run = tmp_path / "run"
    train(first, run, steps=6, ema=0.5, keep="last", shard_checkpoints=shard)
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    second = make_model(seed=3)
    train(second, run, steps=6, ema=0.5, keep="last", shard_checkpoints=not shard)
    assert all(torch.equal(weights(second)[name], value) for name, value in weights(whole).items())


def saved(folder):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4), torch.ones(2, 4)).loss.backward()
    optimizer.step()
    average = Average(model, 0.9)
    assert sharded.save(folder, model, optimizer, average, "{}") == ""
    return model, optimizer, average


def test_a_checkpoint_of_another_model_is_one_line(tmp_path):
    saved(tmp_path / "last")
    other = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"of another model \(.* names differ, such as"):
        sharded.load(tmp_path / "last", other, torch.optim.AdamW(other.parameters()), None)


@pytest.mark.parametrize("damage", [b"", b"no", b"\xff" * 200])
def test_a_damaged_part_is_one_line(damage, tmp_path):
    model, optimizer, average = saved(tmp_path / "last")
    next((tmp_path / "last").glob("*.safetensors")).write_bytes(damage)
    with pytest.raises(CheckpointError, match="last"):
        sharded.load(tmp_path / "last", model, optimizer, average)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    model, optimizer, average = saved(tmp_path / "last")
    before = {file.name: file.read_bytes() for file in (tmp_path / "last").iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharded, "save_parts", full)
    assert "No space left" in sharded.save(tmp_path / "last", model, optimizer, average, "{}")
    assert {file.name: file.read_bytes() for file in (tmp_path / "last").iterdir()} == before
    assert not (tmp_path / "last.new").exists()
