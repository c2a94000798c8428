"""How many images per second one core decodes and transforms, beside torchvision's plain pipelines in the same run.

JPEGs that the benchmark makes (photo-like: smooth grounds, shapes, grain) are read from a folder and from a shard, and
become normalised batches as in training (crop of 0.5 to 1, flip) and as in evaluation (whole image). Beside them, on
the same files: Pillow's decoder with torchvision's v2 transforms, and torchvision's decoder with the same on tensors.

    python benchmarks/reading.py --sizes 224 384 --rounds 5 --json reading.json
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from evle.data.custom.packing import pack
from evle.data.custom.shards import shards
from evle.data.samples import CaptionSample, ImageSource
from evle.tasks.pretraining import PreTrainingConfig, PreTrainingTask

MEAN = STD = (0.5, 0.5, 0.5)
PEERS = ("torchvision, Pillow", "torchvision, tensors")
OURS = ("evle, folder", "evle, shards")


def make_jpeg(file: Path, width: int, height: int, seed: int) -> None:
    """An image with about the bytes of a photo of its size (quality 90)."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(256, size=(6, 8, 3), dtype=np.uint8))
    picture = ground.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(30):
        x, y, radius = rng.integers(width), rng.integers(height), rng.integers(5, max(6, width // 8))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(rng.integers(256, size=3).tolist()))
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float32)
    grain = rng.normal(0, 6, (height, width, 1))
    Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8)).save(file, quality=90)


def ours(sources: Sequence[ImageSource], size: int, train: bool) -> Callable[[], Tensor]:
    """What training and evaluation run on these images, tokens left out."""
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(
            size={"height": size, "width": size}, do_center_crop=False, image_mean=MEAN, image_std=STD
        )
    )
    task = PreTrainingTask(PreTrainingConfig(), cast(Any, processor))
    rng = np.random.default_rng(0)
    return lambda: task.collate_images([task.read_image(source, rng, train, "") for source in sources])


def peer(files: Sequence[Path], size: int, train: bool, tensors: bool) -> Callable[[], Tensor]:
    """The same with torchvision."""
    bicubic = v2.InterpolationMode.BICUBIC
    crop = [v2.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=bicubic), v2.RandomHorizontalFlip()]
    geometry = crop if train else [v2.Resize((size, size), interpolation=bicubic)]
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose([*geometry, *([] if tensors else [v2.PILToTensor()]), *last])

    def read(file: Path) -> Any:
        if not tensors:
            with Image.open(file) as opened:
                return opened.convert("RGB")
        return decode_jpeg(torchvision.io.read_file(str(file)), mode=ImageReadMode.RGB)

    return lambda: torch.stack([transform(read(file)) for file in files])


def measure(runs: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each run in each round, the runs in turn, after one round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - begin)
    return seconds


def ratios(seconds: dict[str, list[float]], name: str, reference: str) -> list[float]:
    """How many times as fast as the reference, round by round."""
    return [theirs / own for own, theirs in zip(seconds[name], seconds[reference], strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384], help="sides of the output in pixels")
    parser.add_argument(
        "--images", nargs="+", default=["500x375", "640x480", "2048x1536"], help="sizes of the JPEGs, a table each"
    )
    parser.add_argument("--count", type=int, default=12, help="images of each size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the report here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__}
    report: dict[str, Any] = {"machine": platform.processor() or platform.machine(), **versions, "results": []}
    print(f"{report['machine']}, one thread; {versions}; {options.count} images, {options.rounds} rounds")
    for name in options.images:
        with tempfile.TemporaryDirectory() as folder:
            report["results"] += bench(Path(folder), name, options.sizes, options.count, options.rounds)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


def bench(folder: Path, name: str, sizes: Sequence[int], count: int, rounds: int) -> list[dict[str, Any]]:
    """One table: images of one size, written to `folder`."""
    width, height = map(int, name.split("x"))
    files = [folder / f"{number}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        make_jpeg(file, width, height, number)
    pack([CaptionSample(file.name, str(file), ("x",)) for file in files], folder / "packed")
    packed = [cast(CaptionSample, sample).image for sample in shards(folder / "packed")]
    kilobytes = sum(file.stat().st_size for file in files) / len(files) / 1024
    print(f"\nJPEG of {name}, {kilobytes:.0f} kB\n{'':24}{'images/s':>12}" + "".join(f"{each:>24}" for each in PEERS))
    results = []
    for size in sizes:
        for train in (True, False):
            runs = {
                OURS[0]: ours([str(file) for file in files], size, train),
                OURS[1]: ours(packed, size, train),
                PEERS[0]: peer(files, size, train, tensors=False),
                PEERS[1]: peer(files, size, train, tensors=True),
            }
            seconds = measure(runs, rounds)
            print(f"{size} px, {'training' if train else 'evaluation'}")
            for run in runs:
                speed = count / median(seconds[run])
                beside = {each: median(ratios(seconds, run, each)) for each in PEERS}
                print(f"  {run:22}{speed:>12.0f}" + "".join(f"{beside[each]:>23.2f}x" for each in PEERS))
                facts = {"jpeg": name, "size": size, "train": train, "run": run, "per_second": speed, "ratios": beside}
                results.append(facts)
    return results


if __name__ == "__main__":
    main()
