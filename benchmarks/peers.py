"""Peers at equal compute: one set of images, captions, cores and minutes for several ways to learn retrieval, from
scratch or from trained towers.

Each contender is tuned with the same number of short trials on images of concepts that its training does not show, then
trained once per seed and scored on the test splits: by the recall of its embeddings, ViLT by joint passes of all pairs.
Every run writes its result, and a repeated command continues with the runs that are missing:

    python -m benchmarks.peers FOLDER -o runs/peers
    python -m benchmarks.peers FOLDER -o runs/peers --minutes 1 --trial-minutes 0.3 --peers clip eve
    python -m benchmarks.peers FOLDER -o runs/peers --towers VISION_FOLDER TEXT_FOLDER
    python -m benchmarks.peers FOLDER -o runs/peers --report docs/peers.md

FOLDER holds images and a captions.jsonl, such as examples/emoji builds. `open-clip` needs `pip install open_clip_torch
pandas` and takes part if they are installed; `frozen` and `vle` need --towers.
"""

import argparse
import csv
import hashlib
import importlib.util
import itertools
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers_models import ABOUT, BUILDERS, Contender
from evle.data.custom.folder import folder
from evle.data.images import open_image
from evle.data.samples import CaptionSample, Samples, readable
from evle.report import Table
from evle.report.markdown import markdown_table
from evle.run.config import RunConfig
from evle.run.prepare import Prepared, prepare
from evle.tasks.task import EvaluationSettings

RATES = (3e-4, 1e-3, 3e-3)
"""The learning rates of the trials, one each."""
TUNED_SHARE = 0.1
"""Share of the training concepts that is kept out of training, for choosing the learning rate."""
SCORES = ("TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10", "R@mean")
WARMUP, WEIGHT_DECAY, BATCH = 0.05, 0.05, 128
TOWERS = ("frozen", "vle")
OPEN_CLIP = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 192, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
IMAGE = {"scale": [0.65, 1.0], "ratio": [0.85, 1.18], "flip": 0.3, "rotate": 10, "color_jitter": [0.3, 0.3, 0.3]}
"""Augmentation of the training images, the same for all but open_clip, which brings its own."""


class Chosen(Sequence):
    """Samples of a source at some of its indices."""

    def __init__(self, source: Samples, indices: Sequence[int]):
        self.source, self.indices = source, list(indices)
        self.fingerprint = hashlib.blake2b(
            repr((getattr(source, "fingerprint", ""), self.indices)).encode(), digest_size=8
        ).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.source[each] for each in self.indices[index]]
        return self.source[self.indices[index]]


