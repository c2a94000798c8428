"""Retrieval, VQA and NLVR2 heads."""

import math

import pytest
import torch

from eve_models import batch, build, relative_difference
from evle import objectives
from evle.errors import DataError
from evle.models.eve import EVEForNLVR2, EVEForRetrieval, EVEForVQA
from evle.models.eve.heads import Pairs, answers_from_words, match_pairs


def test_features_are_unit_vectors_and_their_products_are_the_itc_logits():
    model, inputs = build(EVEForRetrieval, projection_dim=10), batch()
    with torch.no_grad():
        image = model.get_image_features(inputs["pixel_values"])
        text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        logits = model(**inputs).logits
    assert image.shape == text.shape == (3, 10)
    assert torch.allclose(image.norm(dim=-1), torch.ones(3), atol=1e-5)
    assert relative_difference(logits, image @ text.T / 0.07) < 1e-4


@pytest.mark.parametrize(("value", "clamped"), [(0.07, 0.07), (-1.0, 0.001), (3.0, 0.5)])
def test_the_temperature_is_clamped_and_keeps_its_gradient(value, clamped):
    model = build(EVEForRetrieval)
    with torch.no_grad():
        model.contrast.temperature.fill_(value)
    temperature = model.contrast.clamped_temperature()
    temperature.backward()
    assert temperature.item() == pytest.approx(clamped)
    assert model.contrast.temperature.grad.item() == 1.0


def test_matching_sees_each_pair_with_one_wrong_text_and_one_wrong_image():
    model, inputs = build(EVEForRetrieval), batch(4)
    passes = []
    model.eve.register_forward_hook(lambda _, arguments, keywords, output: passes.append(keywords), with_kwargs=True)
    model(**inputs, match_ids=torch.tensor([0, 0, 1, 1]))
    joint = passes[-1]
    images, texts = joint["pixel_values"], joint["input_ids"]
    assert len(images) == 12

    def rows(found: torch.Tensor, known: torch.Tensor) -> list[int]:
        return [next(i for i, other in enumerate(known) if torch.equal(row, other)) for row in found]

    image_rows, text_rows = rows(images, inputs["pixel_values"]), rows(texts, inputs["input_ids"])
    assert image_rows[:8] == [0, 1, 2, 3] * 2
    assert text_rows[:4] == text_rows[8:] == [0, 1, 2, 3]
    for image, text in list(zip(image_rows, text_rows, strict=True))[4:]:
        assert image // 2 != text // 2  # never of the same id


def test_the_matching_loss_asks_for_a_yes_to_true_pairs_and_a_no_to_wrong_ones():
    model, inputs = build(EVEForRetrieval), batch(4)
    passes = []
    model.eve.register_forward_hook(lambda _, arguments, output: passes.append(output))
    with torch.no_grad():
        loss = model(**inputs).losses["itm"]
        probabilities = model.matching(passes[-1].text_hidden[:, 0]).softmax(dim=-1)
    wanted = [1] * 4 + [0] * 8
    expected = -sum(probabilities[row, label].log() for row, label in enumerate(wanted)) / 12
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_batch_without_any_negative_has_matching_loss_zero():
    model = build(EVEForRetrieval).train()
    output = model(**batch(), match_ids=torch.zeros(3, dtype=torch.long))
    assert output.losses["itm"].item() == 0.0
    output.loss.backward()
    assert model.matching.weight.grad is not None


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_without_rows_to_match_runs_the_layers_where_others_wait_for_it(processes, monkeypatch):
    """Layers and experts that are divided over processes are gathered by all of them."""
    monkeypatch.setattr("evle.models.eve.heads.world_size", lambda: processes)
    model = build(EVEForRetrieval)
    passes = []
    model.eve.register_forward_hook(lambda *_: passes.append(1))
    pairs = Pairs(torch.randn(2, 3, 16, 16), torch.randint(3, 50, (2, 6)), None, torch.tensor([7, 8]))
    matching = match_pairs(model.eve, model.matching, pairs, rows=torch.tensor([], dtype=torch.long))
    assert len(passes) == processes - 1
    assert matching.output is None
    loss = objectives.itm(matching.logits, matching.labels)
    loss.backward()
    assert float(loss) == 0
    assert not model.matching.weight.grad.any()


def test_rows_without_a_negative_are_left_out():
    model, inputs = build(EVEForRetrieval), batch(1)
    assert model(**inputs).losses["itm"].item() == 0.0


def test_the_balance_loss_of_retrieval_is_averaged_over_its_three_passes():
    model = build(EVEForRetrieval)
    passes = []
    model.eve.register_forward_hook(lambda _, arguments, output: passes.append(output.router["balance"]))
    losses = model(**batch()).losses
    assert len(passes) == 3
    assert losses["balance"].item() == pytest.approx(0.001 * torch.stack(passes).mean().item(), rel=1e-5)


def test_released_evaluation_features_leave_out_the_final_norm_in_evaluation_only():
    plain, released = build(EVEForRetrieval), build(EVEForRetrieval, released_eval_features=True)
    image = batch()["pixel_values"]
    with torch.no_grad():
        assert not torch.allclose(plain.get_image_features(image), released.get_image_features(image), atol=1e-3)
        for model in (plain, released):
            model.train()
            for layer in model.eve.layers:
                layer.eval()
        assert torch.allclose(plain.get_image_features(image), released.get_image_features(image))


