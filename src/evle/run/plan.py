"""Plan a training on other machines: what fits, how long it takes, what it needs and costs.

One step is measured here with random weights (`evle.run.measuring`): operations and bytes per row. What the other
machine makes of them is arithmetic:

    time    = operations of all rows / (devices x peak x MFU), plus the exchange of gradients that it cannot hide
    memory  = 16 bytes per parameter (float32 value and gradient, two moments of AdamW), 4 more with averaged weights;
              shared out over the devices with sharding; plus activations of a micro-batch

Measured operations count each product once: what is computed again with gradient checkpointing is not useful work.
"""

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

import torch

from evle.data.samples import Samples
from evle.data.sources import read_source
from evle.engine.devices import join_processes
from evle.engine.train_config import TrainConfig
from evle.errors import ConfigError, EvleError, nearest
from evle.models.attention import only_fused_attention
from evle.run.config import RunConfig, task_class
from evle.run.measuring import (
    FIXED_BYTES,
    GIB,
    HELD_BYTES,
    USABLE,
    Tried,
    activation_bytes,
    free_bytes,
    sample_bytes,
    try_batches,
)
from evle.run.prepare import prepare
from evle.run.splits import read_split
from evle.run.weights import starting_config

GIVEN_MFU = 0.4
FILLED = 0.9
"""Share of a device's memory that a plan uses: allocators and libraries need the rest."""
STAND_IN = 256
"""Samples of drawn scenes that stand in for data that is not here."""
IMAGE_BYTES = 60_000
"""Bytes of an image on disk: CC3M and COCO at the sizes that their downloads keep."""
OVERLAP = 0.8
"""Share of the backward pass behind which gradients travel."""


@dataclass(frozen=True)
class Kind:
    """A device: memory in GiB, peaks in Tflop/s of dense products (bf16 or fp16, and float32 as torch computes it by
    default), GB/s to the other devices of its machine."""

    memory: float
    half: float
    single: float
    link: float


KINDS = {
    "A100-80G": Kind(80, 312, 19.5, 300),
    "A100-40G": Kind(40, 312, 19.5, 300),
    "H100-80G": Kind(80, 989, 67, 450),
    "H200-141G": Kind(141, 989, 67, 450),
    "V100-32G": Kind(32, 125, 15.7, 150),
    "V100-16G": Kind(16, 125, 15.7, 150),
    "L40S-48G": Kind(48, 362, 91.6, 32),
    "A10-24G": Kind(24, 125, 31.2, 32),
    "T4-16G": Kind(16, 65, 8.1, 16),
    "RTX4090-24G": Kind(24, 165, 82.6, 32),
    "RTX3090-24G": Kind(24, 71, 35.6, 32),
}
"""Data sheets of the makers, dense products without sparsity."""
BETWEEN_MACHINES = 25.0
"""GB/s of a machine's network: 200 Gbit/s."""


@dataclass(frozen=True)
class Plan:
    """The plan of one run; bytes unless the name has another unit. `lines` is the table of the command line."""

    recipe: str
    devices: str
    num_devices: int
    parameters: int
    rows: int
    accumulation: int
    batch_size: int
    steps: int
    samples: int
    fixed_bytes: int
    activation_bytes: int
    device_bytes: int
    largest_rows: int
    operations: float
    mfu: float
    step_seconds: float
    exchange_seconds: float
    hours: float
    hours_per_epoch: float | None
    samples_per_second: float
    cores: float
    checkpoint_bytes: int
    read_bytes_per_second: float
    exchange_bytes: float
    cost: float | None
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """One line per fact."""
        cost = [] if self.cost is None else [f"cost: {self.cost:,.0f} for {self.num_devices * self.hours:,.0f} hours"]
        epoch = "" if self.hours_per_epoch is None else f", {self.hours_per_epoch:.3g} per epoch"
        return [
            f"{self.recipe} on {self.devices}: {self.parameters / 1e6:.0f} M parameters",
            f"batch: {self.batch_size} = {self.num_devices} devices x {self.accumulation} micro-batches x {self.rows} "
            f"rows; at most {self.largest_rows} rows fit",
            f"memory of a device: {self.device_bytes / GIB:.1f} GiB: {self.fixed_bytes / GIB:.1f} of weights, "
            f"gradients and moments, {self.activation_bytes / GIB:.1f} of activations",
            f"time: {self.hours:.3g} hours{epoch}; {self.steps:,} steps of {self.step_seconds:.3g} s at an MFU of "
            f"{self.mfu:g}, {self.operations / 1e9:.3g} Gflop per sample",
            f"network: {self.exchange_bytes / 1e9:.2f} GB per step and device; {self.exchange_seconds:.2g} s of it "
            "cannot be hidden",
            f"data: {self.samples_per_second:,.0f} samples/s, {self.read_bytes_per_second / 1e6:.0f} MB/s, about "
            f"{self.cores:.0f} cores like those of this machine",
            f"disk: {self.checkpoint_bytes / GIB:.1f} GiB per checkpoint, of which three are held at most",
            *cost,
            *(f"note: {line}" for line in self.notes),
        ]


