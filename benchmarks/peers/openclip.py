"""A model of open_clip, trained by open_clip's own command within a budget of processor time."""

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.contest import WARMUP, WEIGHT_DECAY, Trained
from evle.data.images import open_image
from evle.data.samples import Samples, readable
from evle.run.prepare import Prepared

CONFIG = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 192, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
NAME = "evle-peer"
TIMED_STEPS = (4, 16)
"""Two trial runs, whose difference gives the processor time of a step without that of starting."""
LAUNCH = """
import sys, time
import open_clip
from open_clip_train.main import main
import torch
torch.set_num_threads(1)
open_clip.add_model_config(sys.argv[1])
started = time.process_time()
main(sys.argv[3:])
with open(sys.argv[2], "w") as file:
    file.write(str(time.process_time() - started))
"""


class OpenClip(torch.nn.Module):
    """A model of open_clip, behind the preprocessing of evle's images and its own tokenizer."""

    k_test = 0
    device = torch.device("cpu")

    def __init__(self, model: Any):
        super().__init__()
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        self.model = model
        self.mean, self.std = (
            torch.tensor(each).view(1, 3, 1, 1) for each in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        )

    def get_image_features(self, pixel_values: Any) -> Any:
        return self.model.encode_image((pixel_values / 2 + 0.5 - self.mean) / self.std, normalize=True)

    def get_text_features(self, input_ids: Any, attention_mask: Any) -> Any:
        length = self.model.context_length
        padded = torch.nn.functional.pad(input_ids * attention_mask, (0, length - input_ids.shape[1]))
        return self.model.encode_text(padded, normalize=True)


def train(ready: Prepared, samples: Samples, home: Path, batch: int, rate: float, seed: int, seconds: float) -> Trained:
    """Train for the number of steps that `seconds` of processor time are enough for, and load the result.

    open_clip counts in epochs, so its one epoch is over a table that repeats the samples, in a new random order each
    time, until it has that many batches.
    """
    import open_clip

    home.mkdir(parents=True, exist_ok=True)
    config = home / f"{NAME}.json"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    rows = _written_out(samples, home)
    timing = home / "timing.json"
    if not timing.is_file():
        first, second = (_launch(config, rows, home, f"timing-{n}", batch, n, 1e-4, 0) for n in TIMED_STEPS)
        per_step = (second - first) / (TIMED_STEPS[1] - TIMED_STEPS[0])
        timing.write_text(json.dumps({"start": first - TIMED_STEPS[0] * per_step, "step": per_step}), encoding="utf-8")
    times = json.loads(timing.read_text(encoding="utf-8"))
    steps = max(1, round(seconds / times["step"]))
    name = f"rate-{rate:g}-seed-{seed}-steps-{steps}"
    spent = _launch(config, rows, home, name, batch, steps, rate, seed) - times["start"]
    open_clip.add_model_config(config)
    model = open_clip.create_model(NAME, precision="fp32")
    open_clip.load_checkpoint(model, str(home / name / "checkpoints" / "epoch_1.pt"))
    tokenizer = open_clip.get_tokenizer(NAME)
    task: Any = ready.task
    task.clean = lambda text: text
    task.tokens = lambda text: [each for each in tokenizer([text])[0].tolist() if each]
    return Trained(OpenClip(model), ready, steps, spent)


def _written_out(samples: Samples, home: Path) -> list[tuple[str, str]]:
    """The training images as files on white, as evle reads them: rows of file and caption."""
    (home / "images").mkdir(exist_ok=True)
    rows = []
    for number, sample in enumerate(readable(samples)):
        file = home / "images" / f"{number}.png"
        if not file.is_file():
            open_image(sample.image).convert("RGB").save(file)
        rows.append((str(file.absolute()), sample.captions[0]))
    return rows


def _launch(
    config: Path, rows: Sequence[tuple[str, str]], home: Path, name: str, batch: int, steps: int, rate: float, seed: int
) -> float:
    """Run open_clip's training command for `steps`; its processor time in seconds."""
    order = torch.Generator().manual_seed(seed)
    wanted, table, spent = steps * batch, home / f"{name}.csv", home / f"{name}.seconds"
    chosen: list[int] = []
    while len(chosen) < wanted:
        chosen += torch.randperm(len(rows), generator=order).tolist()
    with open(table, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([("filepath", "title"), *(rows[index] for index in chosen[:wanted])])
    settings = {
        "train-data": table, "dataset-type": "csv", "csv-separator": ",", "csv-img-key": "filepath",
        "csv-caption-key": "title", "model": NAME, "batch-size": batch, "epochs": 1, "lr": rate,
        "warmup": max(1, round(WARMUP * steps)), "wd": WEIGHT_DECAY, "workers": 0, "precision": "fp32",
        "device": "cpu", "logs": home, "name": name, "seed": seed, "grad-clip-norm": 1.0,
    }  # fmt: skip
    arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, "-c", LAUNCH, str(config), str(spent), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"open_clip_train failed:\n{result.stderr[-2000:]}")
    return float(spent.read_text(encoding="utf-8"))
