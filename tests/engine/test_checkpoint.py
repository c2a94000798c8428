"""Checkpoints that were damaged are refused in one line, and what is whole is read back bit for bit."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evle.engine import checkpoint
from evle.engine.checkpoint import SUMS, Position
from evle.engine.run_folder import Run
from evle.errors import CheckpointError
from toy_training import make_model, train


@pytest.fixture
def last(tmp_path):
    """The last checkpoint of a run of four steps with averaged weights and validation."""
    train(make_model(), tmp_path / "run", steps=4, ema=0.9, eval_every=2, evaluate=lambda model: {"score": 1.0})
    return tmp_path / "run" / "checkpoints" / "last"


def resume(last, **options):
    Run(last.parents[1]).set_status("interrupted", 4)
    return train(
        make_model(seed=9),
        last.parents[1],
        steps=4,
        ema=0.9,
        eval_every=2,
        evaluate=lambda model: {"score": 1.0},
        **options,
    )


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"])
@pytest.mark.parametrize("where", ["begin", "middle", "end"])
def test_one_flipped_bit_is_found_and_its_file_named(last, name, where):
    file = last / name
    data = bytearray(file.read_bytes())
    data[{"begin": 9, "middle": len(data) // 2, "end": len(data) - 1}[where]] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"last/{name}: damaged .*checksum.*restore it") as caught:
        resume(last)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"])
def test_a_missing_or_shortened_file_is_named(last, name):
    file, data = last / name, (last / name).read_bytes()
    file.write_bytes(data[:-3])
    with pytest.raises(CheckpointError, match=f"last/{name}: damaged"):
        resume(last)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"last/{name}: missing"):
        resume(last)


def test_damaged_best_weights_are_not_kept(last):
    file = last.with_name("best") / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 4
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"best/model.safetensors: damaged.*train.keep=last"):
        resume(last)


def test_a_checkpoint_without_checksums_resumes_with_a_warning(last, caplog):
    (last / SUMS).unlink()
    assert resume(last).steps == 4
    assert f"has no {SUMS}" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"step": "abc"},
        {"step": -1},
        {"step": True},
        {"history": 5},
        {"best_score": "x"},
        {"seconds": None},
        {"batch": 7, "num_batches": 5},
        {"losses": {"a": "b"}},
        {"skipped": [1]},
        {"epoch": 1.5},
    ],
)
def test_a_tampered_state_is_one_line(tmp_path, change):
    Position().write(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**state, **change}))
    with pytest.raises(CheckpointError, match=r"state.json: damaged \(") as caught:
        Position.read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["5", "[]", "null", "[" * 10_000, '{"step": ' + "1" * 5000 + "}", "{}", "\udcff"])
def test_a_state_that_is_no_state_is_one_line(tmp_path, text):
    (tmp_path / "state.json").write_text(text, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"state.json: "):
        Position.read(tmp_path)


def test_a_state_is_read_as_it_was_written(tmp_path):
    position = Position(3, 1, 2, 5, 0.5, 2, 1, 40, 1.25, {"a": 0.1}, [{"step": 2, "scores": {"x": 1}}], ["a: bad"])
    position.write(tmp_path)
    assert Position.read(tmp_path) == position


def spoil(tensors, metadata, kind):
    """The tensors and metadata of an optimizer's file with one thing wrong."""
    first = next(name for name in tensors if name.endswith(".exp_avg"))
    if kind == "metadata":
        return tensors, {}
    if kind == "groups":
        return tensors, {**metadata, "param_groups": "[5]"}
    if kind == "nested":
        return tensors, {**metadata, "param_groups": "[" * 5000}
    if kind == "key":
        return {**tensors, "odd": torch.zeros(1)}, {"param_groups": metadata["param_groups"]}
    if kind == "moment":
        return {name: value for name, value in tensors.items() if name != first}, {
            "param_groups": metadata["param_groups"]
        }
    if kind == "entry":
        return {name: value for name, value in tensors.items() if name.split(".")[0] != first.split(".")[0]}, metadata
    assert kind == "shape"
    return {**tensors, first: torch.zeros(3)}, metadata


@pytest.mark.parametrize("kind", ["metadata", "groups", "nested", "key", "moment", "entry", "shape"])
def test_a_tampered_optimizer_is_one_line(last, kind):
    file = last / "optimizer.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors, metadata = spoil(load_file(file), metadata, kind)
    save_file(tensors, file, metadata=metadata)
    (last / SUMS).unlink()
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors") as caught:
        resume(last)
    assert "\n" not in str(caught.value)


def test_checksums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    checkpoint.write_sums(tmp_path)
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a\n"  # FIPS 180-2, B.1
    assert (tmp_path / SUMS).read_text() == expected
    checkpoint.verify(tmp_path, "")
