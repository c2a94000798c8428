"""Scoring by another recipe: a pre-trained model without fine-tuning, and why some pre-training cannot do it."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from evle.cli import main as cli
from evle.config import dump_yaml
from evle.errors import CheckpointError, ConfigError
from evle.models.eve import EVEForPreTraining, EVEForRetrieval
from evle.run.evaluation import evaluate, load_to_score, load_trained
from evle.run.scoring import read_run
from evle.run.stages import train
from evle.tasks.retrieval import RetrievalTask
from evle.tasks.vqa import VQATask
from micro import caption_samples, micro_run, vqa_samples

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


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result.output


def pretrained(folder: Path, objectives: list[str]) -> Path:
    changes = {"model": {"overrides": {"objectives": objectives}}, "train": {"steps": 2}}
    train(micro_run(folder, "pretraining", changes), samples={"train": caption_samples()})
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
    assert torch.equal(model.matching.weight, before.matching.weight)
    assert torch.equal(model.contrast.image_projection.weight, before.contrast.image_projection.weight)


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
    train(config, samples={"train": caption_samples()})
    by = read_run(tmp_path / "run", ["task.k_test=2"], recipe)
    assert by.image.size == 24
    assert by.data.val is None  # nothing is chosen
    assert evaluate(by).scores["test"].keys() >= {"TR@1", "itc/TR@1"}


def test_the_command_writes_its_report_beside_the_runs_own(all_four, recipe):
    result = CliRunner().invoke(cli.app, ["evaluate", str(all_four), "--recipe", str(recipe)])
    assert result.exit_code == 0, result.output
    report = json.loads((all_four / "evaluation-retrieval" / "report.json").read_text(encoding="utf-8"))
    assert report["scores"]["test"]["TR@1"] >= 0


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """A trained run of VQA with experts, which has a test set."""
    folder = tmp_path_factory.mktemp("questions") / "run"
    test = {"source": "scenes", "split": "test", "count": 8, "size": 24}
    config = micro_run(folder, "vqa", {"train": {"steps": 2}, "data": {"test": test}})
    train(config, samples={"train": vqa_samples()})
    return folder


def test_fields_that_change_no_weight_are_obeyed_by_an_evaluation(questions, tmp_path):
    asked = ["model.overrides.capacity_factor=0.01", "evaluate.batch_size=8"]  # four tokens an expert
    found = {}
    for name, overrides in (("all", []), ("few", asked)):
        call("evaluate", questions, *overrides, "-o", tmp_path / name)
        lines = (tmp_path / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        found[name] = [json.loads(line)["score"] for line in lines]
    assert found["all"] != found["few"]
    config = read_run(questions, asked)
    model = load_trained(config, questions, VQATask)[0]
    plain = load_trained(read_run(questions), questions, VQATask)[0]
    assert (model.config.capacity_factor, plain.config.capacity_factor) == (0.01, None)
    assert not model.training
    assert all(torch.equal(weight, plain.state_dict()[name]) for name, weight in model.state_dict().items())
    assert config.plain()["model"]["overrides"]["hidden_size"] == 32  # what the run was made with stays said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.overrides.num_experts=4", r"model.overrides: num_experts=4 needs other weights than the trained ones"),
        ("model.overrides.num_hidden_layers=3", "needs other weights .* leave it out, or train again"),
        ("model.overrides.image_size=32", "needs other weights .* set image.size to score at another size"),
        ("model.overrides.capacity_factor=-1", "capacity_factor -1 should be greater than 0"),
        ("model.overrides.capacity_facto=1.0", "did you mean 'capacity_factor'"),
        ("model.init=runs/other", "model.init=runs/other: .* name another with --model FOLDER"),
        ("model.preset=eve-small", "name another with --model FOLDER"),
        ("train.batch_size=2", "train.batch_size=2 has no effect on an evaluation; set evaluate.batch_size"),
        ("train.steps=9", "train.steps=9 has no effect on an evaluation, which trains nothing"),
        ("optim.lr=0.1", "which trains nothing; leave it out"),
        ("tokenizer.path=tokens", "which trains nothing; leave it out"),
        ("data.train.count=3", "which trains nothing; leave it out"),
        ("data.val={source: scenes}", "because data.test is scored; set data.test instead"),
        ("output=elsewhere", "set the folder of its report with -o FOLDER"),
    ],
)
def test_what_an_evaluation_cannot_obey_is_refused(questions, override, message, tmp_path):
    said = call("evaluate", questions, override, "-o", tmp_path / "out", code=2)
    assert said.count("\n") == 1
    assert re.search(message, said), said


def test_a_recipe_scores_the_model_that_is_named_and_no_other(questions, tmp_path):
    settings = micro_run(tmp_path / "none", "vqa").plain()
    settings["data"] = {"test": {"source": "scenes", "split": "test", "count": 8, "size": 24}}
    settings["model"]["overrides"]["num_experts"] = 16  # of the recipe's own model, which is not the one scored
    recipe = tmp_path / "questions.yaml"
    recipe.write_text(dump_yaml(settings), encoding="utf-8")
    assert "--model FOLDER" in call("evaluate", recipe, f"model.init={questions}", code=2)
    assert "no such folder" in call("evaluate", recipe, code=2)
    asked = ["model.overrides.capacity_factor=1.0", "--model", questions, "-o", tmp_path / "out"]
    assert "accuracy on test" in call("evaluate", recipe, *asked)
    config = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["provenance"]["config"]
    assert (config["model"]["overrides"]["num_experts"], config["model"]["overrides"]["capacity_factor"]) == (2, 1.0)
