"""Statements about pairs of scenes (as in NLVR2), and four-way choices with tagged objects (as in VCR).

A statement is drawn first, then any number of pairs for which it is true or false. The wrong choices of a question have
the same form as the right one, so that only the image distinguishes them.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np

from evle.data.samples import Tagged
from evle.data.synthetic.composing import ALL_PLACES, Composer, Place
from evle.data.synthetic.language import (
    GRID,
    NUMBERS,
    PLACES,
    RELATIONS,
    TRAITS,
    Scene,
    Traits,
    a,
    alike,
    like,
    noun,
    pick,
)
from evle.data.synthetic.questions import reference_keys, related_places, two_things

Pair = tuple[Scene, Scene]
MakePair = Callable[[np.random.Generator, bool], Pair]
"""(rng, label) -> a pair of scenes for which the statement is true or false."""


def _with_number(
    composer: Composer, rng: np.random.Generator, target: Traits, keys: Sequence[str], number: int
) -> Scene:
    """A scene with exactly `number` things that share the traits `keys` of `target`, and some others.

    Scenes with none and with one contain the same number of things, so that the total does not give the label away.
    """
    wanted = [composer.traits(rng, **{key: getattr(target, key) for key in keys}) for _ in range(number)]
    if number == 0:
        wanted = [composer.differing(rng, target, keys, pick(rng, keys))]
    fewest = composer.min_things - (number > 0)
    others = int(rng.integers(fewest, max(fewest, composer.max_things - number) + 1))
    return composer.scene(rng, wanted, others - (number == 0), forbid=like(target, keys))


def _two(scenes: Iterable[Scene]) -> Pair:
    left, right = scenes
    return left, right


def _swapped(rng: np.random.Generator, one: Scene, other: Scene) -> Pair:
    return (one, other) if rng.random() < 0.5 else (other, one)


def _both(composer: Composer, rng: np.random.Generator) -> tuple[str, MakePair]:
    keys, target = reference_keys(composer, rng), composer.traits(rng)

    def make(rng: np.random.Generator, label: bool) -> Pair:
        first = _with_number(composer, rng, target, keys, 1)
        return _swapped(rng, first, _with_number(composer, rng, target, keys, int(label)))

    return f"both pictures show {a(noun(target, keys))}", make


def _one_of_them(composer: Composer, rng: np.random.Generator) -> tuple[str, MakePair]:
    keys, target = reference_keys(composer, rng), composer.traits(rng)

    def make(rng: np.random.Generator, label: bool) -> Pair:
        same = int(rng.integers(2))
        numbers = (1, 0) if label else (same, same)
        return _swapped(rng, *(_with_number(composer, rng, target, keys, number) for number in numbers))

    return f"exactly one of the pictures shows {a(noun(target, keys))}", make


def _total(composer: Composer, rng: np.random.Generator) -> tuple[str, MakePair]:
    keys, target = reference_keys(composer, rng), composer.traits(rng)
    total = int(rng.integers(1, 5))

    def make(rng: np.random.Generator, label: bool) -> Pair:
        number = total if label else total + int(pick(rng, (-1, 1)))
        left = int(rng.integers(max(0, number - 3), min(3, number) + 1))
        return _two(_with_number(composer, rng, target, keys, each) for each in (left, number - left))

    verb = "is" if total == 1 else "are"
    return f"there {verb} exactly {NUMBERS[total]} {noun(target, keys, total)} in the two pictures together", make


def _more_on_one_side(composer: Composer, rng: np.random.Generator) -> tuple[str, MakePair]:
    keys, target = reference_keys(composer, rng), composer.traits(rng)
    left = bool(rng.integers(2))

    def make(rng: np.random.Generator, label: bool) -> Pair:
        fewer, more = sorted(int(i) for i in rng.permutation(4)[:2])
        numbers = (more, fewer) if label == left else (fewer, more)
        return _two(_with_number(composer, rng, target, keys, number) for number in numbers)

    sides = ("left", "right") if left else ("right", "left")
    return f"the {sides[0]} picture shows more {noun(target, keys, 2)} than the {sides[1]} one", make


def _one_each(composer: Composer, rng: np.random.Generator) -> tuple[str, MakePair]:
    one, its, other, others, forbid = two_things(composer, rng)

    def make(rng: np.random.Generator, label: bool) -> Pair:
        order = (one, other) if label else (other, one)
        most = min(3, composer.max_things - 1)
        numbers = [int(rng.integers(composer.min_things - 1, most + 1)) for _ in order]
        return _two(composer.scene(rng, [each], number, forbid=forbid) for each, number in zip(order, numbers))

    return f"the left picture shows {a(noun(one, its))}, and the right one shows {a(noun(other, others))}", make


def _related_in_both(composer: Composer, rng: np.random.Generator) -> tuple[str, MakePair]:
    one, its, other, others, forbid = two_things(composer, rng)
    relation = pick(rng, tuple(RELATIONS))

    def scene(rng: np.random.Generator, truth: bool) -> Scene:
        places = related_places(rng, relation if truth else RELATIONS[relation])
        return composer.scene(rng, [one, other], int(rng.integers(0, 3)), places=places, forbid=forbid)

    def make(rng: np.random.Generator, label: bool) -> Pair:
        return _swapped(rng, scene(rng, True), scene(rng, label))

    return f"in both pictures the {noun(one, its)} is {relation} the {noun(other, others)}", make


def _as_many(composer: Composer, rng: np.random.Generator) -> tuple[str, MakePair]:
    keys, target = reference_keys(composer, rng), composer.traits(rng)

    def make(rng: np.random.Generator, label: bool) -> Pair:
        first, second = (int(i) for i in rng.permutation(4)[:2])
        return _two(_with_number(composer, rng, target, keys, each) for each in (first, first if label else second))

    return f"both pictures show the same number of {noun(target, keys, 2)}", make


STATEMENTS: dict[str, Callable[[Composer, np.random.Generator], tuple[str, MakePair]]] = {
    "both": _both,
    "one": _one_of_them,
    "total": _total,
    "more": _more_on_one_side,
    "each": _one_each,
    "relates": _related_in_both,
    "same": _as_many,
}
"""Types of statements and their makers: (composer, rng) -> the sentence, and what makes pairs for it."""

FEWEST_THINGS = {"both": 2, "one": 2, "each": 2}
"""The smallest `max_things` that a type of statement needs; the types that are not listed count or relate: 4."""


class Choice(NamedTuple):
    """A question about tagged things of a scene, four answers, four rationales, and which of them are right."""

    scene: Scene
    question: Tagged
    answers: tuple[Tagged, ...]
    answer: int
    rationales: tuple[Tagged, ...]
    rationale: int


def _words(text: str, *tags: int) -> Tagged:
    """Words and tags from a text in which `[]` marks a tag.

    >>> _words("what is left of [] ?", 2)
    ('what', 'is', 'left', 'of', (2,), '?')
    """
    rest = list(tags)
    return tuple((rest.pop(0),) if word == "[]" else word for word in text.split())


def _four(rng: np.random.Generator, right: Tagged, wrong: Sequence[Tagged]) -> tuple[tuple[Tagged, ...], int]:
    """The right choice among three of the wrong ones, in random order, and its index."""
    several = [wrong[int(i)] for i in rng.permutation(len(wrong))[:3]]
    index = int(rng.integers(4))
    several.insert(index, right)
    return tuple(several), index


def _shuffled(rng: np.random.Generator, scene: Scene) -> tuple[Scene, list[int]]:
    """The scene with its things in random order, and the new index of each, because tags must not reveal anything."""
    order = [int(i) for i in rng.permutation(len(scene.things))]
    return Scene(tuple(scene.things[i] for i in order), scene.ground), [order.index(i) for i in range(len(order))]


def _which_stands(composer: Composer, rng: np.random.Generator) -> Choice:
    """What is left of a thing in the middle column: one of four tags; the reason is the position of the two."""
    relation = pick(rng, tuple(RELATIONS))
    axis = 1 if relation in ("left of", "right of") else 0
    edge = 0 if relation in ("left of", "above") else GRID - 1

    def places_at(border: int) -> list[Place]:
        return [place for place in ALL_PLACES if place[axis] == border]

    right_place, asked_place = pick(rng, places_at(edge)), pick(rng, places_at(1))
    free = [place for place in ALL_PLACES if place[axis] != edge]
    wanted = [composer.traits(rng) for _ in range(5)]
    scene = composer.scene(rng, wanted, 0, places=(right_place, asked_place), free=free)
    scene, tags = _shuffled(rng, scene)
    right, asked = tags[0], tags[1]
    answers, answer = _four(rng, _words("[]", right), [_words("[]", tag) for tag in tags[2:]])

    def because(one: Place, other: Place) -> Tagged:
        return _words(f"[] is {PLACES[one]} and [] is {PLACES[other]}", right, asked)

    wrong = [
        because(one, other)
        for one in places_at(edge)
        for other in places_at(1)
        if one != right_place and other != asked_place
    ]
    rationales, rationale = _four(rng, because(right_place, asked_place), wrong)
    return Choice(scene, _words(f"what is {relation} [] ?", asked), answers, answer, rationales, rationale)


def _which_is_the_same(composer: Composer, rng: np.random.Generator) -> Choice:
    """Which thing has the same shape (colour, pattern) as another: one of four tags; the reason is what both are."""
    key = pick(rng, [key for key in ("kind", "colour", "pattern") if key in composer.keys])
    word = {"kind": "shape" if "colour" in composer.keys else "thing"}.get(key, key)
    target = composer.traits(rng)
    value = getattr(target, key)
    wanted = [target, composer.traits(rng, **{key: value})]
    for _ in range(3):
        wanted.append(composer.until(rng, lambda each: getattr(each, key) != value))
    scene, tags = _shuffled(rng, composer.scene(rng, wanted, 0))
    answers, answer = _four(rng, _words("[]", tags[1]), [_words("[]", tag) for tag in tags[2:]])

    def because(name: str) -> Tagged:
        return _words(
            f"both [] and [] are {name if key != 'kind' else noun(Traits(name, ''), ('kind',), 2)}", tags[0], tags[1]
        )

    wrong = _other_values(composer, rng, key, value, [getattr(thing.traits, key) for thing in scene.things])
    rationales, rationale = _four(rng, because(value), [because(name) for name in wrong])
    return Choice(scene, _words(f"which is the same {word} as [] ?", tags[0]), answers, answer, rationales, rationale)


def _other_values(composer: Composer, rng: np.random.Generator, key: str, but: str, seen: Sequence[str]) -> list[str]:
    """Three values other than `but`; those that the image shows come first."""
    values = list(dict.fromkeys(value for value in seen if value != but))[:3]
    while len(values) < 3:
        value = pick(rng, composer.values[key])
        if value != but and value not in values:
            values.append(value)
    return values


def _what_is_it(composer: Composer, rng: np.random.Generator) -> Choice:
    """What a tagged thing is, among things that are all in the image; the reason is its position."""
    wanted = [composer.traits(rng)]
    for _ in range(3):
        wanted.append(composer.until(rng, lambda each: all(each.kind != other.kind for other in wanted)))
    scene, tags = _shuffled(rng, composer.scene(rng, wanted, 0))
    names = [_words(f"it is {a(each.kind)}") for each in wanted]
    answers, answer = _four(rng, names[0], names[1:])
    asked = scene.things[tags[0]]
    others = [thing for thing in scene.things if thing is not asked]
    right = [_words(f"[] is the {wanted[0].kind} {PLACES[asked.row, asked.column]}", tags[0])]
    wrong = [_words(f"[] is the {wanted[0].kind} {PLACES[thing.row, thing.column]}", tags[0]) for thing in others]
    rationales, rationale = _four(rng, right[0], wrong)
    return Choice(scene, _words("what is [] ?", tags[0]), answers, answer, rationales, rationale)


def _sharing_only(composer: Composer, rng: np.random.Generator, target: Traits, key: str) -> Traits:
    """Traits of which only `key` is the target's."""
    rest = [other for other in TRAITS if other != key]

    def accept(each: Traits) -> bool:
        return alike(each, target, (key,)) and not any(alike(each, target, (other,)) for other in rest)

    return composer.until(rng, accept, {key: getattr(target, key)})


