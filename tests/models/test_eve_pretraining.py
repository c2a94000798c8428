"""Masked signal modelling: what the model sees, what it is asked, and what the options change."""

import pytest
import torch

import references
from eve_models import build, pretraining_batch, tiny
from evle import objectives
from evle.errors import ConfigError, DataError
from evle.models.eve import EVEForPreTraining, EVEModel
from evle.models.eve.embedding import patchify
from evle.models.eve.pretraining import sincos_positions


def pixels_changed_where(mask: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
    """Images whose patches with True in `mask` (B, 16) hold other pixels."""
    change = mask.view(-1, 1, 4, 4).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    return torch.where(change, pixel_values + 5.0, pixel_values)


def test_masked_pixels_never_reach_the_encoder():
    model, inputs = build(EVEModel), pretraining_batch()
    arguments = {name: inputs[name] for name in ("input_ids", "attention_mask", "image_mask")}
    with torch.no_grad():
        given = model(inputs["pixel_values"], **arguments)
        other_masked = model(pixels_changed_where(inputs["image_mask"], inputs["pixel_values"]), **arguments)
        other_visible = model(pixels_changed_where(~inputs["image_mask"], inputs["pixel_values"]), **arguments)
    assert given.image_hidden.shape == (3, 1 + 4, 24)
    assert torch.equal(given.image_hidden, other_masked.image_hidden)
    assert torch.equal(given.text_hidden, other_masked.text_hidden)
    assert (given.image_hidden - other_visible.image_hidden).abs().max() > 1e-3


def test_a_visible_patch_keeps_its_own_position():
    model = build(EVEModel)
    image = torch.zeros(1, 3, 16, 16)  # patches differ by position only
    mask = torch.ones(1, 16, dtype=torch.bool)
    embedding = model.image_embedding
    for patch in (0, 7, 15):
        visible = mask.clone()
        visible[0, patch] = False
        token = embedding(image, visible, torch.tensor([[patch]]))[0, 1]
        assert torch.allclose(token, embedding.patch.bias + embedding.position[1 + patch] + embedding.type_vector)


def test_masking_nothing_equals_the_whole_image():
    model, inputs = build(EVEModel), pretraining_batch()
    with torch.no_grad():
        whole = model(inputs["pixel_values"])
        nothing_masked = model(inputs["pixel_values"], image_mask=torch.zeros(3, 16, dtype=torch.bool))
    assert torch.allclose(whole.image_hidden, nothing_masked.image_hidden, atol=1e-6)


@pytest.mark.parametrize("normalized", [False, True])
def test_the_mim_loss_is_the_error_of_masked_patches(normalized):
    model, inputs = build(EVEForPreTraining, objectives=("mim",), norm_pixel_target=normalized), pretraining_batch()
    with torch.no_grad():
        loss = model(**inputs).losses["mim"]
        arguments = [inputs[name] for name in ("input_ids", "attention_mask", "image_mask")]
        hidden = model.eve(inputs["pixel_values"], *arguments).image_hidden
        order = inputs["image_mask"].int().argsort(dim=1, stable=True)
        predicted = model.predict_masked(hidden, inputs["pixel_values"], order, hidden.shape[1] - 1)
    errors = []
    for row in range(3):
        cut = references.patches(inputs["pixel_values"][row].tolist(), 4)
        masked = [patch for patch in range(16) if inputs["image_mask"][row, patch]]
        assert order[row, 4:].tolist() == masked
        for guess, patch in zip(predicted[row], masked, strict=True):
            target = torch.tensor(cut[patch])
            if normalized:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append((guess - target).square().mean())
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def test_the_decoder_knows_where_a_masked_patch_is():
    model = build(EVEForPreTraining, objectives=("mim",))
    order = torch.arange(16)[None]
    with torch.no_grad():
        predicted = model.decoder(torch.randn(1, 5, 24), order, 4, 4)
    assert predicted.shape == (1, 12, 48)
    assert torch.pdist(predicted[0]).min() > 1e-3


def test_decoder_positions_are_distinct_and_bounded():
    positions = sincos_positions(4, 6, 16, torch.device("cpu"))
    assert positions.shape == (24, 16)
    assert positions.abs().max() <= 1
    assert torch.pdist(positions).min() > 0.1


def test_the_mlm_loss_is_that_of_masked_tokens_with_the_whole_image():
    model, inputs = build(EVEForPreTraining, objectives=("mlm",)), pretraining_batch()
    with torch.no_grad():
        output = model(**inputs)
        hidden = model.eve(inputs["pixel_values"], inputs["masked_input_ids"], inputs["attention_mask"]).text_hidden
        logits = model.mlm_head(hidden).flatten(0, 1)
    expected = references.mlm(logits.tolist(), inputs["mlm_labels"].flatten().tolist())
    assert output.losses["mlm"].item() == pytest.approx(expected, rel=1e-5)
    assert output.logits.shape == ((inputs["mlm_labels"] != objectives.IGNORE).sum(), 50)


def test_two_passes_by_default_one_when_masked_together():
    passes = []
    for joint in (False, True):
        model = build(EVEForPreTraining, joint_masking=joint)
        seen = []
        model.eve.register_forward_hook(
            lambda _, arguments, output, seen=seen: seen.append(output.image_hidden.shape[1])
        )
        losses = model(**pretraining_batch()).losses
        assert set(losses) == {"mim", "mlm", "balance"}
        passes.append(seen)
    assert passes == [[5, 17], [5]]


@pytest.mark.parametrize(
    "names", [("mim",), ("mlm",), ("itc",), ("itm",), ("mlm", "itc", "itm"), ("mim", "mlm", "itc", "itm")]
)
def test_only_the_chosen_objectives_are_computed_and_only_their_parameters_exist(names):
    model = build(EVEForPreTraining, objectives=names).train()
    output = model(**pretraining_batch())
    assert set(output.losses) == {*names, "balance"}
    assert output.loss.item() == pytest.approx(sum(loss.item() for loss in output.losses.values()), rel=1e-5)
    output.loss.backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not [name for name in unused if not name.startswith("eve.")]


def test_matching_says_how_it_judged_pairs_and_hard_negatives():
    output = build(EVEForPreTraining, objectives=("mlm", "itm"))(**pretraining_batch())
    assert output.itm_labels.tolist() == [1] * 3 + [0] * 6
    expected = torch.nn.functional.cross_entropy(output.itm_logits, output.itm_labels)
    assert output.losses["itm"].item() == pytest.approx(expected.item(), rel=1e-6)
    alone = build(EVEForPreTraining, objectives=("itm",))(**pretraining_batch(1))
    assert (alone.itm_labels.tolist(), alone.losses["itm"].item()) == ([-100] * 3, 0.0)  # no other text, no other image


def test_weights_multiply_their_objective():
    plain = build(EVEForPreTraining)(**pretraining_batch()).losses
    weighted = build(EVEForPreTraining, objective_weights={"mim": 3.0})(**pretraining_batch()).losses
    assert weighted["mim"].item() == pytest.approx(3 * plain["mim"].item(), rel=1e-5)
    assert weighted["mlm"].item() == pytest.approx(plain["mlm"].item(), rel=1e-5)


def test_the_balance_loss_is_averaged_over_passes():
    model, inputs = build(EVEForPreTraining), pretraining_batch()
    mask = inputs["attention_mask"]
    with torch.no_grad():
        losses = model(**inputs).losses
        image = model.eve(inputs["pixel_values"], inputs["input_ids"], mask, inputs["image_mask"]).router["balance"]
        text = model.eve(inputs["pixel_values"], inputs["masked_input_ids"], mask).router["balance"]
    assert losses["balance"].item() == pytest.approx(0.001 * (image + text).item() / 2, rel=1e-5)


@pytest.mark.parametrize("normalized", [False, True])
def test_a_reconstruction_keeps_visible_patches_and_fills_masked_ones(normalized):
    model, inputs = build(EVEForPreTraining, norm_pixel_target=normalized), pretraining_batch()
    arguments = [inputs[name] for name in ("pixel_values", "input_ids", "attention_mask", "image_mask")]
    given, filled = patchify(inputs["pixel_values"], 4), patchify(model.reconstruct(*arguments), 4)
    mask = inputs["image_mask"]
    assert torch.equal(given[~mask], filled[~mask])
    assert (given[mask] - filled[mask]).abs().amax(-1).min() > 1e-3


def test_learning_the_pixels_of_one_image_is_possible():
    """The whole path of MIM: mask, encode, decode, compare, differentiate. Predicting the mean image would leave 1."""
    torch.manual_seed(0)
    model, inputs = EVEForPreTraining(tiny(objectives=("mim",), drop_path_rate=0.0)).train(), pretraining_batch(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3


def test_missing_masks_and_unequal_masks_are_refused_in_words():
    model, inputs = build(EVEForPreTraining), pretraining_batch()
    with pytest.raises(DataError, match="mim needs image_mask"):
        model(**{**inputs, "image_mask": None})
    with pytest.raises(DataError, match="mlm needs masked_input_ids and mlm_labels"):
        model(**{**inputs, "mlm_labels": None})
    inputs["image_mask"][0, :] = True
    with pytest.raises(DataError, match="masks 12 to 16 patches per row; mask the same number"):
        model(**inputs)
    with pytest.raises(ConfigError, match="nothing to minimise"):
        build(EVEForPreTraining, objectives=())


def test_a_text_without_a_masked_token_gives_no_mlm_loss():
    model, inputs = build(EVEForPreTraining, objectives=("mlm",)).train(), pretraining_batch()
    loss = model(**{**inputs, "mlm_labels": torch.full_like(inputs["input_ids"], -100)}).losses["mlm"]
    loss.backward()
    assert loss.item() == 0.0


def test_tied_embeddings_share_one_matrix_and_survive_saving(tmp_path):
    model = build(EVEForPreTraining, tie_word_embeddings=True)
    assert model.mlm_head[2].weight is model.eve.text_embedding.word.weight
    model.save_pretrained(tmp_path)
    loaded = EVEForPreTraining.from_pretrained(tmp_path)
    assert loaded.mlm_head[2].weight is loaded.eve.text_embedding.word.weight
    assert torch.equal(loaded.mlm_head[2].weight, model.mlm_head[2].weight)
    untied = build(EVEForPreTraining)
    assert untied.mlm_head[2].weight is not untied.eve.text_embedding.word.weight
