"""Do the maps of a model point where they should? The pointing game and deletion, on scenes with planted things.

    python -m benchmarks.explain_scores models/scenes-vqa --scenes 200
    python -m benchmarks.explain_scores models/emoji-search --images examples/images --scenes 200

Each scene is composed so that a text names exactly one of its things: the question "what colour is the circle?" for a
model that answers questions, the phrase "a red circle" for one that matches or locates. For every method of the model:

    pointing    the share of scenes whose highest patch is on the named thing, by the map of the whole text, and by that
                of the word that names the thing
    deletion    the probability of the model's own answer (or of the match) that is left after the highest patches are
                painted in the colour of the ground: the mean over 1/9 to 5/9 of the patches; lower is better

With --images, four captioned images of a folder are put into the quarters of a white square instead, and the text is
the caption of one of them. A random map and a centred one are scored beside the others: they look at neither.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evle.data.custom.folder import folder
from evle.data.images import open_image
from evle.data.samples import Box
from evle.data.synthetic.scenes import scenes
from evle.pipelines import ExplainPipeline
from evle.report import Table, text_table
from evle.tasks.trained import run_settings
from evle.transforms.framing import seen_region

SHARES = tuple(number / 9 for number in range(1, 6))
WORLD = ("size", "min_things", "max_things", "shapes", "colours", "patterns")
BASELINES = ("random", "centred")
QUARTER = 64


@dataclass(frozen=True)
class Planted:
    """A scene, a text that names one of its things, the word for it, and where it is in pixels."""

    image: Image.Image
    text: str
    word: str
    box: Box


def planted(world: dict[str, Any], count: int, *, asks: bool) -> Iterator[Planted]:
    """`count` scenes of at least two things, each with a text about a thing whose shape no other thing has."""
    options = {**world, "min_things": 2, "max_things": max(2, world.get("max_things", 2))}
    for sample in scenes("captions", "test", count=20 * count, seed=1, **options):
        kinds = [box.label for box in sample.boxes]
        single = [box for box in sample.boxes if kinds.count(box.label) == 1]
        if not single:
            continue
        box = single[count % len(single)]
        text = f"what colour is the {box.label}?" if asks else f"a {colour_of(sample, box)} {box.label}"
        yield Planted(sample.image.draw(), text, box.label, box)
        count -= 1
        if not count:
            return


def planted_images(path: Path, count: int) -> Iterator[Planted]:
    """`count` squares of four images of a captioned folder, each with the caption of one of them."""
    rng = np.random.default_rng(1)
    known = [
        (open_image(sample.image).resize((QUARTER, QUARTER)), sample.captions[0])
        for sample in folder(path)
        if sample.captions[0].rpartition(" ")[2].isalpha()
    ]
    for _ in range(count):
        chosen = rng.choice(len(known), 4, replace=False)
        square = Image.new("RGB", (2 * QUARTER, 2 * QUARTER), "white")
        for place, index in enumerate(chosen):
            square.paste(known[index][0], (place % 2 * QUARTER, place // 2 * QUARTER))
        asked = int(rng.integers(4))
        text = known[chosen[asked]][1]
        word = text.rpartition(" ")[2]
        yield Planted(square, text, word, Box(asked % 2 * QUARTER, asked // 2 * QUARTER, QUARTER, QUARTER, word))


def colour_of(sample: Any, box: Box) -> str:
    """The colour of the thing in `box`."""
    thing = sample.image.scene.things[sample.boxes.index(box)]
    return str(thing.traits.colour)


def cells_of(box: Box, size: tuple[int, int], side: int, framing: Any) -> np.ndarray:
    """The patches (G, G) bool of which the box covers a quarter, or else the patch with its centre."""
    left, top, right, bottom = seen_region(size, framing)
    width, height = (right - left) / side, (bottom - top) / side
    columns, rows = (np.arange(side) * width + left)[None], (np.arange(side) * height + top)[:, None]
    across = np.minimum(columns + width, box.x + box.width) - np.maximum(columns, box.x)
    down = np.minimum(rows + height, box.y + box.height) - np.maximum(rows, box.y)
    covered: np.ndarray = (across.clip(0) * down.clip(0)) / (width * height) >= 0.25
    if not covered.any():
        column, row = (box.x + box.width / 2 - left) // width, (box.y + box.height / 2 - top) // height
        covered[int(np.clip(row, 0, side - 1)), int(np.clip(column, 0, side - 1))] = True
    return covered


def centred(side: int) -> np.ndarray:
    """A map that falls from the centre to the corners."""
    at = np.abs(np.arange(side) - (side - 1) / 2)
    return -np.hypot(at[:, None], at[None])


def without(image: Image.Image, weights: np.ndarray, share: float, framing: Any) -> Image.Image:
    """`image` without this share of its patches, those of the highest weights: they get the colour of its border."""
    side = len(weights)
    pixels = np.asarray(image.convert("RGB")).copy()
    ground = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    left, top, right, bottom = seen_region(image.size, framing)
    xs, ys = (np.linspace(start, end, side + 1).round().astype(int) for start, end in ((left, right), (top, bottom)))
    for index in np.argsort(-weights.flatten(), kind="stable")[: round(share * side * side)]:
        row, column = divmod(int(index), side)
        pixels[max(0, ys[row]) : max(0, ys[row + 1]), max(0, xs[column]) : max(0, xs[column + 1])] = ground
    return Image.fromarray(pixels)


def scorer(explain: ExplainPipeline) -> Callable[[list[Image.Image], str, str], np.ndarray]:
    """The probability of an answer (of a match) for several images and one text."""
    from evle.pipelines import MatchPipeline, VQAPipeline

    if explain.asks:
        ask = VQAPipeline(model=explain.model, processor=explain.processor, text=explain.text)
        every = len(ask.model.config.id2label)

        def of_answer(images: list[Image.Image], text: str, answer: str) -> np.ndarray:
            rows = ask.best(images, [text] * len(images), every)
            return np.array([next(each["score"] for each in row if each["answer"] == answer) for row in rows])

        return of_answer
    match = MatchPipeline(model=explain.model, processor=explain.processor, text=explain.text)
    return lambda images, text, answer: np.array([row["score"] for row in match(images, text)])


def scores(explain: ExplainPipeline, samples: list[Planted]) -> Table:
    """One row per method of the model, and one per baseline."""
    rng = np.random.default_rng(0)
    probability = scorer(explain) if explain.answers else None
    names = (*explain.methods, *BASELINES)
    hits: dict[str, list[float]] = {name: [] for name in names}
    word_hits: dict[str, list[float]] = {name: [] for name in names}
    left: dict[str, list[float]] = {name: [] for name in names}
    for sample in samples:
        for name in names:
            shown = explain(sample.image, sample.text, method=name if name in explain.methods else "attention")
            side = len(shown.whole)
            baseline = {"random": rng.random((side, side)), "centred": centred(side)}.get(name)
            whole = shown.whole if baseline is None else baseline
            word = shown.maps[shown.words.index(sample.word)] if baseline is None else baseline
            cells = cells_of(sample.box, sample.image.size, side, shown.framing)
            hits[name].append(float(cells.flatten()[whole.argmax()]))
            word_hits[name].append(float(cells.flatten()[word.argmax()]))
            if probability is not None:
                images = [without(sample.image, whole, share, shown.framing) for share in SHARES]
                left[name].append(float(probability(images, sample.text, shown.answer).mean()))
    rows = [
        [
            name,
            100 * np.mean(hits[name]),
            100 * np.mean(word_hits[name]),
            100 * np.mean(left[name]) if left[name] else None,
        ]
        for name in names
    ]
    columns = ["map", "pointing, whole text (%)", "pointing, word (%)", "deletion (%)"]
    return Table(f"Maps on {len(samples)} scenes", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run or model folder that was trained on scenes, or on images such as --images")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--images", type=Path, help="a folder of captioned images to plant, instead of scenes")
    arguments = parser.parse_args()
    explain = ExplainPipeline(arguments.model)
    if arguments.images is not None:
        samples = list(planted_images(arguments.images, arguments.scenes))
    else:
        data = run_settings(Path(arguments.model)).get("data", {})
        world = data.get("test") or data.get("train") or {}
        world = (world if isinstance(world, dict) else world[0]) or {}
        options = {name: world[name] for name in WORLD if name in world}
        samples = list(planted(options, arguments.scenes, asks=explain.asks))
    print(text_table(scores(explain, samples)))


if __name__ == "__main__":
    main()
