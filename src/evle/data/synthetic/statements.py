"""Statements in the style of NLVR, version 1 (Suhr et al., 2017), about three boxes of small shapes, with their truth,
and descriptions, which say all that a box holds."""

from collections.abc import Callable, Sequence

import numpy as np

from evle.data.synthetic import box_statements, tower_statements
from evle.data.synthetic.box_words import EDGES, SIZES, Box, Boxes, Item, Statement, number_word
from evle.data.synthetic.language import a, join, pick, plural

FORMS: Sequence[Callable[[np.random.Generator], Statement]] = (*box_statements.FORMS, *tower_statements.FORMS)
"""The forms of statements, first those about scattered shapes."""


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
    return f"{number_word(rng, len(box))} blocks, {parts}"


def _items(rng: np.random.Generator, box: Box) -> str:
    """The items of a box from top to bottom; several of one color and shape are one phrase."""
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in sorted(box, key=lambda item: item.y):
        groups.setdefault((item.colour, item.shape), []).append(item)
    return join([_group(rng, f"{colour} {shape}", items) for (colour, shape), items in groups.items()])


def _group(rng: np.random.Generator, noun: str, items: Sequence[Item]) -> str:
    if len(items) > 1:
        return f"{number_word(rng, len(items))} {plural(noun)}"
    size = next(name for name, pixels in SIZES.items() if pixels == items[0].size)
    edge = pick(rng, tuple(EDGES))
    words = a(f"{size} {noun}" if rng.random() < 0.5 else noun)
    return f"{words} touching {edge}" if EDGES[edge](items[0]) else words
