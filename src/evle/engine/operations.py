"""Counting the floating-point operations of training: the unit of comparisons that no machine's speed affects."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import PreTrainedModel

from evle.tasks.task import Batch

COUNTED_BATCHES = 3
"""Batches whose operations are averaged: texts differ in length, and so do batches."""


def _attention(query: Any, key: Any, *_: Any, **__: Any) -> int:
    batch, heads, length, width = query
    return 4 * batch * heads * length * key[-2] * width


def _attention_backward(_: Any, query: Any, key: Any, *__: Any, **___: Any) -> int:
    return 5 * _attention(query, key) // 2  # five products for the forward's two


def _grouped_product(left: Any, right: Any, *_: Any, **__: Any) -> int:
    return 2 * left[-2] * left[-1] * right[-1]


EXTRA_FLOPS = {
    operator: formula
    for operator, formula in (
        (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, _attention),
        (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward, _attention_backward),
        (torch.ops.aten._grouped_mm, _grouped_product),
    )
    if operator not in flop_registry
}
"""Operators that torch's counter does not know."""


def operations_per_batch(model: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """Operations of a forward and a backward pass of a batch, the mean of the first COUNTED_BATCHES of `batches`, which
    are on the model's device.

    The model, its gradients and torch's random numbers are afterwards as they were.
    """
    training, counts = model.training, []
    model.train()
    with torch.random.fork_rng():
        for batch in islice(batches, COUNTED_BATCHES):
            counter = FlopCounterMode(display=False, custom_mapping=EXTRA_FLOPS)
            with counter:
                model(**batch).loss.backward()
            model.zero_grad(set_to_none=True)
            counts.append(counter.get_total_flops())
    model.train(training)
    return sum(counts) / len(counts)
