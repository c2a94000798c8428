"""What pre-training and retrieval share: which words of a caption sample are shown, and which samples say the same."""

import numpy as np
from pydantic import Field, field_validator, model_validator

from evle.data.samples import CaptionSample
from evle.errors import SampleError
from evle.tasks.task import TaskConfig


class CaptionConfig(TaskConfig):
    """Options of tasks on images with captions."""

    tags: float = Field(default=0.0, ge=0, le=1)
    """Share of training texts to which some of the sample's tags are added, in random order."""
    tags_only: float = Field(default=0.0, ge=0, le=1)
    """Share of training texts that are made of tags alone."""
    max_tags: int = Field(default=5, ge=1)
    """Tags in one text at most."""
    templates: tuple[str, ...] = ()
    """Phrases around a caption or a single tag, `{}` in its place, such as "an image of {}": names alone teach no
    phrase that a user would search for."""
    templated: float = Field(default=0.0, ge=0, le=1)
    """Share of training texts that are put into one of the templates, if they are a caption or a single tag."""

    @field_validator("templates")
    @classmethod
    def _have_one_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f'"{template}" must hold {{}} once, where the text goes')
        return templates

    @model_validator(mode="after")
    def _templates_are_there(self) -> "CaptionConfig":
        if self.templated and not self.templates:
            raise ValueError(f'templated={self.templated} needs templates, such as ["an image of {{}}"]')
        return self


def training_text(sample: CaptionSample, options: CaptionConfig, rng: np.random.Generator) -> str:
    """One text for one view of `sample`: a caption at random, perhaps with tags, or tags alone, perhaps in a template.
    Raises SampleError without any."""
    words = _words(sample, options, rng)
    if len(words) == 1 and options.templated and rng.random() < options.templated:
        return options.templates[rng.integers(len(options.templates))].replace("{}", words[0])
    return ", ".join(words)


def _words(sample: CaptionSample, options: CaptionConfig, rng: np.random.Generator) -> list[str]:
    """The caption and the tags that one text is made of."""
    draw = rng.random()
    with_tags = bool(sample.tags) and draw < options.tags + options.tags_only
    if not sample.captions and not sample.tags:
        raise SampleError(f"{sample.key}: no caption; give it one or remove its row")
    caption = sample.captions[rng.integers(len(sample.captions))] if sample.captions else ""
    if not with_tags and caption:
        return [caption]
    tags = list(rng.permutation(sample.tags)[: 1 + rng.integers(options.max_tags)])
    return tags if draw < options.tags_only or not caption else [caption, *tags]


def first_text(sample: CaptionSample) -> str:
    """The text that stands for `sample` where nothing is random: its best caption. Raises SampleError without any."""
    if not sample.captions:
        raise SampleError(f"{sample.key}: no caption; give it one or remove its row")
    return sample.captions[0]


def match_name(sample: CaptionSample) -> str:
    """The name that samples of the same thing share."""
    return sample.match_id or sample.key
