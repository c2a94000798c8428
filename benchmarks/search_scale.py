"""Time and memory of searching an index of synthetic vectors, exactly and by the approximate index.

    python benchmarks/search_scale.py --rows 1000000 --dimension 256 --threads 2

The vectors are 1,000 centres with noise, and the queries are such vectors too.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evle.search import nearest
from evle.search.store import SHARD_ROWS, Entry, Facts, Place, Store

QUERIES = 20
K = 10


def measured(name: str, queries: Tensor, search: Callable[[Tensor], Any]) -> None:
    """Print how long one query takes after a first one has warmed the caches."""
    search(queries[:1])
    seconds = []
    for query in queries:
        started = time.perf_counter()
        search(query[None])
        seconds.append(time.perf_counter() - started)
    ordered = sorted(seconds)
    print(
        f"{name}: median {1e3 * ordered[len(ordered) // 2]:.0f} ms, best {1e3 * ordered[0]:.0f} ms, "
        f"worst {1e3 * ordered[-1]:.0f} ms",
        flush=True,
    )


def synthetic_store(path: Path, rows: int, dimension: int, centres: Tensor, generator: torch.Generator) -> Store:
    """An index of `rows` vectors in float16, as `evle index` stores them."""
    store = Store(path, Facts(Place.of(path, path), None, "", dimension, "float16"))
    for start in range(0, rows, SHARD_ROWS):
        count = min(SHARD_ROWS, rows - start)
        vectors = near(centres[torch.randint(len(centres), (count,), generator=generator)], generator)
        store = store.append(vectors, [Entry(f"{start + row:09d}.jpg", 1, 1) for row in range(count)])
    return store


def near(centres: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors around `centres`."""
    return torch.nn.functional.normalize(centres + torch.randn(centres.shape, generator=generator), dim=1)


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(1000, arguments.dimension, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        store = synthetic_store(Path(folder), arguments.rows, arguments.dimension, centres, generator)
        queries = near(centres[:QUERIES], generator)
        before = peak_mebibytes()
        started = time.perf_counter()
        nearest.nearest_rows(store, queries[:1], K)
        print(f"first search, which checks every file: {time.perf_counter() - started:.2f} s")
        size = f"{arguments.rows:,} x {arguments.dimension}, {arguments.threads} threads"
        measured(f"exact, {size}", queries, lambda query: nearest.nearest_rows(store, query, K))
        mapped = arguments.rows * arguments.dimension * 2 / 2**20
        print(f"peak memory grew by {peak_mebibytes() - before:.0f} MiB, of which mapped files {mapped:.0f} MiB")
        started = time.perf_counter()
        approximate = nearest.Approximate.build(store)
        seconds = time.perf_counter() - started
        print(f"approximate index: built in {seconds:.0f} s, recall@{K} {approximate.recall:.3f}")
        measured(f"approximate, {size}", queries, lambda query: approximate.nearest_rows(store, query, K))
        print(f"peak memory {peak_mebibytes():.0f} MiB")


if __name__ == "__main__":
    main()
