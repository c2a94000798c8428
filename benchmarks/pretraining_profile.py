"""Where a training step's time goes, by what a reader of the model would call its parts: torch's profiler, regrouped.

Each part's forward is marked by hooks; an operator of the backward pass belongs to the part whose forward has its
sequence number.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from evle.models.eve import EVEForPreTraining
from evle.models.eve.embedding import EVEImageEmbedding, EVETextEmbedding
from evle.models.eve.modeling import EVEAttention
from evle.models.eve.pretraining import EVEPixelDecoder
from evle.models.eve.routing import EVEExperts, FeedForward, SoftRouter

MARK = "part: "
PARTS: tuple[tuple[type[nn.Module], str], ...] = (
    (EVEPixelDecoder, "pixel decoder"),
    (EVEExperts, "experts"),
    (SoftRouter, "router"),
    (FeedForward, "feed-forward of one modality"),
    (EVEAttention, "attention"),
    (EVEImageEmbedding, "embedding"),
    (EVETextEmbedding, "embedding"),
    (nn.LayerNorm, "layer norms"),
)
# A part that is named as a whole: what happens inside it is not told apart.
WHOLE = ("pixel decoder", "vocabulary head")
PRODUCTS = {"aten::linear", "aten::addmm", "aten::mm"}


@contextmanager
def marked(model: EVEForPreTraining) -> Iterator[None]:
    """Within it, every part's forward runs under a range of its name."""
    handles = []
    for module in model.modules():
        name = next((name for kind, name in PARTS if isinstance(module, kind)), None)
        if module is model.mlm_head:
            name = "vocabulary head"
        if name is None:
            continue
        ranges: list[Any] = []

        def enter(_module: nn.Module, _inputs: Any, name: str = name, ranges: list[Any] = ranges) -> None:
            ranges.append(record_function(MARK + name))
            ranges[-1].__enter__()

        def leave(_module: nn.Module, _inputs: Any, _output: Any, ranges: list[Any] = ranges) -> None:
            ranges.pop().__exit__(None, None, None)

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ancestors(event: FunctionEvent) -> Iterator[FunctionEvent]:
    current = event
    while current is not None:
        yield current
        current = current.cpu_parent


def part_of_forward(event: FunctionEvent) -> str:
    """The part whose forward an operator ran in."""
    chain = list(ancestors(event))
    marks = [one.name.removeprefix(MARK) for one in chain if one.name.startswith(MARK)]
    whole = next((mark for mark in marks if mark in WHOLE), None)
    part = whole or (marks[0] if marks else "rest: residuals, scales, losses, masks")
    if part == "attention":
        projected = any(one.name in PRODUCTS for one in chain)
        part = "attention: projections" if projected else "attention: softmax and its products"
    return part


def part_of(event: FunctionEvent, forward_parts: dict[int, str]) -> str:
    for one in ancestors(event):
        if one.name.startswith("optimizer") or one.name == MARK + "optimizer":
            return "optimizer"
        if one.name.startswith("autograd::engine::evaluate_function: "):
            if "AccumulateGrad" in one.name:
                return "gradients put into place"
            return forward_parts.get(one.sequence_nr, "rest: residuals, scales, losses, masks")
    return part_of_forward(event)


def profile_step(model: EVEForPreTraining, step: Callable[[], None], update: Callable[[], Any]) -> dict[str, Any]:
    """Profile one step and its update: seconds and shares by part, largest first, and torch's table of operators."""
    activities = [ProfilerActivity.CPU]
    on_gpu = next(model.parameters()).is_cuda
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    step()
    update()  # makes the optimizer's state
    with marked(model), profile(activities=activities) as profiler:
        step()
        with record_function(MARK + "optimizer"):
            update()
        if on_gpu:
            torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.name != "cudaDeviceSynchronize"]
    forward_parts: dict[int, str] = {}
    for event in events:
        inside_backward = any(one.name.startswith("autograd::engine") for one in ancestors(event))
        if event.sequence_nr >= 0 and not inside_backward:
            forward_parts[event.sequence_nr] = part_of_forward(event)
    totals: dict[str, float] = {}
    for event in events:
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if own > 0:
            part = part_of(event, forward_parts)
            totals[part] = totals.get(part, 0.0) + own / 1e6
    whole = sum(totals.values())
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return {
        "groups": {name: (seconds, seconds / whole) for name, seconds in ordered},
        "operators": profiler.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=44),
    }
