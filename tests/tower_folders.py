"""Folders of tiny random encoders, as people hold trained ones, and a local cache of the hub that holds them."""

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoModel

from evle.transforms.text import train_tokenizer
from tower_models import TEXT, VISION, tower_config

WORDS = ["a red ball", "a blue ball", "a green box", "two dogs in a house"]
STATISTICS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}


def save_towers(folder: Path, vision: str, text: str) -> tuple[Path, Path]:
    """The folders of an image encoder and of a text encoder with its tokenizer."""
    assert vision in VISION
    assert text in TEXT
    tokenizer = train_tokenizer(WORDS, 280)
    config = tower_config(vision, text).with_changes(vocab_size=len(tokenizer))
    if config.text_config.pad_token_id == 1:  # as RoBERTa's
        tokenizer.pad_token = "[UNK]"
    if vision == "clip":
        config.vision_config.num_hidden_layers = 2  # a preset cuts a CLIP to its own number of layers
    torch.manual_seed(0)
    folders = folder / vision, folder / text
    for target, part in zip(folders, (config.vision_config, config.text_config), strict=True):
        AutoModel.from_config(part).save_pretrained(target)
    facts = {**STATISTICS, "image_processor_type": "CLIPImageProcessor"}
    (folders[0] / "preprocessor_config.json").write_text(json.dumps(facts))
    tokenizer.save_pretrained(folders[1])
    return folders


def put_in_cache(cache: Path, folder: Path, name: str, revision: str = "main") -> Path:
    """Put a folder into a local cache of the hub, as its client leaves it; the snapshot."""
    repository = cache / f"models--{name.replace('/', '--')}"
    commit = (revision * 40)[:40].encode().hex()[:40]
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    return repository / "snapshots" / commit
