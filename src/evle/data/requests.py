"""What a caller asks a model about: one image or many, one text or many, read ahead and in batches."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from evle.data.samples import ImageSource
from evle.errors import DataError

Images = ImageSource | Sequence[ImageSource]
Texts = str | Sequence[str]
Source = TypeVar("Source")
Result = TypeVar("Result")


def as_images(images: Images) -> list[ImageSource]:
    """One image or many as a list."""
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return list(images)
    return [images]


def as_texts(texts: Texts) -> list[str]:
    """One text or many as a list."""
    return [texts] if isinstance(texts, str) else list(texts)


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
