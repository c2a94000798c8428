"""Cards: written by a run, refreshed by a verb, true wherever the model goes."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from adapter_processes import adapted
from commands import call
from dual_models import save_dual
from evle import train
from evle.data.samples import SPLITS
from evle.errors import CheckpointError, ConfigError
from evle.run.config import RunConfig
from evle.run.training import train_run
from evle.share.card import CARD, MADE, OWN_TEXT, write_card
from evle.share.facts import read_run_facts
from evle.share.licences import UNKNOWN, licences_of
from evle.tasks.trained import run_settings, text_options
from micro import MICRO, SAMPLES, caption_samples, micro_run
from retrieval_models import save_retrieval_model, save_vqa_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a micro run that read its texts in its own way."""
    output = tmp_path_factory.mktemp("runs") / "photos"
    tree = {
        "title": "Photos | of mine",
        "task": {"name": "retrieval", "k_test": 0},
        "model": {"preset": "eve-tiny", "overrides": {**MICRO, "objective_weights": {"itm": 0.0}}},
        "tokenizer": {"vocab_size": 300},
        "data": {"path": "/home/me/secret", "train": {"source": "folder"}, "test": {"source": "folder"}},
        "text": {"max_length": 9, "clean": False},
        "train": {"batch_size": 4, "steps": 2},
        "output": str(output),
    }
    config = RunConfig.build(tree, "test")
    train_run(config, samples={split: caption_samples() for split in SPLITS})
    return output


def test_a_run_writes_its_card_with_scores_chance_and_split(trained):
    text = (trained / "model" / CARD).read_text()
    metadata = ModelCard(text).data
    report = json.loads((trained / "report.json").read_text())
    assert metadata.library_name == "evle"
    assert metadata.pipeline_tag == "zero-shot-image-classification"
    by_name = {result.metric_type: result for result in metadata.eval_results}
    assert set(by_name) == set(report["scores"]["test"])
    assert by_name["R@mean"].metric_value == pytest.approx(report["scores"]["test"]["R@mean"], abs=1e-3)
    assert by_name["R@mean"].dataset_split == "test"
    assert "chance" in by_name["R@mean"].metric_name
    assert "| R@mean |" in text
    assert "EmbedPipeline" in text
    assert "2 steps of 4 samples" in text
    assert "/home/me" not in text + (trained / "model" / "run.json").read_text()


def test_a_moved_model_is_read_as_its_run_read_it_and_keeps_its_scores(trained, tmp_path):
    moved = shutil.copytree(trained / "model", tmp_path / "elsewhere")
    before = (moved / CARD).read_text()
    assert text_options(moved) == text_options(trained)
    assert text_options(moved).max_length == 9
    assert run_settings(moved)["task"]["name"] == "retrieval"
    write_card(moved)
    assert (moved / CARD).read_text() == before


def test_ones_own_text_licences_and_scores_survive_a_refresh(trained, tmp_path):
    folder = shutil.copytree(trained / "model", tmp_path / "model")
    with open(folder / CARD, "a") as file:
        file.write("\nTrained for my cats.\n")
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    found = {"scores": {"test_style": {"R@mean": 41.5}, "chance": {"R@mean": 1.5}}, "provenance": {}}
    (evaluation / "report.json").write_text(json.dumps(found))
    call("card", folder, "--report", evaluation, "--license", "apache-2.0", "--data-license", "CC0-1.0")
    for _ in range(2):
        text = (folder / CARD).read_text()
        assert text.endswith("Trained for my cats.\n")
        assert text.count(OWN_TEXT) == 1
        assert "| R@mean | 41.5 | 1.5 |" in text
        assert "`test_style`" in text
        assert ModelCard(text).data.license == "apache-2.0"
        assert "CC0-1.0" in text
        assert UNKNOWN not in text
        write_card(folder)


def test_a_model_of_no_run_has_a_card_that_says_what_is_unknown(tmp_path):
    folder = save_vqa_model(tmp_path / "vqa")
    text = write_card(folder).read_text()
    assert "VQAPipeline" in text
    assert "None were measured" in text
    assert ModelCard(text).data.to_dict().get("model-index") is None
    assert yaml.safe_load(text.split("---")[1])["pipeline_tag"] == "visual-question-answering"


def test_the_readme_of_somebody_else_stays(tmp_path, caplog):
    folder = save_retrieval_model(tmp_path / "model")
    (folder / CARD).write_text("# Mine\n")
    with pytest.raises(ConfigError, match=r"README\.md: was not written by evle; .* --overwrite"):
        write_card(folder)
    assert (folder / CARD).read_text() == "# Mine\n"
    assert MADE in write_card(folder, overwrite=True).read_text()


