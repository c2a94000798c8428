"""What a visitor can try at once: example images with texts, of the kind that a model was trained on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evle
from evle.data.images import open_image
from evle.data.samples import Box, ImageSource, VCRSample
from evle.data.synthetic.scenes import scenes
from evle.pipelines.typed import written_text

IMAGES = Path(evle.__file__).parents[2] / "examples" / "images"
"""The example images of a checkout; an installed package draws scenes instead."""

SHOWN = 6
ENLARGED = 6
"""Scenes are drawn this many times larger than the model sees them, so that they look sharp on the page."""

NUM_SEARCHED = 48
WORLD = ("min_things", "max_things", "shapes", "colours", "patterns", "kinds", "statements")
QUESTIONS = ("what is this?", "which colour is it?", "is it an animal?")


@dataclass(frozen=True)
class Example:
    """Image files, and a text about them."""

    images: tuple[Path, ...]
    text: str


@dataclass(frozen=True)
class Story:
    """An image with objects, a question about them, four answers and four reasons; tags are written as [1], [2]."""

    image: Path
    objects: tuple[Box, ...]
    question: str
    answers: tuple[str, ...]
    reasons: tuple[str, ...]


class ExampleImages:
    """Example images in `folder`, where scenes are drawn; `Served.scenes` of a model decides which kind it gets."""

    def __init__(self, folder: Path):
        self.folder = folder

    def search_table(self, world: Mapping[str, Any] | None) -> Path:
        """A table of captions with its images beside it, to be searched."""
        if world is None and (IMAGES / "captions.jsonl").is_file():
            return IMAGES / "captions.jsonl"
        samples = self._scenes("captions", world, NUM_SEARCHED)
        rows = [
            {"image": self._save(sample.image, f"searched-{index}").name, "captions": list(sample.captions)}
            for index, sample in enumerate(samples)
        ]
        table = self.folder / "captions.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return table

    def queries(self, world: Mapping[str, Any] | None) -> list[str]:
        """Texts to search for."""
        return [example.text for example in self.captions(world)]

    def captions(self, world: Mapping[str, Any] | None) -> list[Example]:
        """Images with a caption each."""
        if world is None and (photos := _photos()):
            return [Example((path,), caption) for path, caption in photos[:SHOWN]]
        samples = self._scenes("captions", world, SHOWN)
        return [
            Example((self._save(sample.image, f"captions-{index}"),), sample.boxes[0].phrase or sample.captions[-1])
            for index, sample in enumerate(samples)
        ]

    def questions(self, world: Mapping[str, Any] | None) -> list[Example]:
        """Images with a question each."""
        if world is None and (photos := _photos()):
            return [
                Example((path,), QUESTIONS[index % len(QUESTIONS)]) for index, (path, _) in enumerate(photos[:SHOWN])
            ]
        samples = self._scenes("vqa", world, SHOWN)
        return [
            Example((self._save(sample.image, f"vqa-{index}"),), sample.question)
            for index, sample in enumerate(samples)
        ]

    def statements(self, world: Mapping[str, Any] | None) -> list[Example]:
        """Pairs of images with a statement each."""
        if world is None and (photos := _photos()):
            pairs = list(zip(photos[:4], photos[4:8], strict=True))
            return [Example((left, right), f"one of the images shows a {text}") for (left, text), (right, _) in pairs]
        samples = self._scenes("nlvr2", {"max_things": 6, **(world or {})}, 20 * SHOWN)
        first_of = {sample.sentence: sample for sample in reversed(samples)}  # several pairs share a statement
        samples = list(reversed(first_of.values()))[:SHOWN]
        return [
            Example(tuple(self._save(image, f"nlvr2-{index}{side}") for image, side in zip(sample.images, "lr")),
                    sample.sentence)
            for index, sample in enumerate(samples)
        ]  # fmt: skip

    def stories(self, world: Mapping[str, Any] | None) -> list[Story]:
        """Images with objects, questions, answers and reasons; always of scenes, whose objects are known."""
        samples: list[VCRSample] = self._scenes("vcr", world, 4)
        return [
            Story(
                self._save(sample.image, f"vcr-{index}"),
                sample.objects,
                written_text(sample.question),
                tuple(map(written_text, sample.answer_choices)),
                tuple(map(written_text, sample.rationale_choices)),
            )
            for index, sample in enumerate(samples)
        ]

    def _scenes(self, task: Any, world: Mapping[str, Any] | None, count: int) -> Any:
        options = {name: value for name, value in (world or {}).items() if name in WORLD}
        if task in ("vcr", "nlvr2"):  # they need several things, which a small world does not have
            options |= {"min_things": 2, "max_things": max(6, options.get("max_things", 6))}
        size = ENLARGED * int((world or {}).get("size", 64))
        return scenes(task, "test", count=count, size=size, **options)

    def _save(self, image: ImageSource, name: str) -> Path:
        path = self.folder / f"{name}.png"
        if not path.is_file():
            open_image(image).save(path)
        return path


def _photos() -> list[tuple[Path, str]]:
    """The example images of the checkout, each with its caption."""
    table = IMAGES / "captions.jsonl"
    if not table.is_file():
        return []
    rows = map(json.loads, table.read_text(encoding="utf-8").splitlines())
    return [(IMAGES / row["image"], row["captions"][0]) for row in rows]
