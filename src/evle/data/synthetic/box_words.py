"""What statements about three boxes of small shapes are made of: quantities, nouns, edges, and sentences about boxes.

A statement is made of a quantity ("exactly two"), a noun ("yellow circles") and at times a place ("touching the wall"),
in the words that people use for such images, spelled as those people spell them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from evle.data.synthetic.language import NUMBERS, a, pick, plural

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
    """A sentence, and a test whether it is true for an image; None where the image lacks what the sentence takes for
    granted ("the tallest tower", where two are as tall)."""

    text: str
    holds: Callable[[Boxes], bool | None]
    towers: bool = False


def restricted_to(needed: Callable[[Boxes], bool], statement: Statement) -> Statement:
    """The statement for images that have what is `needed` alone: elsewhere people would not agree on its truth."""
    return statement._replace(holds=lambda boxes: statement.holds(boxes) if needed(boxes) else None)


def several_in_each(boxes: Boxes) -> bool:
    """Whether each box has two items or more: of one item, "items of the same color" is true for some people only."""
    return all(len(box) > 1 for box in boxes)


def largest(boxes: Boxes, most: bool) -> list[Box]:
    """The boxes, or towers, with the most items, or with the fewest; several where they are equal."""
    end = (max if most else min)(map(len, boxes))
    return [box for box in boxes if len(box) == end]


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


def number_word(rng: np.random.Generator, number: int) -> str:
    """A number as people write it, most often in letters."""
    return str(number) if rng.random() < 0.2 else NUMBERS[number]


def quantity(rng: np.random.Generator, most: int, only: bool = False) -> Quantity:
    """One of the quantities that people state, of numbers up to `most`. A number alone means exactly so many.

    `only` is for what is counted in the whole image: "a box with only two circles" may also say that nothing else is
    there.
    """
    how = rng.random()
    if how < 0.2:
        return Quantity("a", lambda count: count >= 1, False)
    if how < 0.25:
        return Quantity("no", lambda count: count == 0, False)
    number = int(rng.integers(1, most + 1))
    words, many = number_word(rng, number), number > 1
    if how < 0.45:
        return Quantity(f"exactly {words}", lambda count: count == number, many)
    if how < 0.55:
        return Quantity(words, lambda count: count == number, many)
    if how < 0.65 and only:
        return Quantity(f"only {words}", lambda count: count == number, many)
    if how < 0.85:
        return Quantity(f"at least {words}", lambda count: count >= number, many)
    if how < 0.9:
        return Quantity(f"at most {words}", lambda count: count <= number, many)
    if how < 0.95 and many:
        return Quantity(f"{pick(rng, ('less than', 'fewer than'))} {words}", lambda count: count < number, many)
    return Quantity(f"more than {words}", lambda count: count > number, many)


class Noun(NamedTuple):
    """A noun such as "small black circle" or "yellow item", and what it means."""

    text: str
    means: ItemTest
    colour: str
    shape: str


def noun(rng: np.random.Generator, blocks: bool = False) -> Noun:
    """A random noun. Some people call blocks squares."""
    colour = pick(rng, (*COLOURS, ""))
    if blocks:
        name = pick(rng, ("block", "block", "block", "square", "item"))
        return Noun(f"{colour} {name}".strip(), lambda item: colour in ("", item.colour), colour, "")
    shape, size = pick(rng, (*SHAPES, "")), pick(rng, (*SIZES, *[""] * 7))
    pixels = SIZES.get(size)
    size = pick(rng, ("big", "large")) if size == "big" else size
    text = " ".join(filter(None, (size, colour, shape or pick(rng, ("item", "item", "object", "shape")))))
    return Noun(
        text,
        lambda item: shape in ("", item.shape) and colour in ("", item.colour) and pixels in (None, item.size),
        colour,
        shape,
    )


def two_nouns(rng: np.random.Generator, blocks: bool = False) -> tuple[Noun, Noun]:
    """Two nouns that no item is both of: they differ in color or in shape."""
    while True:
        one, other = noun(rng, blocks), noun(rng, blocks)
        if any(
            its and others and its != others for its, others in ((one.colour, other.colour), (one.shape, other.shape))
        ):
            return one, other


def _at_corner(item: Item) -> bool:
    """Whether an item is in a corner; a triangle's top is in none."""
    at_side = min(item.x, BOX - item.x - item.size) <= 1
    return at_side and (item.y + item.size >= HEIGHT - 1 or (item.y <= 1 and item.shape != "triangle"))


def _at_wall(item: Item) -> bool:
    return min(item.x, item.y, BOX - item.x - item.size, HEIGHT - item.y - item.size) <= 1


EDGES: dict[str, ItemTest] = {
    "the top": lambda item: item.y <= 1,
    "the bottom": lambda item: item.y + item.size >= HEIGHT - 1,
    "the base": lambda item: item.y + item.size >= HEIGHT - 1,
    "the left wall": lambda item: item.x <= 1,
    "the right wall": lambda item: item.x + item.size >= BOX - 1,
    "a corner": _at_corner,
    "the corner": _at_corner,
    **dict.fromkeys(("the wall", "a wall", "the edge", "any edge", "a side"), _at_wall),
}


