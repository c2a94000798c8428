"""Measure one training step of a prepared run on this machine: memory, time, operations and losses of a few batches.

Dry runs and plans read these measurements. Memory is counted in one pass, and time is taken in others, because counting
slows a small model down several times.
"""

import math
import mmap
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from evle.data.loader import Loader
from evle.distributed import world_size
from evle.engine.cached_contrast import CachedContrast
from evle.engine.devices import checkpoint_activations
from evle.engine.operations import EXTRA_FLOPS
from evle.engine.optim import OptimConfig, build_optimizer
from evle.engine.train_config import TrainConfig
from evle.errors import ConfigError
from evle.run.config import RunConfig
from evle.run.prepare import Prepared
from evle.tasks.predict import autocast
from evle.tasks.task import Batch

FIRST_ROWS = 2  # of the first batch; matching needs a second pair for its negatives
PATIENCE = 30.0  # seconds that the second batch may take
REPEATS = 3  # steps that are timed; the median counts
SECONDS = 5.0  # no step is repeated after this time
FIXED_BYTES = 16  # per parameter in float32: its value, its gradient, AdamW's two moments
HELD_BYTES = 8  # of these, a measurement allocates the value and the gradient
USABLE = 0.7  # share of the free memory that a measurement may use
OVERHEAD = 25e-6  # seconds per parameter of an optimizer's step, beside its elements
SMALLEST_WEIGHT = 2**16  # elements; a smaller tensor is never recognised as a weight by its size
GIB = 2**30


@dataclass(frozen=True)
class Tried:
    """One batch: rows, seconds to read it and to compute it (forward and backward), seconds of an optimizer's step,
    floating-point operations, peak bytes (those that grow with its rows, and those of tensors as large as a weight),
    tokens per row, and losses."""

    rows: int
    read_seconds: float
    seconds: float
    optimizer_seconds: float
    operations: int
    peak: int
    weight_peak: int
    image_tokens: float
    text_tokens: float
    losses: dict[str, float]


def sample_bytes(tried: Sequence[Tried]) -> float:
    """Bytes of activations of one more row, from a small and a larger batch."""
    first, last = tried[0], tried[-1]
    if last.rows > first.rows:
        return max(0.0, (last.peak - first.peak) / (last.rows - first.rows))
    return last.peak / last.rows


def activation_bytes(tried: Sequence[Tried], rows: int) -> float:
    """Bytes beside weights, gradients and moments at the peak of a step on `rows` rows."""
    last = tried[-1]
    return max(0.0, last.peak + sample_bytes(tried) * (rows - last.rows)) + last.weight_peak


def micro_batch_seconds(tried: Sequence[Tried], rows: int) -> float:
    """Seconds of forward and backward on `rows` rows: of a batch as a whole, and of each further row.

    In a small model most of a small batch's time does not grow with its rows.
    """
    first, last = tried[0], tried[-1]
    per_row = last.seconds / last.rows
    if last.rows > first.rows:
        per_row = min(per_row, max(0.0, (last.seconds - first.seconds) / (last.rows - first.rows)))
    return last.seconds + per_row * (rows - last.rows)


def step_seconds(tried: Sequence[Tried], train: TrainConfig, rows: int, busy: int, cpus: int) -> float:
    """Seconds of one optimizer step of micro-batches of `rows` rows, with reading.

    Data workers read while the model computes, as far as CPUs are free: `cpus` can be used, and the computation keeps
    `busy` of them occupied.
    """
    last = tried[-1]
    computing = train.accumulation * micro_batch_seconds(tried, rows) + last.optimizer_seconds
    reading = train.accumulation * rows * last.read_seconds / last.rows
    if not train.num_workers:
        return computing + reading
    return max(computing, reading / train.num_workers, (min(busy, cpus) * computing + reading) / cpus)


