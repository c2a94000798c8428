"""Released checkpoints: read, inferred, and refused in words."""

import gzip
import io
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from eve_models import batch, build, tiny
from evle.errors import CheckpointError, ConfigError
from evle.models.eve import EVEForNLVR2, EVEForRetrieval, EVEForVQA, EVEModel
from evle.models.eve.convert import released_model
from evle.models.eve.released import to_ours, to_released

HEADS = {
    "vqa": (EVEForVQA, {"num_labels": 5}),
    "retrieval": (EVEForRetrieval, {"projection_dim": 10}),
    "plain": (EVEForNLVR2, {"nlvr2_head": "plain"}),
    "bi-attention": (EVEForNLVR2, {"nlvr2_head": "bi-attention"}),
}


def released_state(name: str) -> tuple[EVEModel, dict[str, torch.Tensor]]:
    model_class, fields = HEADS[name]
    model = build(model_class, **fields)
    return model, to_released(model.state_dict(), model.config, model_class.released_classifier)


@pytest.fixture
def vqa_file(tmp_path) -> Path:
    torch.save({"model": released_state("vqa")[1], "epoch": 3}, tmp_path / "vqa.th")
    return tmp_path / "vqa.th"


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("suffix", [".th", ".safetensors"])
def test_a_released_file_loads_into_the_model_it_came_from(name, suffix, tmp_path):
    model, state = released_state(name)
    path = tmp_path / f"released{suffix}"
    if suffix == ".safetensors":
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    loaded = type(model).from_released(path, num_attention_heads=2)
    fields = ("hidden_size", "num_hidden_layers", "intermediate_size", "image_size", "patch_size", "vocab_size")
    fields += ("max_position_embeddings", "soft_layers", "num_experts", "modality_routing", "num_labels")
    assert [getattr(loaded.config, field) for field in fields] == [getattr(model.config, field) for field in fields]
    assert not loaded.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", HEADS)
def test_the_key_table_goes_both_ways_bit_for_bit(name):
    model, state = released_state(name)
    classifier = type(model).released_classifier
    assert all(
        key.startswith(("backbone.", "output.", "itc_", "itm_head.", "attn", "fc.", "nlvr2_output.")) for key in state
    )
    ours = to_ours(state, classifier)
    assert ours.keys() == model.state_dict().keys()
    again = to_released(ours, model.config, classifier)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_counting_buffers_and_data_parallel_prefixes_are_no_obstacle(vqa_file):
    expected = EVEForVQA.from_released(vqa_file, num_attention_heads=2)
    state = torch.load(vqa_file)["model"]
    state["backbone.position_ids_text"] = torch.arange(12)
    torch.save({f"module.{key}": tensor for key, tensor in state.items()}, vqa_file)
    found = EVEForVQA.from_released(vqa_file, num_attention_heads=2)
    assert torch.equal(found(**batch()).logits, expected(**batch()).logits)


def test_the_backbone_alone_can_be_read_from_a_checkpoint_with_a_head(vqa_file):
    backbone = EVEModel.from_released(vqa_file, num_attention_heads=2)
    expected = EVEForVQA.from_released(vqa_file, num_attention_heads=2)
    assert torch.equal(backbone(**batch()).text_hidden, expected(**batch()).text_hidden)


def test_another_image_size_interpolates_the_positions(vqa_file):
    model = EVEForVQA.from_released(vqa_file, num_attention_heads=2, image_size=24)
    assert model.config.image_size == 24
    assert model.eve.image_embedding.position.shape == (37, 24)


def test_overrides_reach_the_configuration(vqa_file):
    model = EVEForVQA.from_released(vqa_file, num_attention_heads=2, capacity_factor=1.0, drop_path_rate=0.3)
    assert (model.config.capacity_factor, model.config.drop_path_rate) == (1.0, 0.3)
    with pytest.raises(ConfigError, match="'drop_path' \\(did you mean 'drop_path_rate'"):
        EVEForVQA.from_released(vqa_file, drop_path=0.3)


def test_the_number_of_heads_is_asked_for_when_the_width_does_not_tell(vqa_file):
    with pytest.raises(ConfigError, match="width 24 is not a multiple of 64; give it as --num-attention-heads"):
        EVEForVQA.from_released(vqa_file)


def test_missing_unexpected_and_misshapen_keys_are_all_named(vqa_file):
    state = torch.load(vqa_file)["model"]
    del state["backbone.norm.bias"]
    state["backbone.mystery"] = torch.zeros(2)
    state["backbone.layer_norm_text.weight"] = torch.zeros(7)
    torch.save(state, vqa_file)
    with pytest.raises(CheckpointError) as error:
        EVEForVQA.from_released(vqa_file, num_attention_heads=2)
    assert "1 missing: eve.norm.bias" in str(error.value)
    assert "1 unexpected: backbone.mystery" in str(error.value)
    assert "1 misshapen: eve.text_embedding.norm.weight (7,) instead of (24,)" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_head_of_another_task_is_refused_unless_a_new_one_is_wanted(vqa_file):
    with pytest.raises(CheckpointError, match=r"missing: contrast\.image_projection\.weight"):
        EVEForRetrieval.from_released(vqa_file, num_attention_heads=2)
    model = EVEForRetrieval.from_released(vqa_file, num_attention_heads=2, new_head=True)
    assert torch.equal(model.eve.norm.weight, EVEModel.from_released(vqa_file, num_attention_heads=2).norm.weight)


