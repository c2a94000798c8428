"""Attention in bfloat16 on a CPU: in float32 while it learns, with the results of float32."""

import pytest
import torch
import torch.nn.functional as F

import evle
from evle.models.attention import ATTENTION, attend
from vle_models import tiny


def heads(requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 5, 8)
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.bfloat16) for _ in range(3))
    return [each.requires_grad_(requires_grad) for each in (query, key, value)]


@pytest.mark.parametrize("boolean", [True, False])
def test_bfloat16_that_learns_is_computed_in_float32(boolean):
    inputs = heads()
    allowed = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    allowed[:, ..., 3:] = False
    least = torch.finfo(torch.bfloat16).min
    mask = allowed if boolean else torch.zeros(2, 1, 1, 5, dtype=torch.bfloat16).masked_fill(~allowed, least)
    with torch.autocast("cpu", torch.bfloat16):
        context = attend(*inputs, mask, scale=0.3)
    context.float().sum().backward()
    wide = [each.detach().float().requires_grad_() for each in inputs]
    expected = F.scaled_dot_product_attention(*wide, attn_mask=allowed, scale=0.3)
    expected.sum().backward()
    assert context.dtype == torch.bfloat16
    torch.testing.assert_close(context, expected.to(torch.bfloat16), rtol=0, atol=0)
    for narrow, full in zip(inputs, wide, strict=True):
        assert full.grad is not None
        torch.testing.assert_close(narrow.grad, full.grad.to(torch.bfloat16), rtol=0, atol=1e-2)


def test_without_gradients_it_is_the_fused_kernel_itself():
    inputs = heads(requires_grad=False)
    torch.testing.assert_close(attend(*inputs, None), F.scaled_dot_product_attention(*inputs), rtol=0, atol=0)


def test_the_image_tower_uses_it_unless_another_is_asked_for():
    assert evle.VLEModel(tiny()).vision_model.vision_model.config._attn_implementation == ATTENTION
    plain = evle.VLEModel._from_config(tiny(), attn_implementation="eager")
    assert plain.vision_model.vision_model.config._attn_implementation == "eager"


def test_its_name_is_not_saved(tmp_path):
    evle.VLEModel(tiny()).save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
