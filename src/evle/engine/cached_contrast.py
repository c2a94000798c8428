"""Contrast over all micro-batches of a step: the heads of a model that compare pairs, and the two passes they need."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from evle.models.contrast import ContrastHead, StepContrast, default_match_ids
from evle.tasks.task import Batch


class CachedContrast:
    """The two passes of one step of `num_parts` micro-batches; `heads` is empty where one pass is enough.

    Matching (ITM) still draws its hard negatives from one micro-batch of all processes, whose images and texts are in
    memory.
    """

    def __init__(self, model: nn.Module, num_parts: int):
        self.model = model
        self.heads = [each for each in model.modules() if isinstance(each, ContrastHead)] if num_parts > 1 else []
        self.steps = [StepContrast() for _ in self.heads]

    def with_ids(self, batch: Batch, index: int) -> Batch:
        """Micro-batch `index` with match ids: by default, each pair of the step matches itself alone."""
        if not self.heads or "match_ids" in batch:
            return batch
        texts = batch["input_ids"]
        return {**batch, "match_ids": default_match_ids(len(texts), texts.device) + (index << 24)}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, a pass records embeddings. It leaves no trace in buffers such as those of batch normalisation."""
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        with self._attached():
            yield
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

    @contextmanager
    def comparing(self, index: int, weight: float) -> Iterator[None]:
        """Inside, micro-batch `index` is compared with all of the step (see `StepContrast.choose`)."""
        for step in self.steps:
            step.choose(index, weight)
        with self._attached():
            yield

    @contextmanager
    def _attached(self) -> Iterator[None]:
        for head, step in zip(self.heads, self.steps, strict=True):
            head.step = step
        try:
            yield
        finally:
            for head in self.heads:
                head.step = None