def test_what_is_wrong_is_named(tmp_path):
    folder = save_retrieval_model(tmp_path / "model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no report; give the folder of a run"):
        write_card(folder, report=tmp_path / "empty")
    (tmp_path / "empty" / "report.json").write_text('{"scores": {"chance": {"a": 1}}}')
    with pytest.raises(ConfigError, match="holds no scores; score the model with `evle evaluate`"):
        write_card(folder, report=tmp_path / "empty")
    (folder / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json: not usable JSON"):
        write_card(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"scores": {"test": {}}}', "holds no scores"),
        ('{"scores": []}', "holds no scores"),
        ('{"scores": {"test": {"R@1": "high"}}}', "the score R@1 is 'high', not a number"),
        ('{"scores": {"test": {"R@1": NaN}}}', "the score R@1 is nan, not a number"),
        ("[1]", "holds a list, where an object is needed"),
        ("{", "not usable JSON"),
    ],
)
def test_a_broken_report_is_one_line_and_the_card_stays(content, words, tmp_path):
    folder = save_retrieval_model(tmp_path / "model")
    before = write_card(folder).read_text()
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ConfigError) as raised:
        write_card(folder, report=tmp_path / "report.json")
    assert words in str(raised.value)
    assert (folder / CARD).read_text() == before


@pytest.mark.parametrize(
    ("facts", "part"),
    [
        ({"results": {"scores": {"R@1": 1.0}}}, "results"),
        ({"results": {"split": "test", "scores": [1]}}, "results"),
        ({"data": [{"split": "train"}]}, "data"),
        ({"config": []}, ""),
        ({"config": "x"}, "config"),
    ],
)
def test_facts_of_another_form_are_one_line(facts, part, tmp_path):
    folder = save_retrieval_model(tmp_path / "model")
    (folder / "run.json").write_text(json.dumps(facts))
    if not part:
        assert write_card(folder).is_file()
        return
    with pytest.raises(CheckpointError, match=rf"run\.json: {part} is not in the form that evle writes; restore"):
        write_card(folder)


def test_a_dual_encoder_has_a_card(tmp_path):
    folder = save_dual(tmp_path / "clip", "clip")
    text = write_card(folder).read_text()
    assert "CLIP, an image and a text encoder" in text
    assert "EmbedPipeline" in text
    assert ModelCard(text).data.pipeline_tag == "zero-shot-image-classification"


def test_the_card_of_an_adapter_names_its_base_without_a_path(tmp_path):
    base = micro_run(tmp_path / "secret" / "base", "vqa", {"train": {"steps": 1}})
    train(base, samples={"train": SAMPLES["vqa"]()})
    config = adapted(tmp_path / "lora", tmp_path / "secret" / "base", "eve")
    train(config, samples={"train": SAMPLES["vqa"]()})
    text = (tmp_path / "lora" / "model" / CARD).read_text()
    assert "holds an adapter (LoRA) of `base`" in text
    assert "Its adapter has" in text
    assert "secret" not in text
    output = call("push", tmp_path / "lora", "me/lora", code=2)
    assert "an adapter of base, a folder that others do not have; upload a whole model (`evle merge" in output


def test_a_stated_licence_is_added_to_the_rows_that_have_it_and_survives_a_refresh(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained / "model", tmp_path / "model")
    facts = read_run_facts(folder)
    data = [{"split": "train", "dataset": "photos", "samples": 150, "licences": {"CC BY 4.0": 100, UNKNOWN: 50}}]
    monkeypatch.setattr("evle.share.card.run_facts", lambda _: copy.deepcopy({**facts, "data": data}))
    for options in ({"data_licence": "CC BY 4.0"}, {}):
        text = write_card(folder, **options).read_text()
        assert "| train | photos | 150 | CC BY 4.0 (150 rows) |" in text


def test_licences_are_counted_by_row_then_by_corpus_then_by_file(tmp_path):
    rows = [{"image": f"{i}.png", "captions": ["a"], "licence": "MIT" if i else "CC0"} for i in range(3)]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert licences_of("folder", str(tmp_path)) == {"MIT": 2, "CC0": 1}
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "captions.csv").write_text("image,caption\na.png,a\n")
    assert licences_of("folder", str(bare)) == {UNKNOWN: 0}
    (bare / "LICENSE").write_text("MIT")
    assert licences_of("folder", str(bare)) == {"see LICENSE of the data": 0}
    assert "without data of others" in next(iter(licences_of("scenes", None)))
    assert licences_of("folder", str(tmp_path / "gone")) == {UNKNOWN: 0}
