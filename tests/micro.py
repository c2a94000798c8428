"""The smallest runs that can fail: a micro model, eight samples, a few steps."""

from pathlib import Path
from typing import Any

from PIL import Image

from evle.config import merge
from evle.data.samples import CaptionSample, NLVR2Sample, VQASample
from evle.recipe import RunConfig

THINGS = ("apple", "frog", "sky", "sun", "coal", "snow", "grape", "carrot")
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")

MICRO = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "soft_layers": [1],
    "num_experts": 2,
    "image_size": 16,
    "patch_size": 8,
    "stem_channels": [],
    "hidden_dropout_prob": 0.0,
    "layer_scale_init": 1.0,
    "initializer_range": 0.05,
    "decoder_hidden_size": 16,
    "decoder_num_layers": 1,
    "decoder_num_heads": 2,
}


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (20, 20), colour)


def caption_samples() -> list[CaptionSample]:
    """Pictures of one colour; either word of a caption tells the other."""
    return [
        CaptionSample(colour, picture(colour), (f"{colour} {thing}",), tags=(thing, "plain"), match_id=thing)
        for colour, thing in zip(COLOURS, THINGS, strict=True)
    ]


def vqa_samples() -> list[VQASample]:
    return [
        VQASample(name, picture(name), "which colour is it", (name,), answer_type="other", question_type="which")
        for name in COLOURS
    ]


def nlvr2_samples() -> list[NLVR2Sample]:
    pairs = [(COLOURS[i], COLOURS[i if i % 2 else (i + 3) % 8]) for i in range(8)]
    return [
        NLVR2Sample(f"{i}", (picture(left), picture(right)), "both have one colour", left == right, set_id=f"{i // 2}")
        for i, (left, right) in enumerate(pairs)
    ]


SAMPLES = {
    "pretraining": caption_samples,
    "retrieval": caption_samples,
    "vqa": vqa_samples,
    "nlvr2": nlvr2_samples,
}


def micro_run(output: Path, task: str, changes: dict[str, Any] | None = None) -> RunConfig:
    """A run of the micro model that takes a second or two."""
    tree = {
        "task": {"name": task},
        "model": {"preset": "eve-tiny", "overrides": MICRO},
        "tokenizer": {"vocab_size": 400},
        "image": {"flip": 0.0, "scale": [1.0, 1.0]},
        "text": {"max_length": 12},
        "optim": {"lr": 5e-3, "warmup": 0.1},
        "train": {"steps": 20, "batch_size": 8, "eval_every": 0, "log_every": 5},
        "evaluate": {"batch_size": 8, "examples": 2},
        "output": str(output),
    }
    return RunConfig.build(merge(tree, changes or {}), "micro")
