"""What a scene contains and how English describes it: things with traits and cells, noun phrases, relations, captions.

A scene is a grid of three rows and three columns. Each thing has its own cell, so that "left of" (an earlier column)
and "above" (an earlier row) are unambiguous. Nothing is drawn here; shapes and cut-outs share this language.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from evle.data.samples import ImageSource

GRID = 3
"""Rows and columns of the grid of a scene."""

TRAITS = ("size", "pattern", "colour", "kind")
"""The traits of a thing in the order of English adjectives: a small striped red circle."""

RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
"""Each relation and its opposite."""

PLACES = {
    (0, 0): "at the top left",
    (0, 1): "at the top",
    (0, 2): "at the top right",
    (1, 0): "on the left",
    (1, 1): "in the centre",
    (1, 2): "on the right",
    (2, 0): "at the bottom left",
    (2, 1): "at the bottom",
    (2, 2): "at the bottom right",
}
"""The name of each cell (row, column)."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Item = TypeVar("Item")


class Traits(NamedTuple):
    """The properties of a thing, whatever its cell. Cut-outs have no `colour` and no `pattern`."""

    kind: str
    size: str
    colour: str = ""
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing in a scene. Its centre and its diameter are shares of the scene's width.

    `look` is the seed of what no caption describes; `image` is the image of a cut-out, empty for a drawn shape.
    """

    traits: Traits
    row: int
    column: int
    x: float
    y: float
    diameter: float
    look: int
    image: ImageSource = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """Things on a background; `ground` seeds its tone and texture."""

    things: tuple[Thing, ...]
    ground: int


def generator(name: str) -> np.random.Generator:
    """The generator of what `name` names, the same on every machine.

    >>> generator("scene 3").random() == generator("scene 3").random()
    True
    """
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One of `items`, drawn uniformly."""
    return items[int(rng.integers(len(items)))]


def alike(one: Traits, other: Traits, keys: Iterable[str]) -> bool:
    """Whether two things share the traits named by `keys`. "heart" may mean both a yellow heart and a heart.

    >>> alike(Traits("heart", "big"), Traits("yellow heart", "small"), ("kind",))
    True
    """
    for key in keys:
        mine, its = getattr(one, key), getattr(other, key)
        if mine != its and not (key == "kind" and (mine.endswith(" " + its) or its.endswith(" " + mine))):
            return False
    return True


def like(traits: Traits, keys: Iterable[str]) -> Callable[[Traits], bool]:
    """A test of whether the name that `keys` give to `traits` also fits a thing."""
    keys = tuple(keys)
    return lambda other: alike(other, traits, keys)


def relates(one: Thing, relation: str, other: Thing) -> bool:
    """Whether `one` is left of, right of, above or below `other`."""
    return {
        "left of": one.column < other.column,
        "right of": one.column > other.column,
        "above": one.row < other.row,
        "below": one.row > other.row,
    }[relation]


def noun(traits: Traits, keys: Iterable[str], number: int = 1) -> str:
    """A noun phrase of the traits `keys`, without an article.

    >>> noun(Traits("circle", "small", "red"), ("kind", "colour"), 2), noun(Traits("", "big"), ("size",))
    ('red circles', 'big thing')
    """
    words = [getattr(traits, key) for key in TRAITS if key in keys and key != "kind"]
    head = traits.kind if "kind" in keys else "thing"
    return " ".join([*words, head if number == 1 else plural(head)])


def a(phrase: str) -> str:
    """The phrase with its indefinite article.

    >>> a("orange star"), a("unicorn"), a("hourglass")
    ('an orange star', 'a unicorn', 'an hourglass')
    """
    lower = phrase.lower()
    spoken = lower.startswith(("hour", "honest", "heir"))
    silent = lower.startswith(("uni", "use", "uku", "eu", "one", "ufo"))
    return f"{'an' if (lower[:1] in 'aeiou' and not silent) or spoken else 'a'} {phrase}"


_IRREGULAR = {
    "man": "men", "woman": "women", "person": "people", "child": "children", "foot": "feet", "tooth": "teeth",
    "mouse": "mice", "goose": "geese", "ox": "oxen", "leaf": "leaves", "knife": "knives", "wolf": "wolves",
    "fish": "fish", "sheep": "sheep", "deer": "deer", "aircraft": "aircraft", "loaf": "loaves", "scarf": "scarves",
}  # fmt: skip
_HEAD_ENDS = (" with ", " in ", " of ", " on ", " at ", " behind ", " over ", " for ", " without ")


