"""Values of tensors that a training step reads, each of which makes the host wait for an accelerator.

Counted on a CPU by operator, with the checks and short cuts switched off that the models take on a CPU alone. For each
pass with padding, transformers reads a value of its own to see whether a mask is needed; it is not counted here.
"""

import traceback
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import eve_models
import vle_models
from evle.models.eve import EVEForNLVR2, EVEForPreTraining, EVEForRetrieval, EVEForVQA
from evle.models.eve.embedding import visible_patches
from evle.models.vle import VLEForNLVR2, VLEForPreTraining, VLEForRetrieval, VLEForVCRQ2A, VLEForVQA

READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount")
"""Operators whose result, or its shape, depends on values."""
LABELS = torch.tensor([0, 1, 1])
FINE_TUNED = (
    EVEForVQA,
    EVEForNLVR2,
    EVEForRetrieval,
    VLEForVQA,
    VLEForNLVR2,
    VLEForVCRQ2A,
    VLEForRetrieval,
)


class Reads(TorchDispatchMode):
    """Lists where values are read: the file of the innermost call outside of torch."""

    def __init__(self):
        super().__init__()
        self.files: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        is_by_mask = name.startswith("index") and any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool
            for indices in args
            if isinstance(indices, (list, tuple))
            for each in indices
        )
        if name in READS or is_by_mask:
            frames = [frame.filename for frame in traceback.extract_stack()[:-1]]
            outside = [name for name in frames if "/torch/" not in name]
            self.files.append(Path(outside[-1]).name)
        return func(*args, **(kwargs or {}))


def two_images(inputs):
    return {**inputs, "pixel_values": torch.stack([inputs["pixel_values"]] * 2, dim=1), "labels": LABELS}


def eve(model_class, **changes):
    model = eve_models.build(model_class, hidden_size=32, intermediate_size=64, **changes)
    model.set_experts_implementation("batched_mm")
    return model


def values_read(model, inputs, monkeypatch):
    """The files in which a training step of `model` reads values, as on an accelerator."""
    monkeypatch.setattr("evle.objectives.is_eager_cpu", lambda device: False)
    monkeypatch.setattr("evle.models.eve.routing.SoftRouter.removes_padding", lambda *_: False)
    with Reads() as reads:
        model.train()(**inputs).loss.backward()
    return [name for name in reads.files if name not in ("masking_utils.py", "padding.py")]


def test_values_that_are_read_are_counted():
    with Reads() as reads:
        values = torch.arange(3)
        float(values[1])
        values[values > 1]
        values[torch.tensor([0, 2])]
    assert len(reads.files) == 2


def fine_tuned(model_class):
    """A head that is fine-tuned, with a batch and its labels."""
    family = eve_models if model_class.__name__.startswith("EVE") else vle_models
    model = eve(model_class) if family is eve_models else family.build(model_class)
    if model_class is VLEForVCRQ2A:
        return model, {**vle_models.vcr_batch(), "labels": torch.tensor([0, 1])}
    inputs = family.batch()
    if "Retrieval" in model_class.__name__:
        return model, inputs
    if "NLVR2" in model_class.__name__:
        return model, two_images(inputs)
    return model, {**inputs, "labels": torch.eye(3, model.config.num_labels)}


def pre_training(family, objectives):
    """A model that is pre-trained, and a batch as the task collates it."""
    inputs = family.pretraining_batch()
    inputs["masked_tokens"] = (inputs["mlm_labels"].flatten() != -100).nonzero()[:, 0]
    inputs |= {"match_ids": torch.tensor([4, -100, 5]), "match_rows": torch.tensor([0, 2])}
    if family is eve_models:
        inputs["visible"] = visible_patches(inputs["image_mask"])
        return eve(EVEForPreTraining, objectives=objectives), inputs
    inputs["mpc_rows"] = (inputs["mpc_patches"].any(dim=1) & (inputs["mpc_labels"] != -100)).nonzero()[:, 0]
    return family.build(VLEForPreTraining, objectives=objectives), inputs


TRAINED = {model.__name__: partial(fine_tuned, model) for model in FINE_TUNED} | {
    "EVEForPreTraining": partial(pre_training, eve_models, ("mim", "mlm", "itc", "itm")),
    "VLEForPreTraining": partial(pre_training, vle_models, ("mlm", "itc", "itm", "mpc", "pbc")),
}
"""Every head of both families, with all its objectives."""


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_reads_no_value(name, monkeypatch):
    assert values_read(*TRAINED[name](), monkeypatch) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_is_one_graph(name):
    model, inputs = TRAINED[name]()
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model.train())(**inputs)
    assert explained.graph_break_count == 0, explained.break_reasons