def test_matching_logits_have_a_column_for_no_and_one_for_yes():
    model, inputs = build(EVEForRetrieval), batch()
    assert model.itm_logits(**inputs).shape == (3, 2)


@torch.no_grad()
def test_pairs_may_be_named_by_the_rows_of_their_images_and_texts():
    model, inputs = build(EVEForRetrieval), batch()
    images, texts = torch.tensor([2, 0, 0, 1]), torch.tensor([0, 0, 2, 1])
    given = model.itm_logits(**inputs, image_rows=images, text_rows=texts)
    ids, mask = inputs["input_ids"][texts], inputs["attention_mask"][texts]
    assert torch.equal(given, model.itm_logits(inputs["pixel_values"][images], ids, mask))


def test_vqa_answers_from_its_labels_and_adds_the_balance_loss_only_on_request():
    inputs = {**batch(), "labels": torch.rand(3, 5)}
    output = build(EVEForVQA, num_labels=5)(**inputs)
    assert output.logits.shape == (3, 5)
    assert set(output.losses) == {"answers"}
    assert output.router["balance"] > 0
    assert set(build(EVEForVQA, num_labels=5, vqa_balance_loss=True)(**inputs).losses) == {"answers", "balance"}


def test_vqa_refuses_labels_of_another_answer_set():
    with pytest.raises(DataError, match=r"labels of shape \(3, 4\) do not fit logits of shape \(3, 5\)"):
        build(EVEForVQA, num_labels=5)(**batch(), labels=torch.rand(3, 4))


@pytest.mark.parametrize("head", ["plain", "bi-attention"])
def test_nlvr2_reads_both_images_in_their_order(head):
    model, inputs = build(EVEForNLVR2, nlvr2_head=head), batch()
    pair = torch.stack([inputs["pixel_values"], -inputs["pixel_values"]], dim=1)
    with torch.no_grad():
        output = model(**{**inputs, "pixel_values": pair}, labels=torch.tensor([0, 1, 1]))
        swapped = model(**{**inputs, "pixel_values": pair.flip(1)})
    assert output.logits.shape == (3, 2)
    assert set(output.losses) == {"choice", "balance"}
    assert output.image_hidden.shape == (3, 2, 17, 24)
    assert (output.logits - swapped.logits).abs().max() > 1e-3


@pytest.mark.parametrize("head", ["plain", "bi-attention"])
def test_padding_and_neighbours_do_not_change_nlvr2(head):
    model, inputs = build(EVEForNLVR2, nlvr2_head=head), batch()
    pair = torch.stack([inputs["pixel_values"], -inputs["pixel_values"]], dim=1)
    length = int(inputs["attention_mask"][2].sum())
    with torch.no_grad():
        together = model(pair, inputs["input_ids"], inputs["attention_mask"]).logits[2]
        alone = model(pair[2:], inputs["input_ids"][2:, :length]).logits[0]
    assert torch.allclose(together, alone, atol=1e-4)


def test_nlvr2_refuses_single_images():
    with pytest.raises(DataError, match="two images per statement"):
        build(EVEForNLVR2)(**batch())


def test_an_answers_slot_is_the_last_token_but_one_whatever_the_padding():
    model, inputs = build(EVEForVQA, vqa_slot=True).eval(), batch()
    mask = torch.ones_like(inputs["attention_mask"])
    mask[1, -2:] = 0
    with torch.no_grad():
        output = model(inputs["pixel_values"], inputs["input_ids"], mask)
        shorter = model(inputs["pixel_values"][1:2], inputs["input_ids"][1:2, :-2])
        read = model.classifier(output.text_hidden[0, -2])
    assert relative_difference(output.logits[0], read) < 1e-5
    assert relative_difference(output.logits[1], shorter.logits[0]) < 1e-4


def test_answers_start_from_the_words_they_are_made_of():
    """Row by row against a naive loop; tied words are read from the embedding, and without an MLM head nothing is."""
    torch.manual_seed(0)
    words, bias = torch.randn(7, 4), torch.randn(7)
    tensors = {
        "mlm_head.0.weight": torch.randn(4, 4),
        "mlm_head.0.bias": torch.randn(4),
        "mlm_head.2.bias": bias,
        "eve.text_embedding.word.weight": words,
    }
    answers = [[5], [2, 6], [1]]
    found = answers_from_words(tensors, answers)
    for row, tokens in enumerate(answers):
        expected = sum(words[token] for token in tokens) / len(tokens)
        assert torch.allclose(found["classifier.2.weight"][row], expected)
        expected = sum(float(bias[token]) for token in tokens) / len(tokens) - math.log(3)
        assert float(found["classifier.2.bias"][row]) == pytest.approx(expected)
    assert found["classifier.0.weight"] is tensors["mlm_head.0.weight"]
    untied = {**tensors, "mlm_head.2.weight": words + 1}
    assert torch.allclose(answers_from_words(untied, [[5]])["classifier.2.weight"][0], words[5] + 1)
    del tensors["mlm_head.0.weight"]
    assert answers_from_words(tensors, answers) == {}
