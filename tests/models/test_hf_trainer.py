"""transformers.Trainer trains and evaluates every head of both families, with compute_metrics."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import eve_models
import vle_models
from evle.models.eve import EVEForNLVR2, EVEForPreTraining, EVEForRetrieval, EVEForVQA
from evle.models.vle import (
    VLEForITM,
    VLEForMLM,
    VLEForNLVR2,
    VLEForPBC,
    VLEForPreTraining,
    VLEForRetrieval,
    VLEForVCRQ2A,
    VLEForVCRQA2R,
    VLEForVQA,
)

HEADS = {
    EVEForVQA: (4, 5),
    EVEForNLVR2: (4, 2),
    EVEForRetrieval: None,
    EVEForPreTraining: None,
    VLEForVQA: (4, 5),
    VLEForITM: (4, 2),
    VLEForMLM: (4, 7, 50),
    VLEForPBC: (4, 16, 2),
    VLEForNLVR2: (4, 2),
    VLEForVCRQ2A: (4, 4),
    VLEForVCRQA2R: (4, 4),
    VLEForRetrieval: None,
    VLEForPreTraining: None,
}
"""The shape of the predictions for four rows; None where the rows of a batch are compared, or losses are all."""


def rows_of(model_class: type) -> dict[str, torch.Tensor]:
    """Four rows of inputs, with labels where the head has some."""
    family = eve_models if model_class.__name__.startswith("EVE") else vle_models
    name = model_class.__name__[3:]
    if name == "ForPreTraining":
        inputs = family.pretraining_batch(4)
        if "black" in inputs:
            inputs["black"] = inputs["black"].expand(4, -1)
        return inputs
    if name.startswith("ForVCR"):
        return {**family.vcr_batch(4), "labels": torch.tensor([0, 1, 2, 3])}
    inputs = family.batch(4, 7)
    if name == "ForVQA":
        return {**inputs, "labels": torch.tensor([0, 1, 2, 1])}
    if name == "ForMLM":
        return {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}
    if name == "ForPBC":
        return {**inputs, "labels": torch.arange(64).view(4, 16) % 2}
    if name == "ForNLVR2":
        inputs["pixel_values"] = torch.stack([inputs["pixel_values"], inputs["pixel_values"].flip(0)], dim=1)
    return inputs if name == "ForRetrieval" else {**inputs, "labels": torch.tensor([0, 1, 1, 0])}


class Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, rows: dict[str, torch.Tensor]):
        self.rows = rows

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: rows[index] for name, rows in self.rows.items()}


@pytest.mark.parametrize("model_class", HEADS)
def test_every_head_trains_and_is_evaluated(model_class: Any, tmp_path):
    family = eve_models if model_class.__name__.startswith("EVE") else vle_models
    objectives = {"objectives": ("mlm", "itm", "mpc", "pbc", "itc")} if model_class is VLEForPreTraining else {}
    model = family.build(model_class, **({"num_labels": 5} if model_class is EVEForVQA else objectives))
    rows = rows_of(model_class)
    seen = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"mean": float(np.mean(prediction.predictions))}

    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    options = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to=[], disable_tqdm=True
    )
    has_logits = HEADS[model_class] is not None
    trainer = Trainer(
        model,
        options,
        train_dataset=Rows(rows),
        eval_dataset=Rows(rows),
        compute_metrics=metrics if has_logits else None,
    )
    trainer.train()
    assert any(not torch.equal(each, before[name]) for name, each in model.named_parameters())
    scores = trainer.evaluate()
    assert np.isfinite(scores["eval_loss"])
    if has_logits:
        assert "eval_mean" in scores
        assert seen[0].predictions.shape == HEADS[model_class]
        assert len(seen[0].label_ids) == 4
        assert trainer.predict(Rows(rows)).predictions.shape == HEADS[model_class]
