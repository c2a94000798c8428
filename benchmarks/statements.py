"""Statements in the style of NLVR, version 1, that were written by hand, with generated images, in words that evle's
generator of statements mostly lacks ("topped by", "outnumber", "nothing but"):

    python -m benchmarks.statements -o FOLDER

The folder has NLVR's own layout (dev/dev.json and images of all six orders of the boxes), so that

    evle evaluate runs/boxes-nlvr/judge 'data.test={source: nlvr, split: dev, path: FOLDER, orders: 1}' -o scores

tells how far a model that was trained on generated statements carries over to other words. The writer knew the
generator; people's statements, of NLVR itself, are the better test for those who have it.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from evle.data.synthetic.box_words import BOX, Box, Boxes, Item
from evle.data.synthetic.boxes import BoxesDrawing, random_boxes

EACH = 10
"""Images of a statement: as many true as false ones."""
Truth = Callable[[Boxes], bool | None]


def _where(boxes: Boxes, test: Callable[[Box], bool]) -> int:
    return sum(map(test, boxes))


def _items(boxes: Boxes, color: str = "", shape: str = "") -> list[Item]:
    """All items, of a color or a shape if one is given."""
    found = itertools.chain.from_iterable(boxes)
    return [each for each in found if color in ("", each.colour) and shape in ("", each.shape)]


def _number(box: Box, color: str = "", shape: str = "") -> int:
    return len(_items((box,), color, shape))


def _colors(box: Box) -> list[str]:
    return [each.colour for each in box]


def _all(values: Sequence[bool]) -> bool | None:
    """Whether all are true; None, for neither, where there are none."""
    return all(values) if values else None


def _tallest(boxes: Boxes, test: Callable[[Box], bool]) -> bool | None:
    heights = sorted(map(len, boxes))
    return None if heights[-1] == heights[-2] else test(max(boxes, key=len))


def _at_bottom(item: Item) -> bool:
    return item.y + item.size >= BOX - 1


def _at_right(item: Item) -> bool:
    return item.x + item.size >= BOX - 1


def _in_corner(item: Item) -> bool:
    return min(item.x, BOX - item.x - item.size) <= 1 and min(item.y, BOX - item.y - item.size) <= 1


TOWERS: dict[str, Truth] = {
    "Exactly one tower is topped by a yellow block.": lambda b: _where(b, lambda t: t[-1].colour == "yellow") == 1,
    "At least two of the towers start with a blue block.": lambda b: _where(b, lambda t: t[0].colour == "blue") >= 2,
    "One tower is made of four blocks.": lambda b: any(len(t) == 4 for t in b),
    "There is a stack of only two blocks.": lambda b: any(len(t) == 2 for t in b),
    "Every tower ends in a black block.": lambda b: all(t[-1].colour == "black" for t in b),
    "No two towers are equally high.": lambda b: len({len(t) for t in b}) == 3,
    "One of the towers is a single block.": lambda b: any(len(t) == 1 for t in b),
    "There is a tower where a blue block sits right on a yellow one.": lambda b: any(
        ("yellow", "blue") in pairwise(_colors(t)) for t in b
    ),
    "There is a tower where a black block rests directly on another black one.": lambda b: any(
        ("black", "black") in pairwise(_colors(t)) for t in b
    ),
    "Not a single block is blue.": lambda b: not _items(b, "blue"),
    "There are more than seven blocks in total.": lambda b: len(_items(b)) > 7,
    "The tallest of the towers has a black block at its foot.": lambda b: _tallest(b, lambda t: t[0].colour == "black"),
    "The highest tower ends in a yellow block.": lambda b: _tallest(b, lambda t: t[-1].colour == "yellow"),
    "A tower of three has a blue block in the middle.": lambda b: any(len(t) == 3 and t[1].colour == "blue" for t in b),
    "Each tower contains some yellow.": lambda b: all("yellow" in _colors(t) for t in b),
    "There is a tower with blocks of every color.": lambda b: any(len(set(_colors(t))) == 3 for t in b),
    "There is a tower without any yellow block in it.": lambda b: any("yellow" not in _colors(t) for t in b),
    "All towers are two or more blocks high.": lambda b: all(len(t) >= 2 for t in b),
    "The lowest blocks of all towers share one color.": lambda b: len({t[0].colour for t in b}) == 1,
    "Black blocks outnumber blue blocks.": lambda b: len(_items(b, "black")) > len(_items(b, "blue")),
    "There are exactly two yellow blocks altogether.": lambda b: len(_items(b, "yellow")) == 2,
    "The second block from below is black in one of the towers.": lambda b: any(
        len(t) > 1 and t[1].colour == "black" for t in b
    ),
    "Two towers of the image are four blocks tall.": lambda b: _where(b, lambda t: len(t) == 4) == 2,
    "There is a tower that has nothing but black blocks.": lambda b: any(set(_colors(t)) == {"black"} for t in b),
    "A tower three blocks high stands on a yellow block.": lambda b: any(
        len(t) == 3 and t[0].colour == "yellow" for t in b
    ),
}
SCATTERED: dict[str, Truth] = {
    "There is a box that contains nothing but circles.": lambda b: any({i.shape for i in x} == {"circle"} for x in b),
    "A yellow triangle is in contact with the bottom edge of its box.": lambda b: any(
        map(_at_bottom, _items(b, "yellow", "triangle"))
    ),
    "Every box has something blue in it.": lambda b: all(_number(x, "blue") for x in b),
    "There is a box without any triangles.": lambda b: any(not _number(x, shape="triangle") for x in b),
    "One box has more than five shapes in it.": lambda b: any(len(x) > 5 for x in b),
    "The image shows exactly three black squares.": lambda b: len(_items(b, "black", "square")) == 3,
    "None of the circles is a large one.": lambda b: _all([i.size < 30 for i in _items(b, shape="circle")]),
    "Each box contains a square.": lambda b: all(_number(x, shape="square") for x in b),
    "At least two boxes have a black circle inside.": lambda b: (
        _where(b, lambda x: _number(x, "black", "circle") > 0) >= 2
    ),
    "There is a box holding exactly two shapes.": lambda b: any(len(x) == 2 for x in b),
    "A box contains both a yellow square and a black circle.": lambda b: any(
        _number(x, "yellow", "square") and _number(x, "black", "circle") for x in b
    ),
    "There is a box where all objects are equal in color.": lambda b: any(len(set(_colors(x))) == 1 for x in b),
    "Triangles outnumber circles.": lambda b: len(_items(b, shape="triangle")) > len(_items(b, shape="circle")),
    "One box holds two or more yellow circles.": lambda b: any(_number(x, "yellow", "circle") >= 2 for x in b),
    "No circle in the image is yellow.": lambda b: not _items(b, "yellow", "circle"),
    "Whatever is a triangle is black.": lambda b: _all([i.colour == "black" for i in _items(b, shape="triangle")]),
    "There is a small blue shape at the very top of a box.": lambda b: any(
        i.size == 10 and i.y <= 1 for i in _items(b, "blue")
    ),
    "A black item touches the right side of its box.": lambda b: any(map(_at_right, _items(b, "black"))),
    "At least two items sit in corners.": lambda b: sum(map(_in_corner, _items(b))) >= 2,
    "In one box circles outnumber squares.": lambda b: any(
        _number(x, shape="circle") > _number(x, shape="square") for x in b
    ),
    "Exactly one box lacks blue items.": lambda b: _where(b, lambda x: not _number(x, "blue")) == 1,
    "A big yellow shape and a small black shape share a box.": lambda b: any(
        any(i.size == 30 for i in _items((x,), "yellow")) and any(i.size == 10 for i in _items((x,), "black"))
        for x in b
    ),
    "The total number of circles is four or more.": lambda b: len(_items(b, shape="circle")) >= 4,
    "There is a box with two blue triangles and not one circle.": lambda b: any(
        _number(x, "blue", "triangle") == 2 and not _number(x, shape="circle") for x in b
    ),
    "Everything at the very bottom of a box is yellow.": lambda b: _all(
        [i.colour == "yellow" for i in _items(b) if _at_bottom(i)]
    ),
    "In some box each of the three colors occurs.": lambda b: any(len(set(_colors(x))) == 3 for x in b),
    "There is a box with just one item, which is black.": lambda b: any(
        len(x) == 1 and x[0].colour == "black" for x in b
    ),
    "One of the boxes is full of squares only.": lambda b: any({i.shape for i in x} == {"square"} for x in b),
    "The image has an equal number of yellow and of blue items.": lambda b: (
        len(_items(b, "yellow")) == len(_items(b, "blue"))
    ),
    "Each box has a different number of items.": lambda b: len({len(x) for x in b}) == 3,
}


def examples(seed: int = 0) -> list[tuple[str, bool, Boxes]]:
    """Every statement with `EACH` images, half of them true."""
    rng = np.random.default_rng(seed)
    found = []
    for truths, towers in ((TOWERS, True), (SCATTERED, False)):
        for text, truth in truths.items():
            images: dict[bool, list[Boxes]] = {True: [], False: []}
            while min(map(len, images.values())) < EACH // 2:
                made = random_boxes(rng, towers)
                if (said := truth(made)) is not None and len(images[said]) < EACH // 2:
                    images[said].append(made)
            found += [(text, said, made) for said, several in images.items() for made in several]
    return found


def write(folder: Path, made: Sequence[tuple[str, bool, Boxes]]) -> None:
    """The examples in NLVR's layout: a line each, and an image for each order of the three boxes."""
    images = folder / "dev" / "images" / "0"
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (text, truth, boxes) in enumerate(made):
        name = f"{number // EACH}-{number % EACH}"
        for order, boxes_in_order in enumerate(itertools.permutations(boxes)):
            BoxesDrawing(tuple(boxes_in_order)).draw().save(images / f"dev-{name}-{order}.png")
        facts = {"identifier": name, "sentence": text, "label": str(truth).lower(), "directory": "0"}
        lines.append(json.dumps(facts))
    (folder / "dev" / "dev.json").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statements", description="Write hand-made statements.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder that is written, in NLVR's layout")
    options = parser.parse_args(arguments)
    made = examples()
    write(options.output, made)
    print(f"{len(TOWERS) + len(SCATTERED)} statements, {len(made)} examples in {options.output}")


if __name__ == "__main__":
    main()
