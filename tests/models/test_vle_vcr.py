"""VCR's heads: one image, four candidates, named objects as box tokens."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from evle.errors import DataError
from evle.models.vle import VLEForVCRQ2A, VLEForVCRQA2R
from evle.models.vle.fusion import Stream
from evle.models.vle.modeling import mean_states
from vle_models import build, relative_difference, vcr_batch

BOTH = (VLEForVCRQ2A, VLEForVCRQA2R)
MODEL = build(VLEForVCRQ2A)


@torch.no_grad()
def logits_one_by_one(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Each candidate of each question by itself, with no padding of any kind, as the facts describe it."""
    rows = []
    for question, pixels in enumerate(inputs["pixel_values"]):
        for candidate in range(inputs["input_ids"].shape[1]):
            at = (question, candidate)
            real = int(inputs["attention_mask"][at].sum())
            image = model.vle.encode_image(pixels[None])
            boxes, types = [], []
            for place, token_type in enumerate(inputs["box_token_types"][at].tolist()):
                covered = inputs["box_patches"][at][place].nonzero()[:, 0].tolist()
                if token_type and covered:
                    boxes.append(sum(image[0, 1 + patch] for patch in covered) / len(covered))
                    types.append(token_type)
            if boxes:
                image = torch.cat([image, torch.stack(boxes)[None]], dim=1)
            text = model.vle.encode_text(inputs["input_ids"][at][None, :real])
            type_rows = model.vle.token_type_embeddings
            output = model.vle.fuse(
                Stream(image + type_rows(torch.tensor([[1] * 17 + types]))),
                Stream(text + type_rows(inputs["token_type_ids"][at][None, :real])),
            )
            rows.append(model.candidate_logit(output.pooler_output))
    return torch.stack(rows).view(inputs["input_ids"].shape[:2])


@pytest.mark.parametrize("model_class", BOTH)
def test_candidates_at_once_are_candidates_one_by_one(model_class):
    model = build(model_class)
    inputs = vcr_batch()
    with torch.no_grad():
        given_logits = model(**inputs).logits
    assert given_logits.shape == (2, 4)
    assert relative_difference(given_logits, logits_one_by_one(model, inputs)) < 1e-4


def test_a_box_token_is_the_mean_of_its_patches():
    states = torch.randn(2, 5, 3)
    patches = torch.zeros(2, 1, 2, 5, dtype=torch.bool)
    patches[0, 0, 0, [1, 3]] = True
    patches[1, 0, 0, 4] = True
    tokens = mean_states(states, patches)
    assert torch.allclose(tokens[0, 0, 0], (states[0, 1] + states[0, 3]) / 2)
    assert torch.allclose(tokens[1, 0, 0], states[1, 4])
    assert tokens[:, :, 1].abs().max() == 0


def test_the_image_is_encoded_once(monkeypatch):
    seen = []
    plain = MODEL.vle.encode_image
    monkeypatch.setattr(MODEL.vle, "encode_image", lambda pixels: seen.append(len(pixels)) or plain(pixels))
    MODEL(**vcr_batch())
    assert seen == [2]


def test_questions_about_one_image_share_it():
    """Images of questions 0, 1 and 2 are 1, 0 and 1: as if each question brought its own."""
    model = build(VLEForVCRQ2A)
    inputs, rows = vcr_batch(3), torch.tensor([1, 0, 1])
    images = inputs.pop("pixel_values")[:2]
    labels = torch.tensor([2, 0, 3])
    losses = [
        model(pixel_values=images, **inputs, labels=labels, image_rows=rows).loss,
        model(pixel_values=images[rows], **inputs, labels=labels).loss,
    ]
    assert torch.allclose(*losses, rtol=1e-5)
    for name, parameter in model.named_parameters():
        given, expected = (torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in losses)
        assert torch.allclose(given, expected, rtol=1e-3, atol=1e-5), name


def test_an_object_that_covers_no_patch_has_no_box_token():
    """Cropped away: as if its slot were padding, but for its text, which keeps the object's type."""
    inputs = vcr_batch()
    inputs["box_patches"][:, :, 1] = False
    padding = {**inputs, "box_token_types": inputs["box_token_types"].clone()}
    padding["box_token_types"][:, :, 1] = 0
    with torch.no_grad():
        assert torch.equal(MODEL(**inputs).logits, MODEL(**padding).logits)
        untyped = {**inputs, "token_type_ids": inputs["token_type_ids"].masked_fill(inputs["token_type_ids"] == 3, 0)}
        assert not torch.allclose(MODEL(**untyped).logits, MODEL(**inputs).logits)


