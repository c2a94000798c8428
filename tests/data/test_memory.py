"""A million samples: what stays in memory is what the docs say, and reading them adds nothing to it."""

import os
import random
import shutil
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evle.data.custom.folder import folder
from evle.data.custom.shards import shards
from evle.data.loader import Loader
from saved_tables import IMAGE
from tars import write_tar

MILLION = 1_000_000
READS = 5_000


def megabytes_of(action):
    """(result, megabytes that it holds, megabytes at the highest point) of Python, numpy and Arrow memory."""
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        result = action()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return result, (held + pa.total_allocated_bytes() - arrow) / 2**20, peak / 2**20


def read_some(samples):
    for index in random.Random(0).sample(range(len(samples)), READS):
        samples[index].captions  # noqa: B018


@pytest.fixture(scope="module")
def million_in_shards(tmp_path_factory):
    """A thousand shards of a thousand samples: one tar under a thousand names."""
    path = tmp_path_factory.mktemp("million")
    members = [each for n in range(1000) for each in ((f"{n:09d}.jpg", b"image"), (f"{n:09d}.txt", f"image {n}"))]
    first = write_tar(path / "0000.tar", members)
    shards(first)
    for number in range(1, 1000):
        os.link(first, path / f"{number:04d}.tar")
        shutil.copy(f"{first}.index", path / f"{number:04d}.tar.index")  # as after the first reading
    return path


@pytest.mark.slow
def test_a_million_samples_in_shards_stay_on_disk(million_in_shards):
    samples, held, _ = megabytes_of(lambda: shards(million_in_shards))
    assert len(samples) == MILLION
    assert held < 3
    _, held, _ = megabytes_of(lambda: read_some(samples))
    assert held < 1


@pytest.mark.slow
def test_a_split_costs_eight_bytes_a_sample(million_in_shards):
    samples, held, _ = megabytes_of(lambda: shards(million_in_shards, split="train"))
    assert len(samples) == pytest.approx(0.8 * MILLION, rel=0.01)
    assert held < 3 + 8 * len(samples) / 2**20


@pytest.mark.slow
def test_a_loader_keeps_the_order_of_an_epoch_and_nothing_else(million_in_shards):
    loader = Loader(shards(million_in_shards), lambda sample, rng: 0, len, batch_size=10, seed=0)
    batches = loader.batches(0)
    next(batches)
    _, held, _ = megabytes_of(lambda: [next(batches) for _ in range(READS // 10)])
    assert held < 1
    batches = loader.batches(1)
    _, held, peak = megabytes_of(lambda: next(batches))
    assert held < 8.5
    assert peak < 25


@pytest.mark.slow
def test_rows_with_images_inside_hold_a_hundred_bytes_each(tmp_path):
    count, per_group = 200_000, 100
    images = pa.array([{"bytes": bytes(500), "path": None}] * per_group, IMAGE)
    schema = pa.schema([("image", IMAGE), ("caption", pa.string())])
    with pq.ParquetWriter(tmp_path / "captions.parquet", schema, compression="NONE", use_dictionary=False) as writer:
        for first in range(0, count, per_group):
            captions = pa.array([f"image {first + n}" for n in range(per_group)])
            writer.write_table(pa.Table.from_arrays([images, captions], schema=schema))
    samples, held, peak = megabytes_of(lambda: folder(tmp_path))
    assert len(samples) == count
    assert held < 0.1 * count / 1000  # a hundred bytes a row; the images are 100 MB
    assert peak < 80
    _, held, _ = megabytes_of(lambda: [samples[n].image.read() for n in range(0, count, 1000)])
    assert held < 2
