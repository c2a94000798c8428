"""The interface between a task and everything else: its samples, its model head and its scores.

A task has no parameters. It turns a sample into features, features into a batch, and a model's outputs on samples
into scores; the engine, the recipes and the pipelines use only this interface. In training the order of calls is
`prepare` (learn from the training samples, before the model exists), `model_overrides`, `bind` (learn from the model),
then `features`, `collate_raw`, `on_device` and `evaluate`. A task for a trained model starts with `restore` and `bind`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from evle.config import Config
from evle.data.images import open_image
from evle.data.samples import Box, ImageSource, Sample
from evle.errors import ConfigError, nearest
from evle.report import Gallery, Table
from evle.transforms.collate import pad_text
from evle.transforms.image import framing_of, normalize, set_framing, test_boxes, test_image, train_image
from evle.transforms.image_config import Framing, ImageConfig
from evle.transforms.text import encode
from evle.transforms.words import clean_caption

Features = dict[str, Any]
Batch = dict[str, Tensor]

SIDES = ("left", "right")
"""Words that make a text untrue for a mirrored image, also inside of other words: "left?", "leftmost". ("bright"
prevents a flip unnecessarily.)"""


@dataclass
class Evaluation:
    """The result of an evaluation.

    `scores` are the numbers (percentages where that is usual), and `chance` holds the scores of guessing under the same
    names. `galleries` are images and `tables` further tables for the report; `predictions` has one JSON-serialisable
    record per sample, and `skipped` one line per unreadable sample. `files` holds the text of each file to write beside
    the report, by name (see `evle.tasks.submission`). For confidence intervals, `values` has the averaged numbers of
    each score that is a mean over samples, and `halves` those of each score that is the mean of two such means.
    """

    scores: dict[str, float]
    chance: dict[str, float] = field(default_factory=dict)
    galleries: list[Gallery] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    halves: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)

    def averaged(self, score: str) -> tuple[list[float], ...]:
        """What a score averages: one list, two for a mean of two means, none for another score."""
        return self.halves.get(score) or ((self.values[score],) if self.values.get(score) else ())


@dataclass(frozen=True)
class EvaluationSettings:
    """How an evaluation runs: rows per batch, worker processes, precision ("auto", "no", "bf16"), and how many examples
    the report shows.

    `quick` leaves out costly second stages and images: validation in the middle of training. `seed` draws the examples.
    """

    batch_size: int = 64
    num_workers: int = 0
    precision: str = "no"
    num_examples: int = 12
    quick: bool = False
    seed: int = 0


class TextConfig(Config):
    """How text is read; the defaults are EVE's fine-tuning."""

    max_length: int = Field(default=40, ge=3)
    """Maximum number of tokens, including [CLS] and [SEP]."""
    max_words: int = Field(default=30, ge=1)
    """Maximum number of words that the clean-up keeps."""
    clean: bool = True
    """Convert to lower case and remove punctuation (X-VLM's rule); false keeps the text as it is."""


class TaskConfig(Config):
    """Options of every task. In a recipe, `image` and `text` are beside `task`, not in it."""

    image: ImageConfig = ImageConfig()
    text: TextConfig = TextConfig()
    keep_sides: bool = True
    """Never mirror an image whose text contains left or right (EVE does this only for VQA)."""


