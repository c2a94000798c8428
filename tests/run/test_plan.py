"""A plan is arithmetic on one measured step: what fits, how long it takes, what it costs."""

import json

import pytest
import torch

from commands import call
from evle.config import dump_yaml
from evle.errors import ConfigError
from evle.run import plan as planning
from evle.run.measuring import TensorBytes, Tried, activation_bytes, micro_batch_seconds, sample_bytes
from evle.run.plan import KINDS, Plan, plan, read_devices
from micro import micro_run

SCENES = {"data": {"train": {"source": "scenes", "count": 32, "size": 24}}}
MIB = 2**20


def tried(rows: int, peak: int) -> Tried:
    return Tried(rows, 0.01 * rows, 0.1 * rows, 0.02, 10**12 * rows, peak, 5 * MIB, 5, 7, {"itc": 1.0})


TRIED = [tried(2, 40 * MIB), tried(4, 60 * MIB)]  # 10 MiB a row


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose measured step is made up: 100 M parameters, 1 Tflop and 10 MiB per row."""
    monkeypatch.setattr(planning, "_measure", lambda config: (TRIED, 100_000_000, 100_000_000))
    changes = {**SCENES, "train": {"steps": 1000, "batch_size": 2048, "precision": "bf16"}}
    return micro_run(tmp_path / "run", "pretraining", changes)


def test_memory_and_time_follow_from_two_batches():
    assert sample_bytes(TRIED) == 10 * MIB
    assert activation_bytes(TRIED, 10) == (60 + 6 * 10 + 5) * MIB
    assert micro_batch_seconds(TRIED, 10) == pytest.approx(1.0)


def test_time_is_operations_over_the_peak(run):
    made = plan(run, "8xA100-80G", mfu=0.5)
    # 2,048 rows of 1 Tflop on 8 x 312 Tflop/s at half of the peak; gradients travel behind the backward pass.
    assert made.step_seconds == pytest.approx(2048 / (8 * 312 * 0.5))
    assert made.exchange_seconds == 0
    assert made.hours == pytest.approx(1000 * made.step_seconds / 3600)
    assert plan(run, "8xA100-80G", mfu=0.25).hours == pytest.approx(2 * made.hours)
    assert plan(run, "8xA100-80G", mfu=0.5, price=2.0).cost == pytest.approx(16 * made.hours)


def test_operations_give_the_number_of_steps(run):
    train = run.train.model_copy(update={"steps": None, "teraflops": 5.1 * 2048})
    assert plan(run.model_copy(update={"train": train}), "8xA100-80G").steps == 5


def test_the_largest_micro_batch_that_fits_is_taken(run):
    made = plan(run, "8xA100-80G")
    assert made.fixed_bytes == 16 * 100_000_000
    assert (made.rows, made.accumulation) == (256, 1)
    small = plan(run, "8xT4-16G")
    assert small.rows * small.accumulation == 256
    assert small.device_bytes <= 0.9 * 16 * 2**30
    assert small.largest_rows >= small.rows


def test_what_does_not_fit_is_refused_with_the_cure(run, monkeypatch):
    monkeypatch.setattr(planning, "_measure", lambda config: (TRIED, 10**9, 10**9))
    with pytest.raises(ConfigError, match=r"T4-16G: one row needs 14\.\d GiB, 14\.4 of 16|one row needs 15\.0"):
        plan(run, "8xT4-16G")
    assert plan(run, "8xT4-16G", sharded=True).fixed_bytes < 8 * 2**30


def test_machines_exchange_gradients_over_the_network(run):
    one, four = plan(run, "8xA100-80G", mfu=1.0), plan(run, "8xA100-80G", nodes=4, mfu=1.0)
    assert four.num_devices == 32
    assert four.exchange_bytes == pytest.approx(2 * 31 / 32 * 4 * 100_000_000)
    assert four.exchange_seconds >= one.exchange_seconds


@pytest.mark.parametrize(
    ("tflop", "hours"), [(1.752, 2.14), (2.900, 3.26), (5.768, 6.88), (6.332, 7.73)], ids=["mim", "itc", "itm", "all"]
)
def test_one_mfu_reproduces_the_published_hours_of_all_objectives(tflop, hours, run, monkeypatch):
    """Operations of 8 pairs as docs/benchmarks.md counts them; hours of an epoch on 8 A100 as the paper's table 1."""
    one = Tried(8, 0.1, 1.0, 0.0, round(tflop * 1e12), 80 * MIB, 0, 5, 7, {})
    monkeypatch.setattr(planning, "_measure", lambda config: ([one], 300_000_000, 300_000_000))
    made = plan(run, "8xA100-80G", mfu=0.114, samples=10_030_000)
    assert made.hours_per_epoch == pytest.approx(hours, rel=0.1)


@pytest.mark.parametrize(
    ("devices", "words"),
    [("8xA100", "did you mean"), ("0xA100-80G", "no NUMBERxKIND"), ("", "choose one of"), ("3xA100-80G", "cannot be")],
)
def test_devices_that_are_not_known_are_one_line(devices, words, run):
    with pytest.raises(ConfigError, match=words):
        plan(run, devices)


def test_an_mfu_is_a_share(run):
    with pytest.raises(ConfigError, match=r"--mfu 2: must be above 0"):
        plan(run, "8xA100-80G", mfu=2)


def test_every_kind_of_device_can_be_named():
    for name in KINDS:
        assert read_devices(f"4x{name.lower()}")[:2] == (4, name)
        assert read_devices(name)[0] == 1


@pytest.mark.parametrize("family", ["eve", "vle"])
def test_counted_activations_are_those_that_are_alive(family, tmp_path):
    """On this CPU: bytes of tensors alive at the end of a forward pass, against the plan's bytes for as many rows."""
    from functools import partial

    from evle.data.loader import Loader
    from evle.run.prepare import prepare

    config = micro_run(tmp_path / "run", "vqa", {**SCENES, "train": {"batch_size": 4}}, family)
    batches, _, _ = planning._measure(config)
    ready = prepare(config)
    model = ready.loaded.model.train()
    features = partial(ready.task.features, train=True)
    batch = next(iter(Loader(ready.samples["train"], features, ready.task.collate, batch_size=16, seed=0).batches(0)))
    with TensorBytes([*model.parameters(), *model.buffers(), *batch.values()], model.parameters()) as counted:
        output = model(**batch)
        alive = counted.alive
        output.loss.backward()
    planned = activation_bytes(batches, 16)
    assert alive / 1.5 < planned < 3 * alive, (planned, alive)
    assert planned == pytest.approx(counted.peak + counted.weight_peak, rel=0.3)
    assert not torch.is_grad_enabled() or output.loss.requires_grad


def test_the_verb_prints_a_table_and_json(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_measure", lambda config: (TRIED, 100_000_000, 100_000_000))
    tree = micro_run(tmp_path / "run", "pretraining", {"train": {"steps": 10, "batch_size": 64}}).plain()
    tree["data"] = {"train": {"source": "folder", "path": "not-here"}}
    file = tmp_path / "micro.yaml"
    file.write_text(dump_yaml(tree))
    said = call("plan", file, "--devices", "8xA100-80G", "--price", "2")
    assert "memory of a device" in said
    assert "drawn scenes stand in" in said
    made = json.loads(call("plan", file, "--devices", "8xA100-80G", "--json").splitlines()[-1])
    assert made.keys() == Plan.__dataclass_fields__.keys()
    assert made["steps"] == 10
