"""Pairs of captions that differ only in order, attribute, relation or count, as in SugarCrepe (Hsieh et al., 2023) and
Winoground (Thrush et al., 2022).

A set consists of two captions and two scenes; each caption is true for one scene and false for the other. So every
caption is right as often as it is wrong, and words alone give nothing away.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from evle.data.corpora.captions import coco_captions, karpathy
from evle.data.custom.folder import folder
from evle.data.samples import CaptionSample, MadeSamples, Swap
from evle.data.synthetic.caption_swaps import CaptionSwaps
from evle.data.synthetic.composing import Composer
from evle.data.synthetic.cutouts import cutouts
from evle.data.synthetic.language import (
    NUMBERS,
    RELATIONS,
    Scene,
    Traits,
    a,
    alike,
    generator,
    like,
    noun,
    pick,
    plural,
)
from evle.data.synthetic.questions import related_places, two_things
from evle.data.synthetic.scenes import SceneSamples, scenes
from evle.errors import ConfigError, DataError, nearest

WORLDS: dict[str, Callable[..., Any]] = {
    "scenes": scenes,
    "cutouts": cutouts,
    "folder": folder,
    "karpathy": karpathy,
    "coco-captions": coco_captions,
}
"""Sources for swaps: composed scenes, and captions in which attributes and relations are recognised."""

_ATTEMPTS = 400


class SwappedScenes(NamedTuple):
    """Two captions, and the scene for which each of them is true."""

    captions: tuple[str, str]
    scenes: tuple[Scene, Scene]


def _others(composer: Composer, rng: np.random.Generator, taken: int) -> int:
    return int(rng.integers(0, max(0, composer.max_things - taken) + 1))


def _either_kind(one: Traits, other: Traits) -> Callable[[Traits], bool]:
    is_one, is_other = like(one, ("kind",)), like(other, ("kind",))
    return lambda each: is_one(each) or is_other(each)


def _related(composer: Composer, rng: np.random.Generator, exchange: bool) -> SwappedScenes:
    one, its, other, others, forbid = two_things(composer, rng)
    relation = pick(rng, tuple(RELATIONS))
    first, second = noun(one, its), noun(other, others)
    text = f"the {first} is {relation} the {second}"
    swapped = (
        f"the {second} is {relation} the {first}" if exchange else f"the {first} is {RELATIONS[relation]} the {second}"
    )
    number = _others(composer, rng, 2)
    made = tuple(
        composer.scene(rng, [one, other], number, places=related_places(rng, each), forbid=forbid)
        for each in (relation, RELATIONS[relation])
    )
    return SwappedScenes((text, swapped), (made[0], made[1]))


def _order(composer: Composer, rng: np.random.Generator) -> SwappedScenes:
    return _related(composer, rng, exchange=True)


def _relation(composer: Composer, rng: np.random.Generator) -> SwappedScenes:
    return _related(composer, rng, exchange=False)


def _attribute(composer: Composer, rng: np.random.Generator) -> SwappedScenes:
    """Exchange the colours of two things; cut-outs, which have no colours, exchange their sizes."""
    key = "colour" if "colour" in composer.keys else "size"
    for _ in range(_ATTEMPTS):
        one, other = composer.traits(rng), composer.traits(rng)
        if alike(one, other, ("kind",)) or alike(one, other, (key,)):
            continue
        try:
            exchanged = [
                composer.traits(rng, **{"kind": mine.kind, key: getattr(its, key)})
                for mine, its in ((one, other), (other, one))
            ]
        except LookupError:
            continue  # a combination that this split never shows
        number = _others(composer, rng, 2)
        texts, made = [], []
        for things in ((one, other), exchanged):
            texts.append(" and ".join(a(noun(each, (key, "kind"))) for each in things))
            made.append(composer.scene(rng, things, number, forbid=_either_kind(one, other)))
        return SwappedScenes((texts[0], texts[1]), (made[0], made[1]))
    raise DataError("the things that may occur are too much alike to exchange their attributes; give more of them")


def _count(composer: Composer, rng: np.random.Generator) -> SwappedScenes:
    for _ in range(_ATTEMPTS):
        one, other = composer.traits(rng), composer.traits(rng)
        if not alike(one, other, ("kind",)):
            break
    else:
        raise DataError("the things that may occur are of one kind; give more kinds")
    fewer = int(rng.integers(1, (composer.max_things - 1) // 2 + 1))
    more = int(rng.integers(fewer + 1, composer.max_things - fewer + 1))
    numbers = (fewer, more) if rng.random() < 0.5 else (more, fewer)
    texts, made = [], []
    for counts in (numbers, numbers[::-1]):
        pairs = list(zip((one.kind, other.kind), counts))
        texts.append(" and ".join(f"{NUMBERS[count]} {kind if count == 1 else plural(kind)}" for kind, count in pairs))
        wanted = [composer.traits(rng, kind=kind) for kind, count in pairs for _ in range(count)]
        others = _others(composer, rng, len(wanted))
        made.append(composer.scene(rng, wanted, others, forbid=_either_kind(one, other)))
    return SwappedScenes((texts[0], texts[1]), (made[0], made[1]))


SWAPS: dict[str, Callable[[Composer, np.random.Generator], SwappedScenes]] = {
    "order": _order,
    "attribute": _attribute,
    "relation": _relation,
    "count": _count,
}
FEWEST_THINGS = 3
"""The number of things in a scene that counts of two kinds need."""


class SwapSamples(MadeSamples):
    """Samples about composed scenes; two consecutive samples are one set. Created by `swaps`."""

    def __init__(self, world: SceneSamples, split: str, count: int, seed: int, types: tuple[str, ...]):
        self.world, self.split, self.seed, self.types = world, split, seed, types
        self._count = count
        facts = repr((world.fingerprint, split, count, seed, types))
        self.fingerprint = hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return self._count

    def at(self, index: int) -> Any:
        number, turn = divmod(index, 2)
        type_ = self.types[number % len(self.types)]
        text = f"{self.world.name}\0swaps\0{self.split}\0{self.seed}\0{number}"
        captions, made = SWAPS[type_](self.world.composer, generator(text))
        images = [self.world.drawing(scene, self.world.size) for scene in made]
        set_id = f"{self.world.name}-{self.split}-{self.seed}-swaps-{number}"
        return CaptionSample(
            key=f"{set_id}-{turn}",
            image=images[turn],
            captions=(captions[turn],),
            swap=Swap(captions[1 - turn], type_, images[1 - turn], set_id),
        )

    def describe(self) -> dict[str, Any]:
        """Plain facts for a report."""
        facts = {"source": f"swaps of {self.world.name}", "split": self.split, "samples": len(self)}
        return {**facts, "types": ", ".join(self.types), "seed": self.seed}


def swaps(
    path: str | None = None,
    task: str = "swaps",
    split: str = "train",
    *,
    world: dict[str, Any] | None = None,
    count: int = 1000,
    seed: int = 0,
    types: Sequence[str] | None = None,
) -> Sequence[CaptionSample]:
    """Images with a true caption and a swapped one, which differs from it only in one of `types`: order, attribute,
    relation, count (None means all).

    `world` is the source with its options; None means {"source": "scenes"}. From "scenes" and "cutouts", `count`
    samples are composed; two consecutive ones form a set, in which the swapped caption of one is true for the image of
    the other. From sources of captions ("folder", "karpathy", "coco-captions"), up to `count` captions are used in
    which an attribute, relation or count can be swapped. They are chosen so that words alone do not tell the true one
    (see `CaptionSwaps`), and have no second image. `path` is the path of the world, if it needs one.

    Raises ConfigError for impossible options, and DataError for a world without enough to swap.
    """
    options = dict(world or {"source": "scenes"})
    name = options.pop("source", "scenes")
    if task not in ("swaps", "captions"):
        raise ConfigError(f"source 'swaps' holds swaps and captions, not {task!r}; choose another source or task")
    if name not in WORLDS:
        raise ConfigError(f"world.source={name!r} of swaps does not exist; {nearest(str(name), WORLDS)}")
    unknown = [each for each in types or () if each not in SWAPS]
    if unknown:
        raise ConfigError(f"types: no swap of the type {unknown[0]!r}; {nearest(unknown[0], SWAPS)}")
    if count < 2:
        raise ConfigError(f"count={count} must be at least 2, one set")
    if path is not None and name != "scenes":
        options.setdefault("path", path)
    try:
        samples = WORLDS[name](**{"task": "captions", "split": split, **options})
    except TypeError as error:
        raise ConfigError(f"world of swaps: {error}; give the options of the source {name!r}") from None
    chosen = tuple(types or SWAPS)
    if not isinstance(samples, SceneSamples):
        return CaptionSwaps(samples, split, count, chosen)
    if "count" in chosen and samples.composer.max_things < FEWEST_THINGS:
        raise ConfigError(f"world.max_things must be at least {FEWEST_THINGS} for swaps of counts")
    return SwapSamples(samples, split, count, seed, chosen)
