"""A rehearsal says what a run needs, holds and costs, and what is missing, with the cure."""

import re

import pytest
import torch
from typer.testing import CliRunner

from evle.cli import main as cli
from evle.config import dump_yaml
from evle.data.sources import read_source
from evle.engine.optim import MuonAdamW
from evle.engine.train_config import TrainConfig
from evle.errors import ConfigError
from evle.models.contrast import ContrastHead
from evle.run import dry_run
from evle.run import measuring as rehearsal
from evle.run.config import read_recipe
from evle.run.dry_run import rehearse
from evle.run.measuring import GIB, TensorBytes, Tried, micro_batch_seconds, process_bytes, second_rows, step_seconds
from evle.run.prepare import prepare
from micro import micro_run

SCENES = {"data": {"train": {"source": "scenes", "count": 32, "size": 24}}}


def test_it_says_samples_model_steps_tokens_memory_time_and_losses_and_writes_nothing(tmp_path):
    before = process_bytes()
    found = rehearse(micro_run(tmp_path / "run", "vqa", SCENES))
    lines = "\n".join(found.lines)
    assert found.missing == []
    assert "train: 32 samples" in lines
    assert "EVEForVQA" in lines
    assert "steps: 20 of 8 samples (5.0 epochs), each 1 processes x 1 micro-batches x 8 rows" in lines
    assert "tokens: 5 of images" in lines  # 16 pixels in patches of 8, and [CLS]
    assert "GiB for weights, gradients and AdamW" in lines
    assert "GiB for 8 rows;" in lines  # a whole micro-batch: nothing taken from smaller ones
    whole = re.search(r"([\d.]+) GiB in all, ([\d.]+) with libraries and data", lines)
    assert whole is not None
    # torch alone occupies some hundred MB; what the model takes is counted once
    most = max(before, process_bytes()) / GIB + 0.05  # earlier tests leave memory that the process may give back
    assert 0.1 < float(whole[2]) - float(whole[1]) < most
    assert "first losses: answers" in lines
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["pretraining", "retrieval", "nlvr2"])
def test_every_task_can_be_rehearsed(tmp_path, task):
    lines = "\n".join(rehearse(micro_run(tmp_path / "run", task, SCENES)).lines)
    images = 10 if task == "nlvr2" else 5
    assert f"tokens: {images} of images" in lines
    assert "first losses: " in lines


def test_objectives_on_objects_are_rehearsed_before_their_classes_are_known(tmp_path):
    changes = {**SCENES, "model": {"overrides": {"objectives": ["mlm", "mpc"]}}}
    lines = "\n".join(rehearse(micro_run(tmp_path / "run", "pretraining", changes, "vle")).lines)
    assert "VLEForPreTraining" in lines
    assert "mpc" in lines


def test_all_that_is_missing_is_one_list(tmp_path):
    missing = {split: {"source": "folder", "path": str(tmp_path / split)} for split in ("train", "val", "test")}
    changes = {"data": missing, "model": {"preset": None, "init": "nowhere"}, "tokenizer": {"path": "no-tokenizer"}}
    found = rehearse(micro_run(tmp_path / "run", "vqa", changes))
    assert len(found.missing) == 5
    for named in (*(str(tmp_path / split) for split in missing), "nowhere", "evle tokenizer train"):
        assert any(named in line for line in found.missing), named
    assert found.lines == ["steps: 20 of 8 samples"]


def test_every_corpus_of_a_mix_that_is_missing_is_named_at_once(tmp_path, monkeypatch):
    """As where someone tries the published recipe before fetching anything."""
    monkeypatch.chdir(tmp_path)
    found = rehearse(read_recipe("eve-base-pretrain", ["model.vision=beit.pth", "data.root=nowhere"]))
    corpora = ("nowhere/coco: ", "nowhere/visual-genome: ", "nowhere/sbu: ", "nowhere/cc3m: ", "Karpathy's JSON")
    for name in ("beit.pth", *corpora):
        assert any(name in line for line in found.missing), name


def test_the_data_are_read_once(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("evle.run.splits.read_source", lambda *given: read.append(given) or read_source(*given))
    assert rehearse(micro_run(tmp_path / "run", "vqa", SCENES)).missing == []
    assert len(read) == 1


def test_without_data_the_size_of_the_model_is_still_said(tmp_path):
    found = rehearse(micro_run(tmp_path / "run", "vqa", {"data": {"train": {"source": "folder"}}}))
    assert any("data.path=FOLDER" in line for line in found.missing)
    assert any(line.startswith("model: about ") for line in found.lines)
    assert any("GiB for weights, gradients and AdamW" in line for line in found.lines)


def test_a_model_too_large_for_this_machine_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(dry_run, "try_batches", lambda *_: pytest.fail("the weights were used"))
    lines = "\n".join(rehearse(micro_run(tmp_path / "run", "vqa", SCENES)).lines)
    assert "skipped the two trial batches" in lines
    assert "M parameters" in lines


def test_a_batch_that_takes_long_is_taken_from_smaller_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "PATIENCE", 0.0)
    lines = "\n".join(rehearse(micro_run(tmp_path / "run", "vqa", SCENES)).lines)
    assert "for 8 rows, extrapolated from batches of 2 and 4" in lines


