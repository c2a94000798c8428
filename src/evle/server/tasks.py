"""What a pipeline is asked for one request, and for a batch of them.

`prepare` turns a checked request into `Work`: images are decoded and resized here, by the threads of the server, and
wait as small tensors. `Work.run` is called by the model's thread with the payloads of one batch.
"""

import base64
import io
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from evle.data.images import open_image
from evle.data.samples import Box, VCRSample
from evle.errors import SampleError
from evle.pipelines.typed import check_inside
from evle.server import schemas
from evle.server.batching import Run
from evle.server.errors import RefusedError


@dataclass(frozen=True)
class Work:
    """A request as the model's thread takes it; see `batching.Job`."""

    key: Hashable
    run: Run
    payload: Any
    rows: int


class Rows(NamedTuple):
    """Images of one request (pixels, or bytes) and its texts."""

    images: tuple[Any, ...]
    texts: list[str]
    options: Any = None


def read(pipeline: Any, data: bytes, field: str = "image") -> Tensor:
    """The image as the model sees it. Raises RefusedError, status 422, for what is no image."""
    pixels = pipeline.read(data)
    if isinstance(pixels, SampleError):
        raise unreadable(pixels, field)
    return pixels


def unreadable(error: SampleError, field: str = "image") -> RefusedError:
    """The reason that `error` gives, with the cure of a caller instead of that of a data set's owner."""
    return RefusedError(422, f"{field}: {str(error).partition('; ')[0]}; send a PNG, JPEG or WebP image")


def split(results: Sequence[Any], payloads: Sequence[Rows]) -> list[list[Any]]:
    """Rows of a batch, request by request."""
    rest = iter(results)
    return [[next(rest) for _ in payload.texts] for payload in payloads]


def columns(payloads: Sequence[Rows]) -> tuple[list[list[Any]], list[str]]:
    """Each image column and the texts of a batch, one row per text."""
    images = [
        [payload.images[column] for payload in payloads for _ in payload.texts]
        for column in range(len(payloads[0].images))
    ]
    return images, [text for payload in payloads for text in payload.texts]


def ask(pipeline: Any, request: schemas.AskRequest) -> Work:
    def run(payloads: Sequence[Rows]) -> list[Any]:
        (images,), questions = columns(payloads)
        best = pipeline.best(images, questions, max(payload.options for payload in payloads))
        return [
            [{"question": text, **row[0], "answers": row[: payload.options]} for text, row in zip(payload.texts, rows)]
            for payload, rows in zip(payloads, split(best, payloads), strict=True)
        ]

    payload = Rows((read(pipeline, request.image),), request.question, request.top_k)
    return Work("ask", run, payload, len(payload.texts))


def match(pipeline: Any, request: schemas.MatchRequest) -> Work:
    def run(payloads: Sequence[Rows]) -> list[Any]:
        (images,), texts = columns(payloads)
        return split(pipeline(images, texts), payloads)

    # One image with many texts is encoded once when it is alone.
    payload = Rows((read(pipeline, request.image),), request.text)
    return Work("match" if len(request.text) == 1 else None, run, payload, len(payload.texts))


def compare(pipeline: Any, request: schemas.CompareRequest) -> Work:
    def run(payloads: Sequence[Rows]) -> list[Any]:
        (lefts, rights), texts = columns(payloads)
        return split(pipeline(lefts, rights, texts), payloads)

    images = read(pipeline, request.left, "left"), read(pipeline, request.right, "right")
    return Work("compare", run, Rows(images, request.text), len(request.text))


def classify(pipeline: Any, request: schemas.ClassifyRequest) -> Work:
    labels, template = list(request.label), request.template

    def run(payloads: Sequence[Tensor]) -> list[Any]:
        return list(pipeline(list(payloads), labels, template=template))

    return Work(("classify", template, *labels), run, read(pipeline, request.image), 1)


