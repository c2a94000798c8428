"""The seam between a task and everything else: what one task says of its samples, its model head and its scores.

A task has no parameters. It turns a sample into features, features into a batch, a model's outputs into predictions, and
predictions into scores; the engine, the recipes and the pipelines know no more of it than this.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from evle.config import Config
from evle.data.samples import Sample
from evle.report import Gallery

Features = dict[str, Any]
Batch = dict[str, Tensor]


@dataclass
class Evaluation:
    """What an evaluation found.

    `scores` are the numbers (percentages where the field uses them), `chance` what guessing would reach under the same names,
    `galleries` pictures for the report, `predictions` one JSON-able record a sample, `skipped` what could not be read, a line each.
    """

    scores: dict[str, float]
    chance: dict[str, float] = field(default_factory=dict)
    galleries: list[Gallery] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluationSettings:
    """How an evaluation runs: rows at once, worker processes, precision ("no", "bf16"), examples in the report."""

    batch_size: int = 64
    num_workers: int = 0
    precision: str = "no"
    num_examples: int = 12
    progress: bool = True


class Task(ABC):
    """One task: `name` in recipes, the `sample_type` it reads, its options, and `metric`, the score that chooses the best checkpoint."""

    name: ClassVar[str]
    sample_type: ClassVar[type]
    options_type: ClassVar[type[Config]]
    metric: ClassVar[str]

    def __init__(self, options: Config, processor: ProcessorMixin):
        self.options = options
        self.processor = processor

    @abstractmethod
    def model_class(self, family: str) -> type[PreTrainedModel]:
        """The model with this task's head, for a family ("eve", "vle")."""

    def model_overrides(self) -> dict[str, Any]:
        """Fields of the model's config that the task decides, such as the number of answers."""
        return {}

    @abstractmethod
    def features(self, sample: Sample, rng: np.random.Generator, train: bool) -> Features:
        """Tensors and token lists of one sample. Raises SampleError where the sample cannot be used."""

    @abstractmethod
    def collate(self, features: list[Features]) -> Batch:
        """One batch of tensors, named as the model's arguments."""

    @abstractmethod
    def evaluate(self, model: PreTrainedModel, samples: Sequence[Sample], settings: EvaluationSettings) -> Evaluation:
        """Score `model` on `samples`; each sample counts once, whatever the number of processes."""
