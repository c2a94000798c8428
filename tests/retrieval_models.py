"""Tiny untrained EVE models, saved as a run would save them: enough for everything about inference but being right."""

from pathlib import Path
from typing import Any

import torch

from evle.models.eve import EVEConfig, EVEForRetrieval, EVEForVQA, EVEProcessor
from evle.transforms.text import train_tokenizer

COLOURS = ("red", "blue", "green", "white", "black")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
    "max_position_embeddings": 24,
    "soft_layers": (1,),
    "num_experts": 2,
    "drop_path_rate": 0.1,
}


def processor() -> EVEProcessor:
    tokenizer = train_tokenizer([f"a {colour} ball what colour how many" for colour in COLOURS], 300)
    return EVEProcessor.for_size(SIZES["image_size"], tokenizer)


def save_retrieval_model(folder: Path, seed: int = 0, **fields: Any) -> Path:
    torch.manual_seed(seed)
    reader = processor()
    model = EVEForRetrieval(EVEConfig(**{**SIZES, **fields}, vocab_size=len(reader.tokenizer)))
    _spread(model)
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


def save_vqa_model(folder: Path, **fields: Any) -> Path:
    torch.manual_seed(0)
    reader = processor()
    answers = {0: "red", 1: "blue", 2: "two"}
    model = EVEForVQA(EVEConfig(**SIZES, **fields, vocab_size=len(reader.tokenizer), id2label=answers))
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


@torch.no_grad()
def _spread(model: torch.nn.Module) -> None:
    """Larger weights: as they start, all images have nearly the same embedding and no test could tell them apart."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(8.0)
