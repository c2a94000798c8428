"""What a caller asks a model about: one image or many, one text or many, read ahead and in batches."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, TypeVar, cast

from evle.data.samples import ImageSource
from evle.errors import ConfigError, DataError, SampleError

Images = ImageSource | Sequence[ImageSource]
Texts = str | Sequence[str]
Source = TypeVar("Source")
Result = TypeVar("Result")


def as_images(images: Images) -> list[ImageSource]:
    """One image or many as a list."""
    if isinstance(images, str | bytes | bytearray | memoryview) or not isinstance(images, Sequence):
        return [cast(ImageSource, images)]
    return list(cast(Sequence[ImageSource], images))


def as_texts(texts: Texts) -> list[str]:
    """One text or many as a list. Raises DataError for what is no text, or has half a character (a lone surrogate)."""
    if texts is None or isinstance(texts, bytes | bytearray | memoryview):
        raise DataError(f"{_kind(texts)} is no text; give a str, or a list of them")
    try:
        listed = [texts] if isinstance(texts, str) else list(texts)
    except TypeError:
        raise DataError(f"{_kind(texts)} is no text; give a str, or a list of them") from None
    for row, text in enumerate(listed):
        if not isinstance(text, str):
            raise DataError(f"text {row} is {_kind(text)}, which is no text; give a str")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"text {row} ({text[:40]!a}) has half a character at {error.start}; decode it again, as UTF-8"
            ) from None
    return listed


def label_texts(labels: Texts, template: str, read: Callable[[str], Sequence[int]]) -> tuple[list[str], list[str]]:
    """The labels, and the text of each: `template` with the label for {}. `read` gives the tokens of a text.

    Raises ConfigError without a label or {}, and for two labels whose texts have the same tokens.
    """
    names = as_texts(labels)
    if not names:
        raise ConfigError("there is no label; give at least one")
    if not isinstance(template, str) or "{}" not in template:
        raise ConfigError(f"template {template!r} has no {{}}, where the label goes")
    texts = [template.replace("{}", name) for name in names]
    known: dict[tuple[int, ...], str] = {}
    for name, text in zip(names, texts, strict=True):
        tokens = tuple(read(text))
        if tokens in known:
            cure = "leave one of them out"
            if tuple(read(name)) != tuple(read(known[tokens])):
                cure = f"their texts are cut after {len(tokens)} tokens, before they differ: shorten the template"
            raise ConfigError(f"the labels {known[tokens]!r} and {name!r} are read as one text; {cure}")
        known[tokens] = name
    return names, texts


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def pairs(images: Images, texts: Texts) -> tuple[list[ImageSource], list[str]]:
    """Images and texts of equal number; a single image or text is repeated for all of the others."""
    sources, listed = as_images(images), as_texts(texts)
    if len(sources) == 1:
        sources = sources * len(listed)
    elif len(listed) == 1:
        listed = listed * len(sources)
    if len(sources) != len(listed):
        raise DataError(
            f"{len(sources)} images and {len(listed)} texts do not pair up; give the same number of both, or one of "
            "either"
        )
    return sources, listed


def triples(left: Images, right: Images, texts: Texts) -> tuple[list[ImageSource], list[ImageSource], list[str]]:
    """Two lists of images and one of texts, of equal length; a single one of the three is repeated for all rows."""
    lefts, rights, listed = as_images(left), as_images(right), as_texts(texts)
    lengths = len(lefts), len(rights), len(listed)
    count = max(lengths) if min(lengths) else 0
    if not set(lengths) <= {1, count}:
        raise DataError(
            f"{lengths[0]} left images, {lengths[1]} right images and {lengths[2]} texts do not go together; "
            "give the same number of each, or one"
        )
    lefts, rights = (side * (count // len(side) if side else 0) for side in (lefts, rights))
    return lefts, rights, listed * (count // len(listed) if listed else 0)


def batches_by_length(token_lists: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of texts in batches of similar length, so that little padding is computed; longest last."""
    order = sorted(range(len(token_lists)), key=lambda index: len(token_lists[index]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def read_ahead(
    read: Callable[[Source], Result], sources: Iterable[Source], num_workers: int, most: int
) -> Iterator[Result]:
    """`read` of each source in order, by `num_workers` threads (0: by the caller), never more than `most` ahead."""
    if not num_workers:
        yield from map(read, sources)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for source in sources:
                waiting.append(pool.submit(read, source))
                if len(waiting) >= most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class ReadBatch(NamedTuple, Generic[Result]):
    """A batch of images that were read: `rows` are their positions in the input, `failures` the errors of the others.

    `images` has one image per row, or a single one that all rows share.
    """

    rows: list[int]
    images: list[Result]
    failures: dict[int, SampleError]


def readable_batches(read: Iterable[Result | SampleError], batch_size: int) -> Iterator[ReadBatch[Result]]:
    """Images in batches of `batch_size` that could be read, in order; the last may be smaller.

    The failures of a batch are those since the batch before it.
    """
    batch: ReadBatch[Result] = ReadBatch([], [], {})
    for row, image in enumerate(read):
        if isinstance(image, SampleError):
            batch.failures[row] = image
        else:
            batch.rows.append(row)
            batch.images.append(image)
        if len(batch.rows) == batch_size:
            yield batch
            batch = ReadBatch([], [], {})
    if batch.rows or batch.failures:
        yield batch


def pair_batches(
    read: Callable[[Iterable[ImageSource]], Iterator[Result | SampleError]],
    sources: Sequence[ImageSource],
    token_lists: Sequence[Sequence[int]],
    batch_size: int,
) -> Iterator[ReadBatch[Result]]:
    """The images of image-text pairs, in batches of texts of similar length.

    `read` reads sources in order. An image that all pairs share is read once.
    """
    batches = list(batches_by_length(token_lists, batch_size))
    if len(sources) > 1 and all(source is sources[0] for source in sources):
        shared = next(read(sources[:1]))
        for indices in batches:
            if isinstance(shared, SampleError):
                yield ReadBatch([], [], dict.fromkeys(indices, shared))
            else:
                yield ReadBatch(indices, [shared], {})
        return
    images = read(sources[index] for indices in batches for index in indices)
    for indices in batches:
        batch: ReadBatch[Result] = ReadBatch([], [], {})
        for index in indices:
            image = next(images)
            if isinstance(image, SampleError):
                batch.failures[index] = image
            else:
                batch.rows.append(index)
                batch.images.append(image)
        yield batch
