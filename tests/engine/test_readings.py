"""Training does not wait for the device in every step, and what is unusual in its numbers is reported."""

import contextlib
import math

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from evle.engine import steps
from evle.engine.failures import Diverged
from evle.engine.optim import OptimConfig, build_optimizer, skip_update_unless_finite
from evle.engine.readings import Readings, not_finite, spike_above
from evle.engine.run_folder import Run, read_events, read_log
from toy_training import make_loader, make_model, train, weights


class Functions(TorchFunctionMode):
    """Counts methods that bring a tensor's values to Python; on a GPU each waits until all queued work is done."""

    def __init__(self):
        super().__init__()
        self.waits, self.counts = [], True

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if self.counts and getattr(function, "__name__", "") in ("tolist", "cpu", "numpy"):
            self.waits.append(function.__name__)
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Counts operators that read values to go on: item(), float(), if tensor, sizes that depend on values."""

    def __init__(self, functions):
        super().__init__()
        self.functions = functions

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        reading = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        if self.functions.counts and function in reading:
            self.functions.waits.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Training on the CPU reads its numbers late and updates by fused AdamW, as it does on a GPU."""
    prepare, build = steps.Training.__init__, steps.build_optimizer

    def late(training, *args):
        prepare(training, *args)
        training.reads_late = True

    monkeypatch.setattr(steps.Training, "__init__", late)
    monkeypatch.setattr(steps, "build_optimizer", lambda *args, **options: build(*args, fused=True))


@contextlib.contextmanager
def counted_waits(monkeypatch):
    """What waited for the device; `reads` are the (step that is read, steps that are queued) of late readings."""
    functions, reads, queued = Functions(), [], [0]
    read, make = Readings.read, Readings.__init__

    def counted_read(readings):
        reads.append((readings.step, queued[0]))
        functions.counts = False
        try:
            return read(readings)
        finally:
            functions.counts = True

    def counted_make(readings, step, *args):
        queued[0] = step
        make(readings, step, *args)

    monkeypatch.setattr(Readings, "read", counted_read)
    monkeypatch.setattr(Readings, "__init__", counted_make)
    with functions, Operators(functions):
        yield functions.waits, reads


def test_the_counter_sees_what_waits_for_a_device(monkeypatch):
    with counted_waits(monkeypatch) as (waits, _):
        x = torch.tensor([1.0, 2.0])
        float(x[0]), x.tolist(), bool(x[0] > 1), x[1].item(), x.nonzero()
    assert len(waits) == 5


@pytest.mark.parametrize("options", [{}, {"accumulation": 2, "ema": 0.9}, {"precision": "bf16"}])
def test_no_step_waits_for_the_device_and_numbers_are_read_one_step_late(tmp_path, monkeypatch, as_on_a_gpu, options):
    with counted_waits(monkeypatch) as (waits, reads):
        train(make_model(), tmp_path / "run", steps=80, log_every=4, optim={"clip": 0.1}, **options)
    assert waits == []
    assert [step for step, _ in reads] == list(range(1, 81))
    # Steps 4, 8, ... are logged, and read at once; all others are read when the next one is queued.
    assert [queued - step for step, queued in reads] == [0 if step % 4 == 0 else 1 for step in range(1, 81)]


def test_late_readings_change_neither_weights_nor_log(tmp_path, monkeypatch, request):
    build = steps.build_optimizer
    monkeypatch.setattr(steps, "build_optimizer", lambda *args, **options: build(*args, fused=True))
    at_once, late = make_model(dropout=0.2), make_model(dropout=0.2)
    train(at_once, tmp_path / "at once", steps=50, log_every=2, save_every=7)
    request.getfixturevalue("as_on_a_gpu")
    train(late, tmp_path / "late", steps=50, log_every=2, save_every=7)
    assert all(torch.equal(a, b) for a, b in zip(weights(at_once).values(), weights(late).values(), strict=True))
    curves = [read_log(tmp_path / name) for name in ("at once", "late")]
    assert curves[0]["loss"] == curves[1]["loss"]
    assert curves[0]["grad_norm"] == curves[1]["grad_norm"]


