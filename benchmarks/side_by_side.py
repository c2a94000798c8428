"""Several ways to do one thing, run in turn in one process: seconds, operations, and ratios round by round."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from evle.engine.operations import EXTRA_FLOPS
from evle.models.vle.modeling import VLEPreTrainedModel

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def stock_port(model: VLEPreTrainedModel) -> VLEPreTrainedModel:
    """Make `model` a straightforward port: stock DeBERTa attention, and eager attention in both towers and fusion."""
    model.set_attn_implementation("eager")
    for layer in model.base_model.text_model.encoder.layer:
        ours = layer.attention.self
        stock = DisentangledSelfAttention(model.config.text_config).to(ours.query_proj.weight)
        stock.load_state_dict(ours.state_dict())
        layer.attention.self = stock.train(model.training)
    return model


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(ways: dict[str, Callable[[], Any]], rounds: int, peak_size: int) -> dict[str, Any]:
    """Run all `ways` in turn, `rounds` times after one round that warms up and counts operations.

    A way's ratio is its time over that of the first way in the same round; the peak is a square matrix product, before
    every run, in the type that the work runs in.
    """
    flops = {}
    for name, work in ways.items():
        with FlopCounterMode(display=False, custom_mapping=EXTRA_FLOPS) as counter:
            work()
        flops[name] = counter.get_total_flops()
        print(f"{name}: {flops[name] / 1e12:.3f} Tflop", file=sys.stderr)
    left = torch.randn(peak_size, peak_size, device="cuda" if torch.cuda.is_available() else "cpu")
    wall: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1, rounds + 1):
        for name, work in ways.items():
            synchronize()
            start = time.perf_counter()
            left @ left
            synchronize()
            peaks[name].append(2 * peak_size**3 / (time.perf_counter() - start))
            start, start_busy = time.perf_counter(), time.process_time()
            work()
            synchronize()
            wall[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - start_busy)
            print(f"round {turn}: {name} {wall[name][-1]:.2f} s, {busy[name][-1]:.2f} cpu s", file=sys.stderr)
    first = next(iter(ways))
    result: dict[str, Any] = {}
    for name in ways:
        ratios, busy_ratios = (
            [own / base for own, base in zip(times[name], times[first], strict=True)] for times in (wall, busy)
        )
        result[name] = {
            "seconds": median(wall[name]),
            "processor_seconds": median(busy[name]),
            "flops": flops[name],
            "share_of_peak": median(
                flops[name] / own / near for own, near in zip(wall[name], peaks[name], strict=True)
            ),
            "ratio": median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "processor_ratio": median(busy_ratios),
            "flops_ratio": flops[name] / flops[first],
        }
    return result


def table(result: dict[str, Any]) -> Iterator[str]:
    width = max(len(name) for name in result)
    yield (
        f"{'':<{width}} {'seconds':>8} {'cpu s':>8} {'Tflop':>7} {'of peak':>8} {'ratio (spread)':>18} {'in cpu s':>9} "
        f"{'in flops':>9}"
    )
    for name, row in result.items():
        ratio = f"{row['ratio']:.2f} ({row['ratio_range'][0]:.2f}-{row['ratio_range'][1]:.2f})"
        yield (
            f"{name:<{width}} {row['seconds']:8.3f} {row['processor_seconds']:8.3f} {row['flops'] / 1e12:7.3f} "
            f"{row['share_of_peak']:8.1%} {ratio:>18} {row['processor_ratio']:9.2f} {row['flops_ratio']:9.2f}"
        )


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every comparison has."""
    parser.add_argument("--preset", default="vle-base", help="the model's sizes (default: vle-base)")
    parser.add_argument("--rounds", type=int, default=5, help="times each way runs (default: 5)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="plain fp32, or autocast to bf16")
    parser.add_argument("--peak-size", type=int, default=2048, help="side of the matrix product that measures the peak")
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")


def autocast(dtype: str) -> AbstractContextManager[Any]:
    if dtype == "fp32":
        return nullcontext()
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", dtype=DTYPES[dtype])


def machine() -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "torch": torch.__version__,
    }


def show(report: dict[str, Any], json_file: Path | None) -> None:
    """Print what was run on what, then a table for each comparison, and write all of it to `json_file`."""
    for name, value in report.items():
        if name != "compared":
            print(f"{name}: {value}")
    for name, result in report["compared"].items():
        print(f"\n{name}")
        print(*table(result), sep="\n", flush=True)
    if json_file:
        json_file.write_text(json.dumps(report, indent=1), encoding="utf-8")
