"""VLE's fusion: what it saves changes neither outputs nor gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from evle.errors import ConfigError
from evle.models.vle import (
    VLEForITM,
    VLEForMLM,
    VLEForNLVR2,
    VLEForPBC,
    VLEForVCRQ2A,
    VLEForVQA,
    VLEModel,
)
from evle.models.vle.fusion import EVERYTHING, FusionSelfAttention, Reads, Stream, key_mask
from vle_models import batch, build, relative_difference, tiny, vcr_batch

READS = [Reads(pooled=True), Reads(image=True), Reads(text=True), Reads(image=True, pooled=True), EVERYTHING]


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter; 0 where it takes no part."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def assert_gradients_agree(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-5 of the largest number of each parameter.

    A bias of keys moves all scores of a query alike: its gradient is 0, and what is found is rounding.
    """
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, gradient in expected.items():
        scale = largest if name.endswith(("key.bias", "k_proj.bias")) else float(gradient.abs().max())
        assert float((given[name] - gradient).abs().max()) <= 1e-5 * scale, name


@pytest.mark.parametrize("reads", READS, ids=str)
@pytest.mark.parametrize("num_hidden_layers", [1, 2])
def test_what_is_read_is_what_computing_everything_gives(reads, num_hidden_layers):
    model = build(VLEModel, num_hidden_layers=num_hidden_layers)
    inputs = batch()
    torch.manual_seed(0)
    found = []
    for asked in (reads, EVERYTHING):
        output = model(**inputs, reads=asked)
        assert (
            output.image_hidden is not None,
            output.text_hidden is not None,
            output.pooler_output is not None,
        ) == asked
        # Padding takes part in no loss.
        real = inputs["attention_mask"][..., None]
        states = {"image": output.image_hidden, "text": output.text_hidden, "pooled": output.pooler_output}
        if states["text"] is not None:
            states["text"] = states["text"] * real
        states = {name: states[name] for name, read in reads._asdict().items() if read}
        generator = torch.Generator().manual_seed(1)
        loss = sum((each * torch.randn(each.shape, generator=generator)).sum() for each in states.values())
        found.append((states, gradients(model, loss)))
    for name, states in found[0][0].items():
        assert relative_difference(states, found[1][0][name]) < 1e-5
    assert_gradients_agree(found[0][1], found[1][1])


@pytest.mark.parametrize("model_class", [VLEForVQA, VLEForITM, VLEForMLM, VLEForPBC, VLEForNLVR2, VLEForVCRQ2A])
def test_a_head_computes_the_same_whether_or_not_states_are_asked_for(model_class):
    model = build(model_class)
    inputs = vcr_batch() if model_class is VLEForVCRQ2A else batch()
    if model_class is VLEForNLVR2:
        inputs["pixel_values"] = torch.stack([inputs["pixel_values"], inputs["pixel_values"].flip(0)], dim=1)
    found = []
    for whole in (False, True):
        output = model(**inputs, output_hidden_states=whole)
        weights = torch.randn(output.logits.shape, generator=torch.Generator().manual_seed(1))
        if model_class is VLEForMLM:  # of padding nobody reads the words
            weights = weights * inputs["attention_mask"][..., None]
        found.append((output, gradients(model, (output.logits * weights).sum())))
    (pruned, given), (output, expected) = found
    assert relative_difference(pruned.logits, output.logits) < 1e-5
    assert_gradients_agree(given, expected)
    assert pruned.pooler_output is None or pruned.image_hidden is None
    assert output.image_hidden.shape[-2:] == ((19, 24) if model_class is VLEForVCRQ2A else (17, 24))
    assert output.text_hidden.shape[-2:] == (7, 24)


def attention_and_streams(**overrides: Any) -> tuple[FusionSelfAttention, Stream, Stream]:
    """An attention of 3 heads, one asking token in each of 2 rows, and 5 tokens to answer, two of them padding."""
    torch.manual_seed(0)
    attention = FusionSelfAttention(tiny(**overrides))
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(std=0.3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    return attention, Stream(torch.randn(2, 1, 24)), Stream(torch.randn(2, 5, 24), key_mask(mask, torch.float32))


def test_one_query_needs_no_projected_keys_and_values():
    attention, asking, source = attention_and_streams(attention_probs_dropout_prob=0.0)
    given = attention.answer_one(asking, source)
    expected, _ = attention(Stream(asking.states.expand(-1, 2, -1)), source, False)
    assert relative_difference(given, expected[:, :1]) < 1e-5
    weights = torch.randn(2, 1, 24)
    found = [gradients(attention, (each * weights).sum()) for each in (given, expected[:, :1])]
    assert_gradients_agree(*found)


def test_one_query_drops_what_plain_attention_drops(monkeypatch):
    """Dropped weights no longer sum to 1, so the values' bias counts by what is left."""
    attention, asking, source = attention_and_streams()
    dropped = torch.tensor([2.0, 0.0, 1.5, 1.0, 0.5])
    monkeypatch.setattr(F, "dropout", lambda weights, *_: weights * dropped)
    given = attention.answer_one(asking, source)
    attention.config._attn_implementation = "eager"  # the one that calls dropout by name
    expected, _ = attention(Stream(asking.states.expand(-1, 2, -1)), source, False)
    assert relative_difference(given, expected[:, :1]) < 1e-5


class Adapted(torch.nn.Linear):
    """A layer that is more than its weight, as that of an adapter."""

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states) + 1.0 + states


def test_a_layer_that_is_more_than_its_weight_is_called():
    attention, asking, source = attention_and_streams()
    attention.eval().value = Adapted(24, 24)
    given, _ = attention(asking, source, False)
    expected, _ = attention(Stream(asking.states.expand(-1, 2, -1)), source, False)
    assert relative_difference(given, expected[:, :1]) < 1e-5


def test_a_stream_of_shared_states_is_the_stream_row_by_row():
    states, own = torch.randn(2, 3, 4), torch.randn(3, 2, 4)
    rows = torch.tensor([1, 0, 1])
    stream = Stream(states, torch.randn(3, 1, 1, 5), rows, own)
    expected = torch.cat([states[rows], own], dim=1)
    assert torch.equal(stream.whole(), expected)
    assert torch.equal(stream.first().states, expected[:, :1])
    layer, sizes = torch.nn.Linear(4, 6), []
    layer.register_forward_hook(lambda _, given, output: sizes.append(len(given[0])))
    assert torch.allclose(stream.through(layer), layer(expected), atol=1e-6)
    assert sizes == [2, 3, 3]
    part = stream.part(1, 3)
    assert torch.equal(part.whole(), expected[1:])
    assert torch.equal(part.mask, stream.mask[1:])
    assert torch.equal(Stream(states).part(1, 2).whole(), states[1:])


def test_reentrant_checkpointing_is_refused_as_it_would_lose_gradients():
    with pytest.raises(ConfigError, match="no gradient with use_reentrant=True"):
        build(VLEForVQA).gradient_checkpointing_enable({"use_reentrant": True})


def test_a_fusion_without_a_block_is_refused():
    with pytest.raises(ConfigError, match="num_hidden_layers 0 should be greater than or equal to 1"):
        tiny(num_hidden_layers=0)
