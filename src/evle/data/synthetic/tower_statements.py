"""Statements about towers of blocks, in the style of NLVR, version 1 (Suhr et al., 2017), with their truth.

A tower is a box whose items stand on each other, the base first.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from evle.data.synthetic.box_words import (
    COLOURS,
    TALLEST,
    Box,
    Boxes,
    BoxTest,
    CountTest,
    Statement,
    about_boxes,
    about_image,
    about_the_only,
    compared,
    counted,
    largest,
    number_word,
    quantity,
    restricted_to,
    several_in_each,
)
from evle.data.synthetic.language import a, pick

ENDS = {"base": 0, "bottom": 0, "top": -1}
TOWER = "tower"


def _block(rng: np.random.Generator, colour: str) -> str:
    return a(f"{colour} {pick(rng, ('block', 'block', 'block', 'square', 'item'))}")


def _colour(rng: np.random.Generator) -> str:
    return pick(rng, tuple(COLOURS))


def _end(rng: np.random.Generator) -> tuple[str, BoxTest]:
    """What a tower has at its base or its top: "a yellow block at the base", "a black top"."""
    colour, name = _colour(rng), pick(rng, tuple(ENDS))
    index = ENDS[name]
    place = pick(rng, ("on top", "on the top", "at the top") if name == "top" else (f"at the {name}", f"on the {name}"))
    words = pick(rng, (f"{_block(rng, colour)} {place}", a(f"{colour} {name}"), f"{_block(rng, colour)} as the {name}"))
    return words, lambda box: box[index].colour == colour


def _height(rng: np.random.Generator) -> tuple[str, BoxTest]:
    """How many blocks a tower has."""
    number = quantity(rng, TALLEST)
    return number.of(pick(rng, ("block", "block", "square"))), lambda box: number.holds(len(box))


def _of_a_kind(rng: np.random.Generator) -> tuple[str, BoxTest]:
    """How many blocks of a color a tower has."""
    text, _, holds = counted(rng, 3, blocks=True)
    return text, holds


def _order(rng: np.random.Generator) -> tuple[str, BoxTest]:
    """Which block stands where: on another one, between two, in the middle, or at a position."""
    form, one, other = int(rng.integers(4)), _colour(rng), _colour(rng)
    if form < 2:
        under = rng.random() < 0.25
        relation = pick(rng, ("under", "directly below") if under else ("on top of", "over", "above", "directly above"))
        low, high = (one, other) if under else (other, one)
        directly = relation in ("on top of", "over", "directly above", "directly below")

        def ordered(box: Box) -> bool:
            levels = [item.colour for item in box]
            pairs = pairwise(levels) if directly else ((a, b) for i, a in enumerate(levels) for b in levels[i + 1 :])
            return (low, high) in pairs

        return f"{_block(rng, one)} {relation} {_block(rng, other)}", ordered
    if form == 2:
        words = f"{_block(rng, one)} between two {other} blocks"
        triple = (other, one, other)
        return words, lambda box: triple in zip(*([item.colour for item in box[start:]] for start in range(3)))
    place, index = pick(
        rng, (("second block from the base", 1), ("second block from the top", -2), ("third block from the base", 2))
    )
    return (
        f"{_block(rng, one)} as the {place}",
        lambda box: len(box) >= (index + 1 if index > 0 else -index) and box[index].colour == one,
    )


def _has(rng: np.random.Generator) -> tuple[str, BoxTest]:
    """Anything that one tower can have; at times a number of blocks and a place."""
    numbers, places = (_height, _of_a_kind, _of_a_kind), (_end, _end, _order)
    text, test = pick(rng, numbers + places)(rng)
    if rng.random() < 0.7:
        return text, test
    text, test = pick(rng, numbers)(rng)
    other, also = pick(rng, places)(rng)
    without = rng.random() < 0.25
    return f"{text} {'but not' if without else 'and'} {other}", lambda box: test(box) and also(box) != without


def _role(rng: np.random.Generator) -> Statement:
    """Blocks at the end of towers of a kind: "exactly two yellow blocks are at the top of towers with three blocks"."""
    number, colour = quantity(rng, 2, only=True), _colour(rng)
    end, (height, is_so) = pick(rng, tuple(ENDS)), _height(rng)
    blocks = number.of(f"{colour} {pick(rng, ('block', 'block', 'item'))}")
    towers = "towers" if number.is_plural else "a tower"
    there = f"there {number.verb} {blocks} {pick(rng, ('as', 'at'))} the {end}"
    start = pick(rng, (there, there, f"{blocks} {number.verb} the {end}"))
    return Statement(
        f"{start} of {towers} with {height}",
        lambda boxes: number.holds(sum(box[ENDS[end]].colour == colour and is_so(box) for box in boxes)),
        towers=True,
    )


def _pair(rng: np.random.Generator) -> Statement:
    """Two towers that share their height, and whose ends agree or differ."""
    end, same = pick(rng, ("base", "top")), rng.random() < 0.4
    text = pick(rng, ("there are two towers of the same height", "at least two towers have the same height"))
    how = pick(rng, (f"and their {end}s are of the same color",) if same else (f"but their {end}s differ in color",))

    def holds(boxes: Boxes) -> bool | None:
        heights = Counter(map(len, boxes)).values()
        if 3 in heights:
            return None  # "two" of three
        ends = [box[ENDS[end]].colour for box in boxes if sum(len(box) == len(its) for its in boxes) == 2]
        return bool(ends) and (ends[0] == ends[1]) == same

    return Statement(f"{text} {how}", holds, towers=True)


def _ends(rng: np.random.Generator) -> Statement:
    return about_boxes(rng, *_end(rng), TOWER)


def _both_ends(rng: np.random.Generator) -> Statement:
    if rng.random() < 0.4:
        same = rng.random() < 0.5
        said = f"{'the same color' if same else 'different colors'} at the {pick(rng, ('base', 'bottom'))} and the top"
        statement = about_boxes(rng, said, lambda box: (box[0].colour == box[-1].colour) == same, TOWER)
        return restricted_to(several_in_each, statement)
    colour, other = _colour(rng), _colour(rng)
    base, top = pick(rng, ("base", "bottom")), pick(rng, ("at the top", "on top"))
    said = f"{_block(rng, colour)} at the {base} and {_block(rng, other)} {top}"
    statement = about_boxes(rng, said, lambda box: box[0].colour == colour and box[-1].colour == other, TOWER)
    return restricted_to(several_in_each, statement)


def _heights(rng: np.random.Generator) -> Statement:
    return about_boxes(rng, *_height(rng), TOWER)


def _equal_heights(rng: np.random.Generator) -> Statement:
    return _shared(rng, "height", len)


def _equal_ends(rng: np.random.Generator) -> Statement:
    name = pick(rng, tuple(ENDS))
    return _shared(rng, f"color at the {name}", lambda box: box[ENDS[name]].colour)


def _shared(rng: np.random.Generator, what: str, key: Callable[[Box], object]) -> Statement:
    """That towers share a property, or that no two do."""

    def most(boxes: Boxes) -> int:
        return max(Counter(map(key, boxes)).values())

    texts: tuple[tuple[str, CountTest], ...] = (
        (f"there are exactly two towers with the same {what}", lambda count: count == 2),
        (f"at least two towers have the same {what}", lambda count: count >= 2),
        (f"exactly two towers have the same {what}", lambda count: count == 2),
        (f"all towers have the same {what}", lambda count: count == 3),
        (
            f"all three towers have different {what.replace('color', 'colors').replace('height', 'heights')}",
            lambda count: count == 1,
        ),
    )
    text, holds = pick(rng, texts)
    return Statement(text, lambda boxes: holds(most(boxes)), towers=True)


def _blocks(rng: np.random.Generator) -> Statement:
    return about_boxes(rng, *_has(rng), TOWER)


def _colours(rng: np.random.Generator) -> Statement:
    if rng.random() < 0.5:
        colour = _colour(rng)
        said = f"only {colour} {pick(rng, ('blocks', 'blocks', 'squares'))}"
        statement = about_boxes(rng, said, lambda box: all(item.colour == colour for item in box), TOWER)
        return restricted_to(several_in_each, statement)
    number = int(rng.integers(1, 4))
    words = {
        1: ("blocks of the same color", "only one color", "all blocks of the same color"),
        2: ("two different colors", "exactly two colors", "blocks of only 2 colors"),
        3: ("three different colors", "all three colors", "all the three different colors"),
    }
    text = pick(rng, words[number])
    statement = about_boxes(rng, text, lambda box: len({item.colour for item in box}) == number, TOWER)
    return restricted_to(several_in_each, statement) if number == 1 else statement


def _all_with(rng: np.random.Generator) -> Statement:
    """What all towers of a height have, or the color of an end of all towers."""
    colour, end = _colour(rng), pick(rng, tuple(ENDS))
    if rng.random() < 0.35:
        text = pick(rng, (f"the {end}s of all towers are {colour}", f"the {end} of each tower is {colour}"))
        return Statement(text, lambda boxes: all(box[ENDS[end]].colour == colour for box in boxes), towers=True)
    number, (things, test) = int(rng.integers(1, TALLEST + 1)), pick(rng, (_end, _of_a_kind))(rng)
    blocks = f"{number_word(rng, number)} {'blocks' if number > 1 else 'block'}"

    def holds(boxes: Boxes) -> bool | None:
        found = [test(box) for box in boxes if len(box) == number]
        return all(found) if found else None

    start = pick(rng, (f"all towers with {blocks} have", f"every tower with {blocks} has"))
    return Statement(f"{start} {things}", holds, towers=True)


def _of_image(rng: np.random.Generator) -> Statement:
    if rng.random() < 0.4:
        text, test = pick(rng, (_order, _order, _end))(rng)
        return Statement(
            f"there is {text}{pick(rng, ('', ' in a tower'))}", lambda boxes: any(map(test, boxes)), towers=True
        )
    text, verb, holds = counted(rng, 6, blocks=True, only=True)
    return about_image(rng, text, verb, holds, towers=True)


def _more(rng: np.random.Generator) -> Statement:
    said, holds = compared(rng, blocks=True)
    if rng.random() < 0.4:
        return about_image(rng, said, "are", holds, towers=True)
    return about_boxes(rng, said, holds, TOWER)


def _the_tower(rng: np.random.Generator) -> Statement:
    things, test = pick(rng, (_end, _end, _of_a_kind, _order))(rng)
    if rng.random() < 0.5:
        number = int(rng.integers(1, TALLEST + 1))
        blocks = f"{number_word(rng, number)} {'blocks' if number > 1 else 'block'}"
        name = pick(rng, (f"tower with {blocks}", f"tower that has {blocks}", f"tower with exactly {blocks}"))
        return about_the_only(name, lambda boxes: [box for box in boxes if len(box) == number], things, test, True)
    tallest = rng.random() < 0.6
    return about_the_only(
        f"{'tallest' if tallest else 'shortest'} tower", lambda boxes: largest(boxes, tallest), things, test, True
    )


FORMS: Sequence[Callable[[np.random.Generator], Statement]] = (
    _ends,
    _ends,
    _both_ends,
    _heights,
    _heights,
    _equal_heights,
    _equal_ends,
    _blocks,
    _blocks,
    _blocks,
    _colours,
    _role,
    _pair,
    _all_with,
    _of_image,
    _more,
    _the_tower,
)
"""The forms of statements; those that stand here several times are the most frequent ones among people's."""
