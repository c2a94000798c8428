"""What a step of masked-signal pre-training (mlm + mim) costs beside contrast and matching, on one EVE model.

The paper's hours an epoch on 8 A100, each at the largest batch a GPU holds (EVE, table 1): mlm+mim 2.14, mlm+itc+mim
3.26, mlm+itc+itm 6.88, all four 7.73; here the same four sets of objectives run in turn on one and the same model at
one batch. Printed: seconds, ratios pair by pair, the share of the machine's peak, the largest batch that a memory
holds, and where the time of the masked-signal step goes.

    python benchmarks/pretraining_cost.py --batch 8 --rounds 5 --json cost.json
"""

import argparse
import gc
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from evle.engine.operations import EXTRA_FLOPS
from evle.models.eve import EVEConfig, EVEForPreTraining
from pretraining_profile import profile_step

MASKED_SIGNAL = "mlm+mim"
VARIANTS = {
    MASKED_SIGNAL: ("mim", "mlm"),
    "mlm+itc+mim": ("mim", "mlm", "itc"),
    "mlm+itc+itm": ("mlm", "itc", "itm"),
    "all four": ("mim", "mlm", "itc", "itm"),
}
PAPER_HOURS = {MASKED_SIGNAL: 2.14, "mlm+itc+mim": 3.26, "mlm+itc+itm": 6.88, "all four": 7.73}
PAPER_BATCH = {MASKED_SIGNAL: 224, "mlm+itc+mim": 132, "mlm+itc+itm": 80, "all four": 64}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def make_batch(config: EVEConfig, size: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """Noise for images and text, without padding: 75 % of the patches masked, half of the words, all pairs true."""
    generator = torch.Generator().manual_seed(0)
    patches = config.num_patches
    shape = (size, config.num_channels, config.image_size, config.image_size)
    input_ids = torch.randint(5, config.vocab_size, (size, length), generator=generator)
    image_rank = torch.rand(size, patches, generator=generator).argsort(dim=1)
    words = torch.rand(size, length - 2, generator=generator).argsort(dim=1) < (length - 2) / 2  # not [CLS], not [SEP]
    text_mask = torch.nn.functional.pad(words, (1, 1))
    inputs = {
        "pixel_values": torch.randn(shape, generator=generator),
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "image_mask": image_rank < round(0.75 * patches),
        "masked_input_ids": input_ids.masked_fill(text_mask, 3),
        "mlm_labels": input_ids.masked_fill(~text_mask, -100),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


class Bench:
    """One model with the heads of all objectives, its optimizer, and the means to run and measure any variant."""

    def __init__(self, config: EVEConfig, dtype: torch.dtype, device: torch.device):
        torch.manual_seed(0)
        self.device, self.dtype = device, dtype
        self.model = EVEForPreTraining(config).to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)

    @contextmanager
    def objectives(self, variant: str) -> Iterator[None]:
        """Within it the model minimises only the objectives of `variant`."""
        before = self.model.config.objectives
        self.model.config.objectives = VARIANTS[variant]
        try:
            yield
        finally:
            self.model.config.objectives = before

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        autocast = nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, dtype=self.dtype)
        with autocast:
            return self.model(**inputs).loss

    def step(self, inputs: dict[str, Tensor]) -> None:
        """Forward and backward, into fresh gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        self.forward(inputs).backward()

    def seconds(self, work: Callable[[], Any]) -> float:
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def count_flops(self, inputs: dict[str, Tensor]) -> int:
        """Floating-point operations of the matrix products of a step, counted while it runs."""
        with FlopCounterMode(display=False, custom_mapping=EXTRA_FLOPS) as counter:
            self.step(inputs)
        return counter.get_total_flops()

    def peak(self, size: int) -> Callable[[], float]:
        """A measurement of what one large matrix product reaches in this process and dtype, in operations a second."""
        left, right = (torch.randn(size, size, device=self.device).to(self.dtype) for _ in range(2))
        out = torch.empty_like(left)
        return lambda: 2 * size**3 / self.seconds(lambda: torch.mm(left, right, out=out))

    def saved_bytes(self, inputs: dict[str, Tensor]) -> int:
        """Bytes that a forward keeps for its backward, each storage once, parameters apart."""
        known = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # without its history, which would hold itself alive

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = self.forward(inputs)
        del loss
        return sum(size for address, size in kept.items() if address not in known)

    def allocated_bytes(self, inputs: dict[str, Tensor]) -> int:
        """The most a GPU held during a step, beyond parameters, gradients and optimizer."""
        self.step(inputs)
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.step(inputs)
        return torch.cuda.max_memory_allocated() - held


def measure_update(bench: Bench, rounds: int) -> list[float]:
    """Seconds of an optimizer step, measured apart: its state is given up again, so that the steps have the memory.

    It updates the heads of all objectives, so it is one figure for all variants (they differ in 3 % of the weights).
    """
    for parameter in bench.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    bench.optimizer.step()  # makes the state
    seconds = [bench.seconds(bench.optimizer.step) for _ in range(rounds)]
    bench.optimizer.state.clear()
    bench.optimizer.zero_grad(set_to_none=True)
    return seconds


def measure_time(bench: Bench, inputs: dict[str, Tensor], rounds: int, peak_size: int) -> dict[str, Any]:
    """All variants in turn, `rounds` times: seconds of a step, and the machine's peak beside each."""
    updates = measure_update(bench, rounds)
    update = median(updates)
    print(f"optimizer {update:.2f} s", file=sys.stderr)
    flops = {}
    for variant in VARIANTS:  # the round that warms up
        with bench.objectives(variant):
            flops[variant] = bench.count_flops(inputs)
            print(f"{variant}: {flops[variant] / 1e12:.3f} Tflop a step", file=sys.stderr)
    peak = bench.peak(peak_size)
    peak()
    steps: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    busy: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    peaks: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for turn in range(1, rounds + 1):
        for variant in VARIANTS:
            with bench.objectives(variant):
                peaks[variant].append(peak())
                start = time.process_time()
                steps[variant].append(bench.seconds(lambda: bench.step(inputs)))
                busy[variant].append(time.process_time() - start)
                print(
                    f"round {turn}: {variant} {steps[variant][-1]:.2f} s, {busy[variant][-1]:.2f} cpu s",
                    file=sys.stderr,
                )
    bench.optimizer.zero_grad(set_to_none=True)
    every_peak = [value for values in peaks.values() for value in values]
    result: dict[str, Any] = {
        "best_peak_flops": max(every_peak),
        "median_peak_flops": median(every_peak),
        "optimizer_seconds": update,
        "all_optimizer_seconds": updates,
    }
    base = steps[MASKED_SIGNAL]
    for variant in VARIANTS:
        ratios = [step / other for step, other in zip(steps[variant], base, strict=True)]
        whole = [(step + update) / (other + update) for step, other in zip(steps[variant], base, strict=True)]
        busy_ratios = [step / other for step, other in zip(busy[variant], busy[MASKED_SIGNAL], strict=True)]
        shares = [flops[variant] / step / near for step, near in zip(steps[variant], peaks[variant], strict=True)]
        result[variant] = {
            "step_seconds": median(steps[variant]),
            "processor_seconds": median(busy[variant]),
            "flops": flops[variant],
            "share_of_peak": median(shares),
            "ratio": median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "processor_ratio": median(busy_ratios),
            "ratio_with_optimizer": median(whole),
            "ratio_with_optimizer_range": [min(whole), max(whole)],
            "flops_ratio": flops[variant] / flops[MASKED_SIGNAL],
            "paper_ratio": PAPER_HOURS[variant] / PAPER_HOURS[MASKED_SIGNAL],
            "all_step_seconds": steps[variant],
            "all_processor_seconds": busy[variant],
        }
    return result