def try_batches(ready: Prepared, config: RunConfig, model: PreTrainedModel, skipped: list[str]) -> list[Tried]:
    """Try a batch of `FIRST_ROWS`, then a whole micro-batch, or as much of it as is quick and fits (at least twice the
    first)."""
    train = ready.train
    micro = train.micro_batch_size(world_size())
    model.train()
    if train.gradient_checkpointing:
        checkpoint_activations(model, True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    first = _try_rows(ready, config, model, min(FIRST_ROWS, micro), skipped)
    rows = second_rows(first, micro, free_bytes(model.device))
    return [first, _try_rows(ready, config, model, rows, skipped, with_optimizer=True)]


def second_rows(first: Tried, micro: int, free: int) -> int:
    """The rows of the second batch: `micro`, or as many as PATIENCE and the share USABLE of `free` bytes are enough
    for, if each row costs as much as one of the first batch; at least twice the first."""
    quick = PATIENCE / (first.seconds + first.read_seconds)
    fits = (USABLE * free - first.weight_peak) / max(1, first.peak)
    return min(micro, max(2 * first.rows, int(first.rows * min(quick, fits))))


def _try_rows(
    ready: Prepared,
    config: RunConfig,
    model: PreTrainedModel,
    rows: int,
    skipped: list[str],
    with_optimizer: bool = False,
) -> Tried:
    loader = Loader(
        ready.samples["train"],
        partial(ready.task.features, train=True),
        ready.task.collate_raw,
        batch_size=rows,
        seed=config.seed,
    )
    start = time.perf_counter()
    batch = next(iter(loader.batches(epoch=0)))
    read_seconds = time.perf_counter() - start
    skipped += [line for line in loader.skipped if line not in skipped]
    batch = ready.task.on_device(batch, model.device)
    precision = ready.train.precision

    def step() -> dict[str, torch.Tensor]:
        with autocast(model, precision):
            output = model(**batch)
        output.loss.backward()
        return output.losses  # type: ignore[no-any-return]

    with _peak_bytes(model, batch) as peaks, FlopCounterMode(display=False, custom_mapping=EXTRA_FLOPS) as counter:
        losses = {name: float(loss.detach()) for name, loss in step().items()}
    if not all(math.isfinite(loss) for loss in losses.values()):
        raise ConfigError(f"a loss of the first batches is not finite: {losses}")
    peak, weight_peak = peaks()

    def whole_step() -> None:
        cached = CachedContrast(model, ready.train.accumulation)
        if cached.heads:  # a pass before it records the embeddings
            with torch.no_grad(), cached.recording(), autocast(model, precision):
                model(**batch)
        step()

    seconds = _timed(whole_step, model.device)
    pixels, text = batch["pixel_values"].shape, batch["attention_mask"]
    images = math.prod(pixels[:-3]) / pixels[0]
    patches = (pixels[-1] // model.config.patch_size) * (pixels[-2] // model.config.patch_size)
    return Tried(
        rows=pixels[0],
        read_seconds=read_seconds,
        seconds=seconds,
        optimizer_seconds=_optimizer_seconds(model, config.optim) if with_optimizer else 0.0,
        operations=counter.get_total_flops(),
        peak=peak,
        weight_peak=weight_peak,
        image_tokens=images * (patches + 1),
        text_tokens=float(text.sum()) / pixels[0],
        losses=losses,
    )


def _timed(step: Callable[[], Any], device: torch.device) -> float:
    """The median of a few steps' seconds; of one step where it takes long."""
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < SECONDS:
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def _optimizer_seconds(model: PreTrainedModel, optim: OptimConfig) -> float:
    """Seconds of one step of the run's optimizer and of the norm of the gradients; the weights stay as they are.

    Where the moments do not fit, AdamW is timed on the largest weight and scaled to all.
    """
    trained: list[torch.Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sizes = [parameter.numel() for parameter in trained]
    share, fused = 1.0, model.device.type in ("cpu", "cuda")
    if sum(sizes) * (FIXED_BYTES - HELD_BYTES) <= USABLE * free_bytes(model.device):
        optimizer = build_optimizer(model, optim, fused=fused)
    else:
        largest = max(trained, key=lambda each: each.numel())
        weight = largest.detach().clone().requires_grad_()
        weight.grad = torch.zeros_like(weight)
        optimizer, trained, share = torch.optim.AdamW([weight], fused=fused), [weight], sum(sizes) / weight.numel()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()  # its first step creates the moments

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    seconds = _timed(step, model.device)
    return seconds if share == 1.0 else seconds * share + OVERHEAD * len(sizes)


def free_bytes(device: torch.device) -> int:
    """Free memory of the GPU, or available memory of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return 2**63  # unknown on this system: try anyway
    amounts = dict(line.split(":") for line in meminfo.read_text(encoding="utf-8").splitlines())
    return int(amounts["MemAvailable"].split()[0]) * 1024


def process_bytes() -> int:
    """Memory that this process occupies; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE if statm.is_file() else 0


@contextmanager
def _peak_bytes(model: PreTrainedModel, batch: Batch) -> Iterator[Callable[[], tuple[int, int]]]:
    """Yields a function that returns the peak bytes within the context, without the model, its gradients and the batch.

    It returns two numbers: bytes that grow with the batch, and bytes of tensors as large as a weight. On a GPU they are
    not distinguished, and the first number counts all."""
    if model.device.type == "cuda":
        before = torch.cuda.memory_allocated(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        yield lambda: (torch.cuda.max_memory_allocated(model.device) - before, 0)
        return
    parameters = list(model.parameters())
    gradients = [each.grad for each in parameters if each.grad is not None]
    with TensorBytes([*parameters, *gradients, *model.buffers(), *batch.values()], parameters) as counted:
        yield lambda: (counted.peak, counted.weight_peak)


class TensorBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operators create within it, and the `peak` of those alive at once.

    Tensors with the same number of elements as one of `weights` (their gradients, copies in another precision) are
    counted separately, in `weight_peak`, because they do not grow with the batch. Tensors that share memory count once,
    and those in `known` do not count. Memory that is used only inside an operator is not seen.
    """

    def __init__(self, known: Sequence[torch.Tensor] = (), weights: Iterable[torch.Tensor] = ()):
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.weight_peak = 0
        self._alive = {False: 0, True: 0}
        self._seen: dict[int, tuple[bool, int]] = {}
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        sizes = {size for each in weights for size in (each.numel(), each[0].numel() if each.ndim > 2 else 0)}
        self._weight_sizes = {size for size in sizes if size >= SMALLEST_WEIGHT}

    @property
    def alive(self) -> int:
        """Bytes alive now, without tensors as large as a weight."""
        return self._alive[False]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self._count(each)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._seen or storage.data_ptr() in self._known:
            return
        size, of_weights = storage.nbytes(), tensor.numel() in self._weight_sizes
        self._seen[id(storage)] = (of_weights, size)
        self._alive[of_weights] += size
        self.peak = max(self.peak, self._alive[False])
        self.weight_peak = max(self.weight_peak, self._alive[True])
        weakref.finalize(storage, self._forget, id(storage))

    def _forget(self, identity: int) -> None:
        of_weights, size = self._seen.pop(identity)
        self._alive[of_weights] -= size
