"""The loop: exact resumption, accumulation, what is refused, what is kept."""

import itertools
import json
import threading
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from evle.engine import checkpoint, devices, trainer
from evle.engine.checkpoint import Average, Position
from evle.engine.failures import Diverged, Interrupted
from evle.engine.run_folder import Run, read_events, read_log
from evle.engine.train_config import TrainConfig
from evle.errors import CheckpointError, ConfigError
from evle.models.eve.configuration import EVEConfig
from evle.models.eve.heads import EVEForVQA
from toy_training import ToyModel, make_loader, make_model, stop_at, train, weights


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"precision": "bf16"}], ids=["plain", "ema", "bf16"])
def test_ten_steps_equal_five_and_a_resumed_five_bit_for_bit(tmp_path, options):
    # 20 samples in micro-batches of 2: an epoch is 5 steps of 2 micro-batches; the stop falls into the second epoch.
    common = {"steps": 10, "accumulation": 2, **options}
    straight = make_model(dropout=0.3)
    train(straight, tmp_path / "straight", **common)

    interrupted = make_model(dropout=0.3)
    with pytest.raises(Interrupted, match=r"stopped after step 7 of 10, saved in .*last; repeat the command to resume"):
        train(interrupted, tmp_path / "two", loader=stop_at(make_loader(2), batch_number=14), **common)
    assert Run(tmp_path / "two").status()["state"] == "interrupted"

    resumed = make_model(dropout=0.3, seed=99)
    result = train(resumed, tmp_path / "two", **common)
    assert result.steps == 10
    assert_same(weights(straight), weights(resumed))
    assert torch.equal(straight.seen, resumed.seen)
    assert read_log(tmp_path / "two")["loss"] == read_log(tmp_path / "straight")["loss"]
    assert read_log(tmp_path / "two")["lr"] == read_log(tmp_path / "straight")["lr"]


def test_a_killed_run_goes_on_from_the_last_checkpoint_and_its_log_is_rewound(tmp_path, monkeypatch):
    straight = make_model(dropout=0.3)
    train(straight, tmp_path / "straight", steps=9, save_every=4)

    killed, forward = make_model(dropout=0.3), ToyModel.forward

    def crash(model, **batch):
        if model.seen == 6:
            raise RuntimeError("power cut")
        return forward(model, **batch)

    monkeypatch.setattr(ToyModel, "forward", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train(killed, tmp_path / "killed", steps=9, save_every=4)
    monkeypatch.undo()
    assert Run(tmp_path / "killed").status()["state"] == "failed"
    assert len(list(read_events(tmp_path / "killed"))) == 6

    resumed = make_model(dropout=0.3, seed=9)
    train(resumed, tmp_path / "killed", steps=9, save_every=4)
    assert [event["step"] for event in read_events(tmp_path / "killed")] == list(range(1, 10))
    assert_same(weights(straight), weights(resumed))


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_micro_batches_equal_one_batch(tmp_path, accumulation):
    # 20 samples, 8 a step: steps of 8, 8 and 4 rows; with 4 micro-batches of 2 the last step has only two of them.
    whole, parts = make_model(), make_model()
    train(whole, tmp_path / "whole", epochs=3, batch_size=8)
    result = train(parts, tmp_path / "parts", epochs=3, batch_size=8, accumulation=accumulation)
    assert result.steps == 9
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, atol=1e-6, rtol=1e-5)
    whole_log, parts_log = read_log(tmp_path / "whole"), read_log(tmp_path / "parts")
    assert whole_log["lr"] == parts_log["lr"]
    assert [loss for _, loss in parts_log["loss/square"]] == pytest.approx(
        [loss for _, loss in whole_log["loss/square"]], rel=1e-5
    )


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    loader = make_loader(4)
    good = loader._maker.collate
    calls = iter(range(100))

    def poisoned(rows):
        batch = good(rows)
        return {**batch, "labels": batch["labels"] * float("nan")} if next(calls) == 3 else batch

    loader._maker.collate = poisoned
    model = make_model()
    with pytest.raises(
        Diverged, match=r"step 4: square is nan, absolute is nan; stopped.*the weights of step 2 are in "
    ):
        train(model, tmp_path / "run", steps=8, save_every=2, loader=loader)
    assert all(torch.isfinite(value).all() for value in weights(model).values())
    assert Run(tmp_path / "run").status()["state"] == "diverged"