def tried(rows: int, seconds: float) -> Tried:
    """A batch that takes 0.01 s to read and 1,000 bytes per row, and an optimizer's step of 0.5 s."""
    return Tried(rows, 0.01 * rows, seconds, 0.5, 0, 1000 * rows, 0, 5, 7, {})


def test_the_time_that_does_not_grow_with_the_rows_is_counted_once():
    # 1 s for a batch and 0.1 s for each row
    assert micro_batch_seconds([tried(2, 1.2), tried(4, 1.4)], 64) == pytest.approx(1 + 6.4)
    # a larger batch that happened to be faster says nothing about a row
    assert micro_batch_seconds([tried(2, 1.5), tried(4, 1.4)], 64) == pytest.approx(1.4)
    # and one that was slower than its rows explain is not made of negative time
    assert micro_batch_seconds([tried(2, 0.1), tried(4, 1.0)], 64) == pytest.approx(0.25 * 64)


def test_the_second_batch_is_as_large_as_patience_and_memory_are_enough_for(monkeypatch):
    monkeypatch.setattr(rehearsal, "PATIENCE", 30.0)
    first = tried(2, 0.18)  # 0.1 s per row with reading
    assert second_rows(first, 64, free=2**40) == 64
    assert second_rows(first, 2048, free=2**40) == 300
    assert second_rows(first, 2048, free=100_000) == 70  # of 1,000 bytes, in seven tenths of the memory
    assert second_rows(tried(2, 1000.0), 64, free=2**40) == 4


def test_data_workers_read_meanwhile_only_where_cpus_are_free():
    def step(workers: int, busy: int, cpus: int, accumulation: int = 1) -> float:
        train = TrainConfig(steps=1, batch_size=64, num_workers=workers, accumulation=accumulation)
        return step_seconds([tried(2, 0.2), tried(8, 0.8)], train, 8, busy, cpus)

    # 0.8 s to compute, 0.5 s of the optimizer, 0.08 s to read
    assert step(workers=0, busy=1, cpus=8) == pytest.approx(1.38)
    assert step(workers=1, busy=1, cpus=8) == pytest.approx(1.3)
    assert step(workers=1, busy=1, cpus=1) == pytest.approx(1.38)
    assert step(workers=1, busy=2, cpus=2) == pytest.approx(1.34)
    assert step(workers=0, busy=1, cpus=8, accumulation=8) == pytest.approx(8 * 0.88 + 0.5)


def test_the_optimizer_of_the_recipe_is_timed_and_leaves_the_weights(tmp_path, monkeypatch):
    config = micro_run(tmp_path / "run", "vqa", {**SCENES, "optim": {"muon": [r"layers\."]}})
    ready = prepare(config)
    model = ready.loaded.model
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    steps = []
    step = MuonAdamW.step
    monkeypatch.setattr(MuonAdamW, "step", lambda self: steps.append(step(self)))
    rehearsal.try_batches(ready, config, model, [])
    assert steps
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_the_pass_that_records_embeddings_is_timed_too(tmp_path, monkeypatch):
    """A contrast over several micro-batches takes a pass more for each of them."""
    passes = {}
    for accumulation in (1, 2):
        config = micro_run(tmp_path / "run", "retrieval", {**SCENES, "train": {"accumulation": accumulation}})
        ready, count = prepare(config), []
        head = next(each for each in ready.loaded.model.modules() if isinstance(each, ContrastHead))
        head.register_forward_pre_hook(lambda *_, count=count: count.append(torch.is_grad_enabled()))
        rehearsal.try_batches(ready, config, ready.loaded.model, [])
        passes[accumulation] = count.count(False)
    assert passes[1] == 0
    assert passes[2] > 0


def test_a_loss_that_is_not_finite_is_refused(tmp_path):
    changes = {**SCENES, "model": {"overrides": {"objective_weights": {"mim": 1e39}}}}
    with pytest.raises(ConfigError, match="not finite"):
        rehearse(micro_run(tmp_path / "run", "pretraining", changes))


def test_tensors_that_are_alive_at_once_are_counted_once():
    given = torch.zeros(1000)
    with TensorBytes([given]) as counted:
        first = given + 1  # 4000 bytes
        second = first * 2
        view = second.view(10, 100)
        assert (counted.alive, counted.peak) == (8000, 8000)
        del second, view
        assert (counted.alive, counted.peak) == (4000, 8000)
        given.view(10, 100)
        assert counted.alive == 4000
    del first


def test_gradients_and_copies_of_weights_are_counted_apart_from_what_grows_with_the_batch():
    weight = torch.nn.Parameter(torch.ones(256, 512))
    with TensorBytes([weight], [weight]) as counted:
        copy = weight.to(torch.bfloat16)  # 2 bytes an element
        rows = torch.ones(10, 256) @ weight  # 10 x 256 given and 10 x 512 made
    assert (counted.weight_peak, counted.peak) == (2 * 256 * 512, 4 * 10 * (256 + 512))
    del copy, rows


def test_the_command_prints_the_list_and_ends_with_2(tmp_path):
    tree = micro_run(tmp_path / "run", "vqa", {"data": {"train": {"source": "folder"}}}).plain()
    (tmp_path / "r.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    result = CliRunner().invoke(cli.app, ["train", str(tmp_path / "r.yaml"), "--dry-run"])
    assert result.exit_code == 2
    assert "missing:\n  data.train: the source 'folder' needs a folder: add data.path=FOLDER" in result.output
