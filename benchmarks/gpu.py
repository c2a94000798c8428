"""What `bash benchmarks/gpu.sh` runs: the same computations on the CPU and on the device, then training steps of
EVE-Base's masked-signal pre-training by `evle.engine`, in every number format and engine. One table, and JSON.

Every step runs in a process of its own (`benchmarks.gpu_step`), so that one that fails is a row of the table.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

HEADER = ("step", "processes", "s a step", "samples/s", "GB a device", "Tflop/s a device", "of a product", "result")


@dataclass(frozen=True)
class Step:
    """One row: what a `benchmarks.gpu_step` does, in how many processes."""

    name: str
    processes: int = 1
    check: str = ""
    precision: str = "bf16"
    compile: bool = False
    gradient_checkpointing: bool = False
    fsdp2: bool = False
    expert_parallel: int = 1


def steps(num_devices: int, device: str) -> list[Step]:
    """What is run on `num_devices` devices of the type `device`."""
    many = max(2, num_devices) if device == "cpu" else num_devices
    found = [
        Step("eve on the device", check="eve"),
        Step("vle on the device", check="vle"),
        Step("fp32", precision="no"),
        Step("bf16"),
        Step("fp16", precision="fp16"),
        Step("checkpointing", gradient_checkpointing=True),
        Step("compile", compile=True),
        Step("fsdp2 on one", fsdp2=True),
    ]
    if many > 1:
        found += [
            Step("ddp", processes=many),
            Step("fsdp2", processes=many, fsdp2=True),
            Step("fsdp2 checkpointing", processes=many, fsdp2=True, gradient_checkpointing=True),
            Step("divided experts", processes=many, expert_parallel=many),
        ]
    return [each for each in found if each.precision != "fp16" or device != "cpu"]  # the engine refuses fp16 on a CPU


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu hides the GPUs")
    parser.add_argument("--small", action="store_true", help="smallest sizes, whose figures mean nothing")
    parser.add_argument("--batch", type=int, help="rows of an optimizer step on one device (default: 64; small: 8)")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps; the first three warm up (default: 8)")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="names of the steps to run")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results")
    return parser


def run_step(step: Step, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a step, or `problem` with the last line that it printed."""
    file = (options.out / f"{step.name.replace(' ', '-')}.json").resolve()
    file.unlink(missing_ok=True)
    task = {**asdict(step), "small": options.small, "batch": options.batch, "steps": options.steps, "file": str(file)}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={step.processes}"]
    by = launcher if step.processes > 1 or step.fsdp2 else []
    environment = dict(os.environ)
    if options.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, *by, "-m", "benchmarks.gpu_step", json.dumps(task)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    log = ran.stdout + ran.stderr
    file.with_suffix(".log").write_text(log, encoding="utf-8")
    if ran.returncode or not file.is_file():
        return {"problem": problem_in(log)}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def problem_in(log: str) -> str:
    """The first line of a log that names an error."""
    lines = [line.strip() for line in log.splitlines()]
    named = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception")) and ": " in line]
    return (named or [*filter(None, lines), "it printed nothing"])[0][:160]


def result_of(found: dict[str, Any], reference: dict[str, Any] | None) -> str:
    """In words whether a step is right: its largest difference, or how far its losses are from those of fp32."""
    if "problem" in found:
        return f"FAILED: {found['problem']}"
    if "differences" in found:
        name, value = max(found["differences"].items(), key=lambda item: item[1])
        return f"differs from the CPU by at most {value:.1e} ({name})"
    if reference is None or reference is found or "losses" not in reference:
        return f"loss {found['losses'][0]:.4f} to {found['losses'][-1]:.4f}"
    far = max(
        abs(ours - theirs) / abs(theirs) for ours, theirs in zip(found["losses"], reference["losses"], strict=True)
    )
    return f"losses within {far:.1e} of fp32"


def table(records: dict[str, dict[str, Any]]) -> str:
    """The table of what was run, by the names of the steps."""
    rows: list[tuple[str, ...]] = [HEADER, tuple("---" for _ in HEADER)]
    for name, found in records.items():
        result = result_of(found, records.get("fp32"))
        if "seconds" not in found:
            rows.append((name, "1", *[""] * 5, result))
            continue
        share = f"{found['flops'] / found['seconds'] / found['peak']:.0%}"
        rate = found["flops"] / found["seconds"] / 1e12
        memory = "" if found["memory"] is None else f"{found['memory'] / 1e9:.2f}"
        seconds, samples = f"{found['seconds']:.3f}", f"{found['samples'] / found['seconds']:,.0f}"
        rows.append((name, str(found["processes"]), seconds, samples, memory, f"{rate:.3g}", share, result))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the steps, write table.md and table.json, and print the table; the number of steps that failed."""
    options = build_parser().parse_args(arguments)
    has_gpu = options.device == "auto" and torch.cuda.is_available()
    if options.device == "auto" and not has_gpu:
        print("no GPU is visible to torch: run with --device cpu --small to try the steps", file=sys.stderr)
        return 1
    device = "cuda" if has_gpu else "cpu"
    options.batch = options.batch or (8 if options.small else 64)
    options.out.mkdir(parents=True, exist_ok=True)
    plan = steps(torch.cuda.device_count() if has_gpu else 1, device)
    if options.only:
        names = [step.name for step in plan]
        if unknown := [name for name in options.only if name not in names]:
            print(f"--only {' '.join(unknown)}: no such step; choose from {', '.join(names)}", file=sys.stderr)
            return 1
        plan = [step for step in plan if step.name in options.only]
    records: dict[str, dict[str, Any]] = {}
    for step in plan:
        print(f"{step.name} ...", file=sys.stderr, flush=True)
        records[step.name] = run_step(step, options)
    names = [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())] if has_gpu else ["cpu"]
    conditions = {"devices": names, "torch": torch.__version__, "batch": options.batch, "small": options.small}
    report = {"conditions": conditions, "records": records}
    (options.out / "table.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    said = f"{len(names)} x {names[0]}, torch {torch.__version__}, {options.batch} rows a device\n\n{table(records)}"
    (options.out / "table.md").write_text(said, encoding="utf-8")
    print(said)
    return sum("problem" in found for found in records.values())


if __name__ == "__main__":
    sys.exit(main())
