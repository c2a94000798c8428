"""Retrieval with a dual encoder of transformers: images and texts are prepared by the model's own processor."""

from typing import ClassVar, Self

import numpy as np
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from evle.data.images import open_image
from evle.data.samples import ImageSource
from evle.models.dual import DUAL_ENCODERS, PADDED_TO_THE_END
from evle.tasks.retrieval import RetrievalConfig, RetrievalTask
from evle.tasks.task import Batch
from evle.transforms.collate import pad_rows, pad_text
from evle.transforms.image_config import ImageConfig


class DualEncoderTask(RetrievalTask):
    """Evaluation of CLIP and SigLIP by our retrieval protocol, without re-ranking; they are not trained here."""

    name = "dual"
    models: ClassVar[dict[str, type[PreTrainedModel]]] = DUAL_ENCODERS

    def __init__(self, options: RetrievalConfig, processor: ProcessorMixin, family: str):
        super().__init__(options, processor)
        self.family = family

    @classmethod
    def for_model(cls, options: RetrievalConfig, processor: ProcessorMixin, config: PreTrainedConfig) -> Self:
        """The task for a model of `config`: nothing is re-ranked, texts are cut where its positions end, and images are
        as its own processor frames them."""
        positions = int(config.get_text_config().max_position_embeddings)
        text = options.text.model_copy(update={"max_length": min(options.text.max_length, positions)})
        return cls(
            options.model_copy(update={"k_test": 0, "text": text, "image": ImageConfig()}),
            processor,
            str(config.model_type),
        )

    def read_image(self, source: ImageSource, rng: np.random.Generator, train: bool, text: str) -> Tensor:
        """One image as the processor prepares it, float32 (3, H, W)."""
        pixels: Tensor = self.processor.image_processor(images=open_image(source), return_tensors="pt")["pixel_values"]
        return pixels[0]

    def collate_tokens(self, token_lists: list[list[int]]) -> Batch:
        pad = self.processor.tokenizer.pad_token_id
        if self.family in PADDED_TO_THE_END:
            return {"input_ids": pad_rows(token_lists, pad, self.options.text.max_length)}
        input_ids, attention_mask = pad_text(token_lists, pad)
        return {"input_ids": input_ids, "attention_mask": attention_mask}
