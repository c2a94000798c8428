"""A new VLE from two folders of trained encoders, as `evle new vle` makes it."""

import json

import pytest
import torch
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from evle.cli.main import app
from evle.errors import CheckpointError, ConfigError
from evle.models.vle import VLEModel, VLEProcessor
from evle.models.vle.new import new_vle
from evle.transforms.text import train_tokenizer
from tower_models import tower_config


@pytest.fixture
def towers(tmp_path):
    """A tiny SigLIP with colour statistics and a tiny BERT with a tokenizer, each in a folder."""
    tokenizer = train_tokenizer(["a red ball", "two dogs in a house"], 280)
    config = tower_config("siglip", "bert").with_changes(vocab_size=len(tokenizer))
    torch.manual_seed(0)
    for name, part in (("vision", config.vision_config), ("text", config.text_config)):
        AutoModel.from_config(part).save_pretrained(tmp_path / name)
    statistics = {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
        "image_processor_type": "SiglipImageProcessor",
    }
    (tmp_path / "vision" / "preprocessor_config.json").write_text(json.dumps(statistics))
    tokenizer.save_pretrained(tmp_path / "text")
    return tmp_path


def test_the_verb_makes_a_folder_that_holds_everything(towers):
    paths = {name: str(towers / name) for name in ("vision", "text", "new")}
    options = ["--vision", paths["vision"], "--text", paths["text"], "--blocks", "2", "-o", paths["new"]]
    done = CliRunner().invoke(app, ["new", "vle", *options], catch_exceptions=False)
    assert done.exit_code == 0
    assert "32 x 32 pixels in 4 x 4 patches" in done.output
    model = VLEModel.from_pretrained(towers / "new")
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (8, 2)
    processor = VLEProcessor.from_pretrained(towers / "new")
    assert list(processor.image_processor.image_mean) == [0.5, 0.4, 0.3]
    assert processor.image_processor.crop_size["height"] == 32
    inputs = processor(text=["a red ball"], return_tensors="pt")
    assert inputs["input_ids"].tolist() == AutoTokenizer.from_pretrained(towers / "text")(["a red ball"])["input_ids"]


def test_the_tokenizer_returns_what_the_model_takes_and_nothing_else(towers):
    tokenizer = AutoTokenizer.from_pretrained(towers / "text", model_input_names=["input_ids", "token_type_ids"])
    tokenizer.save_pretrained(towers / "text")  # as BERT's do
    assert "token_type_ids" in AutoTokenizer.from_pretrained(towers / "text")("a red ball")
    new_vle(towers / "vision", towers / "text", towers / "new")
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(towers / "new")("a red ball")


def test_a_model_that_is_there_is_only_replaced_when_asked_for(towers):
    new_vle(towers / "vision", towers / "text", towers / "new", image_size=64)
    assert VLEModel.from_pretrained(towers / "new").config.image_size == 64
    with pytest.raises(ConfigError, match="already holds a model"):
        new_vle(towers / "vision", towers / "text", towers / "new")
    new_vle(towers / "vision", towers / "text", towers / "new", overwrite=True)
    assert VLEModel.from_pretrained(towers / "new").config.image_size == 32


def test_towers_that_do_not_serve_are_refused_in_one_line(towers):
    with pytest.raises(CheckpointError, match="vision: is of model_type 'siglip_vision_model', which is not a text"):
        new_vle(towers / "vision", towers / "vision", towers / "new")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (towers / "text" / name).unlink()
    with pytest.raises(CheckpointError, match=r"text: holds no tokenizer \(none of .*tokenizer.json"):
        new_vle(towers / "vision", towers / "text", towers / "new")
