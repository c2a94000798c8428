"""Contrast over several micro-batches of a step is contrast over one large batch, in loss and gradients."""

import pytest
import torch

import eve_models
import vle_models
from evle.engine.cached_contrast import CachedContrast
from evle.engine.run_folder import read_log
from evle.models import contrast
from evle.models.contrast import Embedded, compare, draw_negatives
from evle.models.eve import EVEForPreTraining, EVEForRetrieval
from evle.models.vle import VLEForPreTraining, VLEForRetrieval
from toy_training import contrastive_batch, make_loader, train

STILL_EVE = {"hidden_dropout_prob": 0.0, "drop_path_rate": 0.0, "second_choice": "top", "router_aux_loss_coef": 0.0}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
STILL_VLE = {**QUIET, "text_config": QUIET, "vision_config": {"attention_dropout": 0.0}}
ALONE = {"itm": 0.0}
MODELS = {
    "EVE, retrieval": lambda: eve_models.build(EVEForRetrieval, objective_weights=ALONE, **STILL_EVE),
    "EVE, contrast": lambda: eve_models.build(EVEForPreTraining, objectives=("itc",), **STILL_EVE),
    "EVE, with masked signals": lambda: eve_models.build(
        EVEForPreTraining, objectives=("mim", "mlm", "itc"), objective_weights={"itc": 0.5}, **STILL_EVE
    ),
    "VLE, retrieval": lambda: vle_models.build(VLEForRetrieval, objective_weights=ALONE, **STILL_VLE),
    "VLE, with masked words": lambda: vle_models.build(VLEForPreTraining, objectives=("mlm", "itc"), **STILL_VLE),
}


def batch_of(rows, masked=False):
    """The batch of some rows, where `masked` with half of the patches and one word of each row masked."""
    batch = contrastive_batch(rows)
    if masked:
        ids = batch["input_ids"]
        batch["mlm_labels"] = torch.where(torch.arange(4) == 1, ids, -100)
        batch["masked_input_ids"] = torch.where(torch.arange(4) == 1, 3, ids)
        batch["image_mask"] = (torch.arange(16) % 2 == 0).expand(len(rows), -1)
    return batch


