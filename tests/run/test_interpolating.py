"""Weights between those before and after fine-tuning, by a key of training and by a verb."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import call
from evle import evaluate, train
from evle.config import dump_yaml, load_yaml, merge
from evle.errors import CheckpointError, ConfigError, EvleError
from evle.run import training
from evle.run.config import RunConfig
from evle.run.dry_run import rehearse
from evle.run.interpolating import before_training, blended, interpolate
from evle.run.prepare import prepare
from evle.run.weights import ModelConfig
from micro import SAMPLES, micro_run
from retrieval_models import save_retrieval_model, save_vqa_model

VQA = {"train": {"steps": 3}}
SCENES = {"source": "scenes", "size": 24, "count": 8}
DATA = {"train": {**SCENES, "split": "train"}, "test": {**SCENES, "split": "test"}}


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def assert_between(first, last, mid, weight):
    for name, tensor in mid.items():
        is_number = tensor.is_floating_point()  # token types and the like are as they were
        expected = torch.lerp(first[name], last[name], weight) if is_number else last[name]
        torch.testing.assert_close(tensor, expected, msg=name)


@pytest.fixture(params=["eve", "vle"])
def runs(request, tmp_path):
    """A run, and one that starts from it with other data."""
    old, new = tmp_path / "old", tmp_path / "new"
    train(micro_run(old, "vqa", {**VQA, "data": DATA}, request.param))
    start = {"model": {"init": str(old), "preset": None}, "data": {**DATA, "test": {**SCENES, "split": "val"}}}
    return old, new, micro_run(new, "vqa", {**VQA, **start}, request.param)


def test_numbers_are_blended_and_what_is_new_is_kept():
    before = {"a": torch.zeros(2), "head": torch.zeros(1), "steps": torch.tensor(1)}
    after = {"a": torch.ones(2), "head": torch.ones(1), "own": torch.ones(1), "steps": torch.tensor(5)}
    mixed = blended(before, after, 0.25, new={"head"})
    assert mixed["a"].tolist() == [0.25, 0.25]
    assert (mixed["head"].item(), mixed["own"].item(), mixed["steps"].item()) == (1, 1, 5)
    half = blended({"a": torch.zeros(1)}, {"a": torch.ones(1, dtype=torch.bfloat16)}, 0.5)
    assert half["a"].dtype == torch.bfloat16


def test_the_verb_writes_the_model_between_and_its_curve(runs, tmp_path):
    old, new, config = runs
    train(config)
    text = call("interpolate", old, new, "-o", tmp_path / "mid", "--weight", "0.3", "--curve")
    first, last, mid = (weights(folder) for folder in (old, new, tmp_path / "mid"))
    assert mid.keys() == last.keys()
    assert_between(first, last, mid, 0.3)
    assert "weight 0.3" in text
    report = json.loads((tmp_path / "mid" / "report.json").read_text())
    (table,) = report["tables"]
    assert [row[0] for row in table["rows"]] == [0.0, 0.25, 0.3, 0.5, 0.75, 1.0]
    by_weight = {row[0]: row[1:] for row in table["rows"]}
    # The ends are the models before and after, each scored by its own run.
    for folder, weight, column in ((old, 0.0, 0), (new, 1.0, 1)):
        scores = json.loads((folder / "report.json").read_text())["scores"]
        scores.pop("chance")
        assert by_weight[weight][column] == pytest.approx(next(iter(scores.values()))["accuracy"])
    assert "holds a model already" in call("interpolate", old, new, "-o", tmp_path / "mid", code=2)
    assert "from 0 (the model before) to 1" in call(
        "interpolate", old, new, "-o", tmp_path / "x", "--weight", "2", code=2
    )


def test_the_key_keeps_the_model_between_and_reports_the_curve(runs, tmp_path):
    old, new, config = runs
    train(config)
    kept = config.model_copy(
        update={"output": str(tmp_path / "kept"), "model": config.model.model_copy(update={"interpolate": 0.5})}
    )
    report = train(kept)
    first, last, mid = (weights(folder) for folder in (old, new, tmp_path / "kept"))
    assert_between(first, last, mid, 0.5)
    assert report.tables[0].title == "Retention: accuracy by weight"
    assert "Retention: accuracy" in [curve.title for curve in report.curves]
    measured = report.tables[0].rows[[row[0] for row in report.tables[0].rows].index(0.5)][2]
    assert next(iter(report.scores.values()))["accuracy"] == pytest.approx(measured)
    again = evaluate(kept, output=tmp_path / "again").scores
    assert next(iter(again.values()))["accuracy"] == pytest.approx(measured)
    assert not any(line.startswith("no curve") for line in report.summary)
    (old / "config.yaml").unlink()  # a model without a run
    (old / "model" / "run.json").unlink(missing_ok=True)
    without = train(kept.model_copy(update={"output": str(tmp_path / "without")}))
    assert f"no curve: model.init={old} is not the model of a run" in without.summary


def test_what_cannot_be_interpolated_is_refused(runs, tmp_path):
    old, _, _ = runs
    with pytest.raises(ConfigError, match="interpolate blends whole trained weights"):
        ModelConfig.build({"preset": "eve-tiny", "interpolate": 0.5}, "model")
    family = json.loads((old / "model" / "config.json").read_text())["model_type"]
    other = micro_run(tmp_path / "other", "retrieval", {"train": {"steps": 1}}, family)
    train(other, samples={"train": SAMPLES["retrieval"]()})
    assert "another vocabulary" in call("interpolate", other.output, old, "-o", tmp_path / "x", code=2)
    assert "different tasks" in call("interpolate", other.output, old, "-o", tmp_path / "x", "--curve", code=2)


def test_what_the_key_cannot_do_is_refused_before_training(runs, tmp_path, monkeypatch):
    old, _, config = runs
    kept = {**config.plain(), "output": str(tmp_path / "kept")}
    kept["model"] = {**kept["model"], "interpolate": 0.5}

    def refused(message, **changes):
        monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained"))
        for run in (train, rehearse):
            with pytest.raises(EvleError, match=message):
                run(RunConfig.build(merge(kept, changes), "test"))

    refused("the model to train has hidden_act relu and .* has gelu", model={"overrides": {"hidden_act": "relu"}})
    part = "text_config." if config.model.overrides.get("text_config") else ""
    layers = {"text_config": {"num_hidden_layers": 3}} if part else {"num_hidden_layers": 3}
    refused(f"the model to train has {part}num_hidden_layers 3 and .* has [12],", model={"overrides": layers})
    stored, gone = old / "config.yaml", {"source": "folder", "path": str(tmp_path / "gone"), "split": "test"}
    tree = load_yaml(stored)
    stored.write_text(dump_yaml({**tree, "data": {**tree["data"], "test": gone}}))
    refused(r"model\.interpolate=0\.5 scores on the test data of .*gone")
    assert not (tmp_path / "kept" / "model").exists()


@pytest.fixture
def pair(tmp_path):
    """Two model folders of one family with one vocabulary."""
    for name in ("before", "after"):
        save_retrieval_model(tmp_path / name)
    return tmp_path / "before", tmp_path / "after"


def change(file, **fields):
    content = json.loads(file.read_text())
    content.get("image_processor", content).update(fields)
    file.write_text(json.dumps(content))


def test_models_that_compute_or_read_images_differently_are_not_blended(pair, tmp_path):
    before, after = pair
    heads = json.loads((after / "config.json").read_text())["num_attention_heads"]
    for file, fields, words in (
        ("config.json", {"num_attention_heads": 2 * heads}, f"has num_attention_heads {2 * heads} and .* has {heads}"),
        ("config.json", {"hidden_act": "relu"}, "has hidden_act relu and .* has "),
        (
            "processor_config.json",
            {"image_mean": [0.1, 0.1, 0.1]},
            r"has image_mean \[0.1, 0.1, 0.1\] and .* has \[0.5",
        ),
        ("processor_config.json", {"resample": 2}, "resample is 2, and must be 3"),
        ("adapter_config.json", {}, "an adapter of peft beside whole weights"),
    ):
        whole = (after / file).read_text() if (after / file).exists() else None
        (after / file).write_text(whole or "{}")
        change(after / file, **fields)
        with pytest.raises(EvleError, match=words):
            interpolate(before, after, tmp_path / "out")
        (after / file).unlink() if whole is None else (after / file).write_text(whole)
    assert not (tmp_path / "out").exists()
    change(after / "processor_config.json", framing="pad")  # as fine-tuning may
    change(after / "config.json", drop_path_rate=0.3)
    interpolate(before, after, tmp_path / "out")


@pytest.mark.parametrize(
    ("save", "fields", "words"),
    [
        (save_retrieval_model, {"num_hidden_layers": 3}, "has num_hidden_layers 3 and .* has 2, so that their weights"),
        (save_retrieval_model, {"hidden_size": 64}, "has hidden_size 64 and .* has 32, so that their weights"),
        (save_retrieval_model, {"max_position_embeddings": 32}, "has max_position_embeddings 32 and .* has 24, so"),
        (save_retrieval_model, {"capacity_factor": 1.0}, "has capacity_factor 1.0 and .* has None, so"),
        (save_retrieval_model, {"pooling": "mean"}, "has pooling mean and .* has cls, so"),
        (save_vqa_model, {"vqa_slot": True}, "has vqa_slot True and .* has False, so"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_models_of_other_layers_or_with_heads_of_another_kind_are_not_blended(tmp_path, save, fields, words):
    before, after = save(tmp_path / "before"), save(tmp_path / "after", **fields)
    for pair in ((before, after), (after, before)):
        with pytest.raises(ConfigError, match="so that their weights cannot be interpolated; give the model that fine"):
            interpolate(*pair, tmp_path / "out")
    with pytest.raises(ConfigError, match=words):
        interpolate(before, after, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "name", "fields"),
    [
        ("eve", "vqa", {"vqa_slot": True}),
        ("eve", "nlvr2", {"nlvr2_head": "plain"}),
        ("eve", "retrieval", {"pooling": "mean"}),
        ("vle", "vqa", {}),
        ("vle", "retrieval", {"pooling": "mean"}),
        ("vle", "vcr-q2a", {"vcr_token_types": False, "vcr_box_tokens": False}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_head_that_only_fine_tuning_has_may_be_of_any_kind(tmp_path, family, name, fields):
    masked = {"model": {"overrides": {"mim_form": "encoder"}}} if family == "eve" else {}
    pretrained = micro_run(tmp_path / "old", "pretraining", merge({"train": {"steps": 1}}, masked), family)
    train(pretrained, samples={"train": SAMPLES["pretraining"]()})
    model = {"init": pretrained.output, "preset": None, "interpolate": 0.5, "overrides": fields}
    config = micro_run(tmp_path / "new", name, {"train": {"steps": 1}}, family)
    config = RunConfig.build({**config.plain(), "model": model}, "test")
    ready = prepare(config, samples={"train": SAMPLES[name]()})
    reason = before_training(config, ready.loaded, ready.task.processor)
    assert str(reason).startswith("no curve: ")


@pytest.mark.parametrize("runs", ["eve"], indirect=True)
def test_other_answers_have_no_curve_and_the_report_says_why(runs, tmp_path):
    old, new, config = runs
    counting = {**SCENES, "kinds": ["count"]}
    data = {"train": {**counting, "split": "train"}, "test": {**counting, "split": "test"}}
    changes = {"data": data, "model": {"interpolate": 0.5}}
    report = train(RunConfig.build(merge(config.plain(), changes), "test"))
    first, last = (len(json.loads((run / "model" / "config.json").read_text())["id2label"]) for run in (old, new))
    reason = f"no curve: the answers of the model before fine-tuning ({first}) are not those after it ({last})"
    assert any(line.startswith(reason) for line in report.summary)
    assert not any("Retention" in each.title for each in (*report.tables, *report.curves))
    text = call("interpolate", old, new, "-o", tmp_path / "mid", "--curve")
    assert "no curve: the answers of the model before" in text
    assert json.loads((tmp_path / "mid" / "report.json").read_text())["tables"] == []


def test_weights_that_are_not_finite_are_not_blended(pair, tmp_path):
    for damaged in pair:
        file = damaged / "model.safetensors"
        whole = file.read_bytes()
        tensors = load_file(file)
        tensors["eve.norm.bias"][0] = torch.nan
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=rf"{damaged.name}: eve\.norm\.bias holds values that are not finite"):
            interpolate(*pair, tmp_path / "out")
        file.write_bytes(whole)
    assert not (tmp_path / "out").exists()


def test_an_output_in_what_is_blended_is_refused_before_any_work(pair):
    before, after = pair
    held = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in pair]
    for output in (before, after, before / "mid", after / "a" / "b", after.parent / "x" / ".." / "after"):
        with pytest.raises(ConfigError, match="and would overwrite it; choose another output"):
            interpolate(before, after, output, overwrite=True)
    assert held == [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in pair]
