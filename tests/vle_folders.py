"""Folders of tiny untrained VLE models as the authors released theirs, and a sample of VCR's files."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import CLIPImageProcessor

from evle.models.vle import VLEConfig
from evle.models.vle.modeling import VLEPreTrainedModel
from evle.transforms.text import train_tokenizer

TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ANSWERS = ("red", "blue", "two", "yes")


def tokenizer() -> Any:
    return train_tokenizer(
        ["What is the color of the floor?", "a photo of dogs.", "Does Casey live in this house?"], 320
    )


def small_config(**fields: Any) -> VLEConfig:
    return VLEConfig(
        text_config={**TOWER, "vocab_size": len(tokenizer()), "max_position_embeddings": 96, "position_buckets": 16},
        vision_config={**TOWER, "image_size": 32, "patch_size": 8},
        **{**TOWER, **fields},
    )


def save_released(folder: Path, model_class: type[VLEPreTrainedModel], **fields: Any) -> Path:
    """A folder as VLE's release has them: config.json, pytorch_model.bin, preprocessor_config.json, a tokenizer."""
    torch.manual_seed(0)
    model = model_class(small_config(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)  # as they start, all images would give nearly the same
    folder.mkdir(parents=True)
    config = {**model.config.to_dict(), "architectures": [model_class.__name__]}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def plain_image(width: int = 90, height: int = 60) -> Image.Image:
    """Red on the left, green in the middle, blue on the right: what is cropped away tells."""
    image = Image.new("RGB", (width, height), "green")
    image.paste("red", (0, 0, width // 3, height))
    image.paste("blue", (2 * width // 3, 0, width, height))
    return image


META: dict[str, Any] = {
    "annot_id": "val-1",
    "objects": ["person", "person", "car"],
    "img_fn": "lsmdc_film/film@0.jpg",
    "metadata_fn": "lsmdc_film/film@0.json",
    "question": ["Does", [0], "live", "in", "this", "house", "?"],
    "answer_choices": [
        ["No", ",", [0], "lives", "far", "away", "."],
        ["Yes", ",", [0], "works", "there", "."],
        ["No", ",", [0, 1], "are", "visitors", "."],
        ["No", [1], "does", "not", "belong", "here", "."],
    ],
    "answer_label": 2,
    "rationale_choices": [
        [[0], "is", "dressed", "up", "."],
        [[1], "sits", "in", "a", "chair", "."],
        [[2], "stands", "outside", "."],
        [[0], "holds", "an", "umbrella", ",", "and", "there", "is", "a", [2], "."],
    ],
    "rationale_label": 3,
}


def write_vcr(root: Path) -> Path:
    """The files that META names, below `root`."""
    (root / "lsmdc_film").mkdir(parents=True)
    plain_image().save(root / META["img_fn"], "PNG")
    boxes = [[2, 5, 30, 55, 0.9], [35, 10, 60, 50, 0.8], [70, 20, 89, 59, 0.7]]
    (root / META["metadata_fn"]).write_text(json.dumps({"boxes": boxes, "width": 90, "height": 60}))
    return root