def read_devices(text: str) -> tuple[int, str, Kind]:
    """The number and kind of devices that a text such as "8xA100-80G" names. Raises ConfigError.

    >>> read_devices("8xA100-80G")[:2]
    (8, 'A100-80G')
    """
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([\w-]+)", text, re.IGNORECASE)
    name = match[2].upper() if match else ""
    if match is None or name not in KINDS:
        hint = nearest(name, KINDS) if match else f"choose one of: {', '.join(KINDS)}"
        raise ConfigError(f"--devices {text}: no NUMBERxKIND that is known, such as 8xA100-80G; {hint}")
    return int(match[1] or 1), name, KINDS[name]


def plan(
    config: RunConfig,
    devices: str,
    *,
    nodes: int = 1,
    mfu: float = GIVEN_MFU,
    price: float | None = None,
    sharded: bool = False,
    samples: int | None = None,
) -> Plan:
    """Plan a run on `nodes` machines with `devices` each, such as "8xA100-80G".

    `mfu` is the share of the devices' peak that training reaches; `price` is that of one device for an hour; `sharded`
    divides weights, gradients and moments over all devices (FSDP2); `samples` is the length of an epoch, where the data
    is not here. Raises ConfigError for devices on which nothing fits, and where this machine cannot measure a step.
    """
    number, name, kind = read_devices(devices)
    number *= nodes
    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu {mfu:g}: must be above 0 and at most 1; large models reach 0.3 to 0.5")
    config.train.model_copy(update={"accumulation": 1}).micro_batch_size(number)  # refuses what cannot be split
    notes: list[str] = []
    measured, length = _with_samples(config, notes)
    length = samples or length
    tried, parameters, trained = _measure(measured)
    share = number if sharded else 1
    ema = 4 if config.train.ema else 0
    fixed = (4 * (parameters - trained) + (FIXED_BYTES + ema) * trained) / share
    if sharded:
        fixed += 8 * parameters / max(1, _layers(measured))  # the parameters of one layer and of the next are whole
    usable = FILLED * kind.memory * GIB
    per_device = config.train.batch_size // number
    rows = _fitting_rows(tried, per_device, fixed, usable, name)
    largest = math.floor((usable - fixed - tried[-1].weight_peak) / max(1.0, sample_bytes(tried)))
    if rows != config.train.micro_batch_size(number):
        notes.append(f"set train.accumulation={per_device // rows} (the recipe has {config.train.accumulation})")
    last = tried[-1]
    operations = last.operations / last.rows
    peak = 1e12 * (kind.half if config.train.precision in ("bf16", "fp16", "auto") else kind.single)
    computing = operations * per_device / (peak * mfu)
    sent = 2 * (number - 1) / number * 4 * trained * (1.5 if sharded else 1.0)
    link = 1e9 * (kind.link if nodes == 1 else min(kind.link, BETWEEN_MACHINES))
    exchange = max(0.0, sent / link - OVERLAP * computing * 2 / 3) if number > 1 else 0.0
    seconds = computing + exchange
    steps = _num_steps(config.train, length, operations)
    hours = steps * seconds / 3600
    rate = config.train.batch_size / seconds
    return Plan(
        recipe=config.title or str(config.task["name"]),
        devices=f"{nodes} x {devices}" if nodes > 1 else devices,
        num_devices=number,
        parameters=parameters,
        rows=rows,
        accumulation=per_device // rows,
        batch_size=config.train.batch_size,
        steps=steps,
        samples=length or 0,
        fixed_bytes=round(fixed),
        activation_bytes=round(activation_bytes(tried, rows)),
        device_bytes=round(fixed + activation_bytes(tried, rows)),
        largest_rows=largest,
        operations=operations,
        mfu=mfu,
        step_seconds=seconds,
        exchange_seconds=exchange,
        hours=hours,
        hours_per_epoch=None if length is None else length / config.train.batch_size * seconds / 3600,
        samples_per_second=rate,
        cores=rate * last.read_seconds / last.rows,
        checkpoint_bytes=round(4 * parameters + (8 + ema) * trained),
        read_bytes_per_second=rate * IMAGE_BYTES,
        exchange_bytes=sent,
        cost=None if price is None else hours * number * price,
        notes=notes,
    )


