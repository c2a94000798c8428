"""Scenes of cut-outs: images of real things with a transparent background, pasted on plain or textured backgrounds.

Any folder that `evle.data.custom.folder.folder` reads can be used. The captions, questions, pairs and choices are those
of `evle.data.synthetic.scenes`, with the names of the images instead of shapes, and without colours and patterns.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from evle.data.custom.folder import folder
from evle.data.images import open_image
from evle.data.samples import SPLITS, CaptionSample, ImageSource, Sample
from evle.data.synthetic.composing import Composer
from evle.data.synthetic.drawing import ground
from evle.data.synthetic.language import Scene, Thing, Traits
from evle.data.synthetic.scenes import SIZES, SceneSamples
from evle.errors import ConfigError, DataError, nearest

FEWEST_NAMES = 8


def cutouts(
    path: str | os.PathLike[str],
    task: str = "captions",
    split: str = "train",
    *,
    images: str | Sequence[str] | None = None,
    count: int = 1000,
    seed: int = 0,
    size: int = 96,
    min_things: int = 2,
    max_things: int = 4,
    num_captions: int | None = None,
    questions: float = 0.0,
    kinds: Sequence[str] | None = None,
    statements: Sequence[str] | None = None,
    name_column: str | None = None,
    longest_name: int = 3,
    names: Sequence[str] | None = None,
    boxes: bool = False,
) -> Sequence[Sample]:
    """`count` samples about scenes of the cut-outs in the folder `path`, `size` pixels wide.

    A thing's name is its first caption, or `name_column`. Names with more than `longest_name` words, or with characters
    other than letters, are left out. With `names`, only things with these names are shown, because a small world is
    learned in fewer steps. `images` selects the splits of the folder's table from which cut-outs are taken (None: the
    one called `split`), so that test scenes may show known things in an unknown style, or unknown things. `min_things`,
    `max_things`, `num_captions`, `questions`, `kinds` and `statements` are those of `scenes`.

    With `boxes`, caption samples have boxes; their images are then opened when the sample is read, not only when it is
    drawn. Samples for "vcr" always have them. Raises DataError if fewer than eight names are left.
    """
    if split not in SPLITS:
        hint = f"{nearest(split, SPLITS)}; set images to a split of the folder's table"
        raise ConfigError(f"split={split!r} of cut-outs does not exist; {hint}")
    samples = folder(path, "captions", split if images is None else images, caption_column=name_column)
    by_name: dict[str, list[ImageSource]] = {}
    for sample in samples:
        name = thing_name(sample, longest_name)
        if name and (names is None or name in names):
            by_name.setdefault(name, []).append(sample.image)
    if absent := [name for name in names or () if name not in by_name]:
        raise DataError(f"{path}: no cut-out is called {', '.join(absent)} in the split {images or split}")
    if len(by_name) < FEWEST_NAMES:
        raise DataError(
            f"{path}: {len(by_name)} usable names of cut-outs, but {FEWEST_NAMES} are needed; "
            "raise longest_name, set name_column, or give more names"
        )
    things = sorted(by_name)
    composer = Composer(
        [Traits(name, each) for name in things for each in SIZES],
        min_things=min(min_things, 2),
        max_things=max_things,
        images={name: sorted(by_name[name], key=str) for name in things},
    )
    identity = hashlib.blake2b(repr((samples.fingerprint, things)).encode(), digest_size=8).hexdigest()
    return SceneSamples(
        composer,
        CutoutDrawing,
        name="cutouts",
        task=task,
        split=split,
        count=count,
        seed=seed,
        size=size,
        boxes=boxes,
        identity=identity,
        min_things=min_things,
        num_captions=num_captions,
        questions=questions,
        kinds=kinds,
        statements=statements,
    )


def thing_name(sample: CaptionSample, longest: int) -> str:
    """The name of a cut-out in a sentence, or "" if its caption is not a name.

    >>> [thing_name(CaptionSample("", b"", (text,)), 3) for text in ("Flying Disc", "T-shirt", "flag: Chad")]
    ['flying disc', 't-shirt', '']
    """
    name = " ".join(sample.captions[0].split())
    words = name.split(" ")
    if len(words) > longest or not all(letter.isalpha() or letter in " -'" for letter in name):
        return ""
    return " ".join(word if word.isupper() else word.lower() for word in words)  # "SOS" keeps its capitals


@lru_cache(maxsize=4096)
def _cut(source: ImageSource, pixels: int) -> Image.Image:
    """The visible part of an image, RGBA, with a longer side of `pixels`."""
    image = open_image(source, keep_alpha=True).convert("RGBA")
    visible = image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
    image = image.crop(visible) if visible else image
    scale = pixels / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # premultiplied, so that the colour of transparent pixels does not bleed into the edges
    small = image.convert("RGBa").resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return small.convert("RGBA")


def _placed(thing: Thing, pixels: int) -> tuple[Image.Image, int, int]:
    image = _cut(thing.image, max(6, round(thing.diameter * pixels)))  # type: ignore[arg-type] # a folder's are hashable
    return image, round(thing.x * pixels - image.width / 2), round(thing.y * pixels - image.height / 2)


@dataclass(frozen=True, slots=True)
class CutoutDrawing:
    """A scene of cut-outs, `pixels` wide and high, pasted together on demand.

    Raises SampleError for an image that cannot be read.
    """

    scene: Scene
    pixels: int

    def draw(self) -> Image.Image:
        """The image, mode RGB."""
        canvas = ground(self.scene.ground, self.pixels)
        for thing in self.scene.things:
            image, left, upper = _placed(thing, self.pixels)
            canvas.paste(image, (left, upper), image)
        return canvas

    def extents(self) -> list[tuple[int, int, int, int]]:
        """The pixels (left, upper, right, lower) that each thing covers, in the order of the scene."""
        placed = [_placed(thing, self.pixels) for thing in self.scene.things]
        return [(left, upper, left + image.width, upper + image.height) for image, left, upper in placed]
