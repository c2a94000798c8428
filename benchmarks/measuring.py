"""Measure the ways of one row in turn, in one process: seconds, operations, memory, and the peak of a product.

What is measured is kept in a file after every round, so that an interrupted row continues where it stopped.
"""

import ctypes
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.case import DTYPES, Case, Setting
from evle.engine.operations import EXTRA_FLOPS
from evle.machine import DEFAULT_ALLOCATOR

PEAK_SECONDS = 0.3
"""How long the matrix product that measures the peak is repeated before each run."""


def count_flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products of `work`, counted while it runs."""
    with FlopCounterMode(display=False, custom_mapping=EXTRA_FLOPS) as counter:
        work()
    return counter.get_total_flops()


class Memory:
    """The memory that a piece of work adds to the process, as Linux counts it."""

    def __enter__(self) -> "Memory":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.added = max(0, _status("VmHWM") - self._before)


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


def can_count_memory() -> bool:
    """Whether this system lets a process reset its own peak: Linux with /proc, and glibc."""
    return os.access("/proc/self/clear_refs", os.W_OK) and platform.libc_ver()[0] == "glibc"


class Peak:
    """What one matrix product of a row's shape reaches, in operations a second."""

    def __init__(self, product: tuple[int, int, int], dtype: torch.dtype):
        rows, inner, columns = product
        self.left = torch.randn(rows, inner).to(dtype)
        self.right = torch.randn(columns, inner).to(dtype)
        self.out = torch.empty(rows, columns, dtype=dtype)
        self.flops = 2 * rows * inner * columns

    def measure(self) -> float:
        """In the time that counts in the table (`benchmarks.table.clock`)."""
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        torch.mm(self.left, self.right.T, out=self.out)
        count, start = 0, clock()
        while count == 0 or clock() - start < PEAK_SECONDS:
            torch.mm(self.left, self.right.T, out=self.out)
            count += 1
        return count * self.flops / (clock() - start)


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "allocator": "default" if os.environ.get(DEFAULT_ALLOCATOR) else "freed memory is reused",
    }


def _processor() -> str:
    """The processor's name and the number formats that it multiplies."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        name = next((value.strip() for key, value in fields.items() if key.strip() == "model name"), name)
    abilities = torch.cpu.get_capabilities()
    return " ".join([name, *(each for each in ("avx512_bf16", "amx_bf16") if abilities.get(each))])


def run_row(build: Callable[[Setting], Case], setting: Setting, rounds: int, file: Path) -> dict[str, Any]:
    """Measure a row until it has `rounds` rounds, keeping everything in `file`; rounds that are there stay."""
    record = _read(file, setting)
    if record["rounds"] and len(record["rounds"]) >= rounds:
        return record
    torch.manual_seed(0)
    case = build(setting)
    first = next(iter(case.ways), "")
    record["bases"] = {name: case.base.get(name, first) for name in case.ways}
    record["unit"], record["units"] = case.unit, dict(case.units)
    peak = None if case.product is None else Peak(case.product, DTYPES[setting.dtype])
    record["product"] = None if case.product is None else list(case.product)
    for name, work in case.ways.items():  # the round that warms up
        record["ways"][name] = _count(work)
        _note(file, f"{name}: {record['ways'][name]['flops'] / 1e12:.3f} Tflop")
    if case.facts is not None:
        record["facts"] = case.facts()
    if not case.ways:
        record["rounds"] = [{}]
        _write(file, record)
    while len(record["rounds"]) < rounds:
        measured = {}
        for name, work in case.ways.items():
            rate = None if peak is None else peak.measure()
            start, start_busy = time.perf_counter(), time.process_time()
            work()
            seconds, busy = time.perf_counter() - start, time.process_time() - start_busy
            measured[name] = {"seconds": seconds, "processor_seconds": busy, "peak": rate}
            _note(file, f"round {len(record['rounds']) + 1}: {name} {seconds:.3f} s")
        record["rounds"].append(measured)
        _write(file, record)
    return record


def _count(work: Callable[[], Any]) -> dict[str, Any]:
    """Operations and memory of one call."""
    if not can_count_memory():
        return {"flops": count_flops(work), "memory": None}
    with Memory() as memory:
        flops = count_flops(work)
    return {"flops": flops, "memory": memory.added}


def _read(file: Path, setting: Setting) -> dict[str, Any]:
    """What was measured so far under the same conditions; a fresh record where anything differs."""
    conditions = {**machine(), "dtype": setting.dtype, "quick": setting.quick}
    if file.is_file():
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if record["conditions"] == conditions:
            return record
    return {"conditions": conditions, "ways": {}, "rounds": [], "facts": {}}


def _write(file: Path, record: dict[str, Any]) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1), encoding="utf-8")
    partial.replace(file)


def _note(file: Path, line: str) -> None:
    print(f"{file.stem}: {line}", file=sys.stderr, flush=True)