def test_the_weights_that_are_kept_are_those_that_are_named_after_an_interruption(tmp_path, caplog):
    """The best weights came after the last checkpoint, and the resumed run does not validate there again."""
    scores, seen = iter([1.0, 2.0, 5.0]), []

    def evaluate(model):
        seen.append(weights(model))
        return {"score": next(scores)}  # at step 8 there is none: the machine is gone

    with pytest.raises(StopIteration):
        train(make_model(), tmp_path / "run", steps=10, save_every=5, eval_every=2, evaluate=evaluate)
    model = make_model()
    options = {"steps": 10, "save_every": 5, "eval_every": 10, "evaluate": lambda _: {"score": 1.5}}
    result = train(model, tmp_path / "run", **options)
    assert (result.best_step, result.best_score) == (6, 5.0)
    assert_same(weights(model), seen[2])
    assert "the best weights are those of step 6" in caplog.text


def test_the_best_weights_on_validation_are_kept(tmp_path):
    scores = iter([1.0, 3.0, 2.0])
    seen = []

    def evaluate(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(weights(model))
        return {"score": next(scores), "other": 0.0}

    model = make_model()
    result = train(model, tmp_path / "run", steps=6, eval_every=2, evaluate=evaluate)
    assert (result.best_score, result.best_step) == (3.0, 4)
    assert [record["scores"]["score"] for record in result.history] == [1.0, 3.0, 2.0]
    assert read_log(tmp_path / "run")["eval/score"] == [(2, 1.0), (4, 3.0), (6, 2.0)]
    assert_same(weights(model), seen[1])
    assert_same(weights(ToyModel.from_pretrained(tmp_path / "run" / "model")), seen[1])
    assert (tmp_path / "run" / "model" / "processor.txt").exists()
    assert Run(tmp_path / "run").status()["state"] == "finished"


def test_validation_chooses_nothing_before_its_time(tmp_path):
    scores, seen = iter([5.0, 4.0, 2.0, 3.0]), []

    def evaluate(model):
        seen.append(weights(model))
        return {"score": next(scores)}

    model = make_model()
    options = {"steps": 8, "eval_every": 2, "choose_from": 0.75, "patience": 1, "evaluate": evaluate}
    result = train(model, tmp_path / "run", **options)
    assert (result.steps, result.best_score, result.best_step) == (8, 3.0, 8)
    assert [record["step"] for record in result.history] == [2, 4, 6, 8]
    assert_same(weights(model), seen[3])


def test_patience_ends_a_run_that_no_longer_improves(tmp_path):
    scores = iter([2.0, 1.0, 1.0, 1.0])
    result = train(
        make_model(), tmp_path / "run", steps=50, eval_every=1, patience=2, evaluate=lambda _: {"score": next(scores)}
    )
    assert (result.steps, result.best_step) == (3, 1)


def test_an_unknown_metric_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"no score 'score'.*did you mean 'scores'"):
        train(make_model(), tmp_path / "run", steps=1, evaluate=lambda _: {"scores": 1.0})


def test_averaged_weights_are_evaluated_and_kept(tmp_path):
    plain, averaged, seen = make_model(), make_model(), {}
    train(plain, tmp_path / "plain", steps=3)
    train(
        averaged,
        tmp_path / "averaged",
        steps=3,
        ema=0.999,
        evaluate=lambda model: seen.update(weights(model)) or {"score": 1.0},
    )
    assert_same(weights(averaged), seen)
    assert not torch.equal(plain.head.weight, averaged.head.weight)

    last = load_file(tmp_path / "averaged" / "checkpoints" / "last" / "model.safetensors")["head.weight"]
    assert torch.equal(last, plain.head.weight)  # training itself goes on from the plain ones


def test_the_average_follows_its_formula():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(11.0)
        average = Average(model, decay=0.2)
        model.weight.fill_(22.0)
        average.update(step=1)  # decay (1 + 1) / (10 + 1) = 2/11: 11 * 2/11 + 22 * 9/11 = 20
        assert average.values["weight"].item() == pytest.approx(20.0)
        model.weight.fill_(10.0)
        average.update(step=2)  # min(0.2, 3/12): 20 * 0.2 + 10 * 0.8 = 12
    assert average.values["weight"].item() == pytest.approx(12.0)
    average.swap()
    assert model.weight.item() == pytest.approx(12.0)
    average.swap()
    assert model.weight.item() == 10.0


