"""Synthetic scenes of shapes, with captions, questions, pairs and four-way choices about them.

Sample `index` is a function of (seed, split, task, index) alone. Some combinations of colour and shape, and of pattern
and shape, are reserved for validation and others for testing; training never shows or names them.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Protocol

import numpy as np
from PIL import Image

from evle.data.samples import SPLITS, Box, CaptionSample, MadeSamples, NLVR2Sample, Sample, VCRSample, VQASample
from evle.data.synthetic.composing import Composer
from evle.data.synthetic.drawing import COLOURS, PATTERNS, SHAPES, ShapeDrawing
from evle.data.synthetic.language import (
    Scene,
    Traits,
    captions,
    content,
    generator,
    noun,
    present_keys,
    reference,
    spoken_keys,
)
from evle.data.synthetic.questions import QUESTIONS, question_types
from evle.data.synthetic.reasoning import FEWEST_THINGS, STATEMENTS, choice_makers
from evle.errors import ConfigError, nearest

TASKS = ("captions", "vqa", "nlvr2", "vcr")
SIZES = ("small", "big")
KINDS, HUES = tuple(SHAPES), tuple(COLOURS)
PAIRS_PER_STATEMENT = 4
"""Pairs of images that share a sentence, which is true for two of them."""


class SceneDrawing(Protocol):
    """A scene that can be drawn and knows where its things are."""

    @property
    def scene(self) -> Scene: ...

    def draw(self) -> Image.Image: ...

    def extents(self) -> list[tuple[int, int, int, int]]: ...


def held_out(traits: Traits) -> str:
    """The split for which a combination of traits is reserved: "val", "test", "both" (training does not show it), or ""
    for no reservation.

    Each shape, colour and pattern has the same number of held-out combinations, so that none is rarer in training.
    """
    kind, colour = KINDS.index(traits.kind), HUES.index(traits.colour)
    by_colour = {0: "val", 5: "test"}.get((3 * kind + colour) % len(HUES), "")
    if not traits.pattern:  # a world without patterns
        return by_colour
    by_pattern = {1: "val", 6: "test"}.get((kind + 2 * PATTERNS.index(traits.pattern)) % len(KINDS), "")
    if by_colour and by_pattern and by_colour != by_pattern:
        return "both"
    return by_colour or by_pattern


@cache
def shape_composer(
    split: str,
    max_things: int = 6,
    shapes: tuple[str, ...] = KINDS,
    colours: tuple[str, ...] = HUES,
    patterns: bool = True,
    min_things: int = 2,
) -> Composer:
    """The composer of a split: the things of training, and for val and test equally often those held out for them."""
    every = [
        Traits(kind, size, colour, pattern)
        for kind in shapes
        for colour in colours
        for pattern in (PATTERNS if patterns else ("",))
        for size in SIZES
    ]
    usual = [each for each in every if held_out(each) == ""]
    held = [each for each in every if held_out(each) == split] if split != "train" else []
    return Composer(usual, held, min_things=min(min_things, 2), max_things=max_things)


class SceneSamples(MadeSamples):
    """Samples of one task about composed scenes, composed one at a time and drawn when opened.

    `scenes` and `cutouts` create it.
    """

    def __init__(
        self,
        composer: Composer,
        drawing: Callable[[Scene, int], SceneDrawing],
        *,
        name: str,
        task: str,
        split: str,
        count: int,
        seed: int,
        size: int,
        boxes: bool = True,
        identity: str = "",
        min_things: int = 2,
        num_captions: int | None = None,
        questions: float = 0.0,
        kinds: Sequence[str] | None = None,
        statements: Sequence[str] | None = None,
    ):
        if task not in TASKS:
            raise ConfigError(f"task={task!r} is not one of scenes; {nearest(task, TASKS)}")
        if count < 1 or size < 24:
            raise ConfigError(f"count={count} must be at least 1, and size={size} at least 24 pixels")
        if not 1 <= min_things <= composer.max_things:
            raise ConfigError(f"min_things={min_things} must be from 1 to max_things={composer.max_things}")
        if not 0 <= questions <= 1 or (num_captions is not None and num_captions < 1):
            raise ConfigError(f"questions={questions} must be from 0 to 1, and num_captions={num_captions} at least 1")
        self.kinds = _chosen("kinds", "questions", kinds, question_types(composer))
        self.statements = _chosen("statements", "statements", statements, tuple(STATEMENTS))
        fewest = max(FEWEST_THINGS.get(each, 4) for each in self.statements) if task == "nlvr2" else 2
        if not fewest <= composer.max_things <= 8:
            of = f"statements of the types {', '.join(self.statements)}" if task == "nlvr2" else task
            raise ConfigError(f"max_things={composer.max_things} must be from {fewest} to 8 for {of}")
        self.composer, self.drawing = composer, drawing
        self.name, self.task, self.split, self.seed, self.size, self.boxes = name, task, split, seed, size, boxes
        self.min_things, self.num_captions, self.questions = min_things, num_captions, questions
        self._count = count
        told = (min_things, num_captions, questions, self.kinds, self.statements)
        facts = repr(
            (name, task, split, count, seed, size, boxes, identity, told, composer.max_things, composer.values)
        )
        self.fingerprint = hashlib.blake2b(facts.encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return self._count

    def at(self, index: int) -> Any:
        make = {"captions": self._caption, "vqa": self._question, "nlvr2": self._pair, "vcr": self._choice}[self.task]
        return make(index, f"{self.name}-{self.split}-{self.seed}-{self.task}-{index}")

    def describe(self) -> dict[str, Any]:
        """Plain facts for a report."""
        return {"source": self.name, "task": self.task, "split": self.split, "samples": len(self), "seed": self.seed}

    def _rng(self, index: int, part: str = "") -> np.random.Generator:
        text = f"{self.name}\0{self.split}\0{self.seed}\0{self.task}\0{part}\0{index}"
        return generator(text)

    def _caption(self, index: int, key: str) -> CaptionSample:
        rng = self._rng(index)
        if self.questions and rng.random() < self.questions:
            kind = self.kinds[int(rng.integers(len(self.kinds)))]
            question = QUESTIONS[kind](self.composer, rng, rng.random() < 0.5)
            scene, texts = question.scene, [f"{question.text} {question.answer}"]
        else:
            scene = self.composer.random_scene(rng, self.min_things)
            texts = list(captions(scene, rng)[: self.num_captions])
        drawing = self.drawing(scene, self.size)
        words = [word for thing in scene.things for word in (*thing.traits[:1], *thing.traits[2:])]
        return CaptionSample(
            key,
            drawing,
            tuple(texts),
            boxes=scene_boxes(drawing, rng) if self.boxes else (),
            tags=tuple(dict.fromkeys(word for word in words if word not in ("", "plain"))),
            match_id=content(scene),
        )

    def _question(self, index: int, key: str) -> VQASample:
        rng = self._rng(index)
        turn, kind = divmod(index, len(self.kinds))
        question = QUESTIONS[self.kinds[kind]](self.composer, rng, (turn + kind) % 2 == 0)
        return VQASample(
            key,
            self.drawing(question.scene, self.size),
            question.text,
            (question.answer,),
            answer_type=question.answer_type,
            question_type=self.kinds[kind],
        )

    def _pair(self, index: int, key: str) -> NLVR2Sample:
        number, variant = divmod(index, PAIRS_PER_STATEMENT)
        statement = self._rng(number, "statement")
        kind = self.statements[number % len(self.statements)]
        sentence, make = STATEMENTS[kind](self.composer, statement)
        label = bool(statement.permutation(PAIRS_PER_STATEMENT)[variant] % 2)
        pair = make(self._rng(index, "pair"), label)
        first, second = (self.drawing(scene, self.size) for scene in pair)
        return NLVR2Sample(
            key, (first, second), sentence, label, set_id=f"{self.name}-{self.split}-{self.seed}-{number}"
        )

    def _choice(self, index: int, key: str) -> VCRSample:
        rng = self._rng(index)
        makers = choice_makers(self.composer)
        choice = makers[index % len(makers)](self.composer, rng)
        drawing = self.drawing(choice.scene, self.size)
        # Models read an object's class as its name, which would give the answer away; so all of them are things.
        objects = tuple(replace(box, label="thing", phrase="") for box in scene_boxes(drawing, rng))
        return VCRSample(
            key, drawing, objects, choice.question, choice.answers, choice.rationales,
            answer_label=choice.answer, rationale_label=choice.rationale,
        )  # fmt: skip


def scene_boxes(drawing: SceneDrawing, rng: np.random.Generator) -> tuple[Box, ...]:
    """The box of each thing with its kind and a true phrase, which identifies it where one exists."""
    boxes = []
    for thing, (left, upper, right, lower) in zip(drawing.scene.things, drawing.extents()):
        keys = reference(drawing.scene, thing, rng) or spoken_keys(thing.traits, present_keys(drawing.scene))
        boxes.append(Box(left, upper, right - left, lower - upper, thing.traits.kind, noun(thing.traits, keys)))
    return tuple(boxes)


def scenes(
    task: str = "captions",
    split: str = "train",
    *,
    count: int = 1000,
    seed: int = 0,
    size: int = 64,
    min_things: int = 2,
    max_things: int = 6,
    num_captions: int | None = None,
    questions: float = 0.0,
    kinds: Sequence[str] | None = None,
    statements: Sequence[str] | None = None,
    shapes: int | Sequence[str] = len(KINDS),
    colours: int | Sequence[str] = len(HUES),
    patterns: bool = True,
) -> Sequence[Sample]:
    """`count` samples about synthetic scenes of shapes, `size` pixels wide.

    "captions" yields CaptionSample (with boxes), "vqa" VQASample, "nlvr2" NLVR2Sample, "vcr" VCRSample. In "val" and
    "test" half of the things are combinations of traits that training never shows.

    A captioned scene contains `min_things` to `max_things` things (2 to 8; at least 4 for statements that count or
    relate things). Scenes for questions and statements contain what these need and some other things (with `min_things`
    1 possibly none); those for "vcr" contain four or five. `num_captions` limits the captions per scene; the most
    complete ones are kept. `questions` is the share of "captions" samples whose only text is a question about the scene
    with its answer, because vision-language models are also pre-trained on questions; these are questions as in "vqa",
    but never the same samples. `kinds` selects the types of question, such as ["colour", "count"], and `statements` the
    types of statement about two images, such as ["both", "one"]; the default is all.

    A smaller world is learned in fewer steps: `shapes` and `colours` are their names, or a number of them in the order
    of `drawing.SHAPES` and `drawing.COLOURS` (4 to all; for "vcr" 6). Without `patterns` all things are plain.

    >>> sample = scenes("vqa", "test", count=20)[4]
    >>> sample.question_type, sample.answer_type
    ('position', 'other')
    """
    if split not in SPLITS:
        raise ConfigError(f"split={split!r} of scenes does not exist; {nearest(split, SPLITS)}")
    least = 6 if task == "vcr" else 4
    kinds_shown = _named("shapes", shapes, KINDS, least, task)
    hues_shown = _named("colours", colours, HUES, least, task)
    composer = shape_composer(split, max_things, kinds_shown, hues_shown, patterns, min_things)
    return SceneSamples(
        composer, ShapeDrawing, name="scenes", task=task, split=split, count=count, seed=seed,
        size=size, min_things=min_things, num_captions=num_captions, questions=questions,
        kinds=kinds, statements=statements,
    )  # fmt: skip


def _chosen(option: str, what: str, chosen: Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """The types selected by `option`, by default all `known` ones."""
    unknown = [each for each in chosen or () if each not in known]
    if unknown:
        raise ConfigError(f"{option}: no {what} of the type {unknown[0]!r} here; {nearest(unknown[0], known)}")
    return tuple(chosen or known)


def _named(option: str, chosen: int | Sequence[str], known: tuple[str, ...], least: int, task: str) -> tuple[str, ...]:
    """The names that `option` stands for, a number of them or names. Raises ConfigError for too few or unknown ones."""
    names = known[:chosen] if isinstance(chosen, int) else tuple(chosen)
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"{option}: there is no {unknown[0]!r}; {nearest(str(unknown[0]), known)}")
    if not least <= len(set(names)) or (isinstance(chosen, int) and chosen > len(known)):
        raise ConfigError(f"{option}={chosen} must be from {least} to {len(known)} for {task}")
    return tuple(name for name in known if name in names)