def measure_memory(bench: Bench, batch_of: Callable[[int], dict[str, Tensor]], memory: float) -> dict[str, Any]:
    """Bytes that do not depend on the batch and bytes per sample, from two batch sizes, and what batch `memory` holds.

    On a CPU the activations kept for the backward pass are counted exactly, with the kernels a GPU would use (fused
    attention, grouped experts); what lives only inside an operator is not in it. On a GPU the allocator is asked.
    Fixed: 16 bytes a parameter (weight, gradient, two moments, in float32) and the weights' copies in bfloat16.
    """
    counted = bench.allocated_bytes if bench.device.type == "cuda" else bench.saved_bytes
    attention, experts = bench.model.config._attn_implementation, bench.model.config._experts_implementation
    bench.model.set_attn_implementation("sdpa")
    bench.model.set_experts_implementation("grouped_mm")
    parameters = sum(parameter.numel() for parameter in bench.model.parameters())
    result: dict[str, Any] = {"memory": memory, "parameters": parameters}
    for variant in VARIANTS:
        with bench.objectives(variant):
            gc.collect()
            small, large = counted(batch_of(2)), counted(batch_of(4))
        sample = (large - small) / 2
        fixed = 16 * parameters + small - 2 * sample
        result[variant] = {
            "fixed_bytes": fixed,
            "sample_bytes": sample,
            "largest_batch": max(0, int((memory - fixed) // sample)),
            "paper_batch": PAPER_BATCH[variant],
        }
    bench.model.set_attn_implementation(attention)
    bench.model.set_experts_implementation(experts)
    return result


def parse_memory(text: str) -> float:
    """Bytes of "80GB" (powers of ten) or "80GiB" (powers of two)."""
    match = re.fullmatch(r"([\d.]+)\s*([KMGT])(i?)B?", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no memory size; write 80GB or 24GiB")
    number, unit, binary = match.groups()
    return float(number) * (1024 if binary else 1000) ** ("KMGT".index(unit.upper()) + 1)


def time_table(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{'objectives':<12} {'step s':>8} {'cpu s':>8} {'Tflop':>7} {'of peak':>8} {'ratio (spread)':>18} "
        f"{'in cpu s':>9} {'in flops':>9} {'with optimizer':>18} {'paper':>6}"
    )
    for variant in VARIANTS:
        row = result[variant]
        step, whole = (
            f"{row[key]:.2f} ({row[f'{key}_range'][0]:.2f}-{row[f'{key}_range'][1]:.2f})"
            for key in ("ratio", "ratio_with_optimizer")
        )
        yield (
            f"{variant:<12} {row['step_seconds']:8.3f} {row['processor_seconds']:8.3f} {row['flops'] / 1e12:7.3f} "
            f"{row['share_of_peak']:8.1%} {step:>18} {row['processor_ratio']:9.2f} {row['flops_ratio']:9.2f} "
            f"{whole:>18} {row['paper_ratio']:6.2f}"
        )


def memory_table(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{'objectives':<12} {'fixed GB':>9} {'MB a sample':>12} {'largest batch':>14} {'of mlm+mim':>11} {'paper':>12}"
    )
    base = result[MASKED_SIGNAL]
    for variant in VARIANTS:
        row = result[variant]
        share = row["largest_batch"] / max(1, base["largest_batch"])
        paper = f"{row['paper_batch']} ({row['paper_batch'] / base['paper_batch']:.2f})"
        yield (
            f"{variant:<12} {row['fixed_bytes'] / 1e9:9.2f} {row['sample_bytes'] / 1e6:12.1f} "
            f"{row['largest_batch']:14d} {share:11.2f} {paper:>12}"
        )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="eve-base", help="the model's sizes (default: eve-base)")
    parser.add_argument("--batch", type=int, default=8, help="pairs a step (default: 8)")
    parser.add_argument("--text-length", type=int, default=40, help="tokens per text (default: 40)")
    parser.add_argument("--rounds", type=int, default=5, help="times each variant runs (default: 5)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="autocast to bf16, or plain fp32")
    parser.add_argument("--decoder-layers", type=int, help="depth of the pixel decoder (default: the preset's)")
    parser.add_argument("--attention", help="attention kernel, such as eager or sdpa (default: the model's choice)")
    parser.add_argument("--experts", help="experts kernel: eager, grouped_mm (default: the model's choice)")
    parser.add_argument("--memory", type=parse_memory, default=80e9, help="memory to fill (default: 80GB)")
    parser.add_argument("--peak-size", type=int, default=2048, help="side of the matrix product that measures the peak")
    parser.add_argument(
        "--skip", nargs="*", choices=("time", "memory", "profile"), default=(), help="parts to leave out"
    )
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    return parser


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = build_parser().parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    overrides: dict[str, Any] = {"objectives": VARIANTS["all four"]}
    if options.decoder_layers is not None:
        overrides["decoder_num_layers"] = options.decoder_layers
    bench = Bench(EVEConfig.from_preset(options.preset, **overrides), DTYPES[options.dtype], device)
    if options.attention:
        bench.model.set_attn_implementation(options.attention)
    if options.experts:
        bench.model.set_experts_implementation(options.experts)
    config = bench.model.config
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "torch": torch.__version__,
        "preset": options.preset,
        "image_size": config.image_size,
        "text_length": options.text_length,
        "batch": options.batch,
        "dtype": options.dtype,
        "decoder": [config.decoder_num_layers, config.decoder_hidden_size],
        "attention": config._attn_implementation,
        "experts": config._experts_implementation,
        "parameters": sum(parameter.numel() for parameter in bench.model.parameters()),
    }
    for name, value in report.items():
        print(f"{name}: {value}")

    def keep() -> None:
        """Write what is measured so far, so that an interrupted run has not been for nothing."""
        if options.json:
            options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")

    def batch_of(size: int) -> dict[str, Tensor]:
        return make_batch(config, size, options.text_length, device)

    if "memory" not in options.skip:
        report["memory"] = measure_memory(bench, batch_of, options.memory)
        print(f"\nLargest batch in {options.memory / 1e9:.0f} GB")
        print(*memory_table(report["memory"]), sep="\n", flush=True)
        keep()
    inputs = batch_of(options.batch)
    if "time" not in options.skip:
        report["time"] = measure_time(bench, inputs, options.rounds, options.peak_size)
        rates = (report["time"][name] / 1e9 for name in ("median_peak_flops", "best_peak_flops"))
        print(f"\nA step (forward, backward), median of {options.rounds} rounds; load average {os.getloadavg()[0]:.1f}")
        print("machine's peak: {:.0f} Gflop/s in the median, {:.0f} at best; ".format(*rates), end="")
        print(f"an optimizer step: {report['time']['optimizer_seconds']:.3f} s")
        print(*time_table(report["time"]), sep="\n", flush=True)
        keep()
    if "profile" not in options.skip:
        with bench.objectives(MASKED_SIGNAL):
            report["profile"] = profile_step(bench.model, lambda: bench.step(inputs), bench.optimizer.step)
        print(f"\nWhere a step of {MASKED_SIGNAL} and its update spend their time")
        for name, (seconds, share) in report["profile"]["groups"].items():
            print(f"{name:<32} {seconds:8.3f} s {share:7.1%}")
        print("\n" + report["profile"]["operators"])
    keep()
    return report


if __name__ == "__main__":
    main()
