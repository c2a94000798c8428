"""Where a row's time goes: torch's profiler over one call of its first way, by operator and by part of the model.

    python -m benchmarks.profile_row masked_signal_8 bf16

A part's forward is marked by hooks; an operator of the backward pass belongs to the part whose forward has its
sequence number.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.case import DTYPES, Setting
from evle.machine import settle
from evle.models.eve.modeling import EVEAttention, EVEImageEmbedding, EVETextEmbedding
from evle.models.eve.pretraining import EVEPixelDecoder
from evle.models.eve.routing import EVEExperts, FeedForward, SoftRouter
from evle.models.vle.fusion import VLEFusionLayer
from evle.models.vle.text import VLETextTower
from evle.models.vle.vision import VLEVisionTower

MARK = "part: "
REST = "rest: residuals, scales, losses, masks"
PARTS: tuple[tuple[type[nn.Module], str], ...] = (
    (EVEPixelDecoder, "pixel decoder"),
    (EVEExperts, "experts"),
    (SoftRouter, "router"),
    (FeedForward, "feed-forward of one modality"),
    (EVEAttention, "attention"),
    (EVEImageEmbedding, "embedding"),
    (EVETextEmbedding, "embedding"),
    (VLETextTower, "text tower"),
    (VLEVisionTower, "image tower"),
    (VLEFusionLayer, "fusion"),
    (nn.LayerNorm, "layer norms"),
)
WHOLE = ("pixel decoder", "text tower", "image tower", "fusion")
"""Parts within which no other part is distinguished."""
PRODUCTS = {"aten::linear", "aten::addmm", "aten::mm"}


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Within it, every part's forward runs under a range of its name."""
    handles = []
    for module in model.modules():
        name = next((name for kind, name in PARTS if isinstance(module, kind)), None)
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
    part = whole or (marks[0] if marks else REST)
    if part == "attention":
        projected = any(one.name in PRODUCTS for one in chain)
        part = "attention: projections" if projected else "attention: softmax and its products"
    return part


def part_of(event: FunctionEvent, forward_parts: dict[int, str]) -> str:
    for one in ancestors(event):
        if one.name.startswith("autograd::engine::evaluate_function: "):
            if "AccumulateGrad" in one.name:
                return "gradients stored"
            return forward_parts.get(one.sequence_nr, REST)
    return part_of_forward(event)


def profile_work(model: nn.Module, work: Callable[[], Any]) -> dict[str, Any]:
    """Profile `work` after one call that warms up: seconds and shares by part, largest first, and torch's table."""
    work()
    with marked(model), profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    events = list(profiler.events())
    forward_parts: dict[int, str] = {}
    for event in events:
        inside_backward = any(one.name.startswith("autograd::engine") for one in ancestors(event))
        if event.sequence_nr >= 0 and not inside_backward:
            forward_parts[event.sequence_nr] = part_of_forward(event)
    totals: dict[str, float] = {}
    for event in events:
        if event.self_cpu_time_total > 0:
            part = part_of(event, forward_parts)
            totals[part] = totals.get(part, 0.0) + event.self_cpu_time_total / 1e6
    whole = sum(totals.values())
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    return {
        "parts": {name: (seconds, seconds / whole) for name, seconds in ordered},
        "operators": profiler.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=44
        ),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row")
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("--quick", action="store_true", help="smallest sizes")
    options = parser.parse_args(arguments)
    settle()
    torch.manual_seed(0)
    case = import_module(f"benchmarks.rows.{options.row}").build(Setting(options.dtype, options.quick))
    name, work = next(iter(case.ways.items()))
    result = profile_work(case.model or nn.Module(), work)
    print(f"{options.row}, {options.dtype}: {name}")
    for part, (seconds, share) in result["parts"].items():
        print(f"{part:<40} {seconds:8.3f} s {share:7.1%}")
    print(result["operators"])
    return result


if __name__ == "__main__":
    main()
