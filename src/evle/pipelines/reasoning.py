"""Which answer to a question about an image's objects is right, and for which reason? (VCR)"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import ClassVar

import torch
from transformers import PreTrainedModel, ProcessorMixin

from evle.data.images import open_image
from evle.data.samples import VCRSample
from evle.errors import DataError, SampleError, at_least
from evle.models.soundness import finite
from evle.pipelines.pipeline import UNUSED, Pipeline
from evle.pipelines.typed import check_inside, check_names
from evle.tasks.task import TextConfig
from evle.tasks.vcr import VCRQ2ATask, VCRQA2RTask, VCRTask


@dataclass(frozen=True)
class Choice:
    """The candidate that a model chose for a sample: its index, and the probability and logit of every candidate."""

    key: str
    choice: int
    scores: list[float]
    logits: list[float]


class ChoosePipeline(Pipeline):
    """What both halves of VCR share: each image is encoded once for all of its candidates.

    Texts have at most 80 tokens where neither a run nor `text` decides. `released_boxes` maps boxes to patches as the
    released code does, over the whole image although the model sees its centre; it defaults to the run's own setting.
    """

    task_type: ClassVar[type[VCRTask]]
    kept_options = ("released_boxes",)

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        model: PreTrainedModel | None = None,
        processor: ProcessorMixin | None = None,
        text: TextConfig | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 8,
        released_boxes: bool | None = None,
    ):
        super().__init__(
            source, model=model, processor=processor, text=text, device=device, batch_size=batch_size, num_workers=0
        )
        if text is None and not self.trained_as:
            self.text = self.text.model_copy(update={"max_length": 80})
        self.task = self.make_task(**({} if released_boxes is None else {"released_boxes": released_boxes}))
        self.task.bind(self.model.config)

    def choose(self, samples: Iterable[VCRSample], batch_size: int | None = None) -> list[Choice]:
        """One choice per sample, in order, `batch_size` (None: the pipeline's) at once.

        Raises SampleError for a sample that cannot be used, such as one with a box outside of its image.
        """
        rows = self.batch_size if batch_size is None else at_least(1, batch_size, "batch_size")
        listed, result = list(samples), []
        for start in range(0, len(listed), rows):
            asked = [self._checked(sample) for sample in listed[start : start + rows]]
            batch = self.task.collate([self.task.features(sample, UNUSED, train=False) for sample in asked])
            batch.pop("labels", None)
            batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            batch["pixel_values"] = batch["pixel_values"].to(self.model.dtype)
            with self.evaluating():
                logits = finite(self.model(**batch).logits)  # (B, C)
            for sample, row in zip(asked, logits, strict=True):
                result.append(Choice(sample.key, int(row.argmax()), row.softmax(dim=-1).tolist(), row.tolist()))
        return result

    def _checked(self, sample: VCRSample) -> VCRSample:
        """The sample with its image decoded. Raises SampleError where its objects or candidates cannot be used."""
        assert isinstance(self.task, VCRTask)
        parts = self.task.parts(sample)
        if not parts:
            raise SampleError(f"{sample.key}: there are no candidates to choose from; give at least 2")
        image = open_image(sample.image)
        try:
            check_inside(sample.objects, image, first=0)
            check_names(sample, chain.from_iterable(parts))
        except SampleError as error:
            raise SampleError(f"{sample.key}: {error}") from None
        return replace(sample, image=image)


class AnswerChoicePipeline(ChoosePipeline):
    """Which of four answers to a question is right (VCR, Q2A).

    >>> AnswerChoicePipeline("runs/vcr-q2a")([sample])[0].choice  # doctest: +SKIP
    2
    """

    task_type = VCRQ2ATask
    models = VCRQ2ATask.models

    def __call__(self, samples: VCRSample | Iterable[VCRSample]) -> list[Choice]:
        """One choice per sample, for one sample or many; their labels are not needed and not read."""
        return self.choose([samples] if isinstance(samples, VCRSample) else samples)


class ReasonChoicePipeline(ChoosePipeline):
    """Which of four reasons is the right one for an answer (VCR, QA2R).

    >>> ReasonChoicePipeline("runs/vcr-qa2r")([sample], answers=[2])[0].choice  # doctest: +SKIP
    3
    """

    task_type = VCRQA2RTask
    models = VCRQA2RTask.models

    def __call__(self, samples: VCRSample | Iterable[VCRSample], answers: Iterable[int] | None = None) -> list[Choice]:
        """One choice per sample, for one sample or many.

        `answers` are the indices of the answers to find reasons for, such as those that an `AnswerChoicePipeline`
        chose; the default is each sample's `answer_label`.
        """
        listed = [samples] if isinstance(samples, VCRSample) else list(samples)
        if answers is None:
            return self.choose(listed)
        try:
            chosen = [operator.index(answer) for answer in answers]
        except TypeError:
            raise DataError(f"answers is {answers!r}; give a list with the index of an answer per sample") from None
        if len(chosen) != len(listed):
            raise DataError(f"{len(chosen)} answers for {len(listed)} samples; give one per sample")
        for sample, answer in zip(listed, chosen):
            if not 0 <= answer < len(sample.answer_choices):
                raise DataError(
                    f"{sample.key}: there is no answer {answer} of {len(sample.answer_choices)}; they count from 0"
                )
        return self.choose([replace(sample, answer_label=answer) for sample, answer in zip(listed, chosen)])
