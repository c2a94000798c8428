"""Questions and answers about scenes, each with its own scene, so that words alone do not give the answer away."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from evle.data.synthetic.composing import ALL_PLACES, Composer
from evle.data.synthetic.language import GRID, PLACES, RELATIONS, Scene, Traits, a, alike, like, noun, pick
from evle.errors import DataError

NUM_COUNTS = 5
"""Questions ask for counts from 0 to 4, each equally often."""


class Question(NamedTuple):
    """A scene, a question about it, and the one right answer.

    `answer_type` as in VQAv2: "yes/no", "number" or "other".
    """

    scene: Scene
    text: str
    answer: str
    answer_type: str = "other"


_REFERENCES = (
    ("kind",), ("colour", "kind"), ("pattern", "kind"), ("size", "kind"), ("colour",), ("pattern", "colour"), ("size",
    "colour"),
)  # fmt: skip


def reference_keys(composer: Composer, rng: np.random.Generator, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The traits by which a question names a thing: traits of the composer's things, none of them `asked`."""
    usable = [keys for keys in _REFERENCES if set(keys) <= set(composer.keys) and not set(keys) & set(asked)]
    return pick(rng, usable) if usable else ("size",)


class TwoThings(NamedTuple):
    """Two things, and the traits that name each of them so that neither name fits the other.

    `forbid` is true for things that may not be in the same scene.
    """

    one: Traits
    its: tuple[str, ...]
    other: Traits
    others: tuple[str, ...]
    forbid: Callable[[Traits], bool]


def two_things(composer: Composer, rng: np.random.Generator, asked: Sequence[str] = ()) -> TwoThings:
    """Any two things that differ in the traits that name them, of which none is `asked`."""
    for _ in range(400):
        one, other = composer.traits(rng), composer.traits(rng)
        its, others = reference_keys(composer, rng, asked), reference_keys(composer, rng, asked)
        if not alike(one, other, its) and not alike(one, other, others):
            break
    else:
        raise DataError("the things that may occur are too much alike to compose a scene; give more of them")
    is_one, is_other = like(one, its), like(other, others)
    return TwoThings(one, its, other, others, lambda each: is_one(each) or is_other(each))


