"""Samples: what one example is, in a form a person could read aloud.

An image stays undecoded until a worker needs it: a sample holds where it comes from (a path, encoded bytes, a part
of another file, an image in memory, or something that can draw itself), and `evle.data.images.open_image` turns
that into an image.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from PIL import Image

from evle.errors import SampleError


@runtime_checkable
class Drawing(Protocol):
    """An image that is drawn when asked for, such as a synthetic scene."""

    def draw(self) -> Image.Image: ...


@runtime_checkable
class Stored(Protocol):
    """An encoded image inside another file, such as a tar, read when asked for; `str()` of it is its location.

    `read` raises SampleError where the bytes are no longer there.
    """

    def read(self) -> bytes: ...


ImageSource = str | os.PathLike[str] | bytes | Image.Image | Stored | Drawing


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in the pixels of the original image: `x`, `y` is its upper left corner.

    `label` is the object's class ("dog"), `phrase` a description of it ("the brown dog on the left").
    """

    x: float
    y: float
    width: float
    height: float
    label: str = ""
    phrase: str = ""


@dataclass(frozen=True, slots=True)
class Swap:
    """A caption that is untrue of an image and differs from its true one in order, attribute, relation or count alone.

    `image` is another image, of which this caption is true and the first one is not, or None. The samples of both
    images share `set_id`.
    """

    caption: str
    type: str
    image: ImageSource | None = None
    set_id: str = ""


@dataclass(frozen=True, slots=True)
class CaptionSample:
    """An image and its captions.

    `captions` are true descriptions, the best first; `tags` are keywords, in no order. Samples with the same
    `match_id` (by default the key) describe the same thing, so that neither is a wrong answer for the other in
    contrastive training.
    """

    key: str
    image: ImageSource
    captions: tuple[str, ...]
    boxes: tuple[Box, ...] = ()
    tags: tuple[str, ...] = ()
    match_id: str = ""
    swap: Swap | None = None


@dataclass(frozen=True, slots=True)
class VQASample:
    """An image, a question, and what annotators answered.

    One answer, or ten as in VQAv2; none where the answers are not public. `set_id` groups the images of one statement,
    for consistency.
    """

    key: str
    image: ImageSource
    question: str
    answers: tuple[str, ...] = ()
    answer_type: str = ""
    question_type: str = ""
    set_id: str = ""


@dataclass(frozen=True, slots=True)
class NLVR2Sample:
    """Two images and a sentence that is true of the pair or not.

    `set_id` groups the pairs of one sentence, for consistency.
    """

    key: str
    images: tuple[ImageSource, ImageSource]
    sentence: str
    label: bool | None = None
    set_id: str = ""


Tagged = tuple[str | tuple[int, ...], ...]
"""Text with tagged objects: words, and tuples of indices into the sample's `objects`."""


@dataclass(frozen=True, slots=True)
class VCRSample:
    """An image with tagged objects, a question, four answers, and four rationales for the right answer."""

    key: str
    image: ImageSource
    objects: tuple[Box, ...]
    question: Tagged
    answer_choices: tuple[Tagged, ...]
    rationale_choices: tuple[Tagged, ...]
    answer_label: int | None = None
    rationale_label: int | None = None

    def __post_init__(self) -> None:
        """Raises SampleError for a text that is no sequence of words and tags: a str would be read letter by letter."""
        texts = [("question", self.question)]
        for name, choices in (
            ("answer_choices", self.answer_choices),
            ("rationale_choices", self.rationale_choices),
        ):
            texts += [(name, choices)] if isinstance(choices, str) else [(name, choice) for choice in choices]
        for name, text in texts:
            if isinstance(text, str):
                raise SampleError(
                    f"{self.key}: {name} has the text {text[:40]!r} in place of its words; write ('why', (0,), '?'), "
                    "or let evle.pipelines.typed.typed_sample split texts"
                )
            for word in text:
                if not isinstance(word, str | tuple | list):
                    raise SampleError(
                        f"{self.key}: {name} has {word!r}, which is neither a word nor a tuple of indices such as (0,)"
                    )


