"""The objectives equal naive loops, and stay finite where they are pushed."""

import math

import pytest
import torch

import references
from evle import objectives

EXTREME = 1e4


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_balance_equals_the_naive_loop(rng):
    gates = torch.rand(7, 4, generator=rng).softmax(dim=-1)
    assert objectives.balance(gates, gates.argmax(-1)).item() == pytest.approx(references.balance(gates.tolist()))


def test_balance_is_one_for_an_even_load_and_the_number_of_experts_for_a_single_one():
    even = torch.full((8, 4), 0.25)
    assert objectives.balance(even, torch.arange(8) % 4).item() == pytest.approx(1.0)
    single = torch.tensor([[1.0, 0, 0, 0]] * 8)
    assert objectives.balance(single, torch.zeros(8, dtype=torch.long)).item() == pytest.approx(4.0)


def test_balance_of_no_tokens_is_zero():
    assert objectives.balance(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).item() == 0.0


def test_mim_is_the_mean_over_masked_pixels():
    # ((1-0)^2 + (2-0)^2 + (3-1)^2 + (4-4)^2) / 4 = 9 / 4
    predicted = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    target = torch.tensor([[[0.0, 0.0]], [[1.0, 4.0]]])
    assert objectives.mim(predicted, target).item() == pytest.approx(9 / 4)


def test_normalized_pixels_have_mean_zero_and_variance_one_and_a_flat_patch_stays_finite(rng):
    normalized = objectives.normalize_pixels(torch.rand(2, 3, 12, generator=rng) * 50)
    assert normalized.mean(-1).abs().max() < 1e-5
    assert (normalized.var(-1) - 1).abs().max() < 1e-4
    assert objectives.normalize_pixels(torch.full((1, 1, 12), 0.5)).isfinite().all()


