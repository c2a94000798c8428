"""Images and texts as vectors."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evle.data.requests import Images, Texts, as_images, as_texts, batches_by_length, readable_batches
from evle.data.samples import ImageSource
from evle.errors import SampleError
from evle.models.dual import DUAL_ENCODERS
from evle.models.soundness import finite
from evle.pipelines.pipeline import Pipeline
from evle.tasks.dual import DualEncoderTask
from evle.tasks.retrieval import RetrievalConfig, RetrievalTask
from evle.tasks.task import Task


@dataclass
class EmbeddedImages:
    """A batch of embedded images: `rows` are their positions in the input, `features` (B, D) float32 on the CPU.

    `failures` names the images that could not be read since the last batch, by position.
    """

    rows: list[int]
    features: Tensor
    failures: dict[int, SampleError] = field(default_factory=dict)


class EmbedPipeline(Pipeline):
    """Images and texts as unit vectors; the dot product of two is their similarity.

    Takes a retrieval run or model of EVE or VLE, and the CLIP and SigLIP models of transformers.

    >>> embed = EmbedPipeline("runs/retrieval")  # doctest: +SKIP
    >>> embed.texts(["a red circle"]) @ embed.images(["a.jpg", "b.jpg"]).T  # doctest: +SKIP
    tensor([[0.61, 0.08]])
    """

    models: ClassVar[Mapping[str, type[PreTrainedModel]]] = {**RetrievalTask.models, **DUAL_ENCODERS}
    task_type = RetrievalTask

    def make_task(self, **options: Any) -> Task:
        """Retrieval as evaluation reads it; for CLIP and SigLIP, by their own processor."""
        if self.model.config.model_type not in DUAL_ENCODERS:
            return super().make_task(k_test=0, **options)
        settings = RetrievalConfig(text=self.text, k_test=0)
        return DualEncoderTask.for_model(settings, self.processor, self.model.config)

    def texts(self, texts: Texts) -> Tensor:
        """Embeddings (N, D) float32 on the CPU."""
        token_lists = [self.task.read_text(text) for text in as_texts(texts)]
        if not token_lists:
            return torch.empty(0, self.dimension)
        rows: list[Tensor] = [torch.empty(0)] * len(token_lists)
        with self.evaluating():
            for indices in batches_by_length(token_lists, self.batch_size):
                inputs = self.pad_tokens([token_lists[index] for index in indices])
                for index, row in zip(indices, finite(self.model.get_text_features(**inputs)), strict=True):
                    rows[index] = row
        return torch.stack(rows)

    def images(self, images: Images) -> Tensor:
        """Embeddings (N, D) float32 on the CPU. Raises SampleError at the first image that cannot be read."""
        parts = []
        for batch in self.image_batches(as_images(images)):
            for error in batch.failures.values():
                raise error
            parts.append(batch.features)
        return torch.cat(parts) if parts else torch.empty(0, self.dimension)

    def image_batches(self, sources: Iterable[ImageSource]) -> Iterator[EmbeddedImages]:
        """Embeddings batch by batch, of any number of images; those that cannot be read are named and left out."""
        for batch in readable_batches(self.read_ahead(sources), self.batch_size):
            yield EmbeddedImages(batch.rows, self._embed(batch.images), batch.failures)

    @cached_property
    def dimension(self) -> int:
        """D, found by embedding one short text: no configuration of every family names it."""
        return self.texts("a").shape[1]

    def _embed(self, pixels: list[Tensor]) -> Tensor:
        if not pixels:
            return torch.empty(0, self.dimension)
        with self.evaluating():
            return finite(self.model.get_image_features(self.pixel_values(pixels)))


def fingerprint(pipeline: Pipeline) -> str:
    """A hash of all that decides an embedding: every weight, and how images and words become numbers."""
    if hasattr(pipeline.model, "fingerprint"):  # exported: that of the model
        return str(pipeline.model.fingerprint)
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(pipeline.model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    images = pipeline.processor.image_processor
    facts = [dict(images.size), list(images.image_mean), list(images.image_std), pipeline.task.framing]
    digest.update(json.dumps([*facts, sorted(pipeline.processor.tokenizer.get_vocab().items())]).encode())
    return digest.hexdigest()
