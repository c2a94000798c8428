"""Scoring by another recipe: a pre-trained model without fine-tuning, and why some pre-training cannot do it."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from evle import cli
from evle.config import dump_yaml
from evle.errors import CheckpointError, ConfigError
from evle.models.eve import EVEForPreTraining, EVEForRetrieval
from evle.recipe import evaluate, finetune, pretrain, read_run
from evle.tasks.retrieval import RetrievalTask
from evle.tasks.vqa import VQATask
from evle.zero_shot import load_to_score
from micro import caption_samples, micro_run

RECIPE = {
    "title": "Retrieval",
    "task": {"name": "retrieval", "k_test": 4},
    "data": {
        "val": {"source": "scenes", "split": "val", "count": 8, "size": 24},
        "test": {"source": "scenes", "split": "test", "count": 8, "size": 24},
    },
    "image": {"size": 384},
    "text": {"max_length": 40},
    "train": {"epochs": 10},
}


def pretrained(folder: Path, objectives: list[str]) -> Path:
    changes = {"model": {"overrides": {"objectives": objectives}}, "train": {"steps": 2}}
    pretrain(micro_run(folder, "pretraining", changes), samples={"train": caption_samples()})
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "retrieval.yaml"
    path.write_text(dump_yaml(RECIPE), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def all_four(tmp_path_factory) -> Path:
    return pretrained(tmp_path_factory.mktemp("run") / "four", ["mim", "mlm", "itc", "itm"])


def test_a_pre_trained_model_retrieves_as_its_matching_head_learned(all_four, recipe):
    config = read_run(all_four, recipe=recipe)
    assert (config.image.size, config.text.max_length) == (
        None,
        12,
    )  # those of pre-training, not the recipe's 384 and 40
    report = evaluate(config)
    assert {"TR@1", "itc/TR@1"} <= report.scores["test"].keys()
    model, _ = load_to_score(all_four, RetrievalTask)
    before = EVEForPreTraining.from_pretrained(all_four / "model")
    assert isinstance(model, EVEForRetrieval)
    assert torch.equal(model.matching.itm.weight, before.matching.itm.weight)
    assert torch.equal(model.matching.image_projection.weight, before.matching.image_projection.weight)


def test_contrast_alone_ranks_by_embeddings_and_never_again_by_matching(tmp_path, recipe):
    run = pretrained(tmp_path / "run", ["mlm", "itc"])
    with pytest.raises(ConfigError, match=r"set task\.k_test=0"):
        evaluate(read_run(run, recipe=recipe))
    report = evaluate(read_run(run, ["task.k_test=0"], recipe))
    assert "TR@1" in report.scores["test"]


def test_masked_signals_alone_are_refused_with_the_reason(tmp_path, recipe):
    run = pretrained(tmp_path / "run", ["mim", "mlm"])
    with pytest.raises(
        CheckpointError, match=r"pre-trained by mim, mlm: without contrast .*objectives=\[mim,mlm,itc,itm\]"
    ):
        evaluate(read_run(run, recipe=recipe))


def test_other_heads_are_never_made_up(all_four):
    with pytest.raises(CheckpointError, match="holds EVEForPreTraining, but EVEForVQA is needed here"):
        load_to_score(all_four, VQATask)


def test_a_fine_tuned_model_is_scored_on_another_corpus_at_its_own_size(tmp_path, recipe):
    config = micro_run(tmp_path / "run", "retrieval", {"image": {"size": 24}, "train": {"steps": 2}})
    finetune(config, samples={"train": caption_samples()})
    by = read_run(tmp_path / "run", ["task.k_test=2"], recipe)
    assert by.image.size == 24
    assert by.data.val is None  # nothing is chosen
    assert evaluate(by).scores["test"].keys() >= {"TR@1", "itc/TR@1"}


def test_the_command_writes_its_report_beside_the_runs_own(all_four, recipe):
    result = CliRunner().invoke(cli.app, ["evaluate", str(all_four), "--recipe", str(recipe)])
    assert result.exit_code == 0, result.output
    report = json.loads((all_four / "evaluation-retrieval" / "report.json").read_text(encoding="utf-8"))
    assert report["scores"]["test"]["TR@1"] >= 0