def locate(pipeline: Any, request: schemas.LocateRequest) -> Work:
    def run(payloads: Sequence[Rows]) -> list[Any]:
        (images,), texts = columns(payloads)
        located = [
            {"text": each.text, "scores": each.scores.tolist(), "image": each.image} for each in pipeline(images, texts)
        ]
        for payload, rows in zip(payloads, result := split(located, payloads), strict=True):
            for row in rows:
                row["image"] = png(row["image"]) if payload.options else None
        return result

    return Work("locate", run, Rows((request.image,), request.text, request.paint), len(request.text))


def explain(pipeline: Any, request: schemas.ExplainRequest) -> Work:
    def run(payloads: Sequence[bytes]) -> list[Any]:
        result = []
        for data in payloads:
            shown = pipeline(data, request.text, method=request.method)
            sheet = png(shown.to_image()) if request.sheet else None
            maps, whole = shown.maps.tolist(), shown.whole.tolist()
            result.append([{"words": shown.words, "maps": maps, "whole": whole, "sheet": sheet}])
        return result

    return Work(None, run, request.image, 1)


def answer(pipeline: Any, request: schemas.AnswerRequest) -> Work:
    return _choice(pipeline, request, (), None)


def reason(pipeline: Any, request: schemas.ReasonRequest) -> Work:
    if request.answer >= len(request.answers):
        raise RefusedError(
            422, f"answer: there is no answer {request.answer} of {len(request.answers)}; they count from 0"
        )
    return _choice(pipeline, request, tuple(map(tagged, request.reasons)), request.answer)


def _choice(pipeline: Any, request: schemas.AnswerRequest, reasons: tuple[Any, ...], label: int | None) -> Work:
    for name, parts in (("question", [request.question]), ("answers", request.answers), ("reasons", reasons)):
        if name == "reasons" and label is None:
            continue
        for word in (word for part in parts for word in part if not isinstance(word, str)):
            if wrong := [index for index in word if index >= len(request.objects)]:
                raise RefusedError(
                    422, f"{name}: there is no object {wrong[0]} of {len(request.objects)}; they count from 0"
                )
    sample = VCRSample(
        key="request",
        image=request.image,
        objects=tuple(Box(box.x, box.y, box.width, box.height, box.label) for box in request.objects),
        question=tagged(request.question),
        answer_choices=tuple(map(tagged, request.answers)),
        rationale_choices=reasons,
        answer_label=label,
    )

    try:
        image = open_image(request.image)
    except SampleError as error:
        raise unreadable(error) from None
    try:
        check_inside(sample.objects, image, first=0)
    except SampleError as error:
        raise RefusedError(422, f"objects: {error}") from None

    def run(payloads: Sequence[VCRSample]) -> list[Any]:
        return [[{"choice": each.choice, "scores": each.scores}] for each in pipeline.choose(list(payloads))]

    count = len(request.answers) if label is None else len(reasons)
    return Work((type(request).__name__, count), run, sample, 1)


def tagged(words: Sequence[Any]) -> tuple[Any, ...]:
    """A text of a request as samples have it."""
    return tuple(word if isinstance(word, str) else tuple(word) for word in words)


def embed(pipeline: Any, items: Sequence[schemas.Item], field: str, alone: bool = False) -> list[Work]:
    """Work for the texts and for the images among `items`; each result is (embedding, tokens), in the items' order.

    Errors name the item by `field` and its position, or by `field` where it is `alone`.
    """

    def run_texts(payloads: Sequence[list[str]]) -> list[Any]:
        texts = [text for payload in payloads for text in payload]
        tokens = [len(pipeline.task.read_text(text)) for text in texts]
        return _split_pairs(pipeline.texts(texts), tokens, payloads)

    def run_images(payloads: Sequence[list[Tensor]]) -> list[Any]:
        images = [image for payload in payloads for image in payload]
        return _split_pairs(pipeline.images(images), [0] * len(images), payloads)

    texts = [item.text for item in items if item.text is not None]
    images = [
        read(pipeline, item.image, field if alone else f"{field}.{index}")
        for index, item in enumerate(items)
        if item.image is not None
    ]
    work = [("embed texts", run_texts, texts), ("embed images", run_images, images)]
    return [Work(key, run, payload, len(payload)) for key, run, payload in work if payload]  # type: ignore[arg-type]


