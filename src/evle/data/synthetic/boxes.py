"""Images in the style of NLVR, version 1 (Suhr et al., 2017): three grey boxes with small circles, squares and
triangles in three colours, and statements about them (`evle.data.synthetic.statements`).

A statement is drawn first, then one image for which it is true and one for which it is false. Towers are stacks of
squares of one size; in other boxes the shapes are scattered, and some touch the wall.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from evle.data.samples import SPLITS, CaptionSample, MadeSamples, VQASample
from evle.data.synthetic.box_words import (
    BOX,
    COLOURS,
    GAP,
    HEIGHT,
    MOST,
    SHAPES,
    SIZES,
    TALLEST,
    Box,
    Boxes,
    Item,
    Statement,
)
from evle.data.synthetic.language import generator, pick
from evle.data.synthetic.statements import describe, random_statement
from evle.errors import ConfigError, nearest

GREY = (211, 211, 211)
IN_THE_MIDDLE = 0.7
"""Share of towers that stand in the middle of their box, as NLVR's do."""
AT_THE_WALL = 0.15
"""Probability that a coordinate of an item is as small, or as large, as its box allows."""
CLEAR = 6
"""Pixels between the wall and an item that does not touch it, at least."""
TOWERS = 0.4
"""Share of towers among the images with captions."""
SIMPLE = 0.5
"""Share of images with one or two colors and shapes, and often few items."""
SAME_ITEMS = 0.8
"""Share of statements for whose second image the items of the first are rearranged; for about half of these, no
arrangement of them will do, and the image has others."""
TEXTS = 2
"""Statements, or descriptions of a box, in a caption."""
ANSWERS = {True: "true", False: "false"}
_ATTEMPTS = 60


@dataclass(frozen=True, slots=True)
class BoxesDrawing:
    """Three boxes side by side, drawn when needed, in the size of NLVR's own images."""

    boxes: Boxes

    def draw(self) -> Image.Image:
        """The image, mode RGB, 400 x 100 pixels."""
        wide = Image.new("RGB", (3 * BOX + 2 * GAP, HEIGHT), "white")
        pen = ImageDraw.Draw(wide)
        for number, items in enumerate(self.boxes):
            left = number * (BOX + GAP)
            pen.rectangle((left, 0, left + BOX - 1, HEIGHT - 1), fill=GREY)
            for shape, colour, size, x, y in items:
                box = (left + x, y, left + x + size - 1, y + size - 1)
                if shape == "circle":
                    pen.ellipse(box, fill=COLOURS[colour])
                elif shape == "square":
                    pen.rectangle(box, fill=COLOURS[colour])
                else:
                    pen.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) / 2, box[1])], COLOURS[colour])
        return wide


def _tower(rng: np.random.Generator, colours: Sequence[str]) -> Box:
    height, size = int(rng.integers(1, TALLEST + 1)), SIZES["medium"]
    middle = (BOX - size) // 2
    x = middle if rng.random() < IN_THE_MIDDLE else int(rng.integers(0, BOX - size + 1))
    return _stack([pick(rng, colours) for _ in range(height)], x)


def _stack(colours: Sequence[str], x: int) -> Box:
    """Blocks of these colors on each other; a line of grey tells two of one color apart."""
    size = SIZES["medium"]
    return tuple(
        Item("square", colour, size, x, HEIGHT - size - (size + 1) * level) for level, colour in enumerate(colours)
    )


def _scatter(rng: np.random.Generator, colours: Sequence[str], shapes: Sequence[str], most: int) -> Box:
    """Items that do not overlap: of many random ones, those that still have room."""
    number, sizes = int(rng.integers(1, most + 1)), tuple(SIZES.values())
    items: list[Item] = []
    for shape, colour, size, *corner in rng.random((4 * MOST, 5)).tolist():  # one call: a number at a time is slow
        side = sizes[int(size * len(sizes))]
        x, y = (_place(share, BOX - side) for share in corner)
        item = Item(shapes[int(shape * len(shapes))], colours[int(colour * len(colours))], side, x, y)
        if all(_apart(item, other) for other in items):
            items.append(item)
        if len(items) == number:
            break
    return tuple(items)


