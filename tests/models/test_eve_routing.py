"""The feed-forwards: what goes to which expert, and with which weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import references
from eve_models import build, pretraining_batch, relative_difference, tiny
from evle.models.eve import EVEForPreTraining, EVEModel
from evle.models.eve.routing import EVEExperts, SoftRouter, within_capacity


def router(**overrides) -> SoftRouter:
    return build(EVEModel, **overrides).layers[2].feed_forward


def expert_list(module: EVEExperts) -> list:
    return list(zip(module.up_proj, module.up_proj_bias, module.down_proj, module.down_proj_bias, strict=True))


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("capacity_factor", [None, 1.0, 0.3])
def test_soft_routing_equals_a_naive_loop(top_k, capacity_factor):
    module = router(num_experts_per_tok=top_k, capacity_factor=capacity_factor)
    torch.manual_seed(3)
    hidden = torch.randn(4, 8, 24) + 2 * torch.randn(24)
    with torch.no_grad():
        output, _ = module(hidden, 5, None)
        states = module.norm(hidden)
        states[:, :5] += module.image_vector
        states[:, 5:] += module.text_vector
        capacity = tiny(num_experts_per_tok=top_k, capacity_factor=capacity_factor).expert_capacity(32)
        expected = references.soft_routing(
            states.flatten(0, 1), module.gate.weight, expert_list(module.experts), top_k, capacity
        )
    assert relative_difference(output, expected.view(4, 8, 24)) < 1e-5


def test_capacity_serves_first_choices_before_second_ones():
    # expert 0 is asked by tokens 0 and 1 first and by token 2 second; expert 1 by token 2 first and by 0 and 1 second.
    index = torch.tensor([[0, 1], [0, 1], [1, 0]])
    assert within_capacity(index, 2, 2).tolist() == [[True, True], [True, False], [True, False]]


def test_capacity_is_at_least_four():
    assert tiny(capacity_factor=1.0).expert_capacity(6) == 4
    assert tiny(capacity_factor=1.0).expert_capacity(10) == 5
    assert tiny().expert_capacity(10) is None


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_experts_implementations_agree_in_value_and_gradient(implementation):
    hidden = torch.randn(9, 24)
    index, weights = torch.rand(9, 4).topk(2).indices, torch.rand(9, 2)
    results = []
    for name in ("eager", implementation):
        model = build(EVEModel)
        model.set_experts_implementation(name)
        experts = model.layers[2].feed_forward.experts
        output = experts(hidden, index, weights)
        output.square().sum().backward()
        results.append([output.detach(), experts.up_proj.grad, experts.down_proj_bias.grad])
    for eager, other in zip(*results, strict=True):
        assert relative_difference(other, eager) < 1e-5


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("short", [False, True])
def test_many_tokens_without_gradients_go_through_one_expert_after_the_other(top_k, short, monkeypatch):
    """To the same numbers, and never with the rows of all experts at once."""
    experts = build(EVEModel).layers[2].feed_forward.experts
    hidden, weights = torch.randn(40, 24), torch.rand(40, 2)[:, :top_k]
    index = torch.rand(40, 3).topk(top_k).indices  # none goes to the fourth expert
    most = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *given: most.append(len(given[0])) or linear(*given))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=short):
        together = experts(hidden, index, weights)
        assert most == []
        monkeypatch.setattr("evle.models.eve.routing.MANY_TOKENS", 40)
        apart = experts(hidden, index, weights)
    torch.testing.assert_close(apart, together)
    assert len(most) == 2 * 4
    assert max(most) < 40 * top_k
    with torch.autocast("cpu", torch.bfloat16, enabled=short):
        torch.testing.assert_close(experts(hidden, index, weights), together)
    assert len(most) == 2 * 4  # gradients need all rows


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_experts_obey_autocast(implementation):
    model = build(EVEModel)
    model.set_experts_implementation(implementation)
    experts = model.layers[2].feed_forward.experts
    hidden = torch.randn(9, 24)
    index, weights = torch.rand(9, 4).topk(2).indices, torch.rand(9, 2)
    exact = experts(hidden, index, weights)
    with torch.autocast("cpu", torch.bfloat16):
        output = experts(hidden, index, weights)
    output.float().sum().backward()
    assert 1e-4 < relative_difference(output.float(), exact) < 0.05
    assert experts.up_proj.grad.isfinite().all()


def test_padding_is_never_routed():
    module = router()
    hidden = torch.randn(2, 6, 24)
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    output, routing = module(hidden, 3, mask)
    assert output[1, 3:].abs().max() == 0
    alone, _ = module(hidden[1:, :3], 3, None)
    together, _ = module(hidden[:1], 3, None)
    assert torch.allclose(output[1, :3], alone[0], atol=1e-6)
    assert torch.allclose(output[0], together[0], atol=1e-6)
    # 9 real tokens with two experts each: shares are eighteenths, not twenty-fourths.
    assert torch.allclose((routing.load * 18).round(), routing.load * 18, atol=1e-4)


def test_padding_uses_capacity_in_the_released_routing():
    module = router(capacity_factor=1.0)
    hidden = torch.randn(2, 6, 24)
    output, _ = module(hidden, 3, torch.tensor([[True] * 6, [False] * 6]))
    assert output[1].abs().max() > 0


@settings(max_examples=15, deadline=None)
@given(num_tokens=st.integers(1, 20), num_image=st.integers(0, 20), seed=st.integers(0, 1000))
def test_a_token_goes_its_way_whatever_stands_beside_it(num_tokens, num_image, seed):
    module = router()
    torch.manual_seed(seed)
    num_image = min(num_image, num_tokens)
    hidden = torch.randn(1, num_tokens, 24)
    with torch.no_grad():
        whole, _ = module(hidden, num_image, None)
        first, _ = module(hidden[:, :1], min(num_image, 1), None)
    assert torch.allclose(whole[:, :1], first, atol=1e-5)


def test_the_second_choice_is_sampled_in_training_only():
    module = router()
    hidden = torch.randn(4, 8, 24)
    module.train()
    outputs = [module(hidden, 5, None)[0] for _ in range(2)]
    assert not torch.equal(*outputs)
    module.eval()
    outputs = [module(hidden, 5, None)[0] for _ in range(2)]
    assert torch.equal(*outputs)
    module = router(second_choice="top").train()
    outputs = [module(hidden, 5, None)[0] for _ in range(2)]
    assert torch.equal(*outputs)


def test_the_sampled_second_choice_follows_the_gate_and_is_never_the_first():
    module = router().train()
    logits = torch.tensor([[3.0, 2.0, 0.0, -20.0]]).repeat(4000, 1)
    index = module.choose(logits)
    assert (index[:, 0] == 0).all()
    # among the rest: e^2 / (e^2 + 1) = 0.881
    assert (index[:, 1] == 1).float().mean().item() == pytest.approx(0.881, abs=0.03)
    assert (index[:, 1] != 0).all()


def test_with_one_expert_a_token_the_router_still_learns():
    module = router(num_experts_per_tok=1)
    module(torch.randn(2, 6, 24), 3, None)[0].square().sum().backward()
    assert module.gate.weight.grad.abs().max() > 0


def test_cost_in_memory_is_linear_in_tokens():
    """No tensor of tokens x experts x capacity, nor tokens x experts x width, is ever made."""
    module = router(num_experts=16)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with torch.no_grad(), Watch():
        module(torch.randn(4, 100, 24), 50, None)
    assert largest <= 400 * 2 * 40  # tokens x experts a token x feed-forward width


@pytest.mark.parametrize(
    ("switch", "changed"),
    [
        ({"deep_feed_forward": "shared"}, "layers.2.feed_forward.feed_forward.fc1.weight"),
        ({"deep_feed_forward": "hard"}, "layers.2.feed_forward.text.fc1.weight"),
        ({"modality_routing": False}, None),
        ({"num_experts": 8}, None),
        ({"num_experts_per_tok": 1}, None),
        ({"soft_layers": ()}, "layers.2.feed_forward.text.fc1.weight"),
    ],
)
def test_an_ablation_changes_what_it_says(switch, changed):
    full = dict(build(EVEModel).named_parameters())
    model = EVEModel(tiny(**switch))
    names = dict(model.named_parameters())
    if changed is not None:
        assert changed in names
        assert changed not in full
        assert not any("experts" in name for name in names)
    if switch.get("modality_routing") is False:
        assert set(full) - set(names) == {f"layers.2.feed_forward.{m}_vector" for m in ("image", "text")}
    if "num_experts" in switch:
        assert names["layers.2.feed_forward.experts.up_proj"].shape == (8, 40, 24)
    output = model(input_ids=torch.tensor([[1, 2, 3]]))
    assert output.text_hidden.isfinite().all()
    if "num_experts_per_tok" in switch:
        assert output.router["load"].sum().item() == pytest.approx(1.0)
    assert (output.router is None) == (changed is not None)


def test_the_balance_of_a_pass_is_the_mean_over_its_soft_blocks():
    model = build(EVEModel, soft_layers=(0, 2))
    blocks = []
    for index in (0, 2):
        gate = model.layers[index].feed_forward
        gate.norm.register_forward_hook(lambda _, arguments, states, gate=gate: blocks.append((gate, states)))
    with torch.no_grad():
        found = model(input_ids=torch.tensor([[7, 5, 9, 2, 4]])).router["balance"]
    naive = [
        references.balance(((states[0] + gate.text_vector) @ gate.gate.weight.T).softmax(dim=-1).tolist())
        for gate, states in blocks
    ]
    assert naive[0] != pytest.approx(naive[1])
    assert found.item() == pytest.approx(sum(naive) / 2, rel=1e-4)


def test_without_its_weight_there_is_no_balance_loss():
    with_loss = EVEForPreTraining(tiny())(**pretraining_batch()).losses
    without = EVEForPreTraining(tiny(router_aux_loss_coef=0.0))(**pretraining_batch()).losses
    assert set(with_loss) - set(without) == {"balance"}
