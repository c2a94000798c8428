"""Check any source before long work: read every sample, decode every image once, and list what cannot be used.

Memory holds about forty bytes per sample, whatever its texts and images.
"""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from evle.data.formats.cells import says_something
from evle.data.images import odd_values, open_image
from evle.data.samples import (
    Box,
    CaptionSample,
    ImageSource,
    NLVR2Sample,
    Sample,
    Stored,
    VCRSample,
    VQASample,
    num_left_out,
)
from evle.errors import SampleError
from evle.inspection.findings import DARK, LONG, ODD, OUTSIDE, Findings, is_inside, is_latin, oddity, place_of

_BLOCK = 256  # images looked at together
_Look = str | tuple[tuple[int, int], int, list[str], str]
"""Why an image cannot be read; or its size, its hash, its boxes outside, and why it is nearly black."""


@dataclass
class SampleCheck:
    """The result of a check.

    `facts` is the source's own description. `left_out` lists what the source left out, and `num_left_out` counts all of
    it, listed or not. `images` counts different images, `sizes` the images for each (width, height). `not_latin` is the
    share of texts that are mostly in another script.
    """

    facts: dict[str, Any]
    left_out: list[str]
    num_left_out: int = 0
    samples: int = 0
    images: int = 0
    texts: int = 0
    words: int = 0
    boxes: int = 0
    not_latin: float = 0.0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    refused: Findings = field(default_factory=lambda: Findings("what a run refuses", fatal=True))
    damaged: Findings = field(default_factory=lambda: Findings("damaged shards", fatal=True))
    broken: Findings = field(default_factory=lambda: Findings("samples that cannot be read", fatal=True))
    repeated: Findings = field(default_factory=lambda: Findings("keys of several samples", fatal=True))
    unreadable: Findings = field(default_factory=lambda: Findings("unreadable images", fatal=True))
    empty: Findings = field(default_factory=lambda: Findings("samples without text", fatal=True))
    long: Findings = field(default_factory=lambda: Findings(f"texts of more than {LONG} words"))
    odd: Findings = field(default_factory=lambda: Findings(ODD))
    outside: Findings = field(default_factory=lambda: Findings(OUTSIDE))
    dark: Findings = field(default_factory=lambda: Findings(DARK))
    duplicates: Findings = field(default_factory=lambda: Findings("images with the same bytes"))

    @property
    def findings(self) -> list[Findings]:
        return [each for each in vars(self).values() if isinstance(each, Findings)]

    @property
    def ok(self) -> bool:
        """Whether every sample that the source offers can be used."""
        return self.samples > 0 and not any(each.count for each in self.findings if each.fatal)

    def lines(self, most: int = 20) -> list[str]:
        """The findings as plain lines, at most `most` of each kind."""
        lines = [f"{name}: {value}" for name, value in self.facts.items() if name != "samples"]
        lines.append(f"{self.samples:,} samples, {self.images:,} different images, {self.texts:,} texts")
        if self.texts:
            script = f"{100 * self.not_latin:.1f} % not in Latin script"
            lines.append(f"words per text: {self.words / self.texts:.1f} on average; {script}")
        if self.boxes:
            lines.append(f"boxes: {self.boxes:,}")
        if self.sizes:
            (width, height), count = self.sizes.most_common(1)[0]
            areas = sorted(self.sizes, key=lambda size: size[0] * size[1])
            (small, low), (large, high) = areas[0], areas[-1]
            lines.append(f"pixels: {small} x {low} to {large} x {high}, most often {width} x {height} ({count:,})")
        for each in (*self.findings, Findings("left out by the source", False, self.num_left_out, self.left_out)):
            lines += each.shown(most)
        lines.append("every sample can be used" if self.ok else "the samples listed above cannot be used")
        return lines


def check_samples(
    samples: Sequence[Sample], *, num_threads: int = 4, progress: Callable[[int, int], None] | None = None
) -> SampleCheck:
    """Read every sample of a source and decode each of its different images once.

    `progress(done, total)` is called as images are decoded. Unusable samples are counted and listed; nothing stops the
    check.
    """
    own = samples.describe() if hasattr(samples, "describe") else {}
    named = list(getattr(samples, "skipped", ()))
    check = SampleCheck(dict(own), named, num_left_out(samples), samples=len(samples))
    for line in getattr(samples, "refused", ()):
        check.refused.add(line)
    for line in getattr(samples, "damaged", ()):
        check.damaged.add(line)
    images = _read_texts(check, samples)
    check.images = len(images)
    _decode(check, samples, images, num_threads, progress)
    return check


