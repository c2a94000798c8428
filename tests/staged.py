"""Small recipes of one and of several stages."""

from pathlib import Path
from typing import Any

from evle.config import dump_yaml
from micro import MICRO

SCENES = {"source": "scenes", "size": 24}
DEFAULTS: dict[str, Any] = {
    "model": {"preset": "eve-tiny", "overrides": MICRO},
    "tokenizer": {"vocab_size": 400, "reads": ["captions", "vqa"]},
    "data": {
        "train": {**SCENES, "split": "train", "count": 16},
        "test": {**SCENES, "split": "test", "count": 8},
    },
    "text": {"max_length": 24},
    "train": {"steps": 2, "batch_size": 8, "eval_every": 0},
    "evaluate": {"batch_size": 8, "examples": 1},
}
VQA = {"task": {"name": "vqa"}}
TWO = {
    "defaults": DEFAULTS,
    "stages": {"pretrain": {"task": {"name": "pretraining"}}, "vqa": {**VQA, "model": {"init": "stage:pretrain"}}},
}


def write(folder: Path, tree: dict[str, Any]) -> Path:
    path = folder / "r.yaml"
    path.write_text(dump_yaml(tree), encoding="utf-8")
    return path
