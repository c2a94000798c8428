"""What the released code of VLE computes, we compute: every golden vector to 1e-5 of its largest magnitude."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from evle.models.positions import resize_positions
from evle.models.vle import (
    VLEForITM,
    VLEForMLM,
    VLEForPBC,
    VLEForVCRQ2A,
    VLEForVCRQA2R,
    VLEForVQA,
    VLEModel,
)
from vle_models import relative_difference

FOLDER = Path(__file__).parents[3] / "shared" / "parity" / "vle"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the golden vectors are not part of the repository")
CLASSES = {
    "model": VLEModel,
    "vqa": VLEForVQA,
    "itm": VLEForITM,
    "pbc": VLEForPBC,
    "mlm": VLEForMLM,
    "vcr_q2a": VLEForVCRQ2A,
    "vcr_qa2r": VLEForVCRQA2R,
}


def load(name: str) -> Any:
    return CLASSES[name].from_pretrained(FOLDER / name).eval()


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    return load_file(FOLDER / "inputs.safetensors")


def vcr_inputs(num_patches: int) -> dict[str, Tensor]:
    """The candidates' lists as the tensors that our heads take."""
    given = json.loads((FOLDER / "vcr_inputs.json").read_text(encoding="utf-8"))
    ids = torch.tensor(given["input_ids"]).transpose(0, 1)  # (B, K, T)
    size, candidates, _ = ids.shape
    most = max(len(objects) for questions in given["patch_ids"] for objects in questions)
    box_patches = torch.zeros(size, candidates, most, num_patches, dtype=torch.bool)
    box_token_types = torch.zeros(size, candidates, most, dtype=torch.long)
    token_type_ids = torch.zeros_like(ids)
    for candidate in range(candidates):
        boxes, texts = given["extend_token_type_ids"][candidate]
        for question in range(size):
            for place, patches in enumerate(given["patch_ids"][candidate][question]):
                box_patches[question, candidate, place, patches] = True
                box_token_types[question, candidate, place] = boxes[question][place]
            types = torch.tensor(texts[question])
            token_type_ids[question, candidate, : len(types)] = types
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor(given["attention_mask"]).transpose(0, 1),
        "token_type_ids": token_type_ids,
        "box_patches": box_patches,
        "box_token_types": box_token_types,
        "labels": torch.tensor(given["labels"]),
    }


@pytest.fixture(scope="module")
def computed(inputs) -> dict[str, Tensor]:
    """Everything the vectors hold, computed by us from the released directories."""
    pair = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    targets = torch.zeros(3, 11)
    targets[0, 0], targets[0, 2], targets[1, 1], targets[2, 3] = 1.0, 0.3, 0.6, 0.9
    labels = {"vqa": targets, "itm": torch.tensor([0, 1, 0]), "mlm": inputs["mlm_labels"], "pbc": None}
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        output = load("model")(**pair)
        found["model.image_embeds"], found["model.text_embeds"] = output.image_hidden, output.text_hidden
        found["model.pooler_output"] = output.pooler_output
        for name, label in labels.items():
            output = load(name)(**pair, labels=label)
            found[f"{name}.logits"], found[f"{name}.loss"] = output.logits, output.loss
        for name in ("vcr_q2a", "vcr_qa2r"):
            model = load(name)
            output = model(pixel_values=inputs["pixel_values"], **vcr_inputs(model.config.num_patches))
            found[f"{name}.logits"], found[f"{name}.loss"] = output.logits, output.loss
    found["extend.position_embedding"] = resize_positions(inputs["extend.position_embedding_before"], 6, 6)
    return found


def expected_names() -> list[str]:
    return sorted(load_file(FOLDER / "outputs.safetensors")) if FOLDER.is_dir() else []


@pytest.mark.parametrize("name", expected_names())
def test_the_released_vector_agrees(name, computed):
    expected = load_file(FOLDER / "outputs.safetensors")[name]
    assert relative_difference(computed[name], expected) < 1e-5


@pytest.mark.parametrize("name", CLASSES)
def test_a_released_directory_is_read_whole_and_written_back_bit_for_bit(name, tmp_path):
    model, report = CLASSES[name].from_pretrained(FOLDER / name, output_loading_info=True)
    assert not any(report.values())
    model.save_pretrained(tmp_path)
    given, written = (load_file(folder / "model.safetensors") for folder in (FOLDER / name, tmp_path))
    assert given.keys() == written.keys()
    for key, tensor in given.items():
        assert torch.equal(tensor, written[key]), key
        assert tensor.dtype == written[key].dtype, key


@pytest.mark.parametrize("name", ["vqa", "mlm", "vcr_q2a"])
def test_a_written_configuration_keeps_every_field_of_an_encoder(name, tmp_path):
    """Only what steers text generation, and notes of the old library, may be gone."""
    load(name).config.save_pretrained(tmp_path)
    given, written = (
        json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (FOLDER / name, tmp_path)
    )
    for part in ("text_config", "vision_config"):
        for key in ("model_type", "hidden_size", "num_hidden_layers", "layer_norm_eps", "hidden_act"):
            assert written[part][key] == given[part][key]
    for key in ("position_buckets", "share_att_key", "pos_att_type", "norm_rel_ebd", "relative_attention"):
        assert written["text_config"][key] == given["text_config"][key]
    for key in set(given) - {"text_config", "vision_config", "torch_dtype", "transformers_version", "_commit_hash"}:
        assert written[key] == given[key], key


def test_a_pickled_directory_of_the_old_library_is_read_too(inputs, computed, tmp_path):
    """`pytorch_model.bin`, with the decoder's bias under both its names, as old versions wrote it."""
    state = load_file(FOLDER / "mlm" / "model.safetensors")
    words = state["vle.text_model.embeddings.word_embeddings.weight"]
    state["mlm_score.1.predictions.decoder.weight"] = words
    state["mlm_score.1.predictions.decoder.bias"] = state["mlm_score.1.predictions.bias"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((FOLDER / "mlm" / "config.json").read_bytes())
    model, report = VLEForMLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        logits = model(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]).logits
    assert relative_difference(logits, computed["mlm.logits"]) < 1e-6
