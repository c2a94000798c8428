"""Statements about boxes of scattered shapes, in the style of NLVR, version 1 (Suhr et al., 2017), with their truth."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from evle.data.synthetic.box_words import (
    COLOURS,
    EDGES,
    MOST,
    SHAPES,
    Box,
    Boxes,
    BoxTest,
    Item,
    ItemTest,
    Quantity,
    Statement,
    about_boxes,
    about_image,
    about_the_only,
    compared,
    counted,
    largest,
    noun,
    number_word,
    quantity,
    restricted_to,
    several_in_each,
    touching,
    two_nouns,
)
from evle.data.synthetic.language import NUMBERS, a, pick, plural


def _in_image(rng: np.random.Generator) -> Statement:
    text, verb, holds = counted(rng, 5, only=True)
    if rng.random() < 0.8:
        return about_image(rng, text, verb, holds)
    other, _, also = counted(rng, 4)
    return about_image(rng, f"{text} and {other}", verb, lambda box: holds(box) and also(box))


def _in_box(rng: np.random.Generator) -> Statement:
    return about_boxes(rng, *_content(rng))


def _content(rng: np.random.Generator) -> tuple[str, BoxTest]:
    """One or two counted nouns of a box."""
    text, _, holds = counted(rng, 4)
    if rng.random() < 0.85:
        return text, holds
    (name, means, *_), (other, is_other, *_) = two_nouns(rng)
    one, two = quantity(rng, 3), quantity(rng, 3)
    return (
        f"{one.of(name)} and {two.of(other)}",
        lambda box: one.holds(sum(map(means, box))) and two.holds(sum(map(is_other, box))),
    )


def _without(rng: np.random.Generator) -> Statement:
    name, means, *_ = noun(rng)
    kind = pick(rng, (plural(name), f"any {plural(name)}"))
    said = pick(
        rng, (f"a box without {kind}", f"a box that does not have {kind}", f"a box that does not contain {kind}")
    )
    return Statement(f"there is {said}", lambda boxes: any(not any(map(means, box)) for box in boxes))


def _in_each_box(rng: np.random.Generator) -> Statement:
    text, verb, holds = counted(rng, 2)
    where_ = pick(rng, ("in each box", "in every box", "in each grey square"))
    return Statement(f"there {verb} {text} {where_}", lambda boxes: all(map(holds, boxes)))


def _only(rng: np.random.Generator) -> Statement:
    key, values = pick(rng, (("colour", tuple(COLOURS)), ("shape", SHAPES)))
    value = pick(rng, values)
    things = f"{value} {pick(rng, ('items', 'objects', 'shapes'))}" if key == "colour" else plural(value)
    statement = about_boxes(rng, f"only {things}", lambda box: all(getattr(item, key) == value for item in box))
    return restricted_to(several_in_each, statement)


def _alike(rng: np.random.Generator) -> Statement:
    """So many items of a noun, which share a color or a shape, or differ in it."""
    key, word, names = pick(rng, (("colour", "color", (*SHAPES, "item", "item")), ("shape", "shape", COLOURS)))
    kind, number = pick(rng, tuple(names)), int(rng.integers(2, 4))
    same = rng.random() < 0.6
    name = f"{kind} items" if key == "shape" else plural(kind)

    def holds(box: Box) -> bool:
        found = [getattr(item, key) for item in box if kind in ("item", item.colour, item.shape)]
        return len(found) == number and len(set(found)) == (1 if same else number)

    said = f"of the same {word}" if same else f"of different {word}s"
    return about_boxes(rng, f"{pick(rng, ('', 'exactly '))}{number_word(rng, number)} {name} {said}", holds)


def _odd_one(rng: np.random.Generator) -> Statement:
    key, word = pick(rng, (("colour", "color"), ("shape", "shape")))
    said = pick(
        rng, (f"multiple items of which only one has a different {word}", f"only one item of a different {word}")
    )

    def holds(box: Box) -> bool:
        kinds = sorted(Counter(getattr(item, key) for item in box).values())
        return len(box) > 2 and len(kinds) == 2 and kinds[0] == 1

    return about_boxes(rng, said, holds)


def _kinds(rng: np.random.Generator) -> Statement:
    key, word, all_of_them = pick(
        rng, (("colour", "color", len(COLOURS)), ("shape", "shape", len(SHAPES)), ("size", "size", 3))
    )
    number = int(rng.integers(1, all_of_them + 1))
    said = {  # "only one shape" might be one item
        1: (f"items of the same {word}", f"all items of the same {word}", f"items of only one {word}"),
        2: (f"exactly two different {word}s", f"items of only two {word}s", f"only 2 different {word}s"),
        3: (f"all three {word}s", f"items of three different {word}s", f"all the three different {word}s"),
    }
    text = pick(rng, said[number])
    if number == 2 and rng.random() < 0.3:
        text = f"items of different {word}s"
        return about_boxes(rng, text, lambda box: len({getattr(item, key) for item in box}) > 1)
    statement = about_boxes(rng, text, lambda box: len({getattr(item, key) for item in box}) == number)
    return restricted_to(several_in_each, statement) if number == 1 else statement


def _size_of_box(rng: np.random.Generator) -> Statement:
    number = quantity(rng, MOST)
    return about_boxes(rng, number.of(pick(rng, ("item", "item", "object"))), lambda box: number.holds(len(box)))


def _share(rng: np.random.Generator) -> Statement:
    """A box with several items, some of which are of a kind."""
    number, (name, means, *_) = int(rng.integers(2, 7)), noun(rng)
    part = quantity(rng, 2)
    part = part if part.words != "a" else Quantity("one", lambda count: count == 1, False)
    kind = plural(name) if part.is_plural else a(name)
    if rng.random() < 0.5:
        said, most = f"{number_word(rng, number)} items", number
    else:
        said, number, most = "multiple items", 2, MOST
    words = "none" if part.words == "no" else part.words
    return about_boxes(
        rng,
        f"{said} of which {words} {part.verb} {kind}",
        lambda box: number <= len(box) <= most and part.holds(sum(map(means, box))),
    )


def _two_kinds(rng: np.random.Generator) -> Statement:
    (one, is_one, *_), (other, is_other, *_) = two_nouns(rng)
    without = rng.random() < 0.3
    said = f"{a(one)} {f'but no {other}' if without else f'and {a(other)}'}"
    return about_boxes(rng, said, lambda box: any(map(is_one, box)) and any(map(is_other, box)) != without)


def _more(rng: np.random.Generator) -> Statement:
    said, holds = compared(rng)
    return about_image(rng, said, "are", holds) if rng.random() < 0.4 else about_boxes(rng, said, holds)


def _is_so(rng: np.random.Generator) -> tuple[str, ItemTest]:
    """A predicate of items: a place, a color, or a shape in the plural."""
    form = int(rng.integers(3))
    if form == 0:
        edge = pick(rng, tuple(EDGES))
        return f"touching {edge}", EDGES[edge]
    key, value = ("colour", pick(rng, tuple(COLOURS))) if form == 1 else ("shape", pick(rng, SHAPES))
    return value if form == 1 else plural(value), lambda item: bool(getattr(item, key) == value)


def _all_of_a_kind(rng: np.random.Generator) -> Statement:
    (name, means, *_), (said, is_so) = noun(rng), _is_so(rng)
    none = rng.random() < 0.3
    start = pick(rng, ("none of the", "no") if none else ("all the", "all"))

    def holds(boxes: Boxes) -> bool | None:
        found = [is_so(item) != none for box in boxes for item in box if means(item)]
        return all(found) if len(found) > 1 else None

    return Statement(f"{start} {plural(name)} are {said}", holds)


def _boxes_with_have(rng: np.random.Generator) -> Statement:
    """What all boxes of a kind have: those with something, or with so many items."""
    (one, is_one, *_), (other, is_other, *_) = two_nouns(rng)
    number = int(rng.integers(2, MOST))
    by_number = rng.random() < 0.3
    kind = f"{number_word(rng, number)} items" if by_number else a(one)
    every = pick(rng, (f"every box with {kind} has", f"all boxes with {kind} have", f"each box with {kind} has"))

    def holds(boxes: Boxes) -> bool | None:
        chosen = [box for box in boxes if (len(box) == number if by_number else any(map(is_one, box)))]
        return all(any(map(is_other, box)) for box in chosen) if chosen else None

    return Statement(f"{every} {a(other)}", holds)


def _the_box(rng: np.random.Generator) -> Statement:
    things, test = _content(rng)
    if rng.random() < 0.5:
        number = int(rng.integers(1, MOST + 1))
        name = f"box with {pick(rng, ('', 'exactly '))}{NUMBERS[number]} {'items' if number > 1 else 'item'}"
        return about_the_only(name, lambda boxes: [box for box in boxes if len(box) == number], things, test, False)
    most = rng.random() < 0.5
    return about_the_only(
        f"box with the {'most' if most else 'fewest'} items", lambda boxes: largest(boxes, most), things, test, False
    )


def _touch(rng: np.random.Generator) -> Statement:
    """A sentence that starts with its items: "two black circles are touching the wall"."""
    number, (name, means, *_), (place, at_edge) = quantity(rng, 4, only=True), noun(rng), touching(rng)

    def at(item: Item) -> bool:
        return means(item) and at_edge(item)

    place += pick(rng, ("", " of a box")) if place.endswith(("corner", "edge", "side", "bottom", "top")) else ""
    return Statement(
        f"{number.of(name)} {number.verb} {place}",
        lambda boxes: number.holds(sum(at(item) for box in boxes for item in box)),
    )


FORMS: Sequence[Callable[[np.random.Generator], Statement]] = (
    _in_image,
    _in_image,
    _in_box,
    _in_box,
    _in_box,
    _in_box,
    _without,
    _in_each_box,
    _alike,
    _odd_one,
    _only,
    _kinds,
    _size_of_box,
    _share,
    _two_kinds,
    _more,
    _all_of_a_kind,
    _boxes_with_have,
    _the_box,
    _touch,
)
"""The forms of statements; those that stand here several times are the most frequent ones among people's."""
