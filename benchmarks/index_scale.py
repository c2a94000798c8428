"""Index many generated images and search them: speed, memory and size on disk.

    python benchmarks/index_scale.py models/emoji-search --images 100000 --threads 2

The images are synthetic scenes of 64 pixels, drawn into a temporary folder by as many processes as threads.
"""

import argparse
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from evle.data.images import open_image
from evle.data.synthetic.scenes import scenes
from evle.search import build_index

SIDE = 64
PER_FOLDER = 1000
QUERIES = ("a red circle", "a blue star", "two green squares", "a yellow heart", "a moon")


def draw(folder: Path, start: int, count: int) -> None:
    """Write the scenes `start` to `start + count` as PNG files below `folder`."""
    samples = scenes("captions", split="train", count=start + count, seed=0, size=SIDE)
    inside = folder / f"{start:06d}"
    inside.mkdir()
    for index in range(start, start + count):
        open_image(samples[index].image).save(inside / f"{index:06d}.png", compress_level=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a retrieval run or a model that embeds")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        images, output = Path(name) / "images", Path(name) / "index"
        images.mkdir()
        started = time.perf_counter()
        with ProcessPoolExecutor(arguments.threads) as pool:
            parts = [
                pool.submit(draw, images, start, min(PER_FOLDER, arguments.images - start))
                for start in range(0, arguments.images, PER_FOLDER)
            ]
            for part in parts:
                part.result()
        print(f"drew {arguments.images:,} images in {time.perf_counter() - started:.0f} s", flush=True)
        started = time.perf_counter()
        index = build_index(arguments.model, images, output, batch_size=64, num_workers=arguments.threads)
        seconds = time.perf_counter() - started
        size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"indexed {len(index):,} images in {seconds:.0f} s ({len(index) / seconds:.0f} images/s); "
            f"{size / 2**20:.0f} MiB on disk, peak memory {peak:.0f} MiB",
            flush=True,
        )
        started = time.perf_counter()
        change = index.add(images)
        print(f"again, with nothing new: {time.perf_counter() - started:.1f} s; {change}", flush=True)
        times = []
        for query in (*QUERIES, *QUERIES):
            started = time.perf_counter()
            index.query(query)
            times.append(time.perf_counter() - started)
        warm = sorted(times[len(QUERIES) :])
        print(f"text query, from words to hits: median {1e3 * warm[len(warm) // 2]:.0f} ms once warm")


if __name__ == "__main__":
    main()