def test_a_loss_that_is_not_finite_is_found_one_step_late_and_never_saved(tmp_path, as_on_a_gpu):
    loader = make_loader(4)
    good, calls = loader._maker.collate, iter(range(1000))

    def poisoned(rows):
        batch = good(rows)
        return {**batch, "labels": batch["labels"] * float("nan")} if next(calls) == 5 else batch

    loader._maker.collate = poisoned
    model = make_model()
    with pytest.raises(Diverged, match=r"step 6: square is nan, absolute is nan; .*the weights of step 3 are in "):
        train(model, tmp_path / "run", steps=100, save_every=3, loader=loader)
    assert Run(tmp_path / "run").status()["state"] == "diverged"
    assert all(torch.isfinite(value).all() for value in weights(model).values())  # the update was skipped


def test_a_fused_update_is_skipped_on_the_device_unless_all_numbers_are_finite():
    model = make_model()
    optimizer = build_optimizer(model, OptimConfig(lr=0.1), fused=True)
    for numbers, moves in (([1.0, math.nan], False), ([math.inf, 1.0], False), ([1.0, 2.0], True)):
        before = weights(model)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        skip_update_unless_finite(optimizer, torch.tensor(numbers))
        optimizer.step()
        assert torch.equal(before["head.weight"], model.head.weight) is not moves


def test_what_is_not_finite_is_named_by_its_part():
    assert not_finite({"loss": 1.0, "itc": 2.0}, 3.0) == {}
    assert list(not_finite({"loss": math.nan, "itc": math.nan, "itm": 1.0}, math.nan)) == ["itc"]
    assert list(not_finite({"loss": math.inf}, 1.0)) == ["loss"]
    assert list(not_finite({"loss": 1.0}, math.inf)) == ["gradient"]
    assert not_finite({"loss": 1.0}, None) == {}


def test_a_spike_is_far_above_the_usual_loss():
    recent = [2.0, 2.2, 1.8, 2.1, 1.9] * 4
    assert spike_above(recent, 2.4) is None
    assert spike_above(recent, 4.0) == 2.0
    assert spike_above(recent[:19], 100.0) is None  # too few to tell
    assert spike_above([2.0] * 20, 2.5) is None  # no spread: still half as much again
    assert spike_above([-1.0] * 20, -0.4) == -1.0
    nearly_zero = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2] * 4  # a learned task: a hard sample is no event
    assert spike_above(nearly_zero, 0.3) is None
    assert spike_above([0.0, *nearly_zero], 2.0) is not None


def test_a_spike_is_reported_and_logged_also_after_resuming(tmp_path, caplog):
    def spiking(calls):
        loader = make_loader(4)
        good = loader._maker.collate

        def collate(rows):
            batch = good(rows)
            return {**batch, "labels": batch["labels"] * (30 if next(calls) == 29 else 1)}

        loader._maker.collate = collate
        return loader

    train(make_model(), tmp_path / "run", steps=35, save_every=25, loader=spiking(iter(range(100))))
    spikes = [event for event in read_events(tmp_path / "run") if event["event"] == "spike"]
    assert [event["step"] for event in spikes] == [30]
    assert spikes[0]["value"] > 5 * spikes[0]["usual"]
    assert "step 30: the loss is" in caplog.text

    # Stopped after the checkpoint of step 25, the resumed run still knows what was usual.
    calls = iter(range(100))
    loader = spiking(calls)

    class Cut(RuntimeError):
        pass

    good = loader._maker.collate

    def cut(rows):
        if calls.__length_hint__() == 100 - 27:
            raise Cut
        return good(rows)

    loader._maker.collate = cut
    with pytest.raises(Cut):
        train(make_model(), tmp_path / "cut", steps=35, save_every=25, loader=loader)
    train(make_model(), tmp_path / "cut", steps=35, save_every=25, loader=spiking(iter(range(25, 100))))
    assert [event for event in read_events(tmp_path / "cut") if event["event"] == "spike"] == spikes
