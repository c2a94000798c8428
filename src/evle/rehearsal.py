"""A run tried out without writing anything: is everything there, does it fit, how long will it take (`--dry-run`)?"""

import math
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from evle.engine.trainer import TrainConfig, join_processes
from evle.errors import ConfigError, EvleError
from evle.initialization import starting_config
from evle.recipe import RunConfig, prepare, task_class
from evle.splits import SPLITS, read_split
from evle.tasks.sweep import autocast

NUM_BATCHES = 2
ADAM_BYTES = 16  # a parameter in float32: itself, its gradient, two moments


def rehearse(config: RunConfig) -> list[str]:
    """Build all that a run needs, take two batches forward and backward, and say what was found, a line each.

    Raises:
        ConfigError: what is missing, all of it at once.
    """
    device = join_processes()
    reads = task_class(config).reads
    missing = []
    needs: list[Callable[[], Any]] = [partial(starting_config, config.model)]
    needs += [partial(read_split, config.data, split, reads) for split in SPLITS]
    for need in needs:
        try:
            need()
        except EvleError as error:
            missing.append(str(error))
    if missing:
        raise ConfigError("; ".join(dict.fromkeys(missing)))
    ready = prepare(config)
    model = torch.nn.Module.to(ready.loaded.model, device).train()
    if ready.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    before = _peak_bytes(device)
    seconds = []
    losses: dict[str, float] = {}
    for _, batch in zip(range(NUM_BATCHES), ready.loader.batches(epoch=0), strict=False):
        start = time.perf_counter()
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with autocast(model, ready.train.precision):
            output = model(**batch)
        output.loss.backward()
        losses = {name: float(loss.detach()) for name, loss in output.losses.items()}
        model.zero_grad()
        seconds.append(time.perf_counter() - start)
    if not all(math.isfinite(loss) for loss in losses.values()):
        raise ConfigError(f"a loss of the first batches is not finite: {losses}")
    activations = max(0, _peak_bytes(device) - before)

    steps = ready.train.num_steps(ready.loader.num_batches)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    minutes = steps * ready.train.accumulation * min(seconds) / 60
    return [
        *(f"{split}: {len(samples)} samples" for split, samples in ready.samples.items()),
        f"model: {type(model).__name__}, {num_parameters / 1e6:.1f} M parameters, {ready.loaded.origin}",
        *ready.notes[1:],
        f"pictures: {ready.task.image_size} x {ready.task.image_size}; tokens: {len(ready.task.processor.tokenizer)}",
        f"steps: {steps} of {ready.train.batch_size} samples{_epochs(ready.train, ready.loader.num_batches)}",
        f"memory: about {num_parameters * ADAM_BYTES / 2**30:.2f} GiB for weights, gradients and AdamW, "
        f"about {activations / 2**30:.2f} GiB for a batch",
        f"time: {min(seconds):.2f} s a batch of {ready.train.batch_size // ready.train.accumulation} on {device.type}, "
        f"about {minutes:.0f} minutes in all without evaluations",
        "first losses: " + ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()),
        *(f"skipped: {line}" for line in ready.loader.skipped),
    ]


def _epochs(train: TrainConfig, num_batches: int) -> str:
    if train.epochs is not None:
        return f" ({train.epochs:g} epochs)"
    return f" ({(train.steps or 0) * train.accumulation / num_batches:.1f} epochs)"


def _peak_bytes(device: torch.device) -> int:
    """The largest memory so far, of the GPU or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
