"""One step of `benchmarks.gpu`, in this process or in those that torchrun started; the first one writes the figures."""

import copy
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import DistributedType, PartialState
from torch import Tensor, nn

from benchmarks import eve_batches, vle_batches
from benchmarks.case import Setting, relative_difference
from benchmarks.measuring import count_flops
from evle.distributed import gather_objects, is_main, rank, world_size
from evle.engine.devices import join_processes
from evle.engine.optim import OptimConfig
from evle.engine.run_folder import Run, read_log
from evle.engine.train_config import TrainConfig
from evle.engine.trainer import fit
from evle.models.eve import EVEForPreTraining, EVEForVQA
from evle.models.vle import VLEForVQA
from evle.precision import resolve_precision

WARM_UP = 3
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check(family: str, setting: Setting, device: torch.device) -> dict[str, Any]:
    """The largest relative differences between float32 on the CPU and on the device: outputs, loss, gradients."""
    torch.manual_seed(0)
    model: Any
    if family == "eve":
        config = eve_batches.eve_config(setting, 224, num_labels=10)
        model, inputs = EVEForVQA(config), eve_batches.pairs(config, 2)
    else:
        config = vle_batches.vle_config(setting, num_labels=10)
        model, inputs = VLEForVQA(config), vle_batches.pairs(config, 2, 20)
    inputs["labels"] = torch.eye(2, 10)
    found = [_computed(copy.deepcopy(model), inputs, each) for each in (torch.device("cpu"), device)]
    differences = {name: relative_difference(found[1][name], value) for name, value in found[0].items()}
    return {"differences": differences}


def _computed(model: nn.Module, inputs: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    model.to(device).eval()
    outputs = model(**{name: value.to(device) for name, value in inputs.items()})
    outputs.loss.backward()
    gradients = {f"gradient of {name}": each.grad for name, each in model.named_parameters() if each.grad is not None}
    found = {"logits": outputs.logits, "loss": outputs.loss, **gradients}
    return {name: value.detach().cpu() for name, value in found.items()}


class Repeated:
    """A loader of one batch, cut evenly over processes, which notes when it is asked for the next one."""

    def __init__(self, batch: dict[str, Tensor], num_batches: int):
        own = {name: value[rank() :: world_size()].contiguous() for name, value in batch.items()}
        self.batch = {name: value.pin_memory() for name, value in own.items()} if torch.cuda.is_available() else own
        self.num_batches = num_batches
        self.skipped: list[str] = []
        self.times: list[float] = []

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        for batch in itertools.repeat(self.batch, self.num_batches - start):
            self.times.append(time.perf_counter())
            yield batch

    def seconds(self) -> float:
        """The median time of a step, without those that warm up; on a GPU a step is read one step late."""
        gaps = [after - before for before, after in itertools.pairwise(self.times)]
        return median(gaps[WARM_UP:])


def train(task: dict[str, Any], setting: Setting, device: torch.device) -> dict[str, Any]:
    """A few optimizer steps of masked-signal pre-training by the engine."""
    torch.manual_seed(0)
    copies = 1 if task["small"] else world_size()
    rows = task["batch"] * copies
    config = eve_batches.eve_config(setting, 224, objectives=("mim", "mlm"), router_aux_loss_coef=0.0)
    model: Any = EVEForPreTraining(config)
    # Every process has the same rows, so that the losses are those of one process, whatever their number.
    batch = {
        name: each.repeat_interleave(copies, 0)
        for name, each in eve_batches.masked_pairs(config, task["batch"]).items()
    }
    loader: Any = Repeated(batch, task["steps"])
    flops = _flops(model, loader.batch, device)
    peak = measured_peak(device, DTYPES[task["precision"]], 256 if task["small"] else 8192)
    options = {"precision": task["precision"], "compile": task["compile"], "expert_parallel": task["expert_parallel"]}
    settings = TrainConfig(
        steps=task["steps"],
        batch_size=rows,
        log_every=1,
        save_every=0,
        eval_every=0,
        keep="last",
        gradient_checkpointing=task["gradient_checkpointing"],
        **options,
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    optim = OptimConfig(lr=1e-4, warmup=0)
    stand_in: Any = SimpleNamespace(processor=_Nothing(), metric="", higher_is_better=True, on_device=_moved)
    folder = Path(gather_objects([tempfile.mkdtemp(prefix="evle-gpu-") if is_main() else ""])[0])
    run = Run.start(folder / "run", {"train": settings.model_dump(mode="json")}, seed=0)
    fit(model, stand_in, loader, train=settings, optim=optim, run=run, seed=0, write_model=lambda *_: None)
    return {
        "seconds": max(gather_objects([loader.seconds()])),
        "samples": rows,
        "processes": world_size(),
        "memory": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "flops": flops,
        "peak": peak,
        "losses": [value for _, value in read_log(folder / "run")["loss"]],
    }


def _moved(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


class _OneToken:
    def __len__(self) -> int:
        return 1

    def convert_ids_to_tokens(self, numbers: list[int]) -> list[str]:
        return ["[PAD]"] * len(numbers)


class _Nothing:
    tokenizer = _OneToken()

    def save_pretrained(self, folder: Path) -> None:
        """The model folder of this run is not kept."""


def _flops(model: nn.Module, batch: dict[str, Tensor], device: torch.device) -> int:
    """Operations of a step of this process: those of two rows, times its rows (they grow in proportion)."""
    two = {name: value[:2].to(device) for name, value in batch.items()}
    model.to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision("auto", device) == "bf16"):
            loss = model(**two).loss
        loss.backward()

    counted = count_flops(step)
    model.zero_grad(set_to_none=True)
    model.to("cpu")
    return counted * len(next(iter(batch.values()))) // 2


def measured_peak(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """The operations per second of a square matrix product, the best of ten."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def join(fsdp2: bool) -> torch.device:
    """Join the processes that torchrun started, and let the engine shard by FSDP2 if it is to."""
    if fsdp2:
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_RESHARD_AFTER_FORWARD="true")
        os.environ.update(FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP")
        if not torch.cuda.is_available():
            dist.init_process_group("gloo")
            join_processes()
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU  # it shards on accelerators only
    return join_processes()


def main() -> None:
    task = json.loads(sys.argv[1])
    device = join(task["fsdp2"])
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    setting = Setting(quick=task["small"], exact=True)
    found = check(task["check"], setting, device) if task["check"] else train(task, setting, device)
    if is_main():
        Path(task["file"]).write_text(json.dumps(found), encoding="utf-8")
    if dist.is_initialized():
        dist.barrier()
        sys.stdout.flush()
        os._exit(0)  # not through the interpreter's exit, where gloo's threads now and then abort


if __name__ == "__main__":
    main()
