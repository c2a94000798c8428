"""A rehearsal says what a run needs, holds and costs, without an optimizer, and what is missing, with the cure."""

import pytest
import torch
from typer.testing import CliRunner

from evle.cli import main as cli
from evle.config import dump_yaml
from evle.data.sources import read_source
from evle.errors import ConfigError
from evle.run import dry_run
from evle.run import measuring as rehearsal
from evle.run.config import read_recipe
from evle.run.dry_run import rehearse
from evle.run.measuring import TensorBytes
from micro import micro_run

SCENES = {"data": {"train": {"source": "scenes", "count": 32, "size": 24}}}


def test_it_says_samples_model_steps_tokens_memory_time_and_losses_and_writes_nothing(tmp_path):
    found = rehearse(micro_run(tmp_path / "run", "vqa", SCENES))
    lines = "\n".join(found.lines)
    assert found.missing == []
    assert "train: 32 samples" in lines
    assert "EVEForVQA" in lines
    assert "steps: 20 of 8 samples (5.0 epochs), each 1 processes x 1 micro-batches x 8 rows" in lines
    assert "tokens: 5 of images" in lines  # 16 pixels in patches of 8, and [CLS]
    assert "GiB for weights, gradients and AdamW" in lines
    assert "GiB for 8 rows;" in lines  # a whole micro-batch: nothing taken from smaller ones
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