def related_places(rng: np.random.Generator, relation: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two cells, the first of which is `relation` the second."""
    early, late = sorted(int(i) for i in rng.permutation(GRID)[:2])
    along, across = (early, late) if relation in ("left of", "above") else (late, early)
    one, other = int(rng.integers(GRID)), int(rng.integers(GRID))
    if relation in ("left of", "right of"):
        return (one, along), (other, across)
    return (along, one), (across, other)


def _others(composer: Composer, rng: np.random.Generator, taken: int) -> int:
    """The number of other things in the scene of a question: at least one, unless a scene may have a single thing."""
    fewest = composer.min_things - 1 if taken == 1 else 1
    return int(rng.integers(fewest, max(fewest, composer.max_things - taken) + 1))


def _trait(asked: str, templates: Sequence[str]) -> Callable[[Composer, np.random.Generator, bool], Question]:
    """A question about one trait of a thing that its other traits identify."""

    def ask(composer: Composer, rng: np.random.Generator, yes: bool) -> Question:
        keys = reference_keys(composer, rng, (asked,))
        target = composer.traits(rng)
        scene = composer.scene(rng, [target], _others(composer, rng, 1), forbid=like(target, keys))
        return Question(scene, pick(rng, templates).format(noun(target, keys)), getattr(target, asked))

    return ask


def _kind(composer: Composer, rng: np.random.Generator, yes: bool) -> Question:
    if rng.random() < 0.5:
        text = "what shape is the {}?" if "colour" in composer.keys else "what is the {}?"
        return _trait("kind", [text])(composer, rng, yes)
    scene = composer.random_scene(rng)
    thing = pick(rng, scene.things)
    text = "what shape is {}?" if "colour" in composer.keys else "what is {}?"
    return Question(scene, text.format(PLACES[thing.row, thing.column]), thing.traits.kind)


def _position(composer: Composer, rng: np.random.Generator, yes: bool) -> Question:
    keys, target = reference_keys(composer, rng), composer.traits(rng)
    place = pick(rng, ALL_PLACES)
    scene = composer.scene(rng, [target], _others(composer, rng, 1), places=[place], forbid=like(target, keys))
    return Question(scene, f"where is the {noun(target, keys)}?", PLACES[place])


def _count(composer: Composer, rng: np.random.Generator, yes: bool) -> Question:
    number = int(rng.integers(min(NUM_COUNTS, composer.max_things + 1)))
    keys, target = reference_keys(composer, rng), composer.traits(rng)
    fixed = {key: getattr(target, key) for key in keys}
    wanted = [composer.traits(rng, **fixed) for _ in range(number)]
    scene = composer.scene(rng, wanted, _others(composer, rng, number), forbid=like(target, keys))
    text = pick(rng, ("how many {} are there?", "how many {} do you see?"))
    return Question(scene, text.format(noun(target, keys, 2)), str(number), "number")


def _exists(composer: Composer, rng: np.random.Generator, yes: bool) -> Question:
    keys, target = reference_keys(composer, rng), composer.traits(rng)
    text = pick(rng, ("is there {}?", "do you see {}?")).format(a(noun(target, keys)))
    if yes:
        scene = composer.scene(rng, [target], _others(composer, rng, 1))
    else:
        miss = composer.differing(rng, target, keys, pick(rng, keys))
        scene = composer.scene(rng, [miss], _others(composer, rng, 1), forbid=like(target, keys))
    return Question(scene, text, "yes" if yes else "no", "yes/no")


def _relates(composer: Composer, rng: np.random.Generator, yes: bool) -> Question:
    one, its, other, others, forbid = two_things(composer, rng)
    relation = pick(rng, tuple(RELATIONS))
    places = related_places(rng, relation if yes else RELATIONS[relation])
    scene = composer.scene(rng, [one, other], _others(composer, rng, 2) - 1, places=places, forbid=forbid)
    return Question(
        scene, f"is the {noun(one, its)} {relation} the {noun(other, others)}?", "yes" if yes else "no", "yes/no"
    )


def _relation(composer: Composer, rng: np.random.Generator, yes: bool) -> Question:
    """What is left of (right of, above, below) a thing; exactly one thing is."""
    keys, target = reference_keys(composer, rng), composer.traits(rng)
    answer = composer.until(rng, lambda each: not alike(each, target, keys))
    relation = pick(rng, tuple(RELATIONS))
    places = related_places(rng, relation)
    axis = 1 if relation in ("left of", "right of") else 0
    border = places[1][axis]
    before = relation in ("left of", "above")
    free = [place for place in ALL_PLACES if (place[axis] >= border if before else place[axis] <= border)]
    scene = composer.scene(
        rng, [answer, target], _others(composer, rng, 2), places=places, free=free, forbid=like(target, keys)
    )
    if "colour" not in composer.keys:
        return Question(scene, f"what is {relation} the {noun(target, keys)}?", answer.kind)
    asked = pick(rng, ("shape", "colour"))
    value = answer.kind if asked == "shape" else answer.colour
    return Question(scene, f"what {asked} is the thing {relation} the {noun(target, keys)}?", value)


def _comparison(composer: Composer, rng: np.random.Generator, yes: bool) -> Question:
    forms: list[Callable[[Composer, np.random.Generator, bool], Question]] = [_more, _bigger]
    return pick(rng, [*forms, _same] if "colour" in composer.keys else forms)(composer, rng, yes)


def _more(composer: Composer, rng: np.random.Generator, yes: bool) -> Question:
    key = pick(rng, [key for key in ("kind", "colour") if key in composer.keys])
    one = composer.traits(rng)
    other = composer.until(rng, lambda each: not alike(each, one, (key,)))
    fewer, more = sorted(int(i) for i in rng.permutation(4)[:2])
    numbers = (more, fewer) if yes else (fewer, more)
    wanted = [
        composer.traits(rng, **{key: getattr(each, key)})
        for each, number in zip((one, other), numbers)
        for _ in range(number)
    ]
    is_one, is_other = like(one, (key,)), like(other, (key,))
    scene = composer.scene(rng, wanted, int(rng.integers(3)), forbid=lambda each: is_one(each) or is_other(each))
    text = f"are there more {noun(one, (key,), 2)} than {noun(other, (key,), 2)}?"
    return Question(scene, text, "yes" if yes else "no", "yes/no")


def _bigger(composer: Composer, rng: np.random.Generator, yes: bool) -> Question:
    word, size = pick(rng, (("bigger", "big"), ("smaller", "small")))
    opposite = "small" if size == "big" else "big"
    one, its, other, others, forbid = two_things(composer, rng, ("size",))
    one, other = one._replace(size=size if yes else opposite), other._replace(size=opposite if yes else size)
    scene = composer.scene(rng, [one, other], _others(composer, rng, 2) - 1, forbid=forbid)
    text = f"is the {noun(one, its)} {word} than the {noun(other, others)}?"
    return Question(scene, text, "yes" if yes else "no", "yes/no")


def _same(composer: Composer, rng: np.random.Generator, yes: bool) -> Question:
    words = {"kind": "shape", "colour": "colour", "pattern": "pattern"}
    key = pick(rng, [key for key in words if key in composer.keys])
    word = words[key]
    for _ in range(400):
        one, its, other, others, forbid = two_things(composer, rng, (key,))
        if alike(one, other, (key,)) == yes:
            break
    text = f"does the {noun(one, its)} have the same {word} as the {noun(other, others)}?"
    scene = composer.scene(rng, [one, other], _others(composer, rng, 2) - 1, forbid=forbid)
    return Question(scene, text, "yes" if yes else "no", "yes/no")


QUESTIONS: dict[str, Callable[[Composer, np.random.Generator, bool], Question]] = {
    "colour": _trait("colour", ("what colour is the {}?", "which colour does the {} have?")),
    "shape": _kind,
    "pattern": _trait("pattern", ("what pattern does the {} have?",)),
    "size": _trait("size", ("is the {} big or small?", "what size is the {}?")),
    "position": _position,
    "count": _count,
    "exists": _exists,
    "relates": _relates,
    "relation": _relation,
    "comparison": _comparison,
}
"""Question types and their makers: (composer, rng, whether a yes/no question is to be answered with yes)."""


def question_types(composer: Composer) -> tuple[str, ...]:
    """The types that can be asked about the composer's things."""
    return tuple(name for name in QUESTIONS if name not in ("colour", "pattern") or name in composer.keys)