Sample = CaptionSample | VQASample | NLVR2Sample | VCRSample


def readable(samples: Sequence[Any], indices: Iterable[int] | None = None) -> Iterator[Any]:
    """The samples at `indices` (all of them, in order, for None) that their source can read.

    A damaged sample raises SampleError when it is requested. It is left out here, because the loader names it.

    >>> [sample.key for sample in readable([CaptionSample("a", b"", ("x",)), CaptionSample("b", b"", ("y",))], [1])]
    ['b']
    """
    for index in range(len(samples)) if indices is None else indices:
        try:
            yield samples[index]
        except SampleError:
            continue


def num_left_out(samples: Any) -> int:
    """How many rows a source left out; of many, its `skipped` names only the first."""
    return getattr(samples, "num_skipped", len(getattr(samples, "skipped", ())))


STATED_IMAGES = 5000

Split = Literal["train", "val", "test"]
Samples = Sequence[Sample]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class MadeSamples(Sequence[Any], ABC):
    """Samples that are made when they are asked for. A class of them has `__len__` and `at`, and plain facts for a
    report in `describe`."""

    @abstractmethod
    def at(self, index: int) -> Any:
        """Sample `index`, from 0 to the length."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self.at(int(index) % len(self))


def hashed_split(image: str, shares: Sequence[float] = (0.8, 0.1, 0.1)) -> str:
    """The split of an image in a table that names none: by a hash of its name, the same on every machine."""
    position = (
        int.from_bytes(hashlib.blake2b(image.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") / 2**64
    )
    return SPLITS[int(position >= shares[0]) + int(position >= shares[0] + shares[1])]


def describe(samples: Samples) -> dict[str, Any]:
    """Plain facts about samples for a report."""
    facts = samples.describe() if hasattr(samples, "describe") else {"samples": len(samples)}
    return {**facts, "fingerprint": getattr(samples, "fingerprint", "")}


def left_out_by(samples: Mapping[Split, Samples]) -> tuple[list[str], int]:
    """A line for each row that the sources left out, of many for the first ones, and how many these are; a source that
    two splits read counts once."""
    counts: dict[tuple[str, ...], int] = {}
    for each in samples.values():
        for source in getattr(each, "sources", [each]):
            counts[tuple(getattr(source, "skipped", ()))] = num_left_out(source)
    return [line for lines in counts for line in lines], sum(counts.values())


def hash_samples(samples: Mapping[Split, Samples]) -> str:
    """One hash of what all the splits hold: their tables, and the sizes and times of their image files.

    Of a source with more than STATED_IMAGES samples, evenly spread ones are looked at.
    """
    prints = [
        f"{split}:{getattr(each, 'fingerprint', len(each))}:{_hash_files(each)}" for split, each in samples.items()
    ]
    return hashlib.blake2b("\n".join(prints).encode(), digest_size=8).hexdigest()


def _hash_files(samples: Samples) -> str:
    """A hash of size and time of the image files of samples; images elsewhere are part of the fingerprint."""
    if hasattr(samples, "sources"):
        return "+".join(_hash_files(source) for source in samples.sources)
    digest = hashlib.blake2b(digest_size=8)
    for sample in readable(samples, range(0, len(samples), -(-len(samples) // STATED_IMAGES) or 1)):
        files = [image for image in _images(sample) if isinstance(image, str | os.PathLike)]
        if not files:
            return ""  # a source keeps all its images in one way
        for file in files:
            try:
                facts = os.stat(file)
                digest.update(f"{facts.st_size} {facts.st_mtime_ns}\n".encode())
            except (OSError, ValueError):
                digest.update(b"missing\n")
    return digest.hexdigest()


def _images(sample: Sample) -> tuple[ImageSource, ...]:
    return sample.images if isinstance(sample, NLVR2Sample) else (sample.image,)