@settings(max_examples=12, deadline=None)
@given(
    question=st.integers(0, 2),
    text_padding=st.integers(0, 4),
    box_padding=st.integers(0, 2),
    order=st.permutations(range(4)),
    seed=st.integers(0, 50),
)
def test_predictions_depend_neither_on_neighbours_nor_padding_nor_the_order(
    question, text_padding, box_padding, order, seed
):
    inputs = vcr_batch(3, seed=seed)
    padded = dict(inputs)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        padded[name] = F.pad(inputs[name], (0, text_padding))
    padded["box_token_types"] = F.pad(inputs["box_token_types"], (0, box_padding))
    padded["box_patches"] = F.pad(inputs["box_patches"], (0, 0, 0, box_padding), value=True)
    alone = {
        name: tensor[question : question + 1] if name == "pixel_values" else tensor[question : question + 1, order]
        for name, tensor in inputs.items()
    }
    with torch.no_grad():
        whole, single = MODEL(**padded).logits, MODEL(**alone).logits
    assert relative_difference(whole[question][list(order)], single[0]) < 1e-4


def test_a_text_that_names_no_object_needs_no_boxes():
    inputs = vcr_batch()
    inputs["token_type_ids"].zero_()
    inputs["box_token_types"], inputs["box_patches"] = (
        inputs["box_token_types"][..., :0],
        inputs["box_patches"][:, :, :0],
    )
    with torch.no_grad():
        given_logits = MODEL(**inputs).logits
    assert relative_difference(given_logits, logits_one_by_one(MODEL, inputs)) < 1e-4


def test_the_loss_is_cross_entropy_over_the_candidates_and_not_needed():
    inputs = vcr_batch()
    with torch.no_grad():
        plain, output = MODEL(**inputs), MODEL(**inputs, labels=torch.tensor([3, 1]))
    assert plain.loss is None
    assert torch.equal(plain.logits, output.logits)
    expected = -(output.logits.log_softmax(-1)[[0, 1], [3, 1]]).mean()
    assert torch.allclose(output.losses["choice"], expected)


def test_states_and_maps_have_a_row_a_candidate():
    output = MODEL(**vcr_batch(), output_attentions=True, output_hidden_states=True)
    assert output.image_hidden.shape == (2, 4, 1 + 16 + 2, 24)
    assert output.text_hidden.shape == (2, 4, 7, 24)
    assert output.attentions["text_to_image"][0].shape == (8, 3, 7, 19)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box_patches": torch.zeros(2, 4, 2, 9, dtype=torch.bool)}, r"B, K, O, 16 patches.*\(2, 4, 2, 9\)"),
        ({"pixel_values": torch.zeros(3, 3, 16, 16)}, r"VCR takes pixel_values .* got \(3, 3, 16, 16\)"),
        ({"box_token_types": torch.full((2, 4, 2), 6)}, "up to token type 6, the model has 6 types.*num_token_types=7"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    with pytest.raises(DataError, match=message):
        MODEL(**{**vcr_batch(), **change})


def test_a_batch_of_no_questions_gives_no_logits():
    model = build(VLEForVCRQ2A)
    none = {name: tensor[:0] for name, tensor in vcr_batch().items()}
    assert model(**none).logits.shape == (0, 4)


@torch.no_grad()
@pytest.mark.parametrize(("types", "boxes"), [(False, True), (True, False), (False, False)])
def test_each_way_to_point_at_objects_can_be_switched_off(types, boxes):
    """As if the texts named nobody, and as if no box covered a patch."""
    model = build(VLEForVCRQ2A, vcr_token_types=types, vcr_box_tokens=boxes)
    inputs = vcr_batch()
    given = model(**inputs, output_hidden_states=True)
    assert given.image_hidden.shape[-2] == (19 if boxes else 17)
    without = dict(inputs)
    if not types:
        without["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
        without["box_token_types"] = inputs["box_token_types"].clamp(max=1)  # the image's type
    if not boxes:
        without["box_patches"] = torch.zeros_like(inputs["box_patches"])
    full = build(VLEForVCRQ2A)
    assert relative_difference(given.logits, full(**without).logits) < 1e-4
    assert relative_difference(full(**inputs).logits, given.logits) > 1e-3


@torch.no_grad()
def test_an_image_encoded_for_every_candidate_gives_the_same_scores():
    inputs = vcr_batch()
    once, each = build(VLEForVCRQ2A), build(VLEForVCRQ2A, vcr_shares_image=False)
    sizes: list[int] = []
    for model in (once, each):
        model.vle.vision_model.register_forward_pre_hook(
            lambda _, args, kwargs: sizes.append(len(kwargs.get("pixel_values", args[0] if args else ()))),
            with_kwargs=True,
        )
    assert relative_difference(once(**inputs).logits, each(**inputs).logits) < 1e-5
    assert sizes == [len(inputs["pixel_values"]), 4 * len(inputs["input_ids"])]
