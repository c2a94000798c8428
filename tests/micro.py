"""The smallest runs that can fail: a micro model, eight samples, a few steps."""

from pathlib import Path
from typing import Any

from PIL import Image

from evle.config import merge
from evle.data.samples import Box, CaptionSample, NLVR2Sample, Swap, VCRSample, VQASample
from evle.errors import SampleError
from evle.run.config import RunConfig

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

TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
MICRO_VLE = {
    **TOWER,
    "text_config": TOWER,
    "vision_config": {**TOWER, "image_size": 16, "patch_size": 8},
}
SMALLEST = {"eve": ("eve-tiny", MICRO), "vle": ("vle-tiny", MICRO_VLE)}


def plain_image(colour: str) -> Image.Image:
    return Image.new("RGB", (20, 20), colour)


def caption_samples() -> list[CaptionSample]:
    """Images of one colour, a thing in one quarter; either word of a caption tells the other."""
    return [
        CaptionSample(
            colour,
            plain_image(colour),
            (f"{colour} {thing}",),
            boxes=(Box(10 * (place % 2), 10 * (place // 2 % 2), 10, 10, label=thing, phrase=thing),),
            tags=(thing, "plain"),
            match_id=thing,
        )
        for place, (colour, thing) in enumerate(zip(COLOURS, THINGS, strict=True))
    ]


def swap_samples() -> list[CaptionSample]:
    """Images of one colour in four sets of two, each with the caption of the other as its swapped one."""
    samples = []
    for index, colour in enumerate(COLOURS):
        other, set_id = COLOURS[index ^ 1], f"{index // 2}"
        swap = Swap(f"all {other}", "colour", plain_image(other), set_id)
        samples.append(CaptionSample(colour, plain_image(colour), (f"all {colour}",), swap=swap))
    return samples


def vqa_samples() -> list[VQASample]:
    return [
        VQASample(name, plain_image(name), "which colour is it", (name,), answer_type="other", question_type="which")
        for name in COLOURS
    ]


def nlvr2_samples() -> list[NLVR2Sample]:
    pairs = [(COLOURS[i], COLOURS[i if i % 2 else (i + 3) % 8]) for i in range(8)]
    return [
        NLVR2Sample(
            f"{i}", (plain_image(left), plain_image(right)), "both have one colour", left == right, set_id=f"{i // 2}"
        )
        for i, (left, right) in enumerate(pairs)
    ]


def vcr_samples() -> list[VCRSample]:
    """Which colour a person's half of an image is; because the other half is the same or not."""
    samples = []
    for place, colour in enumerate(COLOURS):
        image = plain_image(colour)
        image.paste("gray", (10, 0, 20, 20))
        choices = [COLOURS[(place + step - place % 4) % 8] for step in range(4)]
        reasons = [COLOURS[(place + step - (place + 1) % 4) % 8] for step in range(4)]
        samples.append(
            VCRSample(
                colour,
                image,
                (Box(0, 0, 10, 20, label="person"), Box(10, 0, 10, 20, label="cloth")),
                ("what", "is", (0,), "?"),
                tuple((each,) for each in choices),
                tuple(("because", (0, 1), "show", each) for each in reasons),
                answer_label=place % 4,
                rationale_label=(place + 1) % 4,
            )
        )
    return samples


class Damaged(list):
    """Samples of which the fourth cannot be made, as where VCR's metadata or the JSON in a shard is damaged."""

    def __getitem__(self, place):
        if place == 3:
            raise SampleError("the fourth sample is damaged")
        return super().__getitem__(place)


SAMPLES = {
    "pretraining": caption_samples,
    "retrieval": caption_samples,
    "swaps": swap_samples,
    "vqa": vqa_samples,
    "nlvr2": nlvr2_samples,
    "vcr-q2a": vcr_samples,
    "vcr-qa2r": vcr_samples,
}


def micro_run(output: Path, task: str, changes: dict[str, Any] | None = None, family: str = "eve") -> RunConfig:
    """A run of a family's micro model that takes a second or two."""
    preset, overrides = SMALLEST[family]
    tree = {
        "task": {"name": task},
        "model": {"preset": preset, "overrides": overrides},
        "tokenizer": {"vocab_size": 400},
        "image": {"flip": 0.0, "scale": [1.0, 1.0]},
        "text": {"max_length": 40 if task.startswith("vcr") else 12},
        "optim": {"lr": {"eve": 5e-3, "vle": 2e-3}[family], "warmup": 0.1},
        "train": {"steps": 20, "batch_size": 8, "eval_every": 0, "log_every": 5},
        "evaluate": {"batch_size": 8, "examples": 2},
        "output": str(output),
    }
    return RunConfig.build(merge(tree, changes or {}), "micro")
