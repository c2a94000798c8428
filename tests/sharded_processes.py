"""Trainings of the toy that move between one process, DDP and FSDP2; importable by spawned processes."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from evle.engine.devices import join_processes
from evle.engine.trainer import Interrupted
from toy_training import make_loader, make_model, shard_parameters, stop_at, train

TOTAL, STEPS = 8, 9  # rows a step; three steps an epoch


def continue_training(process: int, folder: str, num_processes: int, engine: str, stop: int | None) -> None:
    """Train the run in `folder`, which the first process interrupts while it reads its batch number `stop`."""
    join_processes()
    if engine == "fsdp2":
        shard_parameters()
    loader = make_loader(TOTAL // num_processes, num_samples=24, rank=process, world_size=num_processes)
    if stop is not None and process == 0:
        loader = stop_at(loader, stop)
    options: dict[str, Any] = {"ema": 0.9, "save_every": 2, "keep": "last", "shard_checkpoints": True}
    with suppress(Interrupted):
        train(make_model(), Path(folder), batch_size=TOTAL, loader=loader, steps=STEPS, **options)
        assert stop is None
