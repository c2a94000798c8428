"""What the chaos tests run in processes that are killed: training runs and index adds of the smallest size."""

import os
import time
from pathlib import Path
from typing import Any

import torch

from evle.engine.devices import join_processes
from evle.engine.lock import locked
from toy_training import make_loader, make_model, train

STEPS = 60


def train_toy(folder: str, options: dict[str, Any], workers: int, rank: int = 0, world_size: int = 1) -> None:
    """Train the toy to its end in `folder`, from where an earlier process stopped."""
    if world_size > 1:
        join_processes()
    rows = 8 // world_size // options.get("accumulation", 1)
    loader = make_loader(rows, 50, rank=rank, world_size=world_size, num_workers=workers)
    model = make_model(dropout=0.3)
    train(model, Path(folder), batch_size=8, loader=loader, steps=STEPS, save_every=2, evaluate=_score, **options)


def _score(model: torch.nn.Module) -> dict[str, float]:
    time.sleep(0.001)
    return {"score": float(sum(parameter.double().sum() for parameter in model.parameters()))}


def run_in_group(rank: int, world_size: int, port: int, *arguments: Any) -> None:
    """`train_toy` as one process of `world_size`, with data workers in the process group of its own."""
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank))
        os.environ.update(WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size))
    train_toy(*arguments, rank=rank, world_size=world_size)
    os._exit(0)


def run_locked(folder: str) -> None:
    """`train_toy` behind the lock that every run of the command line takes."""
    torch.set_num_threads(1)
    with locked(Path(folder)):
        train_toy(folder, {}, 0)
    os._exit(0)


def add_to_index(model: str, photos: str, index: str, flush_rows: int) -> None:
    """Add a folder of images to an index, in shards of `flush_rows`."""
    from evle.search import build_index, store
    from evle.search import index as indexing

    os.setpgid(0, 0)
    torch.set_num_threads(1)
    store.SHARD_ROWS = indexing.FLUSH_ROWS = flush_rows
    build_index(model, photos, index, batch_size=4, num_workers=0, progress=False)
    os._exit(0)
