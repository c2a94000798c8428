"""What pre-training and retrieval share: the text that a caption sample is shown with, and which samples match."""

import numpy as np
from pydantic import Field, field_validator, model_validator

from evle.data.samples import CaptionSample
from evle.errors import SampleError
from evle.tasks.task import TaskConfig
from evle.transforms.words import clean_caption


class CaptionConfig(TaskConfig):
    """Options of tasks on images with captions."""

    tags: float = Field(default=0.0, ge=0, le=1)
    """Share of training texts to which some of the sample's tags are added, in random order."""
    tags_only: float = Field(default=0.0, ge=0, le=1)
    """Share of training texts that consist of tags alone."""
    max_tags: int = Field(default=5, ge=1)
    """Maximum number of tags in one text."""
    templates: tuple[str, ...] = ()
    """Phrases such as "an image of {}", in which a caption or a single tag replaces `{}`. They teach the phrases that
    users search with, which names alone do not."""
    templated: float = Field(default=0.0, ge=0, le=1)
    """Share of texts with one caption or one tag that are put into a template."""

    @field_validator("templates")
    @classmethod
    def _have_one_gap(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f'"{template}" must contain {{}} once, where the text goes')
        return templates

    @model_validator(mode="after")
    def _has_templates(self) -> "CaptionConfig":
        if self.templated and not self.templates:
            raise ValueError(f'templated={self.templated} needs templates, such as ["an image of {{}}"]')
        return self


def training_text(sample: CaptionSample, options: CaptionConfig, rng: np.random.Generator) -> str:
    """One random text for one view of `sample`: a caption, with or without tags, or tags alone, and perhaps in a
    template.

    Raises SampleError if there is neither a caption nor a tag.
    """
    words = _words(sample, options, rng)
    if len(words) == 1 and options.templated and rng.random() < options.templated:
        return options.templates[rng.integers(len(options.templates))].replace("{}", words[0])
    return ", ".join(words)


def _words(sample: CaptionSample, options: CaptionConfig, rng: np.random.Generator) -> list[str]:
    """The caption and the tags of one text."""
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
    """The text of `sample` in evaluation: its first caption. Raises SampleError if there is none."""
    if not sample.captions:
        raise SampleError(f"{sample.key}: no caption; give it one or remove its row")
    return sample.captions[0]


def match_name(sample: CaptionSample) -> str:
    """The name that samples of the same thing share."""
    return sample.match_id or sample.key


def match_of(sample: CaptionSample, text: str) -> str | None:
    """The name that pairs of an image and a text of the same thing share; None if `text` is the phrase of one of the
    image's boxes. A phrase describes a part, which other images may show as well: contrast and matching must not take
    it for a caption of this image alone.
    """
    phrases = {clean_caption(box.phrase, None) for box in sample.boxes if box.phrase}
    return None if phrases and clean_caption(text, None) in phrases else match_name(sample)
