"""Checksums in files of weights: damage is found, and a file that another tool wrote is never suspected."""

import contextlib
import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedModel

import eve_models
import vle_models
from evle.errors import CheckpointError
from evle.models import checksums
from evle.models.checksums import KEY, note_in, refuse_damaged, write_checksum
from evle.models.eve import EVEForRetrieval, EVEModel
from evle.models.folders import read_tensors
from evle.models.loading import load_model
from evle.models.vle import VLEModel
from retrieval_models import save_retrieval_model

MODELS = {"eve": (eve_models, EVEModel), "vle": (vle_models, VLEModel)}


@pytest.fixture(params=["eve", "vle"])
def saved(request, tmp_path):
    """A class and a folder with its weights in one file, or in several."""
    kit, model_class = MODELS[request.param]
    kit.build(model_class).save_pretrained(tmp_path)
    return model_class, tmp_path


def flip(file, at, bit=0):
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


def end_of_header(file):
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


def keeping_metadata(file, change=lambda tensor: tensor):
    """Write the file as a tool does that knows nothing of checksums and keeps what it finds in the header."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert KEY in metadata
    save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file, metadata=metadata)


def test_one_flipped_bit_of_a_weight_is_found(saved):
    model_class, folder = saved
    file = folder / "model.safetensors"
    model_class.from_pretrained(folder)
    for at in (end_of_header(file), -1):
        flip(file, at)
        for load in (model_class.from_pretrained, AutoModel.from_pretrained, read_tensors):
            with pytest.raises(
                CheckpointError, match=r"model\.safetensors: damaged \(its checksum is .* train it again"
            ):
                load(folder)
        flip(file, at)
    model_class.from_pretrained(folder)
    read_tensors(folder)


def test_a_pipeline_and_a_run_refuse_a_damaged_model(tmp_path):
    save_retrieval_model(tmp_path / "model")
    flip(tmp_path / "model/model.safetensors", -3)
    with pytest.raises(CheckpointError, match=r"model/model\.safetensors: damaged"):
        load_model(tmp_path, {"eve": EVEForRetrieval})


def test_a_flipped_bit_of_the_header_is_found_or_changes_nothing(saved):
    _, folder = saved
    file = folder / "model.safetensors"
    whole, end, expected = file.read_bytes(), end_of_header(file), load_file(file)
    for at in [*range(60), *range(60, end, end // 40)]:
        flip(file, at, at % 8)
        with contextlib.suppress(CheckpointError):  # else it was the mark itself
            found = read_tensors(folder)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        file.write_bytes(whole)


def test_a_damaged_length_of_the_header_is_reported_by_who_loads_the_weights(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2)}, file)
    write_checksum(file, "a note")
    assert note_in(file) == "a note"
    for at in range(8):
        flip(file, at, 6)
        assert note_in(file) == ""
        flip(file, at, 6)


def test_every_file_of_a_model_in_several_is_checked(saved):
    model_class, folder = saved
    PreTrainedModel.save_pretrained(model_class.from_pretrained(folder), folder / "theirs", max_shard_size="40KB")
    model_class.from_pretrained(folder).save_pretrained(folder / "ours", max_shard_size="40KB")
    files = sorted((folder / "ours").glob("model-*.safetensors"))
    assert len(files) > 1
    for file in files:
        flip(file, -1)
        for load in (model_class.from_pretrained, read_tensors):
            with pytest.raises(CheckpointError, match=f"{file.name}: damaged"):
                load(folder / "ours")
        flip(file, -1)
    model_class.from_pretrained(folder / "theirs")


def test_a_variant_is_checked_alone(saved):
    model_class, folder = saved
    model_class.from_pretrained(folder).save_pretrained(folder, variant="half")
    flip(folder / "model.half.safetensors", -1)
    model_class.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"model\.half\.safetensors: damaged"):
        model_class.from_pretrained(folder, variant="half")


def test_what_another_tool_wrote_is_never_suspected(saved):
    model_class, folder = saved
    file = folder / "model.safetensors"
    model = model_class.from_pretrained(folder)
    model.save_pretrained(folder)  # again, over the former one
    model_class.from_pretrained(folder)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    PreTrainedModel.save_pretrained(model, folder)  # without us
    model_class.from_pretrained(folder)
    model.save_pretrained(folder)
    shutil.copytree(folder, folder / "copy")
    config = folder / "copy/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "note": "edited"}))
    model_class.from_pretrained(folder / "copy")
    keeping_metadata(file)
    keeping_metadata(file, lambda tensor: tensor + 1)
    read_tensors(folder)
    fields = json.loads(file.read_bytes()[8 : end_of_header(file)])
    for style in ({}, {"indent": 0}, {"indent": 1}, {"indent": 2}, {"separators": (",", ":")}):
        header = json.dumps({**fields, "__metadata__": {**fields["__metadata__"], "title": "mine"}}, **style).encode()
        data = file.read_bytes()[end_of_header(file) :]
        file.write_bytes(len(header).to_bytes(8, "little") + header + data)
        refuse_damaged(file)


def test_a_file_is_closed_before_it_is_replaced(tmp_path, monkeypatch):
    """Windows replaces no file that is open."""
    file, opened = tmp_path / "a.safetensors", []
    save_file({"a": torch.zeros(2)}, file)

    def reading(*given):
        opened.append(open(*given))  # noqa: SIM115
        return opened[-1]

    def replacing(*given, replace=os.replace):
        assert [each.closed for each in opened] == [True]
        replace(*given)

    monkeypatch.setattr(checksums, "open", reading, raising=False)
    monkeypatch.setattr("evle.files.os.replace", replacing)
    write_checksum(file)
    monkeypatch.undo()
    refuse_damaged(file)


def test_a_checksum_changes_neither_tensors_nor_metadata(tmp_path):
    tensors = {"a": torch.arange(5, dtype=torch.int8), "größe": torch.ones(2, 3), "empty": torch.zeros(0)}
    for metadata in (None, {}, {"format": "pt", 'a "quote"': "ü\n"}):
        save_file(tensors, tmp_path / "some.safetensors", metadata=metadata)
        for _ in range(2):
            write_checksum(tmp_path / "some.safetensors")
            refuse_damaged(tmp_path / "some.safetensors")
        with safe_open(tmp_path / "some.safetensors", "pt") as file:
            held = file.metadata()
        assert len(held.pop(KEY)) == 8
        assert held == (metadata or {})
        assert end_of_header(tmp_path / "some.safetensors") % 8 == 0
        found = load_file(tmp_path / "some.safetensors")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