def _num_steps(train: TrainConfig, length: int | None, operations: float) -> int:
    """The optimizer steps of a run on `length` samples, each of so many operations."""
    if train.steps is not None:
        return train.steps
    if train.teraflops is not None:
        return max(1, round(train.teraflops * 1e12 / (operations * train.batch_size)))
    if length is None:
        raise ConfigError("the recipe counts epochs, and its data is not here: give the samples with --samples")
    return max(1, round((train.epochs or 0) * length / train.batch_size))


def _fitting_rows(tried: list[Tried], per_device: int, fixed: float, usable: float, name: str) -> int:
    """The largest micro-batch that fits and divides a device's part of the batch. Raises ConfigError for none."""
    fitting = [rows for rows in _divisors(per_device) if fixed + activation_bytes(tried, rows) <= usable]
    if fitting:
        return max(fitting)
    needed = (fixed + activation_bytes(tried, 1)) / GIB
    raise ConfigError(
        f"{name}: one row needs {needed:.1f} GiB, {usable / GIB:.1f} of {KINDS[name].memory:.0f} GiB are usable; set "
        "train.gradient_checkpointing=true, shard the weights with --sharded, or take larger devices"
    )


def _layers(config: RunConfig) -> int:
    return int(getattr(starting_config(config.model), "num_hidden_layers", 1))


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _with_samples(config: RunConfig, notes: list[str]) -> tuple[RunConfig, int | None]:
    """The run with its own training data, or with stand-ins where that is not here; and its number of samples."""
    reads = task_class(config).reads
    model = config.model.model_copy(update={"init": None, "vision": None, "text": None, "lora": None})
    overrides = {"vocab_size": starting_config(model).vocab_size, **model.overrides}
    model = model.model_copy(update={"overrides": overrides})
    alone = {"val": None, "test": None}
    plain: dict[str, Any] = {"model": model, "tokenizer": config.tokenizer.model_copy(update={"path": None})}
    try:
        samples: Samples | None = read_split(config.data, "train", reads)
    except EvleError:
        samples = None
    if samples is not None:
        data = config.data.model_copy(update=alone)
        return config.model_copy(update={**plain, "data": data}), len(samples)
    try:
        read_source("scenes", {"task": reads, "count": 2})
    except EvleError:
        raise ConfigError(f"the plan measures a few samples of the kind {reads}: set data.path to some") from None
    notes.append("the data is not here; drawn scenes stand in, so reading and the length of texts are not the recipe's")
    data = config.data.model_copy(
        update={**alone, "path": None, "train": {"source": "scenes", "count": STAND_IN, "size": 128}}
    )
    return config.model_copy(update={**plain, "data": data}), None


def _measure(config: RunConfig) -> tuple[list[Tried], int, int]:
    """A small and a larger batch here, parameters, and those that are trained."""
    device = join_processes()
    train = config.train.model_copy(
        update={"accumulation": 1, "batch_size": 4, "precision": _precision(config, device)}
    )
    ready = prepare(config.model_copy(update={"train": train}))
    model = ready.loaded.model
    parameters = sum(each.numel() for each in model.parameters())
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    free = free_bytes(device)
    if parameters * HELD_BYTES > USABLE * free:
        raise ConfigError(
            f"a step is measured here first, for which {parameters * HELD_BYTES / GIB:.1f} GiB are needed and "
            f"{USABLE * free / GIB:.1f} usable; plan on a machine with more memory"
        )
    with only_fused_attention():
        tried = try_batches(ready, config, torch.nn.Module.to(model, device), [])
    return tried, parameters, trained


def _precision(config: RunConfig, device: torch.device) -> str:
    return "bf16" if config.train.precision in ("fp16", "auto") and device.type == "cpu" else config.train.precision
