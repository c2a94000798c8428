"""Batches whose order and randomness are functions of (seed, epoch, sample key), whatever the workers and ranks.

So a run resumes exactly from (epoch, batch) alone, and one process with batches of 32 sees what four see with batches
of 8 each.
"""

import gc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data._utils.pin_memory import pin_memory

from evle.data.samples import Sample
from evle.errors import DataError, EvleError, SampleError
from evle.terminal import Watch

FeatureFunction = Callable[[Sample, np.random.Generator], Any]
CollateFunction = Callable[[list[Any]], Any]

SLOW_SECONDS = 60.0  # after which a worker whose batch does not come is named

TRIES = 64
"""Samples that are tried in a row for a training batch of which nothing could be read, before the data set counts as
unreadable."""


def sample_rng(seed: int, epoch: int, key: str) -> np.random.Generator:
    """The generator of everything random about one sample in one epoch.

    >>> sample_rng(0, 3, "a.jpg").random() == sample_rng(0, 3, "a.jpg").random()
    True
    """
    digest = hashlib.blake2b(f"{seed}\0{epoch}\0{key}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def epoch_order(num_samples: int, seed: int, epoch: int, shuffle: bool = True) -> np.ndarray:
    """The order (num_samples,) int64 in which an epoch visits the samples, the same on every rank."""
    if not shuffle:
        return np.arange(num_samples)
    return sample_rng(seed, epoch, "\0order").permutation(num_samples)


@dataclass
class _Prepared:
    """What a worker sends back.

    A batch (None where nothing could be read), (key, line) of each skipped sample, or one of our errors.
    """

    batch: Any = None
    skipped: tuple[tuple[str, str], ...] = ()
    error: EvleError | None = None

    def pin_memory(self) -> "_Prepared":
        """With its tensors in pinned memory where there is a GPU, to which they are then copied in the background.

        DataLoader calls it in its own thread.
        """
        if torch.cuda.is_available():
            self.batch = pin_memory(self.batch)
        return self


class Loader:
    """Batches of `collate([features(sample, rng), ...])`.

    `batch_size` counts the samples of one batch on one rank. The global batch g holds the positions from g *
    batch_size * world_size on of the epoch's order, and rank r takes its rows r, r + world_size, ...; so all ranks
    have the same number of batches. Without `drop_last` the last batch is smaller; should it have fewer rows than
    there are ranks, the first samples of the order fill it up. With it an epoch ends with its last whole step, of
    `accumulation` batches: so its steps are as many however a step is cut.

    A sample that raises SampleError is left out of its batch and named in `skipped`. A training batch
    (`shuffle=True`) of which nothing is left takes the next readable sample of the order instead, so that ranks stay
    in step; with `shuffle=False` it is left out, or on one rank of several takes the first readable sample of all, as
    the others wait for it where rows meet (contrast). When nothing can be read, DataError is raised.

    `num_workers` processes prepare batches ahead; their errors arrive here as ours.

    >>> from evle.data.samples import CaptionSample
    >>> samples = [CaptionSample(key, b"", ("x",)) for key in "abc"]
    >>> loader = Loader(samples, lambda sample, rng: sample.key, list, batch_size=2, seed=0, shuffle=False)
    >>> list(loader.batches(epoch=0))
    [['a', 'b'], ['c']]
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        features: FeatureFunction,
        collate: CollateFunction,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
        accumulation: int = 1,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size < 1:
            raise DataError(f"batch_size={batch_size} must be at least 1")
        if not 0 <= rank < world_size:
            raise DataError(f"rank={rank} must be at least 0 and below world_size={world_size}")
        if len(samples) == 0:
            raise DataError("the data set holds no samples; check its path, its split and its filters")
        global_size = batch_size * world_size
        step_size = global_size * accumulation
        whole = len(samples) // step_size * accumulation
        self.num_batches = whole if drop_last else -(-len(samples) // global_size)
        if self.num_batches == 0:
            raise DataError(
                f"{len(samples)} samples do not fill one batch of {step_size}; lower the batch size or set "
                "drop_last=false"
            )
        self.num_samples = len(samples)
        self._maker = _BatchMaker(samples, features, collate, batch_size, seed, shuffle, rank, world_size)
        self._num_workers = num_workers
        self._skipped: dict[str, str] = {}
        self._plan = _Plan(self.num_batches)
        self._workers: DataLoader[Any] | None = None

    @property
    def skipped(self) -> list[str]:
        """One line ("key: reason") for each sample that could not be used so far, each once, on this rank."""
        return list(self._skipped.values())

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from batch `start` on, to be consumed before the next call."""
        yielded = False
        for prepared in self._prepared(epoch, start):
            self._skipped.update(prepared.skipped)
            if prepared.error is not None:
                # A new one: raising `prepared.error` itself would tie this frame into a cycle and keep workers alive
                raise type(prepared.error)(*prepared.error.args)
            if prepared.batch is not None:
                yielded = True
                yield prepared.batch if self._workers is not None else prepared.pin_memory().batch
        if not yielded and start < self.num_batches:
            raise _unreadable(len(self._skipped), self.skipped[0])

    def _prepared(self, epoch: int, start: int) -> Iterator[_Prepared]:
        self._plan.epoch, self._plan.start = epoch, start
        if self._num_workers == 0:
            for item in self._plan:
                yield self._maker[item]
            return
        if self._workers is None:
            self._workers = DataLoader(
                self._maker,
                batch_size=None,
                sampler=self._plan,
                num_workers=self._num_workers,
                persistent_workers=True,
                collate_fn=_as_it_is,
                worker_init_fn=_keep_what_is_inherited,
                pin_memory=torch.cuda.is_available(),
                # The loader draws a seed for its workers; from its own generator, or it would move torch's global one.
                generator=torch.Generator(),
            )
        watch, number = Watch(SLOW_SECONDS), start
        try:
            batches: Any = iter(self._workers)
            while True:
                watch.begin(partial(_about_waiting, batches, epoch, number, number - start))
                batch = next(batches, None)
                watch.end()
                if batch is None:
                    return
                yield batch
                number += 1
        except RuntimeError as error:
            self._workers = None
            raise worker_death(error) or error from None
        finally:
            watch.close()


def _keep_what_is_inherited(worker: int) -> None:
    """Let a worker collect its own garbage alone: in its copy of the memory it could free a dead loader of the process
    that started it, which complains that its processes are not the worker's."""
    gc.freeze()


def _about_waiting(batches: Any, epoch: int, number: int, position: int) -> str:
    """Which worker prepares the batch that does not come: torch deals batches out in turn."""
    workers = batches._workers
    worker = position % len(workers)
    return (
        f"batch {number} of epoch {epoch}, which data worker {worker} (process {workers[worker].pid}) prepares; a slow "
        "or hanging disk is the usual cause"
    )


class _Plan(Sampler[Any]):
    """(epoch, batch number) of each batch to come; changed between epochs so that workers live on."""

    def __init__(self, num_batches: int):
        self.num_batches = num_batches
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch  # of now: a generator would ask again later
        return ((epoch, number) for number in range(self.start, self.num_batches))

    def __len__(self) -> int:
        return max(0, self.num_batches - self.start)


class _BatchMaker(Dataset[Any]):
    """Makes the batch of (epoch, batch number), in the main process or in a worker."""

    def __init__(
        self,
        samples: Sequence[Sample],
        features: FeatureFunction,
        collate: CollateFunction,
        batch_size: int,
        seed: int,
        shuffle: bool,
        rank: int,
        world_size: int,
    ):
        self.samples, self.features, self.collate = samples, features, collate
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self._order: tuple[int, np.ndarray] | None = None
        self._first_readable = 0  # the position from which an evaluation looks for a replacement

    def __getitem__(self, item: tuple[int, int]) -> _Prepared:
        epoch, number = item
        skipped: list[tuple[str, str]] = []
        try:
            order = self.order(epoch)
            begin = number * self.batch_size * self.world_size
            rows = range(
                begin, min(begin + self.batch_size * self.world_size, max(len(order), begin + self.world_size))
            )
            ours = rows[self.rank :: self.world_size]
            features = [self._features(order[row % len(order)], epoch, skipped) for row in ours]
            features = [each for each in features if each is not None]
            if not features and (self.shuffle or self.world_size > 1):
                features = [self._replacement(order, rows.stop, epoch, skipped)]
            return _Prepared(self.collate(features) if features else None, tuple(skipped))
        except EvleError as error:
            return _Prepared(None, tuple(skipped), error)

    def order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.samples), self.seed, epoch, self.shuffle))
        return self._order[1]

    def _features(self, index: int, epoch: int, skipped: list[tuple[str, str]]) -> Any:
        """Features of one sample, or None, the reason added to `skipped`."""
        key = f"sample {index}"
        try:
            sample = self.samples[int(index)]
            key = sample.key
            return self.features(sample, sample_rng(self.seed, epoch, key))
        except SampleError as error:
            reason = str(error)
            skipped.append((key, reason if key in reason else f"{key}: {reason}"))
            return None

    def _replacement(self, order: np.ndarray, begin: int, epoch: int, skipped: list[tuple[str, str]]) -> Any:
        """One of the next samples for a training batch; for an evaluation's the first of all that can be read.

        An evaluation goes through samples in order, where any number of unreadable ones may follow one another.
        """
        for row in range(begin, begin + TRIES) if self.shuffle else range(self._first_readable, len(order)):
            features = self._features(order[row % len(order)], epoch, skipped)
            if features is not None:
                self._first_readable = row
                return features
        raise _unreadable(len(dict(skipped)), skipped[0][1])


def worker_death(error: BaseException) -> DataError | None:
    """What it means that torch misses a data worker; None for any other error.

    torch raises it in a signal handler, so it may arise anywhere in the main process.
    """
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in str(error):
        return None
    return DataError(
        f"a data worker died ({' '.join(str(error).split()).rstrip('.')}), most often for lack of memory; lower "
        "num_workers or the batch size"
    )


def _unreadable(count: int, first: str) -> DataError:
    return DataError(
        f"none of {count} samples could be read; the first: {first}; `evle data check FOLDER` names them all"
    )


def _as_it_is(item: Any) -> Any:
    return item
