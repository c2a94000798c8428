"""Retrieval with a dual encoder of transformers: images and texts are prepared by the model's own processor."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evle.data.images import open_image
from evle.data.samples import ImageSource
from evle.models.dual import DUAL_ENCODERS, PADDED_TO_THE_END
from evle.tasks.retrieval import RetrievalTask
from evle.tasks.task import Batch
from evle.transforms.collate import pad_rows, pad_text


class DualEncoderTask(RetrievalTask):
    """Evaluation of CLIP and SigLIP by our retrieval protocol, without re-ranking; they are not trained here."""

    name = "dual"
    models: ClassVar[dict[str, type[PreTrainedModel]]] = DUAL_ENCODERS
    family = ""

    def read_image(self, source: ImageSource, rng: np.random.Generator, train: bool, text: str) -> Tensor:
        """One image as the processor prepares it, float32 (3, H, W)."""
        pixels: Tensor = self.processor.image_processor(images=open_image(source), return_tensors="pt")["pixel_values"]
        return pixels[0]

    def collate_images(self, images: list[Tensor]) -> Tensor:
        return torch.stack(images)

    def collate_tokens(self, token_lists: list[list[int]]) -> Batch:
        pad = self.processor.tokenizer.pad_token_id
        if self.family in PADDED_TO_THE_END:
            return {"input_ids": pad_rows(token_lists, pad, self.options.text.max_length)}
        input_ids, attention_mask = pad_text(token_lists, pad)
        return {"input_ids": input_ids, "attention_mask": attention_mask}