class Task(ABC):
    """One task: its `name` in recipes, the `sample_type` that it reads, its options, and `metric`, the score that
    selects the best checkpoint.

    `reads` is the kind of samples that sources are asked for, `models` the model with the task's head for each family,
    and `higher_is_better` belongs to `metric`.
    """

    name: ClassVar[str]
    reads: ClassVar[str]
    sample_type: ClassVar[type]
    config_type: ClassVar[type[TaskConfig]] = TaskConfig
    models: ClassVar[dict[str, type[PreTrainedModel]]]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    quick_metric: ClassVar[str] = ""
    """How `metric` differs in the quick evaluations that select the best checkpoint; empty if it does not."""

    def __init__(self, options: TaskConfig, processor: ProcessorMixin):
        """If `options.image.framing` is given, `processor` is set to it, because it is saved with the model and later
        users must frame images as training did."""
        self.options = options
        self.processor = processor
        if options.image.framing is not None:
            set_framing(processor.image_processor, options.image.framing)

    def prepare(self, samples: Sequence[Sample], config: PreTrainedConfig) -> None:
        """Learn what must be known before the model is built, from the training samples and the initial `config`. Most
        tasks have nothing to learn."""
        return None

    def equip(self, model: PreTrainedModel, samples: Sequence[Sample]) -> None:
        """Give the new model what it learns from the training samples before the first step and what no configuration
        holds. Most models need nothing."""
        return None

    def training_samples(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Those of the samples given to `prepare` that training reads; by default all of them."""
        return samples

    @classmethod
    def model_class(cls, family: str) -> type[PreTrainedModel]:
        """The model with this task's head, for a family. Raises ConfigError for a family that has none."""
        if family not in cls.models:
            raise ConfigError(f"{cls.name} has no head for the model family {family!r}; {nearest(family, cls.models)}")
        return cls.models[family]

    def model_overrides(self) -> dict[str, Any]:
        """Fields of the model's config that the task determines, such as the number of answers."""
        return {}

    def bind(self, config: PreTrainedConfig) -> None:
        """Learn from the model's config what features need, such as the patch size. Raises ConfigError if the model
        does not fit the task."""
        return None

    def notes(self) -> list[str]:
        """Observations of `prepare` for the user, one per line."""
        return []

    def ranking(self) -> str:
        """How `evaluate` ranks, for readers of its scores; empty for a task that ranks nothing."""
        return ""

    def state(self) -> dict[str, Any]:
        """What `prepare` learned that is not in the model's config, as JSON values; saved beside the model."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        return None

    @abstractmethod
    def features(self, sample: Sample, rng: np.random.Generator, train: bool) -> Features:
        """Tensors and token lists of one sample. Raises SampleError if the sample cannot be used."""

    def fixed_features(self, sample: Sample, rng: np.random.Generator) -> Features:
        """The features of one sample as evaluation and inference see it, without augmentation."""
        return self.features(sample, rng, train=False)

    @abstractmethod
    def collate_raw(self, features: list[Features]) -> Batch:
        """One batch of tensors, named as the model's arguments, whose images are still uint8: a quarter of the bytes
        to hand over between processes and to a device."""

    def on_device(self, batch: Batch, device: torch.device) -> Batch:
        """A raw batch on a device, its images normalised there."""
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        if "pixel_values" in batch:
            batch["pixel_values"] = self._normalized(batch["pixel_values"])
        return batch

    def collate(self, features: list[Features]) -> Batch:
        """One batch as the model reads it: `collate_raw` and `on_device` on the CPU."""
        return self.on_device(self.collate_raw(features), torch.device("cpu"))

    @abstractmethod
    def evaluate(self, model: PreTrainedModel, samples: Sequence[Sample], settings: EvaluationSettings) -> Evaluation:
        """Score `model` on `samples`; each sample counts once, whatever the number of processes."""

    # Shared by tasks on images and text.

    @property
    def image_size(self) -> int:
        """Side of the images given to the model, in pixels."""
        return self.options.image.size or framing_of(self.processor.image_processor)[0]

    @property
    def framing(self) -> Framing:
        """What the model sees of an image that is not square."""
        return framing_of(self.processor.image_processor)[1]

    def read_image(self, source: ImageSource, rng: np.random.Generator, train: bool, text: str) -> Tensor:
        """One image as uint8 (3, size, size): augmented in training, otherwise only framed for the model."""
        return self.read_image_with_boxes(source, (), rng, train, text)[0]

    def read_image_with_boxes(
        self, source: ImageSource, boxes: Sequence[Box], rng: np.random.Generator, train: bool, text: str
    ) -> tuple[Tensor, np.ndarray]:
        """As `read_image`, also with `boxes` in the image as left, top, right, bottom (N, 4); NaN for a box that is not
        visible."""
        options = self.options.image
        image = open_image(source, keep_alpha=train and options.background != "white")
        corners = [(box.x, box.y, box.x + box.width, box.y + box.height) for box in boxes]
        if not train:
            moved = test_boxes(corners, image.size, self.image_size, framing=self.framing)
            return test_image(image, self.image_size, framing=self.framing), moved
        if self.options.keep_sides and any(side in text.lower() for side in SIDES):
            options = options.without_flip()
        return train_image(image, options, self.image_size, rng, corners)

    def clean(self, text: str) -> str:
        """`text`, cleaned according to the options."""
        return clean_caption(text, self.options.text.max_words) if self.options.text.clean else text

    def tokens(self, text: str) -> list[int]:
        """Token ids of `text`, with [CLS] and [SEP], at most `max_length`."""
        return encode(self.processor.tokenizer, text, self.options.text.max_length)

    def read_text(self, text: str) -> list[int]:
        """Token ids of `text` as evaluation reads it: cleaned, encoded and cut."""
        return self.tokens(self.clean(text))

    def collate_images(self, images: list[Tensor]) -> Tensor:
        """Images as the model's float32 `pixel_values` (B, 3, H, W)."""
        return self._normalized(torch.stack(images))

    def _normalized(self, pixels: Tensor) -> Tensor:
        """Images as float32. What another reader has prepared, and the states of an image tower, stay as they are."""
        if pixels.dtype != torch.uint8:
            return pixels
        image_processor = self.processor.image_processor
        return normalize(pixels, image_processor.image_mean, image_processor.image_std)

    def collate_tokens(self, token_lists: list[list[int]]) -> Batch:
        """Texts, padded to the longest, as `input_ids` and `attention_mask` (B, T)."""
        input_ids, attention_mask = pad_text(token_lists, self.processor.tokenizer.pad_token_id)
        return {"input_ids": input_ids, "attention_mask": attention_mask}
