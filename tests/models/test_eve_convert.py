"""Converting released EVE checkpoints: both directions, bit for bit."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from eve_models import build
from evle.errors import CheckpointError, ConfigError
from evle.models.eve import EVEForNLVR2, EVEForPreTraining, EVEForRetrieval, EVEForVQA, EVEModel
from evle.models.eve.convert import convert_eve
from evle.models.loading import without_bars
from evle.pipelines import VQAPipeline
from evle.transforms.text import train_tokenizer

MODELS = {
    "vqa": (EVEForVQA, {"num_labels": 5}),
    "retrieval": (EVEForRetrieval, {}),
    "plain": (EVEForNLVR2, {"nlvr2_head": "plain"}),
    "bi-attention": (EVEForNLVR2, {"nlvr2_head": "bi-attention"}),
    "backbone": (EVEModel, {}),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("suffix", [".th", ".safetensors"])
def test_to_released_and_back_is_bit_equal(name, suffix, tmp_path):
    model_class, fields = MODELS[name]
    model = build(model_class, **fields)
    model.save_pretrained(tmp_path / "ours")
    line = convert_eve(tmp_path / "ours", tmp_path / f"released{suffix}")
    assert model_class.__name__ in line
    convert_eve(tmp_path / f"released{suffix}", tmp_path / "again", num_attention_heads=2)
    again = model_class.from_pretrained(tmp_path / "again")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in model.state_dict().items())


def test_the_released_form_is_a_state_dict_under_model_that_torch_reads_safely(tmp_path):
    build(EVEForVQA, num_labels=5).save_pretrained(tmp_path / "ours")
    convert_eve(tmp_path / "ours", tmp_path / "a.th")
    convert_eve(tmp_path / "ours", tmp_path / "a.safetensors")
    state = torch.load(tmp_path / "a.th", weights_only=True)["model"]
    assert state["backbone.patch_embed.weight"].shape == (24, 3, 4, 4)
    assert state["backbone.encoder.layers.2.mlp_moe.moe.experts.experts.3.fc1.weight"].shape == (40, 24)
    assert state.keys() == load_file(tmp_path / "a.safetensors").keys()


def test_the_released_routing_is_written_into_the_configuration_on_request(tmp_path):
    build(EVEForVQA).save_pretrained(tmp_path / "ours")
    convert_eve(tmp_path / "ours", tmp_path / "a.th")
    convert_eve(tmp_path / "a.th", tmp_path / "b", num_attention_heads=2, released_routing=True)
    assert EVEForVQA.from_pretrained(tmp_path / "b").config.capacity_factor == 1.0


def test_what_cannot_be_converted_is_refused_in_words(tmp_path):
    build(EVEForPreTraining).save_pretrained(tmp_path / "pretrained")
    with pytest.raises(CheckpointError, match="no form for 'EVEForPreTraining'"):
        convert_eve(tmp_path / "pretrained", tmp_path / "a.th")
    with pytest.raises(CheckpointError, match=r"a\.txt: name a file that ends in"):
        convert_eve(tmp_path / "pretrained", tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        convert_eve(tmp_path / "empty", tmp_path / "a.th")
    with pytest.raises(CheckpointError, match="no such file"):
        convert_eve(tmp_path / "none.th", tmp_path / "b")
    build(EVEForVQA, deep_feed_forward="shared").save_pretrained(tmp_path / "shared")
    with pytest.raises(CheckpointError, match=r"no form for eve\.layers\.2\.feed_forward\.feed_forward"):
        convert_eve(tmp_path / "shared", tmp_path / "a.th")


def released_vqa(tmp_path):
    build(EVEForVQA, num_labels=3, vocab_size=300).save_pretrained(tmp_path / "ours")
    convert_eve(tmp_path / "ours", tmp_path / "a.th")
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no", "two"]))
    train_tokenizer(["a red car", "two dogs"], 290).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "a.th"


def test_a_converted_model_answers_with_the_tokenizer_and_answers_given(tmp_path):
    released = released_vqa(tmp_path)
    convert_eve(
        released,
        tmp_path / "model",
        num_attention_heads=2,
        tokenizer=tmp_path / "tokenizer",
        answers=tmp_path / "answers.json",
    )
    (found,) = VQAPipeline(tmp_path / "model")(Image.new("RGB", (20, 20)), "how many dogs?")
    assert {each["answer"] for each in found["answers"]} == {"yes", "no", "two"}


def test_answers_that_do_not_fit_the_head_are_refused(tmp_path):
    released = released_vqa(tmp_path)
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no"]))
    with pytest.raises(ConfigError, match=r"answers.json has 2 answers but the model in .*a\.th was built for 3"):
        convert_eve(released, tmp_path / "b", num_attention_heads=2, answers=tmp_path / "answers.json")
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no", "yes"]))
    with pytest.raises(ConfigError, match=r"answers.json: the answer 'yes' is duplicated"):
        convert_eve(released, tmp_path / "b", num_attention_heads=2, answers=tmp_path / "answers.json")
    (tmp_path / "answers.json").write_text("{")
    with pytest.raises(ConfigError, match="no answer list that can be read"):
        convert_eve(released, tmp_path / "b", num_attention_heads=2, answers=tmp_path / "answers.json")
    with pytest.raises(ConfigError, match="no tokenizer that can be read"):
        convert_eve(released, tmp_path / "b", num_attention_heads=2, tokenizer=tmp_path / "nowhere")


def test_the_verb_says_one_line_and_shows_no_bar_of_transformers(tmp_path):
    build(EVEForVQA, num_labels=3).save_pretrained(tmp_path / "ours")
    command = [sys.executable, "-m", "evle", "convert", "eve", str(tmp_path / "ours"), str(tmp_path / "a.th")]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    assert said.stdout.count("\n") == 1
    assert said.stdout.startswith(f"{tmp_path / 'a.th'}: ")
    assert said.stderr == f"next: evle convert eve {tmp_path / 'a.th'} FOLDER\n"


def test_bars_are_put_back_only_where_they_were():
    try:
        for enable in (logging.disable_progress_bar, logging.enable_progress_bar):
            enable()
            before = logging.is_progress_bar_enabled()
            with without_bars():
                assert not logging.is_progress_bar_enabled()
            assert logging.is_progress_bar_enabled() == before
    finally:
        logging.enable_progress_bar()


def test_quantised_and_not_finite_weights_are_not_converted(tmp_path):
    state = torch.load(released_vqa(tmp_path), weights_only=True)["model"]
    name = "backbone.norm.bias"
    damaged = {
        "is stored as int8; quantised weights": {key: tensor.to(torch.int8) for key, tensor in state.items()},
        r"eve\.norm\.bias holds values that are not finite": {**state, name: state[name] * torch.nan},
    }
    for words, tensors in damaged.items():
        torch.save({"model": tensors}, tmp_path / "b.th")
        with pytest.raises(CheckpointError, match=rf"b\.th: .*{words}"):
            convert_eve(tmp_path / "b.th", tmp_path / "b", num_attention_heads=2)
        assert not (tmp_path / "b").exists()


def test_only_whole_sound_models_of_released_tensors_become_a_released_file(tmp_path):
    build(EVEForVQA, num_labels=5).save_pretrained(tmp_path / "ours")
    file = tmp_path / "ours" / "model.safetensors"
    tensors = load_file(file)
    for words, changed in (
        (
            "lack 1 tensors of EVEForVQA, first eve.norm.bias",
            {k: v for k, v in tensors.items() if k != "eve.norm.bias"},
        ),
        ("eve.norm.bias holds values that are not finite", {**tensors, "eve.norm.bias": torch.full((24,), torch.inf)}),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=words):
            convert_eve(tmp_path / "ours", tmp_path / "a.th")
    save_file(tensors, file, metadata={"format": "pt"})
    (tmp_path / "ours" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: an adapter of peft beside whole weights"):
        convert_eve(tmp_path / "ours", tmp_path / "a.th")
    assert not (tmp_path / "a.th").exists()