def test_a_budget_of_minutes_ends_training_with_a_validation_and_a_whole_run(tmp_path, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: 10.0 * next(clock))  # 10 s per call
    model = make_model()
    result = train(model, tmp_path / "run", steps=100, minutes=0.5, evaluate=lambda _: {"score": 1.0})
    assert 1 <= result.steps < 10
    assert result.seconds >= 30
    assert [record["step"] for record in result.history] == [result.steps]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", result.steps)
    assert (tmp_path / "run" / "checkpoints" / "last").is_dir()


def test_the_learning_rate_has_come_down_when_the_minutes_are_over(tmp_path, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: 10.0 * next(clock))
    train(make_model(), tmp_path / "run", steps=100_000, minutes=3.5, log_every=1)
    rates = [event["lr"] for event in read_events(tmp_path / "run") if event["event"] == "train"]
    assert len(rates) > 10
    assert rates[-1] < 0.2 * max(rates)


def test_a_finished_run_resumed_does_nothing_more(tmp_path):
    first, again = make_model(), make_model(seed=1)
    train(first, tmp_path / "run", steps=3)
    result = train(again, tmp_path / "run", steps=3)
    assert result.steps == 3
    assert_same(weights(first), weights(again))


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, caplog):
    write, calls = checkpoint.write_optimizer, iter(range(10))

    def full(state, path):
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        write(state, path)

    monkeypatch.setattr(checkpoint, "write_optimizer", full)
    result = train(make_model(), tmp_path / "run", steps=5, save_every=2)
    assert result.steps == 5
    said = caplog.text
    assert "step 4 could not be saved ([Errno 28] No space left on device); step 2 stays in" in said
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["last"]


def test_resuming_with_other_data_is_refused(tmp_path):
    train(make_model(), tmp_path / "run", steps=3)
    with pytest.raises(CheckpointError, match="made with 5 batches an epoch, but the loader has 3"):
        train(make_model(), tmp_path / "run", steps=3, num_samples=12)


def test_resuming_another_model_is_refused(tmp_path):
    train(make_model(), tmp_path / "run", steps=3)
    other = make_model()
    other.extra = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"weights of another model \(2 names differ, such as 'extra.bias'\)"):
        train(other, tmp_path / "run", steps=3)


def test_fp16_is_refused_on_the_cpu(tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        train(make_model(), tmp_path / "run", steps=1, precision="fp16")


def test_the_older_kind_of_sharding_is_refused(tmp_path, monkeypatch):
    asked = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False, log_with=[])
    monkeypatch.setattr(devices, "Accelerator", lambda **_: asked)
    with pytest.raises(ConfigError, match="fsdp_version: 2"):
        train(make_model(), tmp_path / "run", steps=1)


def test_precisions_may_follow_each_other_in_one_process(tmp_path):
    model = make_model()
    forward = type(model).forward
    train(model, tmp_path / "bf16", steps=1, precision="bf16")
    train(model, tmp_path / "no", steps=1)
    assert "forward" not in model.__dict__
    assert model.forward.__func__ is forward


def test_an_unsupported_wish_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="ToyModel does not support it"):
        train(make_model(), tmp_path / "run", steps=1, gradient_checkpointing=True)
    with pytest.raises(ConfigError, match="trackers"):
        train(make_model(), tmp_path / "other", steps=1, trackers=("tensorbord",))


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path):
    rows = [{"pixel_values": torch.rand(3, 16, 16), "input_ids": torch.tensor([2, 5, 6, 3])} for _ in range(4)]

    def collate(_):
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return {**batch, "attention_mask": torch.ones(4, 4, dtype=torch.long), "labels": torch.eye(4, 3)}

    def eve(gradient_checkpointing):
        torch.manual_seed(0)
        small = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
        sizes = {"image_size": 16, "patch_size": 8, "vocab_size": 10, "soft_layers": (1,), "num_experts": 4}
        model = EVEForVQA(EVEConfig(**small, **sizes, num_labels=3))
        loader = make_loader(4)
        loader._maker.collate = collate
        folder = tmp_path / f"run{gradient_checkpointing}"
        train(model, folder, steps=3, loader=loader, gradient_checkpointing=gradient_checkpointing, precision="bf16")
        return weights(model)

    assert_same(eve(False), eve(True))


