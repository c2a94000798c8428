"""Images in the style of NLVR, version 1 (Suhr et al., 2017): three grey boxes with small circles, squares and
triangles in three colours, and statements about them in a few common forms.

A statement is drawn first, then one image for which it is true and one for which it is false. Towers are stacks of
squares of one size; in other boxes the shapes are scattered.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from evle.data.samples import SPLITS, VQASample
from evle.data.synthetic.language import NUMBERS, a, pick, plural
from evle.errors import ConfigError, nearest

COLOURS = {"black": (0, 0, 0), "yellow": (255, 255, 0), "blue": (0, 153, 255)}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 10, "medium": 20, "big": 30}
BOX, GAP, HEIGHT = 100, 50, 100
"""In pixels: the side of a box, and the gap between two boxes."""
GREY = (211, 211, 211)
MOST = 8
"""Maximum number of items in a box, as in NLVR."""
_ATTEMPTS = 200


class Item(NamedTuple):
    """A shape, its size in pixels, and its upper left corner in its box."""

    shape: str
    colour: str
    size: int
    x: int
    y: int


Boxes = tuple[tuple[Item, ...], ...]


@dataclass(frozen=True, slots=True)
class BoxesDrawing:
    """Three boxes side by side, drawn when needed; `pixels` is the side of the square image that holds them."""

    boxes: Boxes
    pixels: int

    def draw(self) -> Image.Image:
        """The image, mode RGB: 400 x 100 pixels on white, scaled to the width `pixels` and centred."""
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
        small = wide.resize((self.pixels, self.pixels * HEIGHT // wide.width), Image.Resampling.LANCZOS)
        square = Image.new("RGB", (self.pixels, self.pixels), "white")
        square.paste(small, (0, (self.pixels - small.height) // 2))
        return square


def _tower(rng: np.random.Generator) -> tuple[Item, ...]:
    height, size = int(rng.integers(1, 5)), 20
    x = int(rng.integers(0, BOX - size))
    return tuple(
        Item("square", pick(rng, tuple(COLOURS)), size, x, HEIGHT - size * (level + 1)) for level in range(height)
    )


def _scatter(rng: np.random.Generator) -> tuple[Item, ...]:
    items: list[Item] = []
    for _ in range(int(rng.integers(1, MOST + 1))):
        for _ in range(20):  # attempts to find a free position
            size = pick(rng, tuple(SIZES.values()))
            x, y = (int(rng.integers(0, BOX - size + 1)) for _ in range(2))
            if all(abs(x - o.x) > max(size, o.size) or abs(y - o.y) > max(size, o.size) for o in items):
                items.append(Item(pick(rng, SHAPES), pick(rng, tuple(COLOURS)), size, x, y))
                break
    return tuple(items)


def random_boxes(rng: np.random.Generator, towers: bool) -> Boxes:
    """Three boxes of towers, or three of scattered shapes."""
    return tuple((_tower if towers else _scatter)(rng) for _ in range(3))


class Statement(NamedTuple):
    """A sentence, and a test whether it is true for an image."""

    text: str
    holds: Callable[[Boxes], bool]
    towers: bool = False


def _kind(rng: np.random.Generator) -> tuple[str, Callable[[Item], bool]]:
    """A noun such as "black circle" or "yellow item", and what it means."""
    shape, colour = pick(rng, (*SHAPES, "")), pick(rng, (*COLOURS, ""))
    shape = shape or ("" if colour else pick(rng, SHAPES))
    name = " ".join(filter(None, (colour, shape or "item")))
    return name, lambda item: (not shape or item.shape == shape) and (not colour or item.colour == colour)


def _there_is(rng: np.random.Generator) -> Statement:
    name, means = _kind(rng)
    return Statement(f"there is {a(name)}", lambda boxes: any(means(item) for box in boxes for item in box))


def _box_with(rng: np.random.Generator) -> Statement:
    name, means = _kind(rng)
    number = int(rng.integers(1, 4))
    many = name if number == 1 else plural(name)
    how, compare = pick(rng, (("exactly ", int.__eq__), ("at least ", int.__ge__)))
    text = f"there is a box with {how}{NUMBERS[number]} {many}"
    return Statement(text, lambda boxes: any(compare(sum(map(means, box)), number) for box in boxes))


def _total(rng: np.random.Generator) -> Statement:
    name, means = _kind(rng)
    number = int(rng.integers(1, 6))
    verb = "is" if number == 1 else "are"
    text = f"there {verb} exactly {NUMBERS[number]} {name if number == 1 else plural(name)}"
    return Statement(text, lambda boxes: sum(means(item) for box in boxes for item in box) == number)


def _every_box(rng: np.random.Generator) -> Statement:
    name, means = _kind(rng)
    return Statement(f"there is {a(name)} in each box", lambda boxes: all(any(map(means, box)) for box in boxes))


def _all_same(rng: np.random.Generator) -> Statement:
    colour = pick(rng, tuple(COLOURS))
    text = f"there is a box with only {colour} items"
    return Statement(text, lambda boxes: any(all(item.colour == colour for item in box) for box in boxes))


def _touching(rng: np.random.Generator) -> Statement:
    name, means = _kind(rng)
    edges: tuple[tuple[str, Callable[[Item], bool]], ...] = (
        ("the top", lambda item: item.y <= 1),
        ("the bottom", lambda item: item.y + item.size >= HEIGHT - 1),
        ("the wall", lambda item: min(item.x, item.y, BOX - item.x - item.size, HEIGHT - item.y - item.size) <= 1),
    )
    edge, touches = pick(rng, edges)
    text = f"there is {a(name)} touching {edge}"
    return Statement(text, lambda boxes: any(means(item) and touches(item) for box in boxes for item in box))


def _tower_top(rng: np.random.Generator) -> Statement:
    colour, (name, index) = pick(rng, tuple(COLOURS)), pick(rng, (("top", -1), ("base", 0)))
    text = f"there is a tower with a {colour} block at the {name}"
    return Statement(text, lambda boxes: any(box[index].colour == colour for box in boxes), towers=True)


def _tower_height(rng: np.random.Generator) -> Statement:
    number = int(rng.integers(1, 5))
    text = f"there is a tower with exactly {NUMBERS[number]} block{'s' if number > 1 else ''}"
    return Statement(text, lambda boxes: any(len(box) == number for box in boxes), towers=True)


FORMS = (_there_is, _box_with, _total, _every_box, _all_same, _touching, _tower_top, _tower_height)


class BoxSamples(Sequence[Any]):
    """Statements about images of three boxes, as VQASamples with the answer true or false. Created by `boxes`."""

    def __init__(self, split: str, count: int, seed: int, size: int):
        self.split, self.seed, self.size = split, seed, size
        self._count = count
        self.fingerprint = hashlib.blake2b(
            repr(("boxes", split, count, seed, size)).encode(), digest_size=8
        ).hexdigest()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(index) % len(self)
        text = f"boxes\0{self.split}\0{self.seed}\0{number // 2}"
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
        statement, images = _statement_with_images(rng)
        truth = number % 2 == 0
        return VQASample(
            key=f"boxes-{self.split}-{self.seed}-{number}",
            image=BoxesDrawing(images[truth], self.size),
            question=statement.text,
            answers=("true" if truth else "false",),
            answer_type="yes/no",
            question_type="statement",
            set_id=f"boxes-{self.split}-{self.seed}-{number // 2}",
        )

    def describe(self) -> dict[str, Any]:
        """Plain facts for a report."""
        return {"source": "boxes", "split": self.split, "samples": len(self), "seed": self.seed}


def _statement_with_images(rng: np.random.Generator) -> tuple[Statement, dict[bool, Boxes]]:
    """A statement, an image for which it is true, and one for which it is false."""
    while True:
        statement = pick(rng, FORMS)(rng)
        images: dict[bool, Boxes] = {}
        for _ in range(_ATTEMPTS):
            made = random_boxes(rng, statement.towers)
            images.setdefault(statement.holds(made), made)
            if len(images) == 2:
                return statement, images


def boxes(
    task: str = "vqa", split: str = "train", *, count: int = 1000, seed: int = 0, size: int = 128
) -> Sequence[VQASample]:
    """`count` statements about images of three grey boxes, as VQASamples with the answer true or false, so that a model
    can learn the style of NLVR, version 1 (`evle.data.corpora.nlvr`), before it reads people's statements.

    Samples 2i and 2i + 1 share a statement, which is true only for the first image. `size` is the side of the square
    image in pixels. Raises ConfigError for impossible options.
    """
    if task != "vqa":
        raise ConfigError(f"source 'boxes' holds vqa, not {task!r}; choose another source or task")
    if split not in SPLITS:
        raise ConfigError(f"split={split!r} of boxes does not exist; {nearest(split, SPLITS)}")
    if count < 1 or size < 48:
        raise ConfigError(f"count={count} must be at least 1, and size={size} at least 48 pixels")
    return BoxSamples(split, count, seed, size)
