"""What the released code of EVE computes, we compute: every golden vector to 1e-5 of its largest magnitude."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eve_models import relative_difference
from evle.models.eve import EVEForNLVR2, EVEForRetrieval, EVEForVQA

FOLDER = Path(__file__).parents[3] / "shared" / "parity" / "eve"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the golden vectors are not part of the repository")
# Four heads leave no trace in the weights; capacity 1.0 is the routing that the vectors were made with.
RELEASED = {"num_attention_heads": 4, "capacity_factor": 1.0}


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    return load_file(FOLDER / "inputs.safetensors")


@pytest.fixture(scope="module")
def computed(inputs) -> dict[str, Tensor]:
    """Everything the vectors hold, computed by us through `from_released`."""
    image, text = inputs["image"], {name: inputs[name] for name in ("input_ids", "attention_mask")}
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        vqa = EVEForVQA.from_released(FOLDER / "vqa.safetensors", **RELEASED)
        output = vqa(image, **text, labels=inputs["vqa_targets"])
        found["vqa.hidden"] = torch.cat([output.image_hidden, output.text_hidden], dim=1)
        found["vqa.logits"] = output.logits
        found["vqa.loss"] = output.loss
        found["vqa.gate_loss"] = 0.001 * output.router["balance"]

        larger = EVEForVQA.from_released(FOLDER / "vqa.safetensors", image_size=96, **RELEASED)
        found["vqa_res2.pos_embed_vision"] = larger.eve.image_embedding.position
        found["vqa_res2.logits"] = larger(inputs["image_res2"], **text).logits

        retrieval = EVEForRetrieval.from_released(FOLDER / "itr.safetensors", **RELEASED)
        output = retrieval(image, **text, match_ids=inputs["itr_idx"])
        found["itr.image_hidden"], found["itr.text_hidden"] = output.image_hidden, output.text_hidden
        found["itr.itc_loss"] = output.losses["itc"]
        found["itr.image_embed"] = retrieval.get_image_features(image)
        found["itr.text_embed"] = retrieval.get_text_features(**text)
        found["itr.itm_logits"] = retrieval.itm_logits(image, **text)
        retrieval.config.released_eval_features = True
        found["itr.eval_image_embed"] = retrieval.get_image_features(image)
        found["itr.eval_text_embed"] = retrieval.get_text_features(**text)

        pair = torch.stack([image, inputs["image2"]], dim=1)
        for name in ("nlvr", "nlvr_biattn"):
            found[f"{name}.logits"] = EVEForNLVR2.from_released(FOLDER / f"{name}.safetensors", **RELEASED)(
                pair, **text
            ).logits
    return found


def expected_names() -> list[str]:
    return sorted(load_file(FOLDER / "outputs.safetensors")) if FOLDER.is_dir() else []


@pytest.mark.parametrize("name", expected_names())
def test_the_released_vector_agrees(name, computed):
    expected = load_file(FOLDER / "outputs.safetensors")[name]
    assert relative_difference(computed[name], expected) < 1e-5


def test_dropless_routing_gives_other_numbers_where_capacity_binds(inputs, computed):
    model = EVEForVQA.from_released(FOLDER / "vqa.safetensors", num_attention_heads=4)
    with torch.no_grad():
        output = model(inputs["image"], inputs["input_ids"], inputs["attention_mask"])
    assert relative_difference(output.logits, computed["vqa.logits"]) > 1e-4
    assert output.router["dropped"].tolist() == [0.0, 0.0]


def test_another_image_size_at_run_time_equals_the_checkpoint_loaded_at_that_size(inputs, computed):
    model = EVEForVQA.from_released(FOLDER / "vqa.safetensors", **RELEASED)
    with torch.no_grad():
        logits = model(inputs["image_res2"], inputs["input_ids"], inputs["attention_mask"]).logits
    assert relative_difference(logits, computed["vqa_res2.logits"]) < 1e-5
