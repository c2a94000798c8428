"""Products of groups of rows, against one product per group."""

import pytest
import torch
from torch.nn import functional as F

from evle.models.grouped import even_layout, grouped_linear

SIZES = (3, 0, 5, 1)


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(SIZES), 6), (len(SIZES), 4, 6), (len(SIZES), 4))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def one_by_one(rows, sizes, weight, bias):
    return torch.cat([F.linear(part, *both) for part, *both in zip(rows.split(sizes), weight, bias, strict=True)])


def test_outputs_and_gradients_are_those_of_one_product_per_group():
    given, expected = inputs(), inputs()
    results = grouped_linear(given[0], SIZES, *given[1:]), one_by_one(expected[0], SIZES, *expected[1:])
    for result in results:
        result.square().sum().backward()
    assert torch.allclose(*results)
    for one, other in zip(given, expected, strict=True):
        assert torch.allclose(one.grad, other.grad)
    assert given[1].grad[1].abs().max() == 0  # a group without rows


def test_the_derivative_is_the_numerical_one():
    rows, weight, bias = inputs()
    assert torch.autograd.gradcheck(lambda *args: grouped_linear(args[0], SIZES, *args[1:]), (rows, weight, bias))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient(frozen):
    given = inputs()
    given[frozen].requires_grad_(False)
    grouped_linear(given[0], SIZES, *given[1:]).sum().backward()
    assert [each.grad is None for each in given] == [number == frozen for number in range(3)]


def test_autocast_decides_the_format_and_gradients_return_to_that_of_the_weights():
    given = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = grouped_linear(given[0], SIZES, *given[1:])
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert {each.grad.dtype for each in given} == {torch.float32}


def test_even_sizes_leave_room_behind_each_group():
    with torch.autocast("cpu", torch.bfloat16):
        sizes, index = even_layout([3, 0, 17, 16], torch.zeros(1))
    assert sizes == [16, 0, 32, 16]
    assert index.tolist() == [*range(3), *range(16, 33), *range(48, 64)]


def test_in_float32_groups_are_as_they_are():
    sizes, index = even_layout([3, 0, 5], torch.zeros(1))
    assert sizes == [3, 0, 5]
    assert index.tolist() == list(range(8))


def test_no_rows_at_all():
    rows, weight, bias = inputs()
    assert grouped_linear(rows[:0], (0, 0, 0, 0), weight, bias).shape == (0, 4)
    assert even_layout([0, 0], rows)[1].shape == (0,)
