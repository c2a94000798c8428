"""One pass of a model over samples, for evaluation: in batches, over all processes, each sample once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from evle import distributed
from evle.data.loader import Loader, worker_death
from evle.data.samples import made
from evle.errors import DataError
from evle.precision import resolve_precision
from evle.tasks.task import Batch, EvaluationSettings, Features, Task

Keyed = tuple[str, Features]


@dataclass
class Swept:
    """`results[key]` for each sample that could be read, in the order of the samples, and a line for each that could
    not."""

    results: dict[str, Any]
    skipped: list[str]


def sweep(
    model: PreTrainedModel,
    samples: Sequence[Any],
    features: Callable[[Any, np.random.Generator], Features],
    collate: Callable[[list[Features]], Batch],
    predict: Callable[[list[str], Batch], list[Any]],
    settings: EvaluationSettings,
) -> Swept:
    """Call `predict(keys, batch)` on every batch of `samples`, without gradient and in evaluation mode, and gather
    what it returns.

    `predict` gives one picklable result a row. The samples need a unique `key`; randomness in `features` depends on
    it alone. Every process gets all the results. The model goes back to the mode it was in. Raises DataError for two
    samples of one key.
    """
    if not len(samples):
        return Swept({}, [])
    loader = Loader(
        samples,
        partial(_keyed, features),
        partial(_collate, collate),
        batch_size=settings.batch_size,
        seed=0,
        shuffle=False,
        num_workers=settings.num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    found: list[tuple[str, Any]] = []
    was_training = model.training
    model.eval()
    try:
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), autocast(model, settings.precision):
            torch.manual_seed(0)  # hard negatives are drawn by the model, and training must not notice an evaluation
            for keys, batch in loader.batches(epoch=0):
                batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                found += zip(keys, predict(keys, batch), strict=True)
    except RuntimeError as error:
        raise worker_death(error) or error from None
    finally:
        model.train(was_training)
    gathered = dict(distributed.gather_objects(found))
    skipped = list(dict.fromkeys(distributed.gather_objects(loader.skipped)))
    # Ranks take the rows in turn, so the gathered order is not that of the samples, and some rows come twice.
    keys = [sample.key for sample in made(samples)] if distributed.world_size() > 1 else [key for key, _ in found]
    order: dict[str, int] = {}
    for place, key in enumerate(keys):
        if order.setdefault(key, place) != place:
            raise DataError(
                f"two samples have the key {key!r}, and what the model says of one would be scored for the other; give "
                "each sample a key of its own"
            )
    return Swept(dict(sorted(gathered.items(), key=lambda item: order.get(item[0], 0))), skipped)


def autocast(model: PreTrainedModel, precision: str) -> torch.autocast:
    """The context that runs `model` in `precision`: "no" leaves it as it is, "bf16" and "fp16" compute matrix
    products so, "auto" what is fast on the model's device."""
    precision = resolve_precision(precision, model.device)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(model.device.type, dtype, enabled=precision != "no")


def _keyed(features: Callable[[Any, np.random.Generator], Features], sample: Any, rng: np.random.Generator) -> Keyed:
    return sample.key, features(sample, rng)


def _collate(collate: Callable[[list[Features]], Batch], rows: list[Keyed]) -> tuple[list[str], Batch]:
    return [key for key, _ in rows], collate([features for _, features in rows])


def plain(task: Task) -> Callable[[Any, np.random.Generator], Features]:
    """The features of `task` without augmentation."""
    return partial(task.features, train=False)
