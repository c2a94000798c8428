"""How much of the bare model's speed `evle match --pairs` reaches, with images read from files.

    python -m benchmarks.match_pairs --preset eve-base --pairs 64 --image-side 512
    python -m benchmarks.match_pairs --model runs/scenes-vle/pretrain --pairs 2000 --image-side 96

The bare model gets the same batches as tensors in memory: no file is read, no text is tokenised, nothing is written. A
preset has random weights, which take the same time. Both ways run once before they are measured, then in turns.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from evle.data.requests import batches_by_length
from evle.data.synthetic.scenes import scenes
from evle.models.eve import EVEConfig, EVEForRetrieval, EVEProcessor
from evle.models.presets import PRESETS
from evle.pipelines import MatchPipeline, score_pairs
from evle.transforms.text import train_tokenizer


def random_model(preset: str, captions: list[str], **options: Any) -> MatchPipeline:
    """A matching EVE of random weights of the size of `preset`."""
    family, sizes = PRESETS[preset]
    if family != "eve":
        raise SystemExit(f"--preset {preset}: name a size of EVE, or a trained VLE by --model")
    config = EVEConfig(**sizes, objective_weights={"itc": 1.0, "itm": 1.0})
    processor = EVEProcessor.for_size(config.image_size, train_tokenizer(captions, 500))
    return MatchPipeline(model=EVEForRetrieval(config), processor=processor, **options)


def write_pairs(folder: Path, count: int, side: int) -> Path:
    """A table of `count` scenes as JPEG files with a caption each."""
    rows = []
    for index, sample in enumerate(scenes("captions", count=count, seed=0, size=side)):
        name = f"{index:05d}.jpg"
        sample.image.draw().save(folder / name, quality=90)  # type: ignore[union-attr]
        rows.append({"image": name, "caption": sample.captions[0]})  # type: ignore[union-attr]
    table = folder / "pairs.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return table


def bare_batches(match: MatchPipeline, table: Path) -> list[dict[str, Any]]:
    """The model's inputs, batch by batch, as `score_pairs` forms them."""
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    tokens = [match.task.read_text(row["caption"]) for row in rows]
    batches = []
    for batch in batches_by_length(tokens, match.batch_size):
        pixels = [match.read(table.parent / rows[index]["image"]) for index in batch]
        batches.append(
            {"pixel_values": match.pixel_values(pixels), **match.pad_tokens([tokens[index] for index in batch])}  # type: ignore[arg-type]
        )
    return batches


class Took(NamedTuple):
    """Seconds on the clock and of processors. On one core both give the same share, the latter also where other
    programs use it."""

    clock: float
    processor: float

    @classmethod
    def now(cls) -> "Took":
        return cls(time.perf_counter(), time.process_time())

    def since(self) -> "Took":
        now = Took.now()
        return Took(now.clock - self.clock, now.processor - self.processor)


def run_bare(match: MatchPipeline, batches: list[dict[str, Any]]) -> Took:
    started = Took.now()
    for batch in batches:
        with match.evaluating():
            match.model.itm_logits(**batch)
    return started.since()


def run_pairs(match: MatchPipeline, table: Path, output: Path) -> Took:
    started = Took.now()
    score_pairs(match, table, output, progress=False)
    return started.since()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", choices=[name for name, (family, _) in PRESETS.items() if family == "eve"])
    which.add_argument("--model", help="a run or model folder that matches")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--image-side", type=int, default=512, help="pixels of the image files")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1, help="threads that read images")
    parser.add_argument("--threads", type=int, default=1, help="threads of the model")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options: dict[str, Any] = {"batch_size": arguments.batch_size, "num_workers": arguments.workers}
    with tempfile.TemporaryDirectory() as name:
        table = write_pairs(Path(name), arguments.pairs, arguments.image_side)
        captions = [json.loads(line)["caption"] for line in table.read_text(encoding="utf-8").splitlines()]
        match = (
            MatchPipeline(arguments.model, **options)
            if arguments.model
            else random_model(arguments.preset, captions, **options)
        )
        batches = bare_batches(match, table)
        run_bare(match, batches[:1])
        bare, whole = [], []
        for number in range(arguments.rounds):
            bare.append(run_bare(match, batches))
            whole.append(run_pairs(match, table, Path(name) / f"scored-{number}.jsonl"))
    print(f"{arguments.preset or arguments.model}, {arguments.pairs} pairs, images of {arguments.image_side} pixels:")
    for name in Took._fields:
        fastest, slowest = (min(getattr(each, name) for each in times) for times in (bare, whole))
        print(
            f"by the {name}: bare {arguments.pairs / fastest:.1f} pairs/s, evle match --pairs "
            f"{arguments.pairs / slowest:.1f} pairs/s, {100 * fastest / slowest:.0f} %"
        )


if __name__ == "__main__":
    main()
