"""Statements in the style of NLVR, version 1 (Suhr et al., 2017), about three boxes of small shapes, with their truth.

A statement is made of a quantity ("exactly two"), a noun ("yellow circles") and at times a place ("touching the
wall"), in the forms that people use most for such images. A description says all that a box holds. Colors are spelled
as those people spell them.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from evle.data.synthetic.language import NUMBERS, a, join, pick, plural

COLOURS = {"black": (0, 0, 0), "yellow": (255, 255, 0), "blue": (0, 153, 255)}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 10, "medium": 20, "big": 30}
BOX, GAP, HEIGHT = 100, 50, 100
"""In pixels: the side of a box, and the gap between two boxes."""
MOST = 8
"""Maximum number of items in a box, as in NLVR."""
TALLEST = 4
"""Maximum number of blocks in a tower."""


class Item(NamedTuple):
    """A shape, its size in pixels, and its upper left corner in its box."""

    shape: str
    colour: str
    size: int
    x: int
    y: int


Box = tuple[Item, ...]
Boxes = tuple[Box, ...]
ItemTest = Callable[[Item], bool]
BoxTest = Callable[[Box], bool]
CountTest = Callable[[int], bool]


class Statement(NamedTuple):
    """A sentence, and a test whether it is true for an image."""

    text: str
    holds: Callable[[Boxes], bool]
    towers: bool = False


class Quantity(NamedTuple):
    """Words for a number of things ("at least two"), which numbers they mean, and whether the noun is plural."""

    words: str
    holds: CountTest
    is_plural: bool

    def of(self, noun: str) -> str:
        """The quantity and the noun: "exactly two circles", "a circle"."""
        return a(noun) if self.words == "a" else f"{self.words} {plural(noun) if self.is_plural else noun}"

    @property
    def verb(self) -> str:
        return "are" if self.is_plural else "is"


def _number(rng: np.random.Generator, number: int) -> str:
    return str(number) if rng.random() < 0.15 else NUMBERS[number]


def _quantity(rng: np.random.Generator, most: int) -> Quantity:
    """One of the quantities that people state, of numbers up to `most`."""
    how = rng.random()
    if how < 0.2:
        return Quantity("a", lambda count: count >= 1, False)
    if how < 0.25:
        return Quantity("no", lambda count: count == 0, False)
    number = int(rng.integers(1, most + 1))
    words, many = _number(rng, number), number > 1
    if how < 0.6:
        return Quantity(f"exactly {words}", lambda count: count == number, many)
    if how < 0.65:
        return Quantity(f"only {words}", lambda count: count == number, many)
    if how < 0.9:
        return Quantity(f"at least {words}", lambda count: count >= number, many)
    if how < 0.95:
        return Quantity(f"at most {words}", lambda count: count <= number, many)
    return Quantity(f"more than {words}", lambda count: count > number, many)


def _noun(rng: np.random.Generator, blocks: bool = False) -> tuple[str, ItemTest]:
    """A noun such as "small black circle" or "yellow item", and what it means."""
    colour = pick(rng, (*COLOURS, ""))
    if blocks:
        return f"{colour} block".strip(), lambda item: not colour or item.colour == colour
    shape, size = pick(rng, (*SHAPES, "")), pick(rng, (*SIZES, *[""] * 7))
    pixels = SIZES.get(size)
    name = " ".join(filter(None, (size, colour, shape or pick(rng, ("item", "item", "object")))))
    return (
        name,
        lambda item: (
            (not shape or item.shape == shape)
            and (not colour or item.colour == colour)
            and (pixels is None or item.size == pixels)
        ),
    )


EDGES: dict[str, ItemTest] = {
    "the top": lambda item: item.y <= 1,
    "the bottom": lambda item: item.y + item.size >= HEIGHT - 1,
    "the wall": lambda item: min(item.x, item.y, BOX - item.x - item.size, HEIGHT - item.y - item.size) <= 1,
    "a corner": lambda item: (
        min(item.x, BOX - item.x - item.size) <= 1 and min(item.y, HEIGHT - item.y - item.size) <= 1
    ),
}
EDGES |= {"the base": EDGES["the bottom"], "the edge": EDGES["the wall"], "the side of a box": EDGES["the wall"]}


def _counted(rng: np.random.Generator, most: int, blocks: bool = False) -> tuple[str, str, BoxTest]:
    """A quantity of a noun, at times of those that touch an edge: words, verb, and whether a box holds so many."""
    quantity, (noun, means) = _quantity(rng, most), _noun(rng, blocks)
    text, touches = quantity.of(noun), None
    if not blocks and rng.random() < 0.3:
        edge = pick(rng, tuple(EDGES))
        text += f" {pick(rng, ('touching', 'touching', 'closely touching'))} {edge}"
        touches = EDGES[edge]
    return (
        text,
        quantity.verb,
        lambda box: quantity.holds(sum(means(item) and (touches is None or touches(item)) for item in box)),
    )


def _about_boxes(rng: np.random.Generator, said: str, test: BoxTest, noun: str = "box") -> Statement:
    """That some number of boxes, or of towers, is as `said`."""
    towers = noun == "tower"
    if rng.random() < 0.5:
        return Statement(f"there is {a(noun)} {said}", lambda boxes: any(map(test, boxes)), towers)
    quantity = _quantity(rng, 3)
    said = said.replace(" has ", " have ") if quantity.is_plural else said
    text = f"there {quantity.verb} {quantity.of(noun)} {said}"
    return Statement(text, lambda boxes: quantity.holds(sum(map(test, boxes))), towers)


def _in_image(rng: np.random.Generator) -> Statement:
    text, verb, holds = _counted(rng, 5)
    return Statement(f"there {verb} {text}", lambda boxes: holds(tuple(item for box in boxes for item in box)))


def _in_box(rng: np.random.Generator) -> Statement:
    text, _, holds = _counted(rng, 4)
    return _about_boxes(rng, f"with {text}", holds)


def _in_each_box(rng: np.random.Generator) -> Statement:
    text, verb, holds = _counted(rng, 2)
    there = f"there {verb} {text}"
    said = pick(
        rng, (f"{there} in each box", f"{there} in every box", f"each box has {text}", f"all boxes have {text}")
    )
    return Statement(said, lambda boxes: all(map(holds, boxes)))


def _only(rng: np.random.Generator) -> Statement:
    key, values = pick(rng, (("colour", tuple(COLOURS)), ("shape", SHAPES)))
    value = pick(rng, values)
    things = f"{value} items" if key == "colour" else plural(value)
    said = pick(rng, (f"with only {things}", f"with all {things}", f"that has only {things}"))
    return _about_boxes(rng, said, lambda box: all(getattr(item, key) == value for item in box))


def _kinds(rng: np.random.Generator) -> Statement:
    key, word, all_of_them = pick(rng, (("colour", "color", len(COLOURS)), ("shape", "shape", len(SHAPES))))
    number = int(rng.integers(1, all_of_them + 1))
    said = {
        1: (f"with items of the same {word}", f"with all items of the same {word}", f"with only one {word}"),
        2: (f"with exactly two different {word}s", f"with items of only two {word}s"),
        3: (f"with all three {word}s", f"with items of three different {word}s", f"with all the three {word}s"),
    }
    return _about_boxes(rng, f"{pick(rng, said[number])}", lambda box: len({getattr(o, key) for o in box}) == number)


def _size_of_box(rng: np.random.Generator) -> Statement:
    quantity = _quantity(rng, MOST)
    return _about_boxes(rng, f"with {quantity.of('item')}", lambda box: quantity.holds(len(box)))


def _share(rng: np.random.Generator) -> Statement:
    """A box with several items, some of which are of a kind."""
    number, (noun, means) = int(rng.integers(2, 7)), _noun(rng)
    part = _quantity(rng, 2)
    part = part if part.words != "a" else Quantity("one", lambda count: count == 1, False)
    kind = plural(noun) if part.is_plural else a(noun)
    if rng.random() < 0.5:
        said, most = f"with {_number(rng, number)} items", number
    else:
        said, number, most = "with multiple items", 2, MOST
    words = "none" if part.words == "no" else part.words
    return _about_boxes(
        rng,
        f"{said} and {words} of them {part.verb} {kind}",
        lambda box: number <= len(box) <= most and part.holds(sum(map(means, box))),
    )


def _two_kinds(rng: np.random.Generator) -> Statement:
    (one, is_one), (other, is_other) = _noun(rng), _noun(rng)
    without = rng.random() < 0.3
    said = f"with {a(one)} {f'but no {other}' if without else f'and {a(other)}'}"
    return _about_boxes(rng, said, lambda box: any(map(is_one, box)) and any(map(is_other, box)) != without)


def _tower_ends(rng: np.random.Generator) -> Statement:
    colour, other = (pick(rng, tuple(COLOURS)) for _ in range(2))
    base, top = pick(rng, ("base", "bottom")), "top"
    if rng.random() < 0.25:
        said = f"with {a(f'{colour} block')} at the {base} and {a(f'{other} block')} at the {top}"
        return _about_boxes(rng, said, lambda box: box[0].colour == colour and box[-1].colour == other, "tower")
    name, index = pick(rng, ((base, 0), (top, -1)))
    said = pick(rng, (f"with {a(f'{colour} block')} at the {name}", f"which has {a(colour)} {name}"))
    return _about_boxes(rng, said, lambda box: box[index].colour == colour, "tower")


def _tower_height(rng: np.random.Generator) -> Statement:
    if rng.random() < 0.15:
        number = int(rng.integers(2, 4))
        text = f"there are {NUMBERS[number]} towers with the same height"
        return Statement(text, lambda boxes: len({len(box) for box in boxes}) <= 4 - number, towers=True)
    quantity = _quantity(rng, TALLEST)
    return _about_boxes(rng, f"with {quantity.of('block')}", lambda box: quantity.holds(len(box)), "tower")


def _tower_blocks(rng: np.random.Generator) -> Statement:
    form = int(rng.integers(4))
    colour, other = (pick(rng, tuple(COLOURS)) for _ in range(2))
    if form == 0:
        said = pick(rng, (f"with only {colour} blocks", f"that has only {colour} blocks", f"with all {colour} blocks"))
        return _about_boxes(rng, said, lambda box: all(item.colour == colour for item in box), "tower")
    if form == 1:
        number = int(rng.integers(1, 4))
        said = "with blocks of the same color" if number == 1 else f"with {NUMBERS[number]} different colors"
        return _about_boxes(rng, said, lambda box: len({item.colour for item in box}) == number, "tower")
    if form == 2:
        said = f"with {a(f'{colour} block')} {pick(rng, ('on top of', 'over'))} {a(f'{other} block')}"
        return _about_boxes(
            rng,
            said,
            lambda box: any(low.colour == other and high.colour == colour for low, high in pairwise(box)),
            "tower",
        )
    text, _, holds = _counted(rng, 3, blocks=True)
    return _about_boxes(rng, f"with {text}", holds, "tower")


def _blocks_of_image(rng: np.random.Generator) -> Statement:
    text, verb, holds = _counted(rng, 6, blocks=True)
    return Statement(
        f"there {verb} {text}", lambda boxes: holds(tuple(item for box in boxes for item in box)), towers=True
    )


FORMS: Sequence[Callable[[np.random.Generator], Statement]] = (
    _in_image,
    _in_image,
    _in_box,
    _in_box,
    _in_each_box,
    _only,
    _kinds,
    _size_of_box,
    _share,
    _two_kinds,
    _tower_ends,
    _tower_ends,
    _tower_height,
    _tower_blocks,
    _tower_blocks,
    _blocks_of_image,
)
"""The forms of statements; those that stand here twice are the most frequent ones among people's."""