def learn(model, folder, accumulation, masked, **options):
    loader = make_loader(8 // accumulation, num_samples=20)  # steps of 8, 8 and 4 rows
    vle = {"image_mask"} if model.config.model_type == "vle" else set()
    loader._maker.collate = lambda rows: {
        name: value for name, value in batch_of(rows, masked).items() if name not in vle
    }
    train(model, folder, batch_size=8, steps=3, loader=loader, accumulation=accumulation, lr=1e-3, **options)
    return read_log(folder)


@pytest.mark.parametrize("accumulation", [2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_are_contrasted_as_one_batch(name, accumulation, tmp_path):
    masked = "masked" in name
    optim = {"optim": {"clip": 0.0}}
    one = learn(MODELS[name](), tmp_path / "whole", 1, masked, **optim)
    several = learn(MODELS[name](), tmp_path / "parts", accumulation, masked, **optim)
    assert len(one["loss"]) == 3  # the loss of a step depends on the updates before it
    for curve in ("loss", "loss/itc", "grad_norm"):
        assert [each for _, each in several[curve]] == pytest.approx([each for _, each in one[curve]], rel=1e-4), curve


@pytest.mark.parametrize("family", ["eve", "vle"])
@pytest.mark.parametrize(("accumulation", "rows"), [(1, 8), (4, 2)])
def test_matching_beside_contrast_takes_its_negatives_from_the_micro_batch(
    family, accumulation, rows, tmp_path, monkeypatch
):
    """Contrast compares the eight pairs of a step, and a negative is one of the micro-batch's own rows."""
    heads = {"eve": "evle.models.eve.heads", "vle": "evle.models.vle.matching"}[family]
    drawn = []

    def recorded(match_ids, similarities, *others):
        found = draw_negatives(match_ids, similarities, *others)
        drawn.append((similarities[0].shape, found.texts[found.exists], found.images[found.exists]))
        return found

    monkeypatch.setattr(f"{heads}.draw_negatives", recorded)
    model = eve_models.build(EVEForRetrieval) if family == "eve" else vle_models.build(VLEForRetrieval)
    log = learn(model, tmp_path, accumulation, False)
    assert all(value > 0 for _, value in log["loss/itm"])
    assert drawn[0][0] == (rows, rows)
    assert all(index < shape[1] <= rows for shape, *both in drawn for each in both for index in each.tolist())


def test_both_passes_draw_the_same_numbers_so_that_dropout_changes_nothing():
    """Against autograd through the embeddings of all micro-batches at once."""
    model = eve_models.build(EVEForRetrieval, objective_weights=ALONE, hidden_dropout_prob=0.2, drop_path_rate=0.2)
    model.train()
    parts = [contrastive_batch(list(torch.randn(2, 2, 4))) for _ in range(3)]

    def embed(index):
        torch.manual_seed(index)
        image = model.eve(pixel_values=parts[index]["pixel_values"], return_dict=True).image_hidden
        mask = parts[index]["attention_mask"]
        text = model.eve(input_ids=parts[index]["input_ids"], attention_mask=mask, return_dict=True).text_hidden
        head = model.contrast
        return Embedded(head.embed_image(image), head.embed_text(text, mask), parts[index]["match_ids"])

    rows = Embedded.joined([embed(index) for index in range(3)])
    expected = compare(rows, rows, model.contrast.clamped_temperature()).loss
    expected.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()

    cached, losses = CachedContrast(model, len(parts)), []
    for index, batch in enumerate(parts):
        torch.manual_seed(index)
        with torch.no_grad(), cached.recording():
            model(**batch)
    for index, batch in enumerate(parts):
        torch.manual_seed(index)
        with cached.comparing(index, weight=1.0):
            losses.append(model(**batch).losses["itc"])
            losses[-1].backward()
    assert [loss.item() for loss in losses] == pytest.approx([expected.item()] * 3, rel=1e-5)
    for name, gradient in gradients.items():
        if "router" not in name and "gate" not in name:  # the balance loss, which is not compared here
            actual = dict(model.named_parameters())[name].grad
            assert (actual - gradient).norm() <= 1e-2 * gradient.norm() + 1e-6, name


def test_one_micro_batch_needs_no_second_pass():
    model = eve_models.build(EVEForRetrieval)
    assert CachedContrast(model, 1).heads == []
    assert CachedContrast(eve_models.build(EVEForPreTraining, objectives=("mlm",)), 4).heads == []


def test_recording_leaves_running_statistics_as_they_are():
    model = eve_models.build(EVEForRetrieval)
    model.statistics = torch.nn.BatchNorm1d(3).train()
    with torch.no_grad(), CachedContrast(model, 2).recording():
        model.statistics(torch.randn(4, 3))
    assert model.statistics.num_batches_tracked == 0
    assert model.statistics.running_mean.abs().max() == 0


def test_without_match_ids_every_pair_of_the_step_matches_itself_alone():
    cached = CachedContrast(eve_models.build(EVEForRetrieval), 2)
    ids = [cached.with_ids({"input_ids": torch.ones(3, 4)}, index)["match_ids"] for index in range(2)]
    assert len(torch.cat(ids).unique()) == 6


def test_given_wrong_texts_are_rows_behind_those_of_lower_processes(monkeypatch):
    """Process 1 of 2: process 0 has fewer rows, as after an image that it could not read."""
    monkeypatch.setattr(contrast, "rank", lambda: 1)
    monkeypatch.setattr(contrast, "all_gather", lambda own: torch.cat([torch.zeros_like(own[:2]), own]))
    found = draw_negatives(torch.tensor([7, 7, 8, 8]), None, torch.tensor([1, 0, 3, 2]))
    assert found.texts.tolist() == [3, 2, 5, 4]
