"""Tiny untrained CLIP and SigLIP models of transformers, saved as their authors save theirs."""

from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from evle.transforms.text import train_tokenizer
from retrieval_models import COLOURS

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}


def save_dual(folder: Path, family: str) -> Path:
    tokenizer = train_tokenizer([f"a {colour} ball what colour how many" for colour in COLOURS], 300)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "bos_token_id": 2, "eos_token_id": 3}
    text = {**TOWER, **ids, "max_position_embeddings": 16}
    torch.manual_seed(0)
    if family == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24))
        images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        processor = CLIPProcessor(images, tokenizer)
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
        images = SiglipImageProcessor(size={"height": 32, "width": 32})
        processor = SiglipProcessor(images, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