def random_statement(rng: np.random.Generator) -> Statement:
    """A statement of a random form; it may be true for hardly any image, or for all of them."""
    return pick(rng, FORMS)(rng)


PLACES = ("left", "middle", "right")
"""Names of the three boxes, from left to right."""


def describe(rng: np.random.Generator, boxes: Boxes, towers: bool, number: int) -> list[str]:
    """What each of `number` random boxes, or towers, holds, in random order.

    >>> box = (Item("square", "blue", 20, 0, 80), Item("square", "black", 20, 0, 60))
    >>> describe(np.random.default_rng(0), (box,) * 3, True, 1)
    ['the right tower has 2 blocks, a blue base and a black top']
    """
    chosen = [int(index) for index in rng.permutation(len(boxes))[:number]]
    content = _blocks if towers else _items
    return [f"the {PLACES[index]} {'tower' if towers else 'box'} has {content(rng, boxes[index])}" for index in chosen]


def _blocks(rng: np.random.Generator, box: Box) -> str:
    """The blocks of a tower from its base to its top."""
    if len(box) == 1:
        return f"one {box[0].colour} block"
    base, *between, top = (item.colour for item in box)
    parts = join([f"a {base} base", *(f"a {each} block" for each in between), f"a {top} top"])
    return f"{_number(rng, len(box))} blocks, {parts}"


def _items(rng: np.random.Generator, box: Box) -> str:
    """The items of a box from top to bottom; several of one color and shape are one phrase."""
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in sorted(box, key=lambda item: item.y):
        groups.setdefault((item.colour, item.shape), []).append(item)
    return join([_group(rng, f"{colour} {shape}", items) for (colour, shape), items in groups.items()])


def _group(rng: np.random.Generator, noun: str, items: Sequence[Item]) -> str:
    if len(items) > 1:
        return f"{_number(rng, len(items))} {plural(noun)}"
    size = next(name for name, pixels in SIZES.items() if pixels == items[0].size)
    edge = pick(rng, tuple(EDGES))
    words = a(f"{size} {noun}" if rng.random() < 0.5 else noun)
    return f"{words} touching {edge}" if EDGES[edge](items[0]) else words
