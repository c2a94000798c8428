"""Files of weights and model folders: what is read, what is refused, and that no code in them runs."""

import argparse
import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from eve_models import batch, build, tiny
from evle.errors import CheckpointError, ConfigError
from evle.models.eve import EVEForPreTraining, EVEForVQA, EVEModel
from evle.models.folders import from_folder, load_tensors, read_fields, read_tensors

TENSORS = {"a.weight": torch.arange(3.0), "b.weight": torch.ones(2)}


def prefixed(prefix):
    return {prefix + name: tensor for name, tensor in TENSORS.items()}


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"model": TENSORS, "args": argparse.Namespace(lr=1e-3), "epoch": 3},
        {"state_dict": prefixed("module.")},
        {"module": prefixed("_orig_mod.")},
        {"module": prefixed("_forward_module.")},
        {"module": prefixed("_fsdp_wrapped_module.")},
        {"model": prefixed("module.module."), "optimizer": {"state": {}}},
        {"state_dict": prefixed("model."), "hyper_parameters": argparse.Namespace(layers=[1, 2])},
    ],
    ids=["bare", "Namespace", "module.", "_orig_mod.", "DeepSpeed", "FSDP", "module.module.", "Lightning"],
)
def test_wrappers_and_prefixes_of_training_scripts_are_taken_off(content, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    given = load_tensors(tmp_path / "file.pth", "tensors")
    assert given.keys() == TENSORS.keys()
    assert torch.equal(given["a.weight"], TENSORS["a.weight"])


def test_a_prefix_that_some_keys_lack_stays(tmp_path):
    torch.save({**TENSORS, "module.c": torch.ones(1)}, tmp_path / "file.pth")
    assert "module.c" in load_tensors(tmp_path / "file.pth", "tensors")


def test_only_the_folders_own_weights_are_read(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    for name in ("model_ema", "optimizer", "aaa", "zzz"):
        save_file({key: torch.zeros_like(tensor) for key, tensor in TENSORS.items()}, tmp_path / f"{name}.safetensors")
    assert torch.equal(read_tensors(tmp_path)["a.weight"], TENSORS["a.weight"])


def test_the_index_names_the_shards_and_a_missing_one_is_named(tmp_path):
    save_file({"a.weight": TENSORS["a.weight"]}, tmp_path / "model-1.safetensors")
    save_file({"b.weight": TENSORS["b.weight"]}, tmp_path / "model-2.safetensors")
    save_file({"a.weight": torch.zeros(3)}, tmp_path / "model-3.safetensors")
    weights = {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weights}))
    assert torch.equal(read_tensors(tmp_path)["a.weight"], TENSORS["a.weight"])
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors: no such file"):
        read_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="no file of this folder"):
        read_tensors(tmp_path)
    index.unlink()
    with pytest.raises(CheckpointError, match=r"no weights .*not read: model-1\.safetensors"):
        read_tensors(tmp_path)


def test_code_that_a_folder_names_is_reported_and_never_run(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'trapped')!r}, 'w')\nclass T: pass\n")
    auto_map = {"AutoTokenizer": ["trap.T", None], "AutoModel": "trap.T", "AutoConfig": "trap.T"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of", "auto_map": auto_map}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T", "auto_map": auto_map}))
    for loader in (AutoModel, AutoTokenizer):
        with caplog.at_level(logging.WARNING), pytest.raises((ValueError, OSError)):
            from_folder(loader, tmp_path)
    assert "config.json: names its own code (auto_map), which is never run" in caplog.text
    assert not (tmp_path / "trapped").exists()


def test_another_size_of_images_interpolates_the_positions(tmp_path):
    model = build(EVEForVQA)
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 24, 24)
    ids = batch(2)["input_ids"]
    expected = model(images, ids).logits
    for loaded in (
        EVEForVQA.from_pretrained(tmp_path, image_size=24),
        EVEForVQA.from_pretrained(tmp_path, config=tiny(image_size=24)),
    ):
        assert loaded.config.image_size == loaded.eve.config.image_size == 24
        assert loaded.eve.image_embedding.position.shape == (37, 24)
        torch.testing.assert_close(loaded.eval()(images, ids).logits, expected)
    assert AutoModel.from_pretrained(tmp_path, image_size=24).config.image_size == 24
    with pytest.raises(ConfigError, match="image_size 18 is not a multiple of patch_size 4"):
        EVEForVQA.from_pretrained(tmp_path, image_size=18)


def test_a_runs_folder_serves_as_its_model_and_another_family_is_named(tmp_path):
    build(EVEModel).save_pretrained(tmp_path / "run" / "model")
    assert isinstance(EVEModel.from_pretrained(tmp_path / "run"), EVEModel)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vle"}))
    with pytest.raises(CheckpointError, match="another family: model_type 'vle'"):
        EVEModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_a_larger_vocabulary_reaches_words_and_masked_words(tied):
    model = build(EVEForPreTraining, tie_word_embeddings=tied)
    model.resize_token_embeddings(60)
    assert model.eve.text_embedding.word.weight.shape == model.mlm_head[2].weight.shape == (60, 24)
    assert model.mlm_head[2].bias.shape == (60,)
    assert model.config.vocab_size == 60
    assert (model.mlm_head[2].weight is model.eve.text_embedding.word.weight) == tied


@pytest.mark.parametrize(
    "text", ["[]", "5", "null", '"x"', "true", "[" * 50_000, '{"model_type": "eve", "architectures": 7}']
)
def test_a_config_that_is_no_object_of_a_model_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        read_fields(tmp_path, ["eve"])
