"""The text tower: DeBERTa's disentangled attention through SDPA is DeBERTa's."""

import math

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2Model

from evle.models.vle.text import FusedDisentangledSelfAttention, VLETextTower, shift
from vle_models import TEXT, relative_difference


def text_config(**overrides) -> DebertaV2Config:
    base = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
    base |= {"share_att_key": True, "norm_rel_ebd": "layer_norm"}
    return DebertaV2Config(**{**TEXT, **base, **overrides})


def both(**overrides) -> tuple[DebertaV2Model, VLETextTower]:
    """The stock tower and ours with the same weights, in evaluation mode."""
    config = text_config(**overrides)
    torch.manual_seed(0)
    stock, ours = DebertaV2Model(config), VLETextTower(text_config(**overrides))
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.normal_(std=0.4)
    ours.load_state_dict(stock.state_dict())
    return stock.eval(), ours.eval()


def texts(length: int, lengths: list[int]) -> dict[str, torch.Tensor]:
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 50, (len(lengths), length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("pos_att_type", [["p2c", "c2p"], ["c2p"], ["p2c"], []])
@pytest.mark.parametrize("share_att_key", [True, False])
@pytest.mark.parametrize("position_buckets", [4, 6, -1])
def test_it_agrees_with_the_stock_module(pos_att_type, share_att_key, position_buckets):
    stock, ours = both(pos_att_type=pos_att_type, share_att_key=share_att_key, position_buckets=position_buckets)
    inputs = texts(13, [13, 8, 1])
    with torch.no_grad():
        expected, given = (tower(**inputs).last_hidden_state for tower in (stock, ours))
    real = inputs["attention_mask"].bool()
    assert relative_difference(given[real], expected[real]) < 1e-5


@pytest.mark.parametrize("length", [1, 2, 3, 24])
@pytest.mark.parametrize("max_relative_positions", [-1, 3, 9])
def test_it_agrees_at_every_length_and_reach(length, max_relative_positions):
    stock, ours = both(max_relative_positions=max_relative_positions, position_buckets=-1)
    inputs = texts(length, [length, length])
    with torch.no_grad():
        expected, given = (tower(**inputs).last_hidden_state for tower in (stock, ours))
    assert relative_difference(given, expected) < 1e-5


def test_without_relative_attention_there_is_no_bias():
    stock, ours = both(relative_attention=False, pos_att_type=[], position_biased_input=True)
    inputs = texts(5, [5, 3])
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected, given = (tower(**inputs).last_hidden_state[real] for tower in (stock, ours))
    assert relative_difference(given, expected) < 1e-5


def test_gradients_agree_with_the_stock_module():
    stock, ours = both()
    inputs = texts(9, [9, 6])
    weights = inputs["attention_mask"][..., None] * torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(2))
    for tower in (stock, ours):
        (tower(**inputs).last_hidden_state * weights).sum().backward()
    for (name, expected), (_, given) in zip(stock.named_parameters(), ours.named_parameters(), strict=True):
        assert (given.grad - expected.grad).abs().max() < 1e-4 * max(1.0, float(expected.grad.abs().max())), name


def row_of(distance: int, buckets: int, reach: int) -> int:
    """The row of the table for a distance i - j: near ones each their own, far ones by their logarithm (DeBERTa)."""
    middle = buckets // 2
    bucket = distance
    if abs(distance) >= middle:
        far = math.log(abs(distance) / middle) / math.log((reach - 1) / middle) * (middle - 1)
        bucket = distance if abs(distance) <= middle else math.copysign(math.ceil(far) + middle, distance)
    return min(max(int(bucket) + buckets, 0), 2 * buckets - 1)


def test_the_bias_is_what_query_and_key_think_of_their_distance():
    torch.manual_seed(0)
    attention = FusedDisentangledSelfAttention(text_config(position_buckets=6, max_position_embeddings=24))
    query, key = torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8)
    table = torch.randn(12, 16)
    position_key = attention.key_proj(table).view(12, 2, 8)
    position_query = attention.query_proj(table).view(12, 2, 8)
    expected = torch.empty(1, 2, 7, 7)
    for head in range(2):
        for i in range(7):
            for j in range(7):
                row = row_of(i - j, 6, 24)
                expected[0, head, i, j] = query[0, head, i] @ position_key[row, head]
                expected[0, head, i, j] += key[0, head, j] @ position_query[row, head]
    assert relative_difference(attention.position_bias(query, key, table), expected) < 1e-5


def test_shift_lays_distances_out():
    scores = torch.arange(18.0).view(3, 6)  # distances -2..3 in the columns of each of three rows
    assert shift(scores, 3).tolist() == [[2.0, 3.0, 4.0], [7.0, 8.0, 9.0], [12.0, 13.0, 14.0]]
    assert shift(torch.tensor([[5.0, 6.0]]), 1).tolist() == [[5.0]]


def test_maps_are_returned_when_asked_for_and_change_nothing():
    _, ours = both()
    inputs = texts(6, [6, 4])
    with torch.no_grad():
        plain, mapped = ours(**inputs), ours(**inputs, output_attentions=True)
    assert relative_difference(mapped.last_hidden_state, plain.last_hidden_state) < 1e-5
    assert [each.shape for each in mapped.attentions] == [(2, 2, 6, 6)] * 2
    sums = mapped.attentions[0].sum(dim=-1)
    assert torch.allclose(sums[1, :, :4], torch.ones(2, 4))
    assert sums[1, :, 4:].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_dropout_acts_on_attention_and_positions_in_training_only():
    _, ours = both(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    inputs = texts(8, [8])
    first, second = (ours(**inputs).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    ours.train()
    first, second = (ours(**inputs).last_hidden_state for _ in range(2))
    assert not torch.allclose(first, second)