def _why_odd(composer: Composer, rng: np.random.Generator) -> Choice:
    """Which of its traits a thing shares with none of three others, each of which shares one of the other traits."""
    odd = pick(rng, TRAITS)
    shared = [key for key in TRAITS if key != odd]
    target = composer.traits(rng)
    wanted = [_sharing_only(composer, rng, target, key) for key in shared]
    scene, tags = _shuffled(rng, composer.scene(rng, [target, *wanted], 0))
    answers, answer = _four(
        rng,
        _words(f"it is the only {noun(target, (odd,))}"),
        [_words(f"it is the only {noun(target, (key,))}") for key in shared],
    )
    names = ["shape" if key == "kind" else key for key in shared]
    because = f"[] has its {names[0]} , [] has its {names[1]} and [] has its {names[2]}"
    right, *wrong = (_words(because, *order) for order in permutations(tags[1:]))
    rationales, rationale = _four(rng, right, wrong)
    return Choice(scene, _words("why does [] stand out ?", tags[0]), answers, answer, rationales, rationale)


def choice_makers(composer: Composer) -> tuple[Callable[[Composer, np.random.Generator], Choice], ...]:
    """Makers of four-way questions for the composer's things."""
    plain = (_which_stands, _which_is_the_same, _what_is_it)
    return (*plain, _why_odd) if set(TRAITS) <= set(composer.keys) else plain  # it needs four different traits
