"""Attention spelled out on a CPU, in bfloat16 and where sequences are short, has the fused kernel's results."""

import pytest
import torch
import torch.nn.functional as F
from transformers.masking_utils import create_bidirectional_mask

import evle
from eve_models import build
from evle.models.attention import ATTENTION, _is_spelled_out, attend, only_fused_attention
from evle.models.eve import EVEModel
from vle_models import tiny


def heads(requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 5, 8)
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.bfloat16) for _ in range(3))
    return [each.requires_grad_(requires_grad) for each in (query, key, value)]


def masks(boolean, dtype):
    allowed = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    allowed[:, ..., 3:] = False
    if boolean:
        return allowed, allowed
    return torch.zeros(2, 1, 1, 5, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min), allowed


@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("bias_type", [torch.bfloat16, torch.float32])
def test_spelled_out_in_bfloat16_it_equals_attention_within_rounding(boolean, bias_type):
    inputs = heads()
    mask, allowed = masks(boolean, bias_type)
    with torch.autocast("cpu", torch.bfloat16):
        context = attend(*inputs, mask, scale=0.3)
    context.float().sum().backward()
    wide = [each.detach().float().requires_grad_() for each in inputs]
    expected = F.scaled_dot_product_attention(*wide, attn_mask=allowed, scale=0.3)
    expected.sum().backward()
    assert context.dtype == torch.bfloat16
    torch.testing.assert_close(context.float(), expected, rtol=0, atol=2e-2)
    for narrow, full in zip(inputs, wide, strict=True):
        assert full.grad is not None
        torch.testing.assert_close(narrow.grad.float(), full.grad, rtol=0, atol=2e-2)


@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("few", [0, 100])
def test_in_float32_all_ways_are_the_same_number(boolean, rows, few, monkeypatch):
    inputs = [each.float() for each in heads(requires_grad=False)]
    mask, allowed = masks(boolean, torch.float32)
    monkeypatch.setattr("evle.models.attention.FEW_SCORES", few)
    monkeypatch.setattr("evle.models.attention.SCORE_BYTES", rows * 3 * 5 * 5 * 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=few > 0):
        context = attend(*inputs, mask)
    torch.testing.assert_close(context, F.scaled_dot_product_attention(*inputs, attn_mask=allowed))


@pytest.mark.parametrize("learns", [True, False])
def test_few_scores_exist_at_a_time_without_gradients_only(learns, monkeypatch):
    calls = []
    product = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *given, **named: calls.append(given[1]) or product(*given, **named))
    monkeypatch.setattr("evle.models.attention.SCORE_BYTES", 1)
    with torch.set_grad_enabled(learns):
        attend(*heads(learns), None)
    assert [len(each) for each in calls] == ([6] if learns else [3, 3])  # 2 samples x 3 heads


def test_a_bias_that_learns_has_the_gradient_of_the_fused_kernel():
    bias = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    inputs = [each.detach().float() for each in heads()]
    attend(*inputs, bias).sum().backward()
    other = bias.detach().clone().requires_grad_()
    F.scaled_dot_product_attention(*inputs, attn_mask=other).sum().backward()
    torch.testing.assert_close(bias.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_query_without_any_key_is_finite(dtype):
    inputs = [each.to(dtype) for each in heads(requires_grad=False)]
    for mask in (torch.zeros(2, 1, 1, 5, dtype=torch.bool), torch.full((2, 1, 1, 5), torch.finfo(torch.float32).min)):
        assert attend(*inputs, mask).isfinite().all()


def test_dropout_takes_weights_away_and_keeps_their_mean():
    query, key = torch.zeros(1, 1, 400, 8), torch.zeros(1, 1, 20, 8)  # equal weights of 1 / 20
    value = torch.ones(1, 1, 20, 8)
    context = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), None, dropout=0.5).float()
    assert context.mean() == pytest.approx(1.0, abs=0.05)
    # of 20 weights half stay, each of them doubled: a binomial deviation of sqrt(20 / 4) / 10
    assert context[..., 0].std() == pytest.approx(0.22, abs=0.04)


def test_other_devices_and_long_graphs_have_the_fused_kernel():
    on_meta = [torch.empty(1, 1, 4, 8, device="meta", dtype=torch.bfloat16) for _ in range(3)]
    assert not _is_spelled_out(*on_meta[:2])
    assert not _is_spelled_out(torch.empty(1, 1, 91, 8), torch.empty(1, 1, 91, 8))


def test_what_a_plan_measures_is_the_fused_kernel():
    inputs = heads(requires_grad=False)
    with only_fused_attention():
        torch.testing.assert_close(attend(*inputs, None), F.scaled_dot_product_attention(*inputs), rtol=0, atol=0)
    assert _is_spelled_out(*inputs[:2])


def test_an_eve_on_a_cpu_is_one_graph_in_bfloat16():
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        explained = torch._dynamo.explain(attend)(*heads(), masks(True, torch.bfloat16)[0], 0.1)
    assert explained.graph_break_count == 0, explained.break_reasons


def test_eves_mask_is_one_row_for_all_queries_and_none_without_padding():
    config = build(EVEModel).config
    hidden = torch.zeros(2, 5, 16)
    assert config._attn_implementation == ATTENTION
    padding = torch.ones(2, 5, dtype=torch.bool)
    assert create_bidirectional_mask(config, hidden, padding) is None
    padding[1, 3:] = False
    assert torch.equal(create_bidirectional_mask(config, hidden, padding), padding[:, None, None])


def test_the_image_tower_uses_it_unless_another_is_asked_for():
    assert evle.VLEModel(tiny()).vision_model.vision_model.config._attn_implementation == ATTENTION
    plain = evle.VLEModel._from_config(tiny(), attn_implementation="eager")
    assert plain.vision_model.vision_model.config._attn_implementation == "eager"


def test_its_name_is_not_saved(tmp_path):
    evle.VLEModel(tiny()).save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()