def is_tuning(sample: CaptionSample) -> bool:
    """Whether a training sample's concept, its first caption, is kept for choosing the learning rate."""
    digest = hashlib.blake2b(sample.captions[0].lower().encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64 < TUNED_SHARE


def spread(samples: Samples, number: int) -> Chosen:
    """At most `number` samples, evenly spread."""
    number = min(number, len(samples))
    return Chosen(samples, [index * len(samples) // number for index in range(number)])


class Data:
    """The samples of all contenders: training, tuning, and the test splits by name."""

    def __init__(self, path: Path, train: Sequence[str], tests: Sequence[str], gallery: int):
        everything = folder(path, "captions", list(train))
        tuning = {index for index in range(len(everything)) if is_tuning(everything[index])}
        self.train = Chosen(everything, [index for index in range(len(everything)) if index not in tuning])
        self.tuning = spread(Chosen(everything, sorted(tuning)), gallery)
        self.tests = {name: spread(folder(path, "captions", name), gallery) for name in tests}


def prepared(name: str, data: Data, seed: int, towers: Sequence[str], workers: int) -> Prepared:
    """The task, tokenizer and loader of a contender, and the model of ours."""
    model: dict[str, Any] = {"preset": "eve-tiny"}
    if name in TOWERS:
        model = {"preset": "vle-tiny", "vision": towers[0], "text": towers[1]}
    model["overrides"] = {"objective_weights": {"itm": 0.0}}
    tree = {
        "task": {"name": "retrieval", "k_test": 0},
        "model": model,
        "tokenizer": {"vocab_size": 4000},
        "image": IMAGE if name in TOWERS else {**IMAGE, "size": 64},
        "text": {"max_length": 24},
        "train": {"steps": 1, "batch_size": BATCH, "num_workers": workers},
        "seed": seed,
        "output": "unused",
    }
    return prepare(RunConfig.build(tree, "peers"), samples={"train": data.train})


def train(contender: Contender, ready: Prepared, rate: float, seconds: float, seed: int) -> int:
    """Train for `seconds`, by AdamW with a cosine over the time; the number of steps."""
    torch.manual_seed(seed)
    weights = [each for each in contender.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=WEIGHT_DECAY)
    contender.train()
    started, steps = time.perf_counter(), 0
    for epoch in itertools.count():
        for batch in ready.loader.batches(epoch):
            done = (time.perf_counter() - started) / seconds
            if done >= 1:
                return steps
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (done + 1e-3) / WARMUP) * (1 + math.cos(math.pi * done)) / 2
            loss = contender.loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    return steps


@torch.no_grad()
def score(contender: Any, ready: Prepared, samples: Samples) -> dict[str, float]:
    """Recalls of embeddings, or of joint passes where the contender has no embeddings."""
    contender.train(False)
    task: Any = ready.task
    task.options = task.options.model_copy(update={"k_test": contender.k_test})
    settings = EvaluationSettings(256, 0, "no", 0, contender.k_test == 0, 0)
    scores = task.evaluate(contender, samples, settings).scores
    return {name: scores[name] for name in SCORES}


def run(name: str, data: Data, options: argparse.Namespace, rate: float, seed: int, minutes: float) -> dict[str, Any]:
    """One training of a contender, scored on the tuning samples and on the test splits."""
    if name == "open-clip":
        contender, ready, steps, seconds = run_open_clip(data, options, rate, seed, minutes)
    else:
        ready = prepared(name, data, seed, options.towers, options.workers)
        torch.manual_seed(seed)
        towers = {"vision": options.towers[0], "text": options.towers[1]} if name in TOWERS else {}
        contender = BUILDERS[name](ready, **towers)
        started = time.perf_counter()
        steps = train(contender, ready, rate, 60 * minutes, seed)
        seconds = time.perf_counter() - started
    return {
        "peer": name,
        "rate": rate,
        "seed": seed,
        "minutes": minutes,
        "seconds": round(seconds, 1),
        "steps": steps,
        "parameters": sum(each.numel() for each in contender.parameters()),
        "trained": sum(each.numel() for each in contender.parameters() if each.requires_grad),
        "image size": ready.task.image_size,
        "samples": len(data.train),
        "tuning": score(contender, ready, data.tuning),
    } | {"tests": {split: score(contender, ready, samples) for split, samples in data.tests.items()}}


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


LAUNCH = """
import sys
import open_clip
from open_clip_train.main import main
open_clip.add_model_config(sys.argv[1])
main(sys.argv[2:])
"""


def run_open_clip(
    data: Data, options: argparse.Namespace, rate: float, seed: int, minutes: float
) -> tuple[Any, Prepared, int, float]:
    """Train by open_clip's own code, for as many epochs as the minutes are enough for, and load the result."""
    import open_clip

    home = options.output / "open-clip"
    config = home / "evle-peer.json"
    home.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(OPEN_CLIP), encoding="utf-8")
    table = _written_out(data.train, home)
    epoch_file = home / "epoch.json"
    if not epoch_file.is_file():  # how long an epoch takes, measured once
        seconds = _launch(config, table, home, "timing", 1e-4, 0, 1, options.workers)
        epoch_file.write_text(json.dumps(seconds), encoding="utf-8")
    epochs = max(1, round(60 * minutes / json.loads(epoch_file.read_text(encoding="utf-8"))))
    name = f"rate-{rate:g}-seed-{seed}-epochs-{epochs}"
    seconds = _launch(config, table, home, name, rate, seed, epochs, options.workers)
    open_clip.add_model_config(config)
    checkpoint = home / name / "checkpoints" / f"epoch_{epochs}.pt"
    model = open_clip.create_model("evle-peer", precision="fp32")
    open_clip.load_checkpoint(model, str(checkpoint))
    ready = prepared("open-clip", data, seed, (), 0)
    tokenizer = open_clip.get_tokenizer("evle-peer")
    task: Any = ready.task
    task.clean = lambda text: text
    task.tokens = lambda text: [each for each in tokenizer([text])[0].tolist() if each]
    return OpenClip(model), ready, epochs * (len(data.train) // BATCH), seconds


def _written_out(samples: Samples, home: Path) -> Path:
    """The training images as files on white, as evle reads them, and a table of files and captions."""
    table = home / "train.csv"
    if not table.is_file():
        (home / "images").mkdir(exist_ok=True)
        rows = []
        for number, sample in enumerate(readable(samples)):
            file = home / "images" / f"{number}.png"
            open_image(sample.image).convert("RGB").save(file)
            rows.append((str(file.absolute()), sample.captions[0]))
        with open(table, "w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows([("filepath", "title"), *rows])
    return table


def _launch(
    config: Path, table: Path, home: Path, name: str, rate: float, seed: int, epochs: int, workers: int
) -> float:
    settings = {
        "train-data": table, "dataset-type": "csv", "csv-separator": ",", "csv-img-key": "filepath",
        "csv-caption-key": "title", "model": "evle-peer", "batch-size": BATCH, "epochs": epochs, "lr": rate,
        "warmup": max(1, round(WARMUP * epochs * 40)), "wd": WEIGHT_DECAY, "workers": workers, "precision": "fp32",
        "device": "cpu", "logs": home, "name": name, "seed": seed, "save-frequency": epochs, "grad-clip-norm": 1.0,
    }  # fmt: skip
    arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", LAUNCH, str(config), *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(f"open_clip_train failed:\n{result.stderr[-2000:]}")
    return time.perf_counter() - started


def kept(file: Path, work: Any) -> dict[str, Any]:
    """The result in `file`, from `work()` where it is missing."""
    if not file.is_file():
        print(f"{file.stem} ...", flush=True)
        result = work()
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def compare(data: Data, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Tune and train every contender; the closest pair gets two more seeds. The results of the trainings."""
    folder_of_results = options.output / "results"
    folder_of_results.mkdir(parents=True, exist_ok=True)

    def result(name: str, kind: str, rate: float, seed: int, minutes: float) -> dict[str, Any]:
        file = folder_of_results / f"{name}-{kind}-{minutes:g}min-rate-{rate:g}-seed-{seed}.json"
        return kept(file, lambda: run(name, data, options, rate, seed, minutes))

    best: dict[str, float] = {}
    for name in options.peers:
        trials = [result(name, "trial", rate, 0, options.trial_minutes) for rate in RATES]
        best[name] = max(trials, key=lambda trial: trial["tuning"]["R@mean"])["rate"]
    seeds = {name: list(range(options.seeds)) for name in options.peers}
    results = [result(n, "run", best[n], seed, options.minutes) for n in options.peers for seed in seeds[n]]
    if len(options.peers) > 1 and options.more:
        split = next(iter(data.tests))
        means = {
            name: statistics.fmean(each["tests"][split]["R@mean"] for each in results if each["peer"] == name)
            for name in options.peers
        }
        pair = min(itertools.combinations(options.peers, 2), key=lambda names: abs(means[names[0]] - means[names[1]]))
        for name in pair:
            for seed in range(options.seeds, options.seeds + options.more):
                results.append(result(name, "run", best[name], seed, options.minutes))
    return results


def page(results: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """The report, in Markdown."""
    by_peer = {name: [each for each in results if each["peer"] == name] for name in options.peers}
    first = results[0]
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    blocks = [
        "# Peers at equal compute",
        f"Each contender was trained for {options.minutes:g} minutes per run on the same {first['samples']:,} images "
        f"and their captions, with {torch.get_num_threads()} thread(s) and {options.workers} data worker(s) on a "
        f"{platform.machine()} machine, with torch {torch.__version__.split('+')[0]}.",
        f"Its learning rate is the best of {len(RATES)} trials ({rates}) of {options.trial_minutes:g} minutes each, by "
        f"R@mean on images of training concepts that were kept out of training ({TUNED_SHARE:.0%}). Optimizer: AdamW, "
        f"weight decay {WEIGHT_DECAY}, warm-up {WARMUP:.0%}, cosine over the time, batch {BATCH}. Augmentation: "
        f"`{json.dumps(IMAGE)}`; open_clip brings its own.",
        "Scores are percentages, mean ± standard deviation over seeds, among at most "
        f"{options.gallery} images and their captions per split. TR: image to text, IR: text to image.",
    ]
    if options.minutes < 10:
        blocks.append(
            f"**These are runs of {options.minutes:g} minutes, not of the 10 that the benchmark is meant for.**"
        )
    for split in first["tests"]:
        rows = [
            [name, len(own), *(_with_spread([each["tests"][split][score] for each in own]) for score in SCORES)]
            for name, own in by_peer.items()
            if own
        ]
        table = Table(split, ["contender", "runs", *SCORES], rows)
        blocks += [f"## Split `{split}`", markdown_table(table)]
    rows = [
        [
            name,
            ABOUT[name],
            own[0]["image size"],
            f"{own[0]['parameters'] / 1e6:.1f}",
            f"{own[0]['trained'] / 1e6:.1f}",
            f"{own[0]['rate']:g}",
            round(statistics.fmean(each["steps"] for each in own)),
            round(statistics.fmean(each["seconds"] for each in own)),
        ]
        for name, own in by_peer.items()
        if own
    ]
    columns = ["contender", "what", "pixels", "M parameters", "M trained", "learning rate", "steps", "seconds"]
    blocks += ["## Settings", markdown_table(Table("Settings", columns, rows))]
    blocks += ["Made by", f"```shell\n{options.command}\n```"]
    return "\n\n".join(blocks) + "\n"


def _shown(argument: str, folder: Path) -> str:
    """An argument as the report shows it, without paths of this machine."""
    if argument == str(folder):
        return "FOLDER"
    return Path(argument).name if Path(argument).is_absolute() else argument


def _with_spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Compare peers at equal compute.")
    parser.add_argument("folder", type=Path, help="images and captions.jsonl")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/peers"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=10, help="of each run (default: 10)")
    parser.add_argument("--trial-minutes", type=float, default=2, help="of each trial (default: 2)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each contender (default: 2)")
    parser.add_argument("--more", type=int, default=2, help="more runs of the closest pair (default: 2)")
    parser.add_argument("--peers", nargs="+", choices=list(ABOUT), help="default: all that can run here")
    parser.add_argument("--towers", nargs=2, default=(), metavar=("VISION", "TEXT"), help="folders of trained towers")
    parser.add_argument("--train", nargs="+", default=["train"], help="splits to train on (default: train)")
    parser.add_argument("--tests", nargs="+", default=["test_style", "val"], help="splits to test on")
    parser.add_argument("--gallery", type=int, default=300, help="images of each test (default: 300)")
    parser.add_argument("--workers", type=int, default=1, help="data workers (default: 1)")
    parser.add_argument("--report", type=Path, help="also write the report to this file")
    options = parser.parse_args(arguments)
    if options.peers is None:
        has_open_clip = importlib.util.find_spec("open_clip_train") is not None
        missing = {*(() if has_open_clip else ("open-clip",)), *(() if options.towers else TOWERS)}
        options.peers = [name for name in ABOUT if name not in missing]
    if not options.towers and (without := [name for name in options.peers if name in TOWERS]):
        parser.error(f"{', '.join(without)} needs --towers VISION TEXT")
    given = arguments if arguments is not None else sys.argv[1:]
    options.command = " ".join(["python -m benchmarks.peers", *(_shown(each, options.folder) for each in given)])
    data = Data(options.folder, options.train, options.tests, options.gallery)
    text = page(compare(data, options), options)
    (options.output / "report.md").write_text(text, encoding="utf-8")
    if options.report is not None:
        options.report.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
