"""What 1,024 processes read, simulated in one: each sample once an epoch, wherever a run resumes."""

import numpy as np
import pytest

from evle.data.loader import Loader, epoch_order

SAMPLES, BATCH = 20_480 + 4_096, 4_096
"""Six steps an epoch."""


class Numbers:
    """Samples that are their own index."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> "Number":
        return Number(index)


class Number:
    def __init__(self, number: int):
        self.number, self.key = number, str(number)


def features(sample: Number, rng: object) -> int:
    return sample.number


def step(world_size: int, epoch: int, number: int, accumulation: int = 1) -> np.ndarray:
    """The samples of one optimizer step, of all processes."""
    rows: list[int] = []
    for rank in range(world_size):
        loader: Loader = Loader(
            Numbers(),  # type: ignore[arg-type]
            features,
            list,
            batch_size=BATCH // world_size // accumulation,
            seed=7,
            drop_last=True,
            accumulation=accumulation,
            rank=rank,
            world_size=world_size,
        )
        loader._maker._order = (epoch, ORDERS[epoch])  # all processes draw the same: once is enough here
        batches = loader.batches(epoch, number * accumulation)
        for _ in range(accumulation):
            rows += next(batches)
    return np.array(rows)


ORDERS = {epoch: epoch_order(SAMPLES, 7, epoch) for epoch in range(3)}


def test_1024_processes_read_each_sample_once_an_epoch():
    seen = np.concatenate([step(1024, 0, number) for number in range(SAMPLES // BATCH)])
    assert sorted(seen) == list(range(SAMPLES))
    assert not np.array_equal(ORDERS[0], ORDERS[1])


@pytest.mark.parametrize("world_size", [1, 8, 64, 512])
def test_a_step_has_the_same_samples_whatever_the_number_of_processes(world_size):
    """So a run that resumes at any step with another number of processes reads what is left, each sample once."""
    for epoch, number in ((0, 3), (2, 5)):
        assert sorted(step(world_size, epoch, number)) == sorted(step(1024, epoch, number))


def test_accumulation_reads_the_same_steps():
    assert sorted(step(64, 1, 2, accumulation=4)) == sorted(step(1024, 1, 2))
