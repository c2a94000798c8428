"""What pre-training and retrieval share: which words of a caption sample are shown, and which samples say the same."""

import numpy as np
from pydantic import Field

from evle.data.samples import CaptionSample
from evle.errors import SampleError
from evle.tasks.task import TaskOptions


class CaptionOptions(TaskOptions):
    """Options of tasks on pictures with captions."""

    tags: float = Field(default=0.0, ge=0, le=1)
    """Share of training texts to which some of the sample's tags are added, in random order."""
    tags_only: float = Field(default=0.0, ge=0, le=1)
    """Share of training texts that are made of tags alone."""
    max_tags: int = Field(default=5, ge=1)
    """Tags in one text at most."""


def training_text(sample: CaptionSample, options: CaptionOptions, rng: np.random.Generator) -> str:
    """One text for one view of `sample`: a caption at random, perhaps with tags, or tags alone. Raises SampleError
    without any."""
    draw = rng.random()
    with_tags = bool(sample.tags) and draw < options.tags + options.tags_only
    if not sample.captions and not sample.tags:
        raise SampleError(f"{sample.key}: no caption; give it one or remove its row")
    caption = sample.captions[rng.integers(len(sample.captions))] if sample.captions else ""
    if not with_tags and caption:
        return caption
    tags = list(rng.permutation(sample.tags)[: 1 + rng.integers(options.max_tags)])
    return ", ".join(tags if draw < options.tags_only or not caption else [caption, *tags])


def first_text(sample: CaptionSample) -> str:
    """The text that stands for `sample` where nothing is random: its best caption. Raises SampleError without any."""
    if not sample.captions:
        raise SampleError(f"{sample.key}: no caption; give it one or remove its row")
    return sample.captions[0]


def match_name(sample: CaptionSample) -> str:
    """The name that samples of the same thing share."""
    return sample.match_id or sample.key
