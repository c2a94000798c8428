"""EVE's heads keep to what callers of transformers' models expect."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from eve_models import batch, build, pretraining_batch
from evle.errors import DataError
from evle.models.eve import EVEForNLVR2, EVEForPreTraining, EVEForRetrieval, EVEForVQA, EVEModel


def nlvr2_batch():
    inputs = batch()
    return {**inputs, "pixel_values": torch.stack([inputs["pixel_values"]] * 2, dim=1)}


INPUTS = {EVEForVQA: batch, EVEForNLVR2: nlvr2_batch, EVEForRetrieval: batch, EVEForPreTraining: pretraining_batch}
LABELS = {EVEForVQA: torch.tensor([0, 1, 1]), EVEForNLVR2: torch.tensor([0, 1, 1])}


@pytest.mark.parametrize("model_class", LABELS)
def test_the_first_output_is_the_loss_with_labels_and_the_logits_without(model_class):
    model, inputs = build(model_class), INPUTS[model_class]()
    assert torch.equal(model(**inputs)[0], model(**inputs).logits)
    labelled = model(**inputs, labels=LABELS[model_class])
    assert torch.equal(labelled[0], labelled.loss)
    assert torch.equal(labelled[1], labelled.logits)


@pytest.mark.parametrize("model_class", INPUTS)
def test_return_dict_false_gives_a_tuple_by_argument_and_by_configuration(model_class):
    model, inputs = build(model_class), INPUTS[model_class]()
    torch.manual_seed(0)
    named = model(**inputs)
    torch.manual_seed(0)
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], named[0])
    model.config.return_dict = False
    torch.manual_seed(0)
    assert torch.equal(model(**inputs)[0], named[0])


def test_an_answers_index_is_a_score_of_one_for_it():
    model, inputs = build(EVEForVQA), batch()
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert torch.equal(model(**inputs, labels=torch.tensor([0, 1, 1])).loss, model(**inputs, labels=scores).loss)
    with pytest.raises(DataError, match=r"labels \[0, 2, 1\] must be answers' indices, 0 to 1"):
        model(**inputs, labels=torch.tensor([0, 2, 1]))
    with pytest.raises(DataError, match=r"labels of shape \(3, 1\) do not fit logits of shape \(3, 2\)"):
        model(**inputs, labels=scores[:, :1])


def test_inputs_that_mean_nothing_are_refused_in_one_line():
    model, inputs = build(EVEModel), batch()
    pixels, ids, mask = inputs.values()
    for arguments, message in (
        ({}, "needs pixel_values, input_ids, or both"),
        ({"input_ids": ids, "attention_mask": mask[:, :5]}, r"attention_mask has the shape \(3, 5\)"),
        ({"input_ids": ids, "attention_mask": mask.flip(1)}, "padded on the left"),
        ({"input_ids": ids[:, :0]}, "at least one token"),
        ({"input_ids": ids[:0]}, "the batch is empty"),
        ({"pixel_values": pixels[:0]}, "the batch is empty"),
        ({"pixel_values": pixels, "input_ids": ids[:2]}, "3 images, input_ids 2 texts"),
        ({"pixel_values": pixels[0]}, r"give \(images, channels, H, W\)"),
    ):
        with pytest.raises(DataError, match=message) as error:
            model(**arguments)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_text_of_nothing_but_padding_stays_finite(attention):
    model, inputs = build(EVEForRetrieval), batch()
    model.set_attn_implementation(attention)
    inputs["attention_mask"][1] = 0
    output = model.train()(**inputs)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(each.grad).all() for each in model.parameters())


def test_nothing_masked_gives_a_loss_of_zero_with_a_gradient_path():
    model, inputs = build(EVEForPreTraining, objectives=("mlm",), router_aux_loss_coef=0.0), pretraining_batch()
    inputs["mlm_labels"][:] = -100
    output = model(**inputs)
    assert output.loss.item() == 0
    output.loss.backward()


@pytest.mark.parametrize("objectives", [("mim", "mlm"), ("mlm",)])
def test_indices_of_masks_change_nothing(objectives):
    model, inputs = build(EVEForPreTraining, objectives=objectives), pretraining_batch()
    indices = {"masked_tokens": (inputs["mlm_labels"].flatten() != -100).nonzero().squeeze(1)}
    indices["visible"] = inputs["image_mask"].int().argsort(dim=1, stable=True)[:, :4]
    assert torch.equal(model(**inputs).loss, model(**inputs, **indices).loss)


def test_a_masked_step_is_one_graph_where_the_indices_are_given():
    """No value of a tensor is read, which on an accelerator would be a synchronisation."""
    model = build(EVEForPreTraining, hidden_size=32, intermediate_size=64).train()
    model.set_experts_implementation("batched_mm")
    model.set_attn_implementation("eager")
    inputs = pretraining_batch()
    inputs["masked_tokens"] = (inputs["mlm_labels"].flatten() != -100).nonzero().squeeze(1)
    inputs["visible"] = inputs["image_mask"].int().argsort(dim=1, stable=True)[:, :4]
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model)(**inputs)
    assert explained.graph_break_count == 0, explained.break_reasons
    assert explained.graph_count == 1


def test_weights_of_zero_for_padding_equal_taking_it_out(monkeypatch):
    model, inputs = build(EVEForVQA).train(), {**batch(), "labels": torch.tensor([0, 1, 1])}
    model.config.second_choice = "top"
    model.config.vqa_balance_loss = True
    model.eval()
    results = []
    for removes in (True, False):
        monkeypatch.setattr("evle.models.eve.routing.SoftRouter.removes_padding", lambda *_, removes=removes: removes)
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        gradients = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
        results.append((output.logits, output.loss, gradients, *output.router.values()))
    for removed, weighed in zip(*results, strict=True):
        torch.testing.assert_close(removed, weighed)


def test_loads_by_modality_sum_to_one_and_meet_in_the_whole():
    output = build(EVEForRetrieval)(**batch())
    for name in ("load", "image_load", "text_load"):
        torch.testing.assert_close(output.router[name].sum(dim=-1), torch.ones(1))
    single = build(EVEModel)(input_ids=batch()["input_ids"]).router
    assert single["image_load"].sum() == 0
    torch.testing.assert_close(single["text_load"], single["load"])


class Rows(torch.utils.data.Dataset):
    def __init__(self, model_class):
        self.inputs = INPUTS[model_class]()
        if model_class in LABELS:
            self.inputs["labels"] = LABELS[model_class]

    def __len__(self):
        return 3

    def __getitem__(self, row):
        return {name: values[row] for name, values in self.inputs.items()}


@pytest.mark.parametrize("model_class", INPUTS)
def test_transformers_trainer_trains_and_predicts_logits_alone(model_class, tmp_path):
    seen = []
    arguments = TrainingArguments(
        tmp_path, use_cpu=True, report_to=[], disable_tqdm=True, max_steps=2, per_device_train_batch_size=3,
        per_device_eval_batch_size=3, logging_strategy="no", save_strategy="no",
    )  # fmt: skip
    rows = Rows(model_class)
    trainer = Trainer(
        build(model_class),
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=lambda given: seen.append(given.predictions) or {"rows": len(given.predictions)},
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    predictions = trainer.predict(rows).predictions
    assert predictions.ndim == 2
    if model_class in LABELS:
        assert predictions.shape == (3, 2)
        assert seen[0].shape == (3, 2)
