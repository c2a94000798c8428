"""Compose scenes on demand: given things in given cells, plus other things that keep a statement about them true.

Each question has its own scene: the question and its answer are drawn first, then the scene. So the words of a question
make no answer more likely than another.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from evle.data.samples import ImageSource
from evle.data.synthetic.language import GRID, Scene, Thing, Traits, alike, pick
from evle.errors import DataError

Place = tuple[int, int]
ALL_PLACES = tuple((row, column) for row in range(GRID) for column in range(GRID))
DIAMETERS = {"small": (0.185, 0.195, 0.205), "big": (0.30, 0.305, 0.31)}
"""Diameters as shares of the scene's width: at 64 pixels they are 12 to 13, and 19 to 20."""
JITTER = 0.04
"""The largest distance of a centre from the middle of its cell, small enough that no thing appears to be left of
another one in the same column."""


class Composer:
    """Composes scenes from the `usual` traits and, half of the time, from the `held` ones, which training never shows.

    `images` holds the files of each kind of cut-out; without it, things are drawn shapes.
    """

    def __init__(
        self,
        usual: Sequence[Traits],
        held: Sequence[Traits] = (),
        *,
        min_things: int = 2,
        max_things: int = 6,
        images: dict[str, list[ImageSource]] | None = None,
    ):
        self.min_things, self.max_things = min_things, max_things
        self.images = images
        self._pools = [_Pool(usual)] + ([_Pool(held)] if held else [])
        self.keys = tuple(key for key in ("size", "pattern", "colour", "kind") if getattr(usual[0], key))
        self.values = {key: tuple(sorted({getattr(each, key) for each in usual})) for key in self.keys}

    def traits(self, rng: np.random.Generator, **fixed: str) -> Traits:
        """Traits that may occur and include `fixed`, drawn uniformly from a pool."""
        first = int(rng.integers(len(self._pools)))
        for pool in (self._pools[first], *self._pools):
            found = pool.matching(fixed)
            if len(found):
                return pool.traits[int(found[int(rng.integers(len(found)))])]
        raise LookupError(f"no thing may have {fixed}")

    def differing(self, rng: np.random.Generator, traits: Traits, keys: Sequence[str], key: str) -> Traits:
        """A near miss: traits that agree on `keys` except for `key`.

        If no such thing may occur, the result differs in more of them.
        """
        fixed = {each: getattr(traits, each) for each in keys if each != key}
        return self.until(rng, lambda other: not alike(other, traits, (key,)), fixed)

    def until(
        self, rng: np.random.Generator, accept: Callable[[Traits], bool], fixed: dict[str, str] | None = None
    ) -> Traits:
        """Traits that `accept` allows; `fixed` is ignored if no such traits exist."""
        for attempt in range(400):
            try:
                found = self.traits(rng, **(fixed or {} if attempt < 40 else {}))
            except LookupError:
                continue
            if accept(found):
                return found
        raise DataError("the things that may occur are too much alike to compose a scene; give more of them")

    def scene(
        self,
        rng: np.random.Generator,
        wanted: Sequence[Traits],
        num_others: int,
        *,
        places: Sequence[Place] = (),
        free: Iterable[Place] = ALL_PLACES,
        forbid: Callable[[Traits], bool] | None = None,
    ) -> Scene:
        """A scene of the `wanted` things, in this order and the first ones at `places`, followed by other things.

        All things that are not at `places` are in `free` cells, and `forbid` is false for all other things.
        """
        open_places = [place for place in free if place not in places]
        order = rng.permutation(len(open_places))
        chosen = [*places, *(open_places[int(i)] for i in order)]
        traits = list(wanted)
        for _ in range(min(num_others, len(chosen) - len(traits))):
            traits.append(self.until(rng, lambda each: forbid is None or not forbid(each)))
        things = tuple(self._thing(rng, each, place) for each, place in zip(traits, chosen))
        return Scene(things, int(rng.integers(2**31)))

    def random_scene(self, rng: np.random.Generator, fewest: int = 2) -> Scene:
        """Any scene of `fewest` to `max_things` things."""
        return self.scene(rng, [], int(rng.integers(fewest, self.max_things + 1)))

    def _thing(self, rng: np.random.Generator, traits: Traits, place: Place) -> Thing:
        diameter = pick(rng, DIAMETERS[traits.size])
        room = min(JITTER, (1 / GRID - diameter) / 2)
        row, column = place
        across, down = rng.uniform(-room, room, 2)
        look = int(rng.integers(2**31))
        image = pick(rng, self.images[traits.kind]) if self.images is not None else ""
        x, y = (column + 0.5) / GRID + float(across), (row + 0.5) / GRID + float(down)
        return Thing(traits, row, column, x, y, diameter, look, image)


class _Pool:
    """Traits that can be looked up by some of their values."""

    def __init__(self, traits: Sequence[Traits]):
        self.traits = tuple(traits)
        self._indices: dict[tuple[str, str], set[int]] = {}
        for index, each in enumerate(self.traits):
            for key in Traits._fields:
                self._indices.setdefault((key, getattr(each, key)), set()).add(index)
        self._found: dict[tuple[tuple[str, str], ...], list[int]] = {(): list(range(len(self.traits)))}

    def matching(self, fixed: dict[str, str]) -> list[int]:
        asked = tuple(sorted(fixed.items()))
        if asked not in self._found:
            self._found[asked] = sorted(set.intersection(*(self._indices.get(each, set()) for each in asked)))
        return self._found[asked]
