"""VLE's pre-training: each objective is what it says, and a step runs no pass that nothing asks for."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from evle.errors import DataError
from evle.models.vle import VLEForPreTraining
from evle.models.vle.fusion import Stream, key_mask
from evle.models.vle.modeling import mean_states
from evle.models.vle.pretraining import black_out
from processes import run_on_two
from vle_models import batch, build, pretraining_batch, relative_difference
from vle_processes import check_a_process_with_nothing_to_do

ALL = ("mlm", "itm", "mpc", "pbc", "itc")


def test_the_losses_bear_the_objectives_names_and_weights():
    plain = build(VLEForPreTraining, objectives=ALL)
    weighted = build(VLEForPreTraining, objectives=ALL, objective_weights={"mpc": 3.0, "pbc": 0.5})
    outputs = []
    for model in (plain, weighted):
        torch.manual_seed(0)
        outputs.append(model(**pretraining_batch()))
    assert tuple(outputs[0].losses) == ALL
    assert torch.allclose(outputs[1].losses["mpc"], 3 * outputs[0].losses["mpc"])
    assert torch.allclose(outputs[1].losses["pbc"], 0.5 * outputs[0].losses["pbc"])
    assert torch.allclose(outputs[1].losses["mlm"], outputs[0].losses["mlm"])
    assert torch.allclose(outputs[0].loss, sum(outputs[0].losses.values()))


@torch.no_grad()
def test_each_objective_is_what_a_pass_of_its_own_gives():
    model = build(VLEForPreTraining, objectives=ALL)
    inputs = pretraining_batch()
    output = model(**inputs)
    pixels, ids, mask = (inputs[name] for name in ("pixel_values", "input_ids", "attention_mask"))

    masked = model.vle(inputs["masked_input_ids"], pixels, mask)
    chosen = inputs["mlm_labels"] != -100
    logits = model.mlm_score(masked.text_hidden)[chosen]
    assert relative_difference(output.logits, logits) < 1e-4
    assert torch.allclose(output.losses["mlm"], F.cross_entropy(logits, inputs["mlm_labels"][chosen]), atol=1e-4)

    whole = model.vle(ids, pixels, mask)
    pbc = model.pbc_classifier(whole.image_hidden[:, 1:])
    assert relative_difference(output.pbc_logits, pbc) < 1e-4
    expected = F.cross_entropy(pbc.flatten(0, 1), inputs["pbc_labels"].flatten())
    assert torch.allclose(output.losses["pbc"], expected, atol=1e-4)

    assert relative_difference(output.itm_logits[:3], model.itm_score(whole.pooler_output)) < 1e-4
    assert output.itm_labels.tolist() == [1] * 3 + [0] * 6
    expected = F.cross_entropy(output.itm_logits, output.itm_labels)
    assert torch.allclose(output.losses["itm"], expected, atol=1e-4)

    losses = []
    for row in range(2):
        image = pixels[row : row + 1].clone()
        covered = inputs["mpc_patches"][row].nonzero()[:, 0].tolist()
        for patch in covered:
            top, left = 4 * (patch // 4), 4 * (patch % 4)
            image[0, :, top : top + 4, left : left + 4] = inputs["black"][:, None, None]
        states = model.vle.encode_image(image)
        box = sum(states[:, 1 + patch] for patch in covered) / len(covered)
        types = model.vle.token_type_embeddings.weight
        fused = model.vle.fuse(
            Stream(torch.cat([states, box[:, None]], dim=1) + types[1]),
            Stream(
                model.vle.encode_text(ids[row : row + 1], mask[row : row + 1]) + types[0],
                key_mask(mask[row : row + 1], states.dtype),
            ),
        )
        logits = model.mpc_classifier(fused.image_hidden[0, -1])
        assert relative_difference(output.mpc_logits[row], logits) < 1e-4
        losses.append(F.cross_entropy(logits, inputs["mpc_labels"][row]))
    assert output.mpc_logits[2].tolist() == [0.0, 0.0, 0.0]
    assert torch.allclose(output.losses["mpc"], sum(losses) / 2, atol=1e-4)


def test_a_pair_of_id_minus_100_takes_no_part_in_matching_and_contrast():
    """Of three pairs the second's text may be true of any image: the other two are each other's only negatives."""
    model = build(VLEForPreTraining, objectives=("itm", "itc"))
    inputs = batch(3)
    output = model(**inputs, match_ids=torch.tensor([7, -100, 8]), match_rows=torch.tensor([0, 2]))
    others = {name: rows[[0, 2]] for name, rows in inputs.items()}
    expected = model(**others, match_ids=torch.tensor([7, 8]))
    assert output.itm_labels.tolist() == [1, 1, 0, 0, 0, 0]
    assert relative_difference(output.itm_logits, expected.itm_logits) < 1e-4
    for name, loss in expected.losses.items():
        assert torch.allclose(output.losses[name], loss, atol=1e-4), name
    every_row = model(**inputs, match_ids=torch.tensor([7, -100, 8]))
    assert every_row.itm_labels.tolist() == [1, -100, 1, 0, -100, 0, 0, -100, 0]
    assert torch.allclose(every_row.losses["itm"], output.losses["itm"], atol=1e-5)
    alone = model(**inputs, match_ids=torch.full((3,), -100))
    alone.loss.backward()
    assert alone.losses == {"itm": 0, "itc": 0}
    assert all(parameter.grad is not None for parameter in model.itm_score.parameters())


@pytest.mark.parametrize("objectives", [names for size in (1, 2) for names in itertools.combinations(ALL, size)])
def test_any_choice_of_objectives_trains_its_own_parameters(objectives):
    model = build(VLEForPreTraining, objectives=objectives)
    heads = {name.split(".")[0] for name, _ in model.named_parameters() if not name.startswith("vle.")}
    named = {
        "mlm": "mlm_score",
        "itm": "itm_score",
        "mpc": "mpc_classifier",
        "pbc": "pbc_classifier",
        "itc": "contrast",
    }
    assert heads == {named[name] for name in objectives}
    output = model(**pretraining_batch())
    assert set(output.losses) == set(objectives)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("vle."):
            assert parameter.grad is not None, name


@pytest.mark.parametrize(
    ("objectives", "images", "texts", "pairs", "image_states", "text_states"),
    [
        # 3 pairs of 17 image and 7 text tokens, of which 2 show an object; the mismatched pairs are 6.
        (("mlm",), [3], [3], [3], [], [3 * 7]),
        (("pbc",), [3], [3], [3], [3 * 17], []),
        (("itm",), [3], [3], [9], [3, 6], [3, 6]),
        (("mpc",), [2], [3], [2], [2 * 18], []),
        (("itc",), [3], [3], [], [], []),
        (("mlm", "itm", "mpc", "pbc"), [5], [6], [3 + 3 + 6, 2], [3 * 17, 6, 2 * 18], [3 * 7, 3, 6]),
    ],
)
def test_a_step_runs_each_part_once_on_the_rows_it_needs(
    objectives, images, texts, pairs, image_states, text_states, monkeypatch
):
    """And the last block on the states that an objective reads."""
    model = build(VLEForPreTraining, objectives=objectives)
    rows = {"encode_image": [], "encode_text": []}
    for name, seen in rows.items():
        plain = getattr(model.vle, name)

        def counted(first, *rest, plain=plain, seen=seen):
            seen.append(len(first))
            return plain(first, *rest)

        monkeypatch.setattr(model.vle, name, counted)
    computed = {}
    for stream in ("image", "text"):
        for place, layer in enumerate(getattr(model.vle, f"cross_modal_{stream}_layers")):
            seen = computed[stream, place] = []
            layer.register_forward_hook(lambda _, given, output, seen=seen: seen.append(output[0].shape[:2]))
    model(**pretraining_batch())
    assert list(rows.values()) == [images, texts]
    assert [size[0] for size in computed["image", 0]] == [size[0] for size in computed["text", 0]] == pairs
    assert [size.numel() for size in computed["image", 1]] == image_states
    assert [size.numel() for size in computed["text", 1]] == text_states


@pytest.mark.parametrize("objectives", [("mlm", "mpc", "pbc"), ("mpc",)])
def test_a_batch_without_objects_masks_or_phrases_has_losses_of_0_with_a_gradient(objectives):
    model = build(VLEForPreTraining, objectives=objectives)
    inputs = pretraining_batch()
    inputs["mpc_patches"].zero_()
    inputs["mlm_labels"].fill_(-100)
    inputs["pbc_labels"].fill_(-100)
    output = model(**inputs)
    assert {name: loss.item() for name, loss in output.losses.items()} == dict.fromkeys(objectives, 0.0)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("vle."):
            assert parameter.grad is not None, name


def test_a_process_with_nothing_to_do_keeps_step_with_the_other():
    run_on_two(check_a_process_with_nothing_to_do)


def test_only_an_object_with_a_class_and_patches_is_asked_for():
    model = build(VLEForPreTraining, objectives=("mpc",))
    inputs = pretraining_batch()
    inputs["mpc_labels"] = torch.tensor([-100, 1, 2])  # the last row has no patches
    with torch.no_grad():
        output = model(**inputs)
        expected = F.cross_entropy(output.mpc_logits[1:2], torch.tensor([1]))
    assert torch.allclose(output.losses["mpc"], expected)


def test_black_out_paints_patches_of_any_image():
    pixels = torch.ones(1, 2, 4, 6)
    patches = torch.tensor([[True, False, False, False, False, True]])  # 2 x 3 patches of 2 pixels
    painted = black_out(pixels, patches, torch.tensor([0.0, -3.0]))
    expected = torch.tensor([[1.0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]) > 0
    assert torch.equal(painted[0, 0], torch.where(expected, 0.0, 1.0))
    assert torch.equal(painted[0, 1], torch.where(expected, -3.0, 1.0))
    assert pixels.min() == 1


def test_mean_states_of_chosen_patches():
    states = torch.tensor([[[1.0], [3.0], [8.0]], [[1.0], [3.0], [8.0]]])
    chosen = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_states(states, chosen).tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        ("mlm_labels", "the objective mlm needs mlm_labels"),
        ("mpc_patches", "the objective mpc needs mpc_patches"),
        ("black", "the objective mpc needs black"),
        ("pbc_labels", "the objective pbc needs pbc_labels"),
    ],
)
def test_an_objective_without_its_arguments_is_named(absent, message):
    with pytest.raises(DataError, match=message):
        build(VLEForPreTraining)(**{**pretraining_batch(), absent: None})


def test_gradient_checkpointing_and_autocast_work_on_a_whole_step():
    model = build(VLEForPreTraining, objectives=ALL)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**pretraining_batch())
    assert {loss.dtype for loss in output.losses.values()} == {torch.float32}
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@torch.no_grad()
def test_mpc_can_read_the_fused_patches_instead():
    model = build(VLEForPreTraining, objectives=("mpc",), mpc_readout="patches")
    inputs = pretraining_batch()
    output = model(**inputs)
    image = black_out(inputs["pixel_values"][:1], inputs["mpc_patches"][:1], inputs["black"])
    states = model.vle(inputs["input_ids"][:1], image, inputs["attention_mask"][:1]).image_hidden[0, 1:]
    expected = model.mpc_classifier(states[inputs["mpc_patches"][0]].mean(dim=0))
    assert relative_difference(output.mpc_logits[0], expected) < 1e-4
    published = build(VLEForPreTraining, objectives=("mpc",))(**inputs)
    assert not torch.allclose(published.mpc_logits, output.mpc_logits, atol=1e-3)