def _place(share: float, room: int) -> int:
    """A coordinate from 0 to `room`, from a number in [0, 1): one of both ends, or well away from them, because nobody
    knows whether something near a wall touches it."""
    if share < AT_THE_WALL:
        return 0
    if share >= 1 - AT_THE_WALL:
        return room
    return CLEAR + int((share - AT_THE_WALL) / (1 - 2 * AT_THE_WALL) * (room - 2 * CLEAR + 1))


def random_boxes(rng: np.random.Generator, towers: bool) -> Boxes:
    """Three boxes of towers, or three of scattered shapes; in some images of a few items, colors and shapes alone.

    From images with everything in them a model learns slowly: all words are true of something there.
    """
    colours: Sequence[str] = tuple(COLOURS)
    shapes: Sequence[str] = SHAPES
    most = MOST
    if rng.random() < SIMPLE:
        colours, shapes = _some(rng, colours), _some(rng, shapes)
        most = int(rng.integers(1, MOST + 1))
    if towers:
        return tuple(_tower(rng, colours) for _ in range(3))
    return tuple(_scatter(rng, colours, shapes, most) for _ in range(3))


def rearranged(rng: np.random.Generator, boxes: Boxes, towers: bool) -> Boxes:
    """The same items in other boxes and places, so that their numbers and kinds do not tell a true image from an untrue
    one."""
    items = [item for box in boxes for item in box]
    items = [items[int(index)] for index in rng.permutation(len(items))]
    most = TALLEST if towers else MOST
    while True:
        first, second = sorted(int(cut) for cut in rng.integers(1, len(items), 2)) if len(items) > 3 else (1, 2)
        parts = (items[:first], items[first:second], items[second:])
        if all(1 <= len(part) <= most for part in parts):
            break
    if towers:
        return tuple(_stack([item.colour for item in part], part[0].x) for part in parts)
    placed = tuple(_laid_out(rng, part) for part in parts)
    return placed if all(placed) else boxes


def _laid_out(rng: np.random.Generator, items: Sequence[Item]) -> Box:
    """The items at new places of a box where they do not overlap; empty if no room is found."""
    placed: list[Item] = []
    for item in items:
        for across, down in rng.random((_ATTEMPTS, 2)).tolist():
            moved = item._replace(x=_place(across, BOX - item.size), y=_place(down, BOX - item.size))
            if all(_apart(moved, other) for other in placed):
                placed.append(moved)
                break
        else:
            return ()
    return tuple(placed)


def _apart(one: Item, other: Item) -> bool:
    room = max(one.size, other.size)
    return abs(one.x - other.x) > room or abs(one.y - other.y) > room


def _some(rng: np.random.Generator, names: Sequence[str]) -> tuple[str, ...]:
    """One or two of `names`."""
    return tuple(names[int(index)] for index in rng.permutation(len(names))[: int(rng.integers(1, 3))])


class BoxSamples(MadeSamples):
    """Images of three boxes, as VQASamples that judge a statement, or with a caption. Created by `boxes`."""

    def __init__(self, task: str, split: str, count: int, seed: int, judged: float):
        self.task, self.split, self.seed, self.judged = task, split, seed, judged
        self._count = count
        facts = repr(("boxes", task, split, count, seed, *([judged] if judged else [])))
        self.fingerprint = hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return self._count

    def _answer(self, index: int) -> VQASample:
        return VQASample(
            key=f"boxes-{self.split}-{self.seed}-{index}",
            image="",
            question="",
            answers=(ANSWERS[index % 2 == 0],),
            answer_type="yes/no",
            question_type="statement",
            set_id=f"boxes-{self.split}-{self.seed}-{index // 2}",
        )

    def at(self, index: int) -> Any:
        name = f"boxes\0{self.split}\0{self.seed}\0"
        if self.task == "captions":
            made, texts = _image_with_texts(f"{name}captions\0{index}", self.judged)
            key = f"boxes-{self.split}-{self.seed}-{index}"
            return CaptionSample(key=key, image=BoxesDrawing(made), captions=(". ".join(texts),))
        statement, images = _statement_with_images(f"{name}{index // 2}")
        return replace(self._answer(index), image=BoxesDrawing(images[index % 2 == 0]), question=statement.text)

    def answered(self) -> Iterator[VQASample]:
        """The samples of "vqa" with their answers alone, which are known before statements and images are made."""
        return map(self._answer, range(len(self)))

    def describe(self) -> dict[str, Any]:
        """Plain facts for a report."""
        return {"source": "boxes", "split": self.split, "samples": len(self), "seed": self.seed}


