"""Values of tensors that a training step reads, each of which makes the host wait for an accelerator.

Counted on a CPU by operator, with the checks and short cuts switched off that the models take on a CPU alone. For each
pass with padding, transformers reads a value of its own to see whether a mask is needed; it is not counted here.
"""

import traceback
from collections import Counter
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
CLASSIFYING = (EVEForVQA, EVEForNLVR2, VLEForVQA, VLEForNLVR2, VLEForVCRQ2A)


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


def eve(model_class):
    model = eve_models.build(model_class, hidden_size=32, intermediate_size=64)
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


def classifying(model_class):
    """A head that classifies, with a batch and its labels."""
    family = eve_models if model_class.__name__.startswith("EVE") else vle_models
    model = eve(model_class) if family is eve_models else family.build(model_class)
    if model_class is VLEForVCRQ2A:
        return model, {**vle_models.vcr_batch(), "labels": torch.tensor([0, 1])}
    inputs = family.batch()
    if "NLVR2" in model_class.__name__:
        return model, two_images(inputs)
    return model, {**inputs, "labels": torch.eye(3, model.config.num_labels)}


@pytest.mark.parametrize("model_class", CLASSIFYING)
def test_a_step_of_a_classifying_head_reads_no_value(model_class, monkeypatch):
    assert values_read(*classifying(model_class), monkeypatch) == []


@pytest.mark.slow
@pytest.mark.parametrize("model_class", CLASSIFYING)
def test_a_step_of_a_classifying_head_is_one_graph(model_class):
    model, inputs = classifying(model_class)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model.train())(**inputs)
    assert explained.graph_break_count == 0, explained.break_reasons


@pytest.mark.parametrize("model_class", [EVEForRetrieval, VLEForRetrieval])
def test_a_step_of_retrieval_reads_only_which_pairs_are_left_out(model_class, monkeypatch):
    """Contrast leaves out rows and columns by their ids, and matching leaves out pairs without a negative."""
    family = eve_models if model_class is EVEForRetrieval else vle_models
    model = eve(model_class) if family is eve_models else family.build(model_class)
    files = Counter(values_read(model, family.batch(), monkeypatch))
    assert files == {"contrast.py": 2, "heads.py" if family is eve_models else "matching.py": 1}


@pytest.mark.parametrize("family", [eve_models, vle_models])
def test_a_step_of_pre_training_reads_only_which_pairs_have_a_negative(family, monkeypatch):
    inputs = family.pretraining_batch()
    inputs["masked_tokens"] = (inputs["mlm_labels"].flatten() != -100).nonzero()[:, 0]
    if family is eve_models:
        model = eve(EVEForPreTraining)
        inputs["visible"] = visible_patches(inputs["image_mask"])
    else:
        model = family.build(VLEForPreTraining)
        inputs["mpc_rows"] = (inputs["mpc_patches"].any(dim=1) & (inputs["mpc_labels"] != -100)).nonzero()[:, 0]
    assert values_read(model, inputs, monkeypatch) == (["matching.py"] if "itm" in model.config.objectives else [])