def _split_pairs(features: Tensor, tokens: list[int], payloads: Sequence[Sequence[Any]]) -> list[Any]:
    rest = zip(features, tokens, strict=True)
    return [[next(rest) for _ in payload] for payload in payloads]


def in_order(items: Sequence[schemas.Item], results: Sequence[Any]) -> list[tuple[Tensor, int]]:
    """The results of `embed`'s work, one per item."""
    lists = iter(results)
    texts = iter(next(lists) if any(item.text is not None for item in items) else ())
    images = iter(next(lists) if any(item.image is not None for item in items) else ())
    return [next(texts) if item.text is not None else next(images) for item in items]


def matches(query: schemas.Item, documents: Sequence[schemas.Item]) -> bool:
    """Whether each pair of the query and a document is an image and a text."""
    return all((query.text is None) != (document.text is None) for document in documents)


def rerank_by_match(pipeline: Any, query: schemas.Item, documents: Sequence[schemas.Item]) -> Work:
    """Work whose result is one match probability per document."""

    def run(payloads: Sequence[Any]) -> list[Any]:
        return [torch.sigmoid(pipeline.margins(*payload)[0]).tolist() for payload in payloads]

    if query.image is not None:
        payload = (read(pipeline, query.image, "query"), [document.text for document in documents])
    else:
        images = [read(pipeline, each.image or b"", f"documents.{index}") for index, each in enumerate(documents)]
        payload = (images, [query.text] * len(documents))  # type: ignore[assignment]
    return Work(None, run, payload, len(documents))


def png(image: Image.Image) -> str:
    """The image as base64 of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Endpoint:
    """A task of the API: its path, what it takes and returns, and the ability that it needs."""

    name: str
    request: type[schemas.Request]
    response: type[Any]
    prepare: Callable[[Any, Any], Work]
    ability: str
    example: dict[str, Any]


_WORDS = {
    "objects": [{"x": 0, "y": 0, "width": 8, "height": 8, "label": "person"}],
    "question": ["Who", "is", [0], "?"],
}
_ANSWERS = [["A", "waiter"], [[0], "is", "a", "guest"], ["Nobody"], ["A", "dog"]]
_IMAGE = {"image": schemas.EXAMPLE_IMAGE}
ENDPOINTS = (
    Endpoint("ask", schemas.AskRequest, schemas.AskResponse, ask, "ask", {**_IMAGE, "question": "which colour is it?"}),
    Endpoint("match", schemas.MatchRequest, schemas.ScoredResponse, match, "match", {**_IMAGE, "text": ["a red wall"]}),
    Endpoint(
        "classify",
        schemas.ClassifyRequest,
        schemas.ClassifyResponse,
        classify,
        "embed",
        {**_IMAGE, "label": ["cat", "dog"]},
    ),
    Endpoint(
        "compare",
        schemas.CompareRequest,
        schemas.ScoredResponse,
        compare,
        "compare",
        {"left": schemas.EXAMPLE_IMAGE, "right": schemas.EXAMPLE_IMAGE, "text": "both images are red"},
    ),
    Endpoint(
        "locate", schemas.LocateRequest, schemas.LocateResponse, locate, "locate", {**_IMAGE, "text": "the red wall"}
    ),
    Endpoint(
        "explain",
        schemas.ExplainRequest,
        schemas.ExplainResponse,
        explain,
        "explain",
        {**_IMAGE, "text": "which colour is it?"},
    ),
    Endpoint(
        "answer",
        schemas.AnswerRequest,
        schemas.ChooseResponse,
        answer,
        "answer",
        {**_IMAGE, **_WORDS, "answers": _ANSWERS},
    ),
    Endpoint(
        "reason",
        schemas.ReasonRequest,
        schemas.ChooseResponse,
        reason,
        "reason",
        {**_IMAGE, **_WORDS, "answers": _ANSWERS, "answer": 0, "reasons": _ANSWERS},
    ),
)