@lru_cache(maxsize=64)
def _statement_with_images(seed: str) -> tuple[Statement, dict[bool, Boxes]]:
    """A statement, an image for which it is true, and one for which it is false; kept for the other sample of the
    set."""
    rng = generator(seed)
    while True:
        statement = random_statement(rng)
        images = _images_of(rng, statement)
        if images is not None:
            return statement, images


def _images_of(rng: np.random.Generator, statement: Statement) -> dict[bool, Boxes] | None:
    """An image for which a statement is true, and one for which it is false, often with the same items. None where none
    is found."""
    images: dict[bool, Boxes] = {}
    same_items = rng.random() < SAME_ITEMS
    for attempt in range(_ATTEMPTS):
        if images and same_items and attempt < _ATTEMPTS // 2:
            made = rearranged(rng, next(iter(images.values())), statement.towers)
        else:
            made = random_boxes(rng, statement.towers)
        truth = statement.holds(made)
        if truth is not None:
            images.setdefault(truth, made)
        if len(images) == 2:
            return images
    return None


def _image_with_texts(seed: str, judged: float) -> tuple[Boxes, list[str]]:
    """An image, and texts about it: what some boxes hold, or, with the probability `judged`, statements, each followed
    by its truth.

    Every statement tells the image from another one, so that no words are more often true than false.
    """
    rng = generator(seed)
    if rng.random() >= judged:
        towers = bool(rng.random() < TOWERS)
        made = random_boxes(rng, towers)
        return made, describe(rng, made, towers, TEXTS)
    images = None
    while images is None:
        statement = random_statement(rng)
        images = _images_of(rng, statement)
    truth = bool(rng.random() < 0.5)
    made, other = images[truth], images[not truth]
    found = {statement.text: f"{statement.text} {ANSWERS[truth]}"}
    while len(found) < TEXTS:  # a second one, of the same image
        second = random_statement(rng)
        if second.towers == statement.towers:
            its = {second.holds(made), second.holds(other)}
            if its == {True, False}:
                found[second.text] = f"{second.text} {ANSWERS[bool(second.holds(made))]}"
        if rng.random() < 0.1:
            other = random_boxes(rng, statement.towers)
    return made, list(found.values())


def boxes(
    task: str = "vqa", split: str = "train", *, count: int = 1000, seed: int = 0, judged: float = 0.0
) -> Sequence[VQASample] | Sequence[CaptionSample]:
    """`count` images of three grey boxes in the size and style of NLVR, version 1 (`evle.data.corpora.nlvr`), so that a
    model can learn the style before it reads people's statements.

    For "vqa": statements, as VQASamples with the answer true or false; samples 2i and 2i + 1 share a statement, which
    is true only for the first image. For "captions": what two of the boxes hold; in the share `judged` of the captions,
    two statements instead, each followed by whether it is true, because vision-language models are also pre-trained on
    questions with answers. "vqa" does without `judged`, so that a tokenizer can read both from one entry of a recipe.
    Raises ConfigError for impossible options.
    """
    if task not in ("vqa", "captions"):
        raise ConfigError(f"source 'boxes' holds vqa and captions, not {task!r}; choose another source or task")
    if split not in SPLITS:
        raise ConfigError(f"split={split!r} of boxes does not exist; {nearest(split, SPLITS)}")
    if count < 1:
        raise ConfigError(f"count={count} must be at least 1")
    if not 0 <= judged <= 1:
        raise ConfigError(f"judged={judged} must be from 0 to 1")
    return BoxSamples(task, split, count, seed, judged)