def test_tensorboard_logs_beside_the_json_lines(tmp_path):
    train(make_model(), tmp_path / "run", steps=2, trackers=("tensorboard",))
    assert list((tmp_path / "run" / "trackers" / "evle").glob("events.out.tfevents*"))
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events] == [1, 2]
    assert set(events[0]["losses"]) == {"square", "absolute"}
    assert events[0]["loss"] == pytest.approx(sum(events[0]["losses"].values()))


def test_a_lost_tracker_does_not_end_a_run(tmp_path, monkeypatch, caplog):
    from accelerate.tracking import TensorBoardTracker

    calls = iter(range(100))

    def lost(tracker, values, step, **options):
        if next(calls) == 1:
            raise ConnectionError("no route to host")

    monkeypatch.setattr(TensorBoardTracker, "log", lost)
    result = train(make_model(), tmp_path / "run", steps=5, trackers=("tensorboard",))
    assert result.steps == 5
    assert caplog.text.count("the tracker tensorboard failed (no route to host); the run continues without it") == 1
    assert next(calls) == 2  # it is not asked again


def test_a_tracker_that_cannot_start_is_refused_before_the_first_step(tmp_path, monkeypatch):
    from accelerate import Accelerator

    def refuse(*_):
        raise RuntimeError("api_key not configured\nTraceback ...")

    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    with pytest.raises(ConfigError, match=r"\['tensorboard'\] cannot start \(api_key not configured\); log in, or"):
        train(make_model(), tmp_path / "run", steps=5, trackers=("tensorboard",))


def test_short_runs_log_at_least_twenty_points():
    config = TrainConfig(steps=1, log_every=10)
    assert [config.steps_between_logs(steps) for steps in (5, 39, 45, 190, 200, 5000)] == [1, 1, 2, 9, 10, 10]


def test_a_checkpoint_is_written_while_training_continues(tmp_path, monkeypatch):
    write, steps_seen, gate = checkpoint.write_optimizer, [], threading.Event()
    forward = ToyModel.forward

    def slow(state, path):
        assert gate.wait(20), "training waited for the disk"
        write(state, path)

    def counted(model, **batch):
        steps_seen.append(1)
        if len(steps_seen) == 6:  # the checkpoint of step 4 is still being written
            gate.set()
        return forward(model, **batch)

    monkeypatch.setattr(checkpoint, "write_optimizer", slow)
    monkeypatch.setattr(ToyModel, "forward", counted)
    straight = make_model(dropout=0.3)
    train(straight, tmp_path / "run", steps=7, save_every=4)
    monkeypatch.undo()


def test_what_is_written_in_the_background_is_the_state_of_its_step(tmp_path, monkeypatch):
    # The disk is slow: the checkpoint of step 4 is written when the weights are those of step 6, and the run is killed.
    write, gate, forward = checkpoint.write_tensors, threading.Event(), ToyModel.forward

    def slow(state, path):
        assert gate.wait(20)
        write(state, path)

    def crash(model, **batch):
        if model.seen == 6:
            gate.set()
            raise RuntimeError("power cut")
        return forward(model, **batch)

    monkeypatch.setattr(checkpoint, "write_tensors", slow)
    monkeypatch.setattr(ToyModel, "forward", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train(make_model(dropout=0.3), tmp_path / "killed", steps=9, save_every=4, ema=0.9)
    monkeypatch.undo()
    assert Run(tmp_path / "killed").status()["state"] == "failed"
    assert Position.read(tmp_path / "killed" / "checkpoints" / "last").step == 4

    straight, resumed = make_model(dropout=0.3), make_model(dropout=0.3, seed=9)
    train(straight, tmp_path / "straight", steps=9, save_every=4, ema=0.9)
    train(resumed, tmp_path / "killed", steps=9, save_every=4, ema=0.9)
    assert_same(weights(straight), weights(resumed))


def test_the_length_and_the_split_of_the_batch_are_checked():
    with pytest.raises(ConfigError, match="give one of steps, epochs and teraflops"):
        TrainConfig.build({}, "recipe")
    with pytest.raises(ConfigError, match="multiple of accumulation"):
        TrainConfig.build({"steps": 1, "batch_size": 10, "accumulation": 4}, "recipe")
    config = TrainConfig(epochs=2, batch_size=24, accumulation=3)
    assert config.micro_batch_size(num_processes=2) == 4
    assert config.num_steps(num_batches=7) == 6  # 3 steps an epoch: of 3, 3 and 1 micro-batches
    with pytest.raises(ConfigError, match="multiple of 15"):
        config.micro_batch_size(num_processes=5)
