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
from evle.data.samples import readable
from evle.errors import DataError
from evle.precision import resolve_precision
from evle.tasks.task import Batch, EvaluationSettings, Features, Task

FeatureFunction = Callable[[Any, np.random.Generator], Features]
Keyed = tuple[str, Features]


@dataclass
class Predictions:
    """`results[key]` for each readable sample, in the order of the samples, and one line for each other sample."""

    results: dict[str, Any]
    skipped: list[str]


def predict_all(
    model: PreTrainedModel,
    samples: Sequence[Any],
    task: Task,
    predict: Callable[[list[str], Batch], list[Any]],
    settings: EvaluationSettings,
    *,
    features: FeatureFunction | None = None,
    collate: Callable[[list[Features]], Batch] | None = None,
) -> Predictions:
    """Call `predict(keys, batch)` on every batch of `samples`, in evaluation mode and without gradients, and gather
    the results.

    `predict` returns one picklable result per row. Each sample needs a unique `key`; randomness in `features` depends
    on the key alone. Every process gets all results. The model returns to its previous mode.

    Raises:
        DataError: two samples share a key, or no sample can be read.
    """
    if not len(samples):
        return Predictions({}, [])
    loader = Loader(
        samples,
        partial(_keyed, features or task.fixed_features),
        partial(_collate, collate or task.collate_raw),
        batch_size=settings.batch_size,
        seed=0,
        shuffle=False,
        num_workers=settings.num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    rows: list[tuple[str, Any]] = []
    was_training = model.training
    model.eval()
    try:
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), autocast(model, settings.precision):
            torch.manual_seed(0)  # for hard negatives; training must not depend on evaluations
            for keys, batch in loader.batches(epoch=0):
                rows += zip(keys, predict(keys, task.on_device(batch, model.device)), strict=True)
    except RuntimeError as error:
        raise worker_death(error) or error from None
    finally:
        model.train(was_training)
    gathered = dict(distributed.gather_objects(rows))
    skipped = list(dict.fromkeys(distributed.gather_objects(loader.skipped)))
    # Ranks take rows in turn, so the gathered order is not that of the samples, and some rows appear twice.
    keys = [sample.key for sample in readable(samples)] if distributed.world_size() > 1 else [key for key, _ in rows]
    order = _order(keys)
    return Predictions(dict(sorted(gathered.items(), key=lambda item: order.get(item[0], 0))), skipped)


def autocast(model: PreTrainedModel, precision: str) -> torch.autocast:
    """The context that runs `model` in `precision`: "no" changes nothing, "bf16" and "fp16" compute matrix products
    in that type, "auto" chooses what is fast on the model's device."""
    precision = resolve_precision(precision, model.device)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(model.device.type, dtype, enabled=precision != "no")


def _order(keys: Sequence[str]) -> dict[str, int]:
    """The index of each key. Raises DataError for a key that appears twice."""
    order: dict[str, int] = {}
    for index, key in enumerate(keys):
        if order.setdefault(key, index) != index:
            raise DataError(
                f"two samples have the key {key!r}, so their predictions cannot be distinguished; give each sample its "
                "own key"
            )
    return order


def _keyed(features: FeatureFunction, sample: Any, rng: np.random.Generator) -> Keyed:
    return sample.key, features(sample, rng)


def _collate(collate: Callable[[list[Features]], Batch], rows: list[Keyed]) -> tuple[list[str], Batch]:
    return [key for key, _ in rows], collate([features for _, features in rows])
