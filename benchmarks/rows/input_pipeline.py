"""Images read, decoded and transformed into normalised batches, on one thread, beside torchvision's plain pipelines.

JPEGs that the benchmark draws (smooth grounds, shapes, grain; quality 90), from a folder and from a shard, by the code
that training and evaluation run. Beside them `torchvision.transforms.v2` with Pillow's decoder, and on tensors with
`torchvision.io.decode_jpeg`, which torchvision declares deprecated.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torchvision
from benchmarks.case import Case, Setting, relative_difference
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from evle.data.custom.packing import pack
from evle.data.custom.shards import shards
from evle.data.samples import CaptionSample, ImageSource
from evle.tasks.pretraining import PreTrainingConfig, PreTrainingTask

DTYPES = ("fp32",)
NOTE = """
Decoding takes most of it, at full size and by Pillow: torchvision's decoder, which returns a tensor, is faster in
three of four cases. 1,300 images per second for eight GPUs need 3 such cores for JPEGs of 500x375, and 29 for
2048x1536.
"""
"""What limits this row, from a profile, and what was tried."""
MEAN = STD = (0.5, 0.5, 0.5)
JPEGS = ((500, 375), (2048, 1536))
OUTPUTS = ((224, True), (384, False))
"""Width and height in pixels, and whether the image is varied as in training."""


def draw_jpeg(file: Path, width: int, height: int, seed: int) -> None:
    """An image with about the bytes of a photo of its size."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(256, size=(6, 8, 3), dtype=np.uint8))
    image = ground.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(30):
        x, y, radius = rng.integers(width), rng.integers(height), rng.integers(5, max(6, width // 8))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(rng.integers(256, size=3).tolist()))
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float32)
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


def build(setting: Setting) -> Case:
    count = 2 if setting.quick else 12
    jpegs = ((64, 48),) if setting.quick else JPEGS
    outputs = tuple((32, train) for _, train in OUTPUTS) if setting.quick else OUTPUTS
    scratch = tempfile.TemporaryDirectory(prefix="evle-benchmark-")  # deleted when the last way is
    ways: dict[str, Callable[[], Any]] = {}
    base: dict[str, str] = {}
    evaluated: list[str] = []
    for width, height in jpegs:
        folder = Path(scratch.name) / f"{width}x{height}"
        folder.mkdir()
        files = [folder / f"{number}.jpg" for number in range(count)]
        for number, file in enumerate(files):
            draw_jpeg(file, width, height, number)
        pack([CaptionSample(file.name, str(file), ("x",)) for file in files], folder / "packed")
        packed = [cast(CaptionSample, sample).image for sample in shards(folder / "packed")]
        for size, train in outputs:
            work = f"JPEG of {width}x{height} to {size} px, {'training' if train else 'evaluation'}"
            four = {
                f"ours, {work}": ours([str(file) for file in files], size, train),
                f"ours from shards, {work}": ours(packed, size, train),
                f"torchvision with Pillow, {work}": peer(files, size, train, tensors=False),
                f"torchvision on tensors, {work}": peer(files, size, train, tensors=True),
            }
            ways |= {name: partial(_keep, scratch, run) for name, run in four.items()}
            base |= dict.fromkeys(four, f"ours, {work}")
            evaluated += [] if train else four

    def differences() -> dict[str, float]:
        first, *others = (ways[name]() for name in evaluated[:4])
        return {f"way {number}": relative_difference(other, first) for number, other in enumerate(others)}

    return Case(
        ways=ways,
        base=base,
        unit="images",
        units=dict.fromkeys(ways, float(count)),
        differences=differences,
    )


def _keep(_: object, run: Callable[[], Any]) -> Any:
    """Run, holding on to the folder of the images."""
    return run()
