"""The casts of stacked weights in steps of several passes: how many there are, and that they change no result."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eve_models import build, pretraining_batch, relative_difference
from evle.errors import DataError
from evle.models import casts
from evle.models.eve import EVEForPreTraining, EVEForRetrieval


class CountCasts(TorchDispatchMode):
    """Counts the elements of a parameter that are cast to bfloat16."""

    def __init__(self, parameter):
        super().__init__()
        self.memory, self.elements = parameter.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].untyped_storage().data_ptr() == self.memory:
            self.elements += args[0].numel()
        return result


def step(model, inputs):
    """The loss and the gradients of a step in bfloat16, and the elements of experts that it cast."""
    experts = model.eve.layers[2].feed_forward.experts
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    with CountCasts(experts.up_proj) as count, torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()
    gradients = [experts.up_proj.grad.clone(), experts.down_proj.grad.clone(), experts.up_proj_bias.grad.clone()]
    return loss.detach(), gradients, count.elements / experts.up_proj.numel()


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("model_class", [EVEForPreTraining, EVEForRetrieval])
def test_experts_are_cast_once_a_step_to_the_same_losses_and_gradients(model_class, implementation, monkeypatch):
    model = build(model_class, second_choice="top").train()
    model.set_experts_implementation(implementation)
    inputs = pretraining_batch()
    if model_class is EVEForRetrieval:
        inputs = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    loss, gradients, num_casts = step(model, inputs)
    assert num_casts == 1
    monkeypatch.setattr(casts, "_casts", lambda: None)
    expected_loss, expected, num_casts = step(model, inputs)
    assert num_casts > 1
    assert torch.equal(loss, expected_loss)
    for gradient, other in zip(gradients, expected, strict=True):
        assert relative_difference(gradient, other) < 0.01  # sums of bfloat16 numbers, in another order


def test_nothing_stays_behind_a_step_even_if_it_fails():
    model = build(EVEForPreTraining).train()
    with pytest.raises(DataError, match="image_mask"), torch.autocast("cpu", torch.bfloat16):
        model(**{**pretraining_batch(), "image_mask": None})
    assert casts._casts() is None


def test_weights_that_change_between_steps_are_cast_again():
    model = build(EVEForPreTraining, second_choice="top").train()
    inputs = pretraining_batch()
    before, *_ = step(model, inputs)
    with torch.no_grad():
        model.eve.layers[2].feed_forward.experts.up_proj.mul_(1.5)
    after, *_ = step(model, inputs)
    assert not torch.equal(before, after)


def test_in_float32_nothing_is_cast():
    model = build(EVEForPreTraining)
    stack = model.eve.layers[2].feed_forward.experts.up_proj
    assert casts.cast_stack(stack) is stack
