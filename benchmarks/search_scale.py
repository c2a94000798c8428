"""Time and memory of searching an index of synthetic vectors: python benchmarks/search_scale.py [ROWS] [DIMENSION]"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from evle.search import nearest
from evle.search.store import SHARD_ROWS, Entry, Facts, Place, Store

QUERIES = 20


def report(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    print(f"{name}: median {1e3 * ordered[len(ordered) // 2]:.0f} ms, best {1e3 * ordered[0]:.0f} ms")


def main(rows: int, dimension: int) -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(1000, dimension, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        store = Store(path, Facts(Place.of(path, path), None, "", dimension, "float16"))
        for start in range(0, rows, SHARD_ROWS):
            count = min(SHARD_ROWS, rows - start)
            vectors = centres[torch.randint(1000, (count,), generator=generator)]
            vectors = vectors + torch.randn(count, dimension, generator=generator)
            vectors = torch.nn.functional.normalize(vectors, dim=1)
            store = store.append(vectors, [Entry(f"{start + row:09d}.jpg", 1, 1) for row in range(count)])
        queries = centres[:QUERIES] + torch.randn(QUERIES, dimension, generator=generator)
        queries = torch.nn.functional.normalize(queries, dim=1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        nearest.nearest_rows(store, queries[:1], 10)
        print(f"first search, with checksums: {time.perf_counter() - started:.2f} s")
        seconds = []
        for query in queries:
            started = time.perf_counter()
            nearest.nearest_rows(store, query[None], 10)
            seconds.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report(f"exact, {rows:,} x {dimension}", seconds)
        mapped = rows * dimension * 2 / 2**20
        print(f"peak memory grew by {(after - before) / 1024:.0f} MiB, of which mapped files {mapped:.0f} MiB")
        started = time.perf_counter()
        approximate = nearest.Approximate.build(store)
        print(f"approximate index: built in {time.perf_counter() - started:.0f} s, recall@10 {approximate.recall:.3f}")
        seconds = []
        for query in queries:
            started = time.perf_counter()
            approximate.nearest_rows(store, query[None], 10)
            seconds.append(time.perf_counter() - started)
        report("approximate", seconds)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(*(int(each) for each in (sys.argv[1:] or ["1000000", "256"])))