def plural(name: str) -> str:
    """The plural of a name, which changes the word before the first preposition.

    >>> plural("box"), plural("grinning face with big eyes"), plural("policewoman"), plural("scissors")
    ('boxes', 'grinning faces with big eyes', 'policewomen', 'scissors')
    """
    cuts = [index for index in (name.find(end) for end in _HEAD_ENDS) if index > 0]
    head, tail = (name[: min(cuts)], name[min(cuts) :]) if cuts else (name, "")
    before, space, last = head.rpartition(" ")
    irregular = next((end for end in ("woman", "man", "fish") if last.endswith(end) and last != "human"), last)
    if irregular in _IRREGULAR:
        last = last[: len(last) - len(irregular)] + _IRREGULAR[irregular]
    elif last.endswith(("ss", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    elif not last.endswith("s"):
        last += "s"
    return before + space + last + tail


def join(phrases: Sequence[str]) -> str:
    """A list in prose.

    >>> join(["a dog", "a cat", "a fox"])
    'a dog, a cat and a fox'
    """
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def present_keys(scene: Scene) -> tuple[str, ...]:
    """The traits that the things of a scene have."""
    return tuple(key for key in TRAITS if getattr(scene.things[0].traits, key))


def spoken_keys(traits: Traits, keys: Iterable[str]) -> tuple[str, ...]:
    """The traits that are mentioned; "plain" is not."""
    return tuple(key for key in keys if getattr(traits, key) not in ("", "plain"))


def reference(scene: Scene, thing: Thing, rng: np.random.Generator) -> tuple[str, ...] | None:
    """The fewest traits that, with the kind, identify `thing` in its scene, or None if that is impossible."""
    keys = [key for key in spoken_keys(thing.traits, present_keys(scene)) if key != "kind"]
    keys = [keys[int(i)] for i in rng.permutation(len(keys))]
    candidates = [("kind",), *((key, "kind") for key in keys)]
    candidates += [(one, other, "kind") for i, one in enumerate(keys) for other in keys[i + 1 :]]
    for candidate in candidates:
        if sum(alike(thing.traits, other.traits, candidate) for other in scene.things) == 1:
            return candidate
    return None


def counted(scene: Scene, keys_of: Callable[[Traits], tuple[str, ...]], rng: np.random.Generator) -> str:
    """All things of a scene as a list in which equal ones are counted: "two red circles and a blue star"."""
    named = [(thing.traits, keys_of(thing.traits)) for thing in scene.things]
    groups = Counter((noun(traits, keys), noun(traits, keys, 2)) for traits, keys in named)
    phrases = [a(one) if number == 1 else f"{NUMBERS[number]} {many}" for (one, many), number in groups.items()]
    return join([phrases[int(i)] for i in rng.permutation(len(phrases))])


def content(scene: Scene) -> str:
    """A text that is the same for all scenes with the same things, in whatever cells."""
    return ", ".join(sorted(" ".join(filter(None, thing.traits)) for thing in scene.things))


def captions(scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
    """True descriptions of a scene, the most complete first.

    The first has all traits of all things; then follow a relation, kinds and counts, cells, and a number.
    """
    things, keys = scene.things, present_keys(scene)
    full = counted(scene, lambda traits: spoken_keys(traits, keys), rng)
    texts = [pick(rng, ("{}", "a picture of {}", "here we see {}")).format(full)]
    named = [(thing, found) for thing in things if (found := reference(scene, thing, rng)) is not None]
    named = [named[int(i)] for i in rng.permutation(len(named))]
    related = [
        (one, relation, other)
        for one in named[:3]
        for other in named[:3]
        for relation in RELATIONS
        if relates(one[0], relation, other[0])
    ]
    if related:
        (one, its), relation, (other, others) = pick(rng, related)
        template = pick(rng, ("the {} is {} the {}", "the {} stands {} the {}"))
        texts.append(template.format(noun(one.traits, its), relation, noun(other.traits, others)))
    kinds = counted(scene, lambda traits: ("kind",), rng)
    texts.append(pick(rng, ("{}", "a picture with {}", "there is a picture of {}")).format(kinds))
    placed = [things[int(i)] for i in rng.permutation(len(things))[: int(rng.integers(1, 3))]]
    with_size = tuple(key for key in keys if key != "pattern")
    texts.append(join([f"{a(noun(thing.traits, with_size))} {PLACES[thing.row, thing.column]}" for thing in placed]))
    key = pick(rng, [key for key in keys if key != "pattern"])
    value = pick(rng, things).traits
    number = sum(alike(value, thing.traits, (key,)) for thing in things)
    total = f"{NUMBERS[len(things)]} thing{'s' if len(things) > 1 else ''}"
    being = getattr(value, key)
    if key == "kind":
        being = a(being) if number == 1 else plural(being)
    texts.append(f"{total}, {NUMBERS[number]} of them {being}")
    return tuple(dict.fromkeys(texts))
