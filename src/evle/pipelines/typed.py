"""Questions about objects as people type them: one object per line, and `[1]` for the first object (VCR)."""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import chain

from PIL import Image

from evle.data.samples import Box, ImageSource, Tagged, VCRSample
from evle.errors import SampleError

MAX_OBJECTS = 100
"""Objects of one image."""


def typed_boxes(lines: Sequence[str], most: int = MAX_OBJECTS) -> tuple[Box, ...]:
    """The objects of lines `name left top width height`, in pixels. Raises SampleError that names the wrong line.

    >>> typed_boxes(["dog 10 20 80 60"])
    (Box(x=10.0, y=20.0, width=80.0, height=60.0, label='dog', phrase=''),)
    """
    boxes = []
    for number, line in enumerate(filter(None, map(str.strip, lines)), 1):
        *name, left, top, width, height = line.split() if len(line.split()) > 4 else [""] * 5
        try:
            x, y, wide, high = (float(part) for part in (left, top, width, height))
        except ValueError:
            raise SampleError(
                f"object {number} is {line[:80]!r}; write a name and four numbers, such as: dog 10 20 80 60"
            ) from None
        if not (wide > 0 and high > 0 and x >= 0 and y >= 0 and max(x + wide, y + high) < 1e6):
            raise SampleError(
                f"object {number} is {line[:80]!r}; width and height must be above 0, left and top at least 0"
            )
        boxes.append(Box(x, y, wide, high, " ".join(name)))
    if len(boxes) > most:
        raise SampleError(f"there are {len(boxes)} objects; keep {most} or fewer")
    return tuple(boxes)


def check_inside(boxes: Sequence[Box], image: Image.Image, first: int = 1) -> None:
    """Raises SampleError for a box that has no part in the image; objects count from `first`."""
    for number, box in enumerate(boxes, first):
        if not all(map(math.isfinite, (box.x, box.y, box.width, box.height))) or box.width <= 0 or box.height <= 0:
            raise SampleError(
                f"object {number} has the corner {box.x:g}, {box.y:g} and the size {box.width:g} x {box.height:g}; "
                "give finite numbers, and a width and a height above 0"
            )
        if box.x >= image.width or box.y >= image.height:
            raise SampleError(
                f"object {number} begins at {box.x:g}, {box.y:g}, outside of the image of {image.width} x "
                f"{image.height} pixels; give its box in pixels of the image"
            )
        if box.x + box.width <= 0 or box.y + box.height <= 0:
            raise SampleError(
                f"object {number} ends at {box.x + box.width:g}, {box.y + box.height:g}, outside of the image; give "
                "its box in pixels of the image"
            )


def check_names(sample: VCRSample, texts: Iterable[Tagged]) -> None:
    """Raises SampleError for an object without a label that one of `texts` names; objects count from 0."""
    named = {index for text in texts for word in text if not isinstance(word, str) for index in word}
    for number, box in enumerate(sample.objects):
        if number in named and not box.label.strip():
            raise SampleError(f"object {number} is named by a text, but its label is blank; give it a label")


def written_boxes(boxes: Sequence[Box]) -> str:
    """Objects as they are typed, one per line.

    >>> written_boxes([Box(10, 20, 80, 60, "dog")])
    'dog 10 20 80 60'
    """
    return "\n".join(f"{box.label} {box.x:.0f} {box.y:.0f} {box.width:.0f} {box.height:.0f}" for box in boxes)


def typed_text(text: str, num_objects: int) -> Tagged:
    """A typed text as words and tags. Raises SampleError for a tag of an object that does not exist.

    >>> typed_text("why is [1] here?", 1)
    ('why', 'is', (0,), 'here?')
    """
    words: list[str | tuple[int, ...]] = []
    for word in re.findall(r"\[\d{1,6}\]|(?:(?!\[\d{1,6}\])\S)+", text):
        if not re.fullmatch(r"\[\d+\]", word):
            words.append(word)
            continue
        number = int(word[1:-1])
        if not 1 <= number <= num_objects:
            raise SampleError(f"{word} names no object; there are {num_objects}, counted from 1")
        words.append((number - 1,))
    return tuple(words)


def written_text(text: Tagged) -> str:
    """A tagged text as it is typed, objects counted from 1; `typed_text` reads it back as it was.

    >>> written_text(("is", (0, 1), "red", "?")), written_text(("what", "is", (0,), "?"))
    ('is [1] [2] red ?', 'what is [1]?')
    """
    words = chain.from_iterable([word] if isinstance(word, str) else [f"[{i + 1}]" for i in word] for word in text)
    return re.sub(r"(?<=\]) (?=[?.,;:!](\s|$))", "", " ".join(words))


def typed_sample(
    image: ImageSource,
    boxes: Sequence[Box],
    question: str,
    answers: Sequence[str],
    reasons: Sequence[str] = (),
    *,
    right: int | None = None,
    key: str = "question",
) -> VCRSample:
    """A sample of typed texts; `right` is the index of the answer to give reasons for. Raises SampleError as the
    functions above."""
    count = len(boxes)
    return VCRSample(
        key,
        image,
        tuple(boxes),
        typed_text(question, count),
        tuple(typed_text(text, count) for text in answers),
        tuple(typed_text(text, count) for text in reasons),
        answer_label=right,
    )