def test_a_new_head_may_have_another_number_of_answers(vqa_file):
    model = EVEForVQA.from_released(vqa_file, num_attention_heads=2, num_labels=9, new_head=True)
    assert model(**batch()).logits.shape == (3, 9)


def test_non_square_positions_are_refused(vqa_file):
    state = torch.load(vqa_file)["model"]
    state["backbone.pos_embed_vision"] = torch.zeros(13, 24)
    torch.save(state, vqa_file)
    with pytest.raises(CheckpointError, match="pos_embed_vision has 13 rows; 1 \\+ a square"):
        EVEForVQA.from_released(vqa_file, num_attention_heads=2)


def zipped(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "text")
    return content.getvalue()


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.th: no such file"):
        EVEForVQA.from_released(tmp_path / "none.th")
    torch.save({"a": torch.zeros(200)}, tmp_path / "whole.pth")
    torch_file = (tmp_path / "whole.pth").read_bytes()
    tensors = save({"a": torch.zeros(200)})
    contents = {
        "a.th": (b"no zip", "is a text file, not a checkpoint"),
        "b.safetensors": (b"\x07\1short", "not a readable checkpoint"),
        "c.th": (b"", "is empty"),
        "page.th": (b"<html>404</html>", "is a web page"),
        "pointer.th": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "is a Git LFS pointer"),
        "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        "annex.th": (b"/annex/objects/SHA256E-s5--abc.bin\n", "is a git-annex pointer"),
        "marked.th": (b"\xef\xbb\xbf\n<!DOCTYPE html>", "is a web page"),
        "answer.safetensors": (b'{"message": "Not Found"}', r"is a text file \(JSON\), not a checkpoint"),
        "packed.th": (gzip.compress(b"weights"), r"is a compressed file \(gzip\), not a checkpoint; unpack it"),
        "image.safetensors": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a PNG image, not a checkpoint"),
        "array.th": (b"\x93NUMPY\x01\0", "is an array of numpy, not a checkpoint"),
        "zeros.th": (bytes(2000), "begins with zeros"),
        "zip.th": (zipped("weights.txt"), "is a zip archive of weights.txt, not a checkpoint; unpack it"),
        "cut.th": (torch_file[: len(torch_file) // 2], "is cut short; download it again"),
        "torch.safetensors": (torch_file, "is a file of torch; rename it to .pth"),
        "cut.safetensors": (tensors[:-4], "is cut short; download it again"),
        "tensors.th": (tensors, "is a file of safetensors; rename it to .safetensors"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: {message}") as error:
            EVEForVQA.from_released(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="is a directory"):
        EVEForVQA.from_released(tmp_path)
    torch.save({"some": torch.zeros(2)}, tmp_path / "other.th")
    with pytest.raises(CheckpointError, match=r"not a released EVE checkpoint; .* but some"):
        EVEForVQA.from_released(tmp_path / "other.th")


class Trap:
    """Pickles to a call; unpickling it would create the file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    torch.save({"model": Trap(tmp_path / "trapped")}, tmp_path / "evil.th")
    with pytest.raises(CheckpointError, match=r"holds more than tensors .*, and code in a file is never run"):
        EVEForVQA.from_released(tmp_path / "evil.th")
    assert not (tmp_path / "trapped").exists()


def test_the_released_capacity_rule_is_a_field_away():
    assert tiny().capacity_factor is None
    assert tiny(capacity_factor=1.0).pads_are_routed
    assert not tiny().pads_are_routed
    assert not tiny(capacity_factor=1.0, route_padding=False).pads_are_routed


@pytest.mark.parametrize(
    ("key", "odd", "words"),
    [
        ("experts.experts.1.fc1.weight", torch.zeros(3, 24), r"is \(3, 24\) of float32, and .*\.0\.fc1\.weight is"),
        ("experts.experts.1.fc1.bias", torch.zeros(40, dtype=torch.int8), r"of int8, and .* is \(\d+,\) of float32"),
        ("backbone.word_embedding.weight", torch.tensor(1.0), "is a single number"),
        ("backbone.class_embedding_vision", torch.tensor(1.0), "is a single number"),
        ("output.3.weight", torch.tensor(1.0), "is a single number"),
        ("output.0.weight", torch.zeros(24), "misshapen"),
    ],
    ids=["expert-shape", "expert-int8", "words", "cls", "answers", "one-dimension"],
)
def test_tensors_of_odd_shapes_are_named(key, odd, words, vqa_file):
    state = torch.load(vqa_file)["model"]
    name = next(each for each in state if each.endswith(key))
    torch.save({**state, name: odd}, vqa_file)
    with pytest.raises(CheckpointError, match=words) as caught:
        released_model(vqa_file).from_released(vqa_file, num_attention_heads=2)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(vqa_file))
