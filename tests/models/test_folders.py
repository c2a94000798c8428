"""Files of weights and model folders: what is read, what is refused, and that no code in them runs."""

import argparse
import json
import logging
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer, CLIPVisionConfig, CLIPVisionModel

from eve_models import batch, build, tiny
from evle.errors import CheckpointError, ConfigError
from evle.models.eve import EVEForPreTraining, EVEForVQA, EVEModel
from evle.models.folders import from_folder, load_tensors, model_folder, read_fields, read_tensors
from evle.models.loading import load_model
from evle.models.vle import VLEConfig
from evle.models.vle.tower_weights import read_tower, read_tower_config

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


class Trap:
    """A pickle that would make a folder when it is opened."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


FOREIGN = {
    "model.onnx": (b"\x08\x08\x12\x07pytorch" + b"\0" * 30, "an ONNX model"),
    "model.h5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "an HDF5 file"),
    "model.msgpack": (b"\x81\xa6params\x81\xa1a\xc4\x04\0\0\0\0", "a msgpack file, as Flax writes"),
    "model.gguf": (b"GGUF\3\0\0\0", "a GGUF file"),
    "model.tflite": (b"\x1c\0\0\0TFL3", "a TFLite model"),
    "model.tar": (b"a" * 257 + b"ustar" + b"\0" * 250, "a tar archive"),
    "model.zip": (b"PK\5\6" + b"\0" * 18, "an empty zip archive"),
}


@pytest.mark.parametrize("name", [*FOREIGN, "model.pkl", "model.ckpt", "model.bin"])
def test_the_file_of_another_tool_is_named_and_never_opened_wherever_it_is_given(name, tmp_path):
    trap = tmp_path / "trapped"
    data, kind = FOREIGN.get(name) or (pickle.dumps(Trap(trap)), "a pickle of Python objects, whose code is never run")
    file = tmp_path / name
    file.write_bytes(data)
    for give in (model_folder, lambda path: read_tower_config(path, "vision_config")):
        with pytest.raises(CheckpointError, match=f"{name}: is {kind}; give the folder that holds config.json"):
            give(file)
    with pytest.raises(CheckpointError, match=f"{name}: is {kind}, not a checkpoint"):
        load_tensors(file, "a checkpoint")
    beside = tmp_path / "beside"
    build(EVEForVQA).save_pretrained(beside)
    (beside / "model.safetensors").rename(tmp_path / "weights")
    (beside / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"no weights \(model.safetensors, pytorch_model.bin\) beside"):
        load_model(beside, {"eve": EVEForVQA})
    for weights in ("pytorch_model.bin", "model.safetensors"):
        (beside / weights).write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{weights}: is {kind}, not a checkpoint"):
            load_model(beside, {"eve": EVEForVQA})
    assert not trap.exists()


def test_what_torch_saves_without_zip_is_no_pickle_of_another_program(tmp_path):
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load_tensors(tmp_path / "old.pth", "tensors")["a.weight"], TENSORS["a.weight"])


def test_an_adapter_of_peft_is_applied_to_a_model_and_never_left_out(tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    base = build(EVEForVQA)
    base.save_pretrained(tmp_path)
    before = EVEForVQA.from_pretrained(tmp_path)(**batch(2)).logits
    settings = peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False)
    peft.get_peft_model(base, settings).save_pretrained(tmp_path)
    after = from_folder(EVEForVQA, tmp_path).eval()(**batch(2)).logits
    assert not torch.allclose(before, after)
    with pytest.raises(CheckpointError, match=r"merge it first \(peft's merge_and_unload\), or remove it"):
        read_tensors(tmp_path)
    monkeypatch.setattr("evle.models.folders.is_peft_available", lambda: False)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: an adapter of peft"):
        from_folder(EVEForVQA, tmp_path)


def test_a_tower_beside_an_adapter_of_peft_is_refused(tmp_path):
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8
    )
    CLIPVisionModel(config).save_pretrained(tmp_path)
    read_tower(tmp_path, "vision_config")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an adapter of peft beside whole weights"):
        read_tower(tmp_path, "vision_config")


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "owner/kernel"},
        {"_attn_implementation": "kernels-community/flash-attn2@main"},
        {"attn_implementation": {"": "owner/kernel"}},
        {"vision_config": {"_attn_implementation": "owner/kernel"}},
        {"attn_implementation": "flash_attention_2"},
        {"text_config": {"attn_implementation": "paged|flash_attention_3"}},
        {"experts_implementation": "sonicmoe"},
    ],
)
def test_a_kernel_that_a_file_names_is_refused_before_it_is_downloaded(tmp_path, fields):
    build(EVEForVQA).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    words = "_implementation.* names code to download, which is never run; remove the field"
    for read in (
        lambda: EVEForVQA.from_pretrained(tmp_path),
        lambda: AutoModel.from_pretrained(tmp_path),
        lambda: from_folder(EVEForVQA, tmp_path),
        lambda: read_fields(tmp_path, ("eve",)),
    ):
        with pytest.raises(CheckpointError, match=words):
            read()
    with pytest.raises(CheckpointError, match=words):
        VLEConfig.from_dict({**VLEConfig.from_preset("vle-tiny").to_dict(), **fields})


def test_attention_that_a_file_or_a_person_may_name_is_kept(tmp_path):
    build(EVEForVQA).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "attn_implementation": "eager"}))
    assert from_folder(EVEForVQA, tmp_path).config._attn_implementation == "eager"
    asked = tiny(attn_implementation="owner/kernel")
    assert asked.with_changes(image_size=32)._attn_implementation == "owner/kernel"
