"""What acts when a module is called acts on VLE: adapters, offloading, quantisation, hooks."""

import accelerate
import peft
import pytest
import torch
from torch import nn

from evle.models.vle import VLEForMLM, VLEForPreTraining, VLEForRetrieval, VLEForVCRQ2A, VLEForVQA
from vle_models import batch, build, pretraining_batch, vcr_batch

ALL = ("mlm", "itm", "mpc", "pbc", "itc")
HEADS = [VLEForVQA, VLEForMLM, VLEForRetrieval, VLEForVCRQ2A, VLEForPreTraining]


def inputs_for(model_class):
    if model_class is VLEForPreTraining:
        return pretraining_batch()
    if model_class is VLEForVCRQ2A:
        return {**vcr_batch(), "labels": torch.tensor([2, 0])}
    inputs = batch()
    if model_class is VLEForVQA:
        inputs["labels"] = torch.tensor([0, 1, 4])
    if model_class is VLEForMLM:
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    return inputs


def output(model, inputs):
    """The loss and the logits; hard negatives are drawn, so from a fixed seed."""
    torch.manual_seed(0)
    with torch.no_grad():
        given = model(**inputs)
    return torch.cat([given.loss.flatten(), given.logits.flatten()])


@pytest.mark.parametrize("model_class", HEADS)
@pytest.mark.parametrize(
    ("targets", "dora"), [("all-linear", False), (["key", "value"], False), (["query", "value"], True)], ids=str
)
def test_every_adapter_acts_and_learns(model_class, targets, dora):
    inputs = inputs_for(model_class)
    settings = peft.LoraConfig(r=2, target_modules=targets, use_dora=dora, init_lora_weights=False)
    model = peft.get_peft_model(build(model_class, objectives=ALL), settings).train()
    model(**inputs).loss.backward()
    unread = {VLEForMLM: ("cross_modal_image_layers.1", "pooler"), VLEForRetrieval: ("pooler",)}.get(model_class, ())
    dead = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    assert not [name for name in dead if not any(part in name for part in unread)]
    adapted = output(model.eval(), inputs)
    assert not torch.allclose(adapted, output(build(model_class, objectives=ALL), inputs))
    merged = output(model.merge_and_unload().eval(), inputs)
    torch.testing.assert_close(adapted, merged, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("model_class", HEADS)
@pytest.mark.parametrize("offload", ["cpu", "disk", "device_map"])
def test_an_offloaded_model_computes_the_same(model_class, offload, tmp_path):
    inputs = inputs_for(model_class)
    model = build(model_class, objectives=ALL)
    expected = output(model, inputs)
    if offload == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True)
    elif offload == "disk":
        accelerate.disk_offload(model, tmp_path, execution_device="cpu", offload_buffers=True)
    else:
        children = {name: "disk" for name, _ in model.named_children()}
        model = accelerate.dispatch_model(
            model, device_map=children, main_device="cpu", offload_dir=tmp_path, force_hooks=True
        )
    assert any(each.is_meta for each in model.parameters())
    torch.testing.assert_close(output(model, inputs), expected, atol=1e-4, rtol=1e-4)


def test_hooks_on_every_layer_of_the_fusion_fire_and_their_edits_count():
    inputs = batch()
    model = build(VLEForVQA)
    expected = model(**inputs).logits
    fired = set()
    linear = {name: each for name, each in model.named_modules() if type(each) is nn.Linear and "cross_modal" in name}
    for name, layer in linear.items():
        layer.register_forward_hook(lambda *_, name=name: fired.add(name))
    assert torch.allclose(model(**inputs).logits, expected, atol=1e-4)
    assert fired == set(linear)
    model.vle.cross_modal_text_layers[-1].attention.self.value.register_forward_hook(lambda _, args, output: output * 0)
    edited = model(**inputs).logits
    assert not torch.allclose(edited, expected, atol=1e-3)
    assert torch.allclose(model(**inputs, output_hidden_states=True).logits, edited, atol=1e-4)


def test_dynamic_quantisation_reaches_the_fusion():
    inputs = batch()
    model = build(VLEForVQA)
    expected = model(**inputs).logits
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert type(quantised.vle.cross_modal_text_layers[0].attention.self.key) is not nn.Linear
    given = quantised(**inputs).logits
    assert not torch.equal(given, expected)
    assert (given - expected).abs().max() < 0.5 * expected.abs().max()


def test_torchao_weights_compute():
    torchao = pytest.importorskip("torchao.quantization")
    inputs = batch()
    model = build(VLEForVQA)
    with torch.no_grad():
        expected = model(**inputs).logits
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
        given = model(**inputs).logits
    assert not torch.equal(given, expected)
    assert (given - expected).abs().max() < 0.2 * expected.abs().max()