def _read_texts(check: SampleCheck, samples: Sequence[Sample]) -> np.ndarray:
    """Fill in the texts of the samples; returns (N, 2) int64: sample and index in it of each different image."""
    keys, names, rows, indices = (array("q") for _ in range(4))
    not_latin = 0
    for row in range(len(samples)):
        try:
            sample = samples[row]
        except SampleError as error:
            check.broken.add(str(error))
            continue
        keys.append(hash(sample.key))
        for index, image in enumerate(_images(sample)):
            names.append(_identity(image, row, index))
            rows.append(row)
            indices.append(index)
        texts = list(filter(says_something, _texts(sample)))
        if not texts:
            check.empty.add(sample.key)
        for text in texts:
            length = len(text.split())
            check.words += length
            not_latin += not is_latin(text)
            if length > LONG:
                check.long.add(f"{sample.key}: {length} words: {text[:60]}...")
            if odd := oddity(text):
                check.odd.add(f"{sample.key}: {odd}: {text[:60]!r}")
        check.texts += len(texts)
        check.boxes += len(_boxes(sample))
    check.not_latin = not_latin / max(1, check.texts)
    hashes = np.array(keys)
    _, counts = np.unique(hashes, return_counts=True)
    if len(counts) < len(hashes):
        _name_repeated(check, samples, hashes)
    _, first = np.unique(np.array(names), return_index=True)
    first.sort()
    return np.stack([np.array(rows)[first], np.array(indices)[first]], axis=1)


def _name_repeated(check: SampleCheck, samples: Sequence[Sample], keys: np.ndarray) -> None:
    values, counts = np.unique(keys, return_counts=True)
    twice = set(values[counts > 1].tolist())
    named: set[int] = set()
    for row in range(len(samples)):
        try:
            key = samples[row].key
        except SampleError:
            continue
        if hash(key) in twice and hash(key) not in named:
            named.add(hash(key))
            check.repeated.add(f"{key}: appears {int(counts[values == hash(key)][0])} times")


def _decode(
    check: SampleCheck,
    samples: Sequence[Sample],
    images: np.ndarray,
    num_threads: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Fill in the results for the images."""
    hashes = array("q")
    for done, found in enumerate(_looked_at(samples, images, num_threads), 1):
        if isinstance(found, str):
            check.unreadable.add(found)
            hashes.append(-done)
        else:
            size, content, outside, dark = found
            check.sizes[size] += 1
            hashes.append(content or -done)
            for line in outside:
                check.outside.add(line)
            if dark:
                check.dark.add(dark)
        if progress is not None:
            progress(done, len(images))
    contents = np.array(hashes)
    order = np.argsort(contents, kind="stable")
    same = np.flatnonzero(contents[order][1:] == contents[order][:-1])
    for one, other in zip(order[same], order[same + 1]):
        check.duplicates.add(f"{samples[int(images[other][0])].key} = {samples[int(images[one][0])].key}")


def _looked_at(samples: Sequence[Sample], images: np.ndarray, num_threads: int) -> Iterator[_Look]:
    """The result for each image, in order. A few hundred are decoded at a time, so that memory stays small."""

    def look(image: np.ndarray) -> _Look:
        sample = samples[int(image[0])]
        source = _images(sample)[int(image[1])]
        try:
            opened = open_image(source)
        except SampleError as error:
            reason = str(error)
            return reason if sample.key in reason else f"{sample.key}: {reason}"
        outside = [box for box in _boxes(sample) if not is_inside(box, opened.size)]
        lines = [f"{sample.key}: {place_of(box, opened.size)}" for box in outside]
        dark = odd_values(source, opened)
        return opened.size, _content(source), lines, dark and f"{sample.key}: {dark}"

    rest = iter(images)
    with ThreadPoolExecutor(num_threads) as pool:
        while block := list(islice(rest, _BLOCK)):
            yield from pool.map(look, block)


def _images(sample: Sample) -> tuple[ImageSource, ...]:
    return sample.images if isinstance(sample, NLVR2Sample) else (sample.image,)


def _boxes(sample: Sample) -> tuple[Box, ...]:
    if isinstance(sample, CaptionSample):
        return sample.boxes
    return sample.objects if isinstance(sample, VCRSample) else ()


def _texts(sample: Sample) -> Sequence[str]:
    match sample:
        case CaptionSample():
            return sample.captions
        case VQASample():
            return [sample.question]
        case NLVR2Sample():
            return [sample.sentence]
        case VCRSample():
            parts = (sample.question, *sample.answer_choices, *sample.rationale_choices)
            return [" ".join(map(str, part)) for part in parts]


def _identity(image: ImageSource, row: int, index: int) -> int:
    """The same number for the same file; an image that is drawn or in memory has a number of its own."""
    if isinstance(image, str | os.PathLike | Stored):
        return hash(str(image))
    return hash((row, index))


def _content(image: ImageSource) -> int:
    """A hash of an image's bytes; 0 for an image without bytes."""
    if isinstance(image, str | os.PathLike):
        with open(image, "rb") as file:
            content = file.read()
    elif isinstance(image, Stored):
        content = image.read()
    elif isinstance(image, bytes):
        content = image
    else:
        assert isinstance(image, Image.Image) or hasattr(image, "draw")
        return 0
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1