def test_mlm_equals_the_naive_loop_and_ignores_unmasked_tokens(rng):
    logits = torch.randn(5, 6, generator=rng)
    labels = torch.tensor([2, -100, 0, 5, -100])
    expected = references.mlm(logits.tolist(), labels.tolist())
    assert objectives.mlm(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    logits[1] += 100
    assert objectives.mlm(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_mlm_of_nothing_masked_is_zero_with_a_gradient_path():
    logits = torch.randn(3, 6, requires_grad=True)
    loss = objectives.mlm(logits, torch.full((3,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None


def test_itc_equals_the_naive_loop_with_soft_targets_for_equal_ids(rng):
    ids, all_ids = [3, 1, 3], [3, 1, 3, 7, 1]
    i2t, t2i = torch.randn(2, 3, 5, generator=rng)
    targets = objectives.match_targets(torch.tensor(ids), torch.tensor(all_ids))
    expected = references.itc(i2t.tolist(), t2i.tolist(), ids, all_ids)
    assert objectives.itc(i2t, t2i, targets).item() == pytest.approx(expected, rel=1e-5)
    assert targets[0].tolist() == [0.5, 0, 0.5, 0, 0]


def test_a_row_of_id_minus_100_has_no_target_and_takes_no_part_in_itc(rng):
    ids, all_ids = torch.tensor([3, -100, 1]), torch.tensor([3, -100, 1, 7])
    logits = torch.randn(3, 4, generator=rng)
    targets = objectives.match_targets(ids, all_ids)
    assert targets[1].tolist() == [0.0] * 4
    expected = objectives.itc(logits[[0, 2]], logits[[0, 2]], targets[[0, 2]])
    assert objectives.itc(logits, logits, targets).item() == pytest.approx(expected.item(), rel=1e-6)


def test_itc_of_no_rows_is_0_with_a_gradient():
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = objectives.itc(logits, logits, torch.zeros(0, 3))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None


def test_hard_negatives_are_never_excluded_and_follow_the_similarity(rng):
    logits = torch.tensor([[5.0, 5.0, -20.0], [0.0, 0.0, 0.0]]).repeat(200, 1)
    excluded = torch.tensor([[True, False, False], [False, True, False]]).repeat(200, 1)
    index, found = objectives.sample_hard_negatives(logits, excluded, rng)
    assert found.all()
    assert not excluded.gather(1, index[:, None]).any()
    assert (index[0::2] == 1).float().mean() > 0.95  # 2 has a chance of 1e-5 in 0.5
    assert set(index[1::2].tolist()) == {0, 2}


def test_similarities_that_are_not_finite_leave_it_to_the_loss_to_tell(rng):
    """A run that diverges must end with a line that names its loss, not inside of a sampler."""
    logits = torch.tensor([[float("nan"), 1.0], [float("inf"), float("inf")]])
    index, found = objectives.sample_hard_negatives(logits, torch.eye(2, dtype=torch.bool), rng)
    assert index.tolist() == [1, 0]
    assert found.all()


def test_a_row_without_a_negative_is_reported_as_not_found(rng):
    _, found = objectives.sample_hard_negatives(torch.zeros(2, 3), torch.tensor([[True] * 3, [True, False, True]]), rng)
    assert found.tolist() == [False, True]


def test_answers_equal_the_naive_loop(rng):
    logits, targets = torch.randn(3, 4, generator=rng), torch.tensor([[0, 1.0, 0, 0.3], [0, 0, 0, 0], [0.6, 0, 0, 1.0]])
    expected = references.answers(logits.tolist(), targets.tolist())
    assert objectives.answers(logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_choices_and_itm_are_cross_entropies():
    # one row even (log 2), one row right by 2: log(1 + e^-2)
    logits, labels = torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
    expected = (math.log(2) + math.log1p(math.exp(-2))) / 2
    assert objectives.choices(logits, labels).item() == pytest.approx(expected)
    assert objectives.itm(logits, labels).item() == pytest.approx(expected)
    assert objectives.itm(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)).item() == 0.0
    assert objectives.itm(logits, torch.tensor([-100, 1])).item() == pytest.approx(math.log1p(math.exp(-2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_losses_in_float32(dtype):
    logits = torch.tensor([[EXTREME, -EXTREME], [-EXTREME, EXTREME]], dtype=dtype)
    labels = torch.tensor([1, 0])
    losses = [
        objectives.mlm(logits, labels),
        objectives.choices(logits, labels),
        objectives.answers(logits, torch.tensor([[0.0, 1.0], [1.0, 0.0]])),
        objectives.itc(logits, logits, torch.eye(2)),
        objectives.mim(logits, -logits),
    ]
    for loss in losses:
        assert loss.dtype == torch.float32
        assert loss.isfinite()


def test_patch_and_box_classification_equal_naive_loops(rng):
    patches = torch.randn(3, 4, 2, generator=rng)
    labels = torch.tensor([[0, 1, -100, 1], [1, -100, -100, 0], [-100, -100, -100, -100]])
    terms = []
    for row, row_labels in zip(patches.tolist(), labels.tolist(), strict=True):
        for (no, yes), label in zip(row, row_labels, strict=True):
            if label >= 0:
                terms.append(math.log(math.exp(no) + math.exp(yes)) - (no, yes)[label])
    assert objectives.pbc(patches, labels).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)

    boxes, classes = torch.randn(3, 5, generator=rng), [4, -100, 0]
    terms = []
    for row, label in zip(boxes.tolist(), classes, strict=True):
        if label >= 0:
            terms.append(math.log(sum(math.exp(value) for value in row)) - row[label])
    assert objectives.mpc(boxes, torch.tensor(classes)).item() == pytest.approx(sum(terms) / 2, rel=1e-5)


@pytest.mark.parametrize("objective", [objectives.pbc, objectives.mpc])
def test_nothing_to_classify_is_0_with_a_gradient(objective):
    logits = torch.randn(2, 3, requires_grad=True)
    loss = objective(logits, torch.tensor([-100, -100]))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0
    assert objective(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).item() == 0
