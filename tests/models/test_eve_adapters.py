"""What acts when a module is called acts on EVE: adapters, offloading, quantisation, hooks."""

import accelerate
import peft
import pytest
import torch
from torch import nn

from eve_models import batch, build, pretraining_batch
from evle.models.eve import EVEForNLVR2, EVEForPreTraining, EVEForRetrieval, EVEForVQA

HEADS = [EVEForVQA, EVEForNLVR2, EVEForRetrieval, EVEForPreTraining]
FIELDS = {"objectives": ("mim", "mlm", "itc", "itm"), "stem_channels": (4, 8)}


def inputs_for(model_class):
    if model_class is EVEForPreTraining:
        return pretraining_batch()
    inputs = batch()
    if model_class is EVEForNLVR2:
        inputs["pixel_values"] = torch.stack([inputs["pixel_values"], inputs["pixel_values"].flip(-1)], dim=1)
        inputs["labels"] = torch.tensor([0, 1, 1])
    if model_class is EVEForVQA:
        inputs["labels"] = torch.tensor([0, 1, 1])
    return inputs


def output(model, inputs):
    """The loss and the logits; hard negatives are drawn, so from a fixed seed."""
    torch.manual_seed(0)
    with torch.no_grad():
        given = model(**inputs)
    return torch.cat([given.loss.flatten(), given.logits.flatten()])


@pytest.mark.parametrize("model_class", HEADS)
@pytest.mark.parametrize("targets", ["all-linear", ["qkv"], ["gate"]])
def test_every_adapter_acts_and_learns(model_class, targets):
    inputs = inputs_for(model_class)
    settings = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(build(model_class, **FIELDS), settings).train()
    model(**inputs).loss.backward()
    dead = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    assert not dead
    adapted = output(model.eval(), inputs)
    assert not torch.allclose(adapted, output(build(model_class, **FIELDS), inputs))
    merged = output(model.merge_and_unload().eval(), inputs)
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=1e-4)


def test_dora_acts_on_the_attention():
    settings = peft.LoraConfig(r=2, target_modules=["qkv"], use_dora=True, init_lora_weights=False)
    model = peft.get_peft_model(build(EVEForVQA), settings).eval()
    adapted = output(model, inputs_for(EVEForVQA))
    torch.testing.assert_close(adapted, output(model.merge_and_unload(), inputs_for(EVEForVQA)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_class", HEADS)
@pytest.mark.parametrize("offload", ["cpu", "disk", "device_map"])
def test_an_offloaded_model_computes_the_same(model_class, offload, tmp_path):
    inputs = inputs_for(model_class)
    model = build(model_class, **FIELDS)
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
    assert torch.equal(output(model, inputs), expected)


def test_hooks_on_every_linear_layer_fire_and_their_edits_count():
    inputs = batch()
    model = build(EVEForVQA)
    expected = model(**inputs).logits
    fired = set()
    linear = {name: each for name, each in model.named_modules() if type(each) is nn.Linear}
    for name, layer in linear.items():
        layer.register_forward_hook(lambda *_, name=name: fired.add(name))
    assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)
    assert fired == set(linear)
    model.eve.layers[0].attention.qkv.register_forward_hook(lambda module, args, output: output * 0)
    assert not torch.allclose(model(**inputs).logits, expected, atol=1e-3)


def test_dynamic_quantisation_reaches_the_attention():
    inputs = batch()
    model = build(EVEForVQA)
    expected = model(**inputs).logits
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert type(quantised.eve.layers[0].attention.qkv) is not nn.Linear
    given = quantised(**inputs).logits
    assert not torch.equal(given, expected)
    assert (given - expected).abs().max() < 0.2 * expected.abs().max()