def touching(rng: np.random.Generator) -> tuple[str, ItemTest]:
    """Words such as "closely touching the wall" or "not touching a corner", and which items are so."""
    edge = pick(rng, tuple(EDGES))
    at_edge = EDGES[edge]
    if rng.random() < 0.15:
        return f"not touching {edge}", lambda item: not at_edge(item)
    return f"{pick(rng, ('touching', 'touching', 'closely touching', 'nearly touching'))} {edge}", at_edge


def counted(rng: np.random.Generator, most: int, blocks: bool = False, only: bool = False) -> tuple[str, str, BoxTest]:
    """A quantity of a noun, at times of those that touch an edge: words, verb, and whether a box holds so many."""
    number, (name, means, *_) = quantity(rng, most, only), noun(rng, blocks)
    text, at_edge = number.of(name), None
    if not blocks and rng.random() < 0.3:
        place, at_edge = touching(rng)
        text += f" {pick(rng, ('', '', f'that {number.verb} '))}{place}"
    return (
        text,
        number.verb,
        lambda box: number.holds(sum(means(item) and (at_edge is None or at_edge(item)) for item in box)),
    )


COMPARISONS: tuple[tuple[str, Callable[[int, int], bool]], ...] = (
    ("more", lambda mine, its: mine > its),
    ("more", lambda mine, its: mine > its),
    ("fewer", lambda mine, its: mine < its),
    ("as many", lambda mine, its: mine == its > 0),
)


def compared(rng: np.random.Generator, blocks: bool = False) -> tuple[str, BoxTest]:
    """Things of two kinds compared by number ("more black items than yellow items"), and whether a box holds them."""
    one, other = two_nouns(rng, blocks)
    how, compare = pick(rng, COMPARISONS)
    return (
        f"{how} {plural(one.text)} {'as' if how == 'as many' else 'than'} {plural(other.text)}",
        lambda box: compare(sum(map(one.means, box)), sum(map(other.means, box))),
    )


GREY_BOXES = ("grey box", "gray box", "grey square")
EACH = ("all {}es have", "all the {}es have", "all three {}es have", "each {} has", "every {} has")
NONE = ("none of the {}es have", "none of the {}es has", "no {} has", "there is no {} with")


def about_boxes(rng: np.random.Generator, things: str, test: BoxTest, name: str = "box") -> Statement:
    """That some number of boxes, or of towers, have `things`: those for which `test` is true."""
    towers = name == "tower"
    if not towers and rng.random() < 0.1:
        name = pick(rng, GREY_BOXES)
    how = rng.random()
    if how < 0.45:
        text = (
            f"there is {a(name)} {pick(rng, ('with', 'with', 'with', 'that has', 'which has', 'containing'))} {things}"
        )
        return Statement(text, lambda boxes: any(map(test, boxes)), towers)
    if how < 0.8:
        number = quantity(rng, 3, only=True)
        have = "have" if number.is_plural else "has"
        with_ = pick(rng, ("with", "with", f"that {have}", f"which {have}"))
        text = f"there {number.verb} {number.of(name)} {with_} {things}"
        if number.words != "no" and rng.random() < 0.3:
            text = f"{number.of(name)} {have} {things}"
        return Statement(text, lambda boxes: number.holds(sum(map(test, boxes))), towers)
    if how < 0.85:
        text = f"{pick(rng, ('', 'at least '))}one of the {plural(name)} has {things}"
        return Statement(text, lambda boxes: any(map(test, boxes)), towers)
    if how < 0.94:
        return Statement(_framed(rng, EACH, name, things), lambda boxes: all(map(test, boxes)), towers)
    return Statement(_framed(rng, NONE, name, things), lambda boxes: not any(map(test, boxes)), towers)


def _framed(rng: np.random.Generator, frames: tuple[str, ...], name: str, things: str) -> str:
    return f"{pick(rng, frames).replace('{}es', plural(name)).replace('{}', name)} {things}"


def about_image(rng: np.random.Generator, text: str, verb: str, test: BoxTest, towers: bool = False) -> Statement:
    """That the image, all boxes together, holds things: those for which `test` is true."""
    return Statement(f"there {verb} {text}", lambda boxes: test(tuple(item for box in boxes for item in box)), towers)


def about_the_only(
    name: str, is_it: Callable[[Boxes], list[Box]], things: str, test: BoxTest, towers: bool
) -> Statement:
    """That the one box, or tower, that `name` names has `things`; None where no box is named, or several are."""

    def holds(boxes: Boxes) -> bool | None:
        named = is_it(boxes)
        return test(named[0]) if len(named) == 1 else None

    return Statement(f"the {name} has {things}", holds, towers)
