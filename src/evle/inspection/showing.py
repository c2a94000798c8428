"""Show data before training on it: samples as a page of images, and the contents of a split in numbers."""

from collections import Counter
from typing import Any

import numpy as np
from PIL import Image

from evle.data.images import open_image
from evle.data.samples import CaptionSample, NLVR2Sample, Sample, Samples, VCRSample, VQASample, describe
from evle.errors import DataError, SampleError
from evle.inspection.texts import sample_texts
from evle.report import Cell, Gallery, GalleryRow, Report

COLUMNS = 4
CAPTIONS = 8  # of one image that are shown
MOST = 12  # rows of a table of frequencies


def show(samples: Samples, num: int, title: str) -> Report:
    """A report with `num` samples, evenly spread: each image with its words."""
    indices = np.linspace(0, len(samples) - 1, min(num, len(samples))).astype(int)
    rows, cells = [], []
    for index in indices:
        try:
            sample = samples[int(index)]
        except SampleError as error:
            cells.append(Cell(None, str(error), "bad"))
            continue
        if isinstance(sample, NLVR2Sample):
            pair = [Cell(_image(image)) for image in sample.images]
            rows.append(GalleryRow(sample.sentence, [*pair, Cell(None, str(sample.label))]))
        else:
            cells.append(Cell(_image(sample.image), _words(sample)))
    rows += [GalleryRow("", cells[begin : begin + COLUMNS]) for begin in range(0, len(cells), COLUMNS)]
    return Report(title, [f"{len(samples):,} samples"], describe(samples), galleries=[Gallery("Samples", rows)])


def count(samples: Samples) -> list[str]:
    """What the samples hold, one line each: texts and their lengths, answers, types, tags."""
    lengths: Counter[int] = Counter()
    names = ("answers", "question types", "tags", "objects")
    tables: dict[str, Counter[str]] = {name: Counter() for name in names}
    labels: Counter[str] = Counter()
    broken: list[str] = []
    for index in range(len(samples)):
        try:
            sample = samples[index]
        except SampleError as error:
            broken.append(str(error))
            continue
        texts = sample.captions if isinstance(sample, CaptionSample) else sample_texts(sample)
        lengths.update(len(text.split()) for text in texts)
        if isinstance(sample, CaptionSample):
            tables["tags"].update(sample.tags)
            tables["objects"].update(box.label for box in sample.boxes if box.label)
        elif isinstance(sample, VQASample):
            tables["answers"].update(sample.answers)
            tables["question types"].update([sample.question_type or "none"])
        elif isinstance(sample, NLVR2Sample):
            labels.update([str(sample.label)])
    facts: dict[str, Any] = {**describe(samples)}
    lines = [f"{name}: {value}" for name, value in facts.items()]
    if broken:
        lines.append(f"samples that cannot be read: {len(broken):,}, the first: {broken[0]}")
    if lengths:
        number = sum(lengths.values())
        mean = sum(length * times for length, times in lengths.items()) / number
        lines.append(f"texts: {number:,}, {min(lengths)} to {max(lengths)} words, {mean:.1f} on average")
    for name, counted in {**tables, "labels": labels}.items():
        if counted:
            total = sum(counted.values())
            most = ", ".join(f"{word} {100 * times / total:.1f} %" for word, times in counted.most_common(MOST))
            lines.append(f"{name}: {len(counted):,} different; {most}{', ...' if len(counted) > MOST else ''}")
    return lines


def _image(source: Any) -> Image.Image | None:
    try:
        return open_image(source)
    except SampleError:
        return None


def _words(sample: Sample) -> str:
    match sample:
        case CaptionSample():
            tags = f" [{', '.join(sample.tags)}]" if sample.tags else ""
            rest = len(sample.captions) - CAPTIONS
            more = f" / ... and {rest} more" if rest > 0 else ""
            return " / ".join(sample.captions[:CAPTIONS]) + more + tags
        case VQASample():
            return f"{sample.question} {', '.join(dict.fromkeys(sample.answers))}"
        case VCRSample():
            return " ".join(str(part) for part in sample.question)
    raise DataError(f"{sample.key}: a sample of an unknown kind")
