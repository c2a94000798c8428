"""What requests and answers hold.

A request is checked with `context=Limits`; an image in it becomes its bytes, and one text becomes a list of one. In a
form, images are files, lists are repeated fields, and the fields of `json_fields` are JSON.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema

from evle.data.formats.cells import says_something
from evle.server.images import image_bytes
from evle.server.limits import Limits

EXAMPLE_IMAGE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP8z4AdMDEMKQkAzUEBD7t4NqoAAAAASUVORK5CYII="
"""A red PNG of 8 x 8 pixels, for examples."""


def _limits(info: ValidationInfo) -> Limits:
    assert isinstance(info.context, Limits), "requests are checked with context=Limits"
    return info.context


def _image(value: Any, info: ValidationInfo) -> bytes:
    return image_bytes(value, _limits(info))


def _text(value: str, info: ValidationInfo) -> str:
    if not says_something(value):
        raise ValueError("the text is empty; give at least one word")
    if len(value) > _limits(info).text_length:
        raise ValueError(f"the text has {len(value):,} characters, more than {_limits(info).text_length:,}; shorten it")
    return value


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _counted(value: list[Any], info: ValidationInfo) -> list[Any]:
    if not value:
        raise ValueError("the list is empty; give at least one")
    if len(value) > _limits(info).texts:
        raise ValueError(f"the list has {len(value)} elements, more than {_limits(info).texts}; send several requests")
    return value


IMAGE_SCHEMA: dict[str, Any] = {
    "type": "string",
    "format": "byte",
    "minLength": 1,
    "description": "A PNG, JPEG, WebP or other image, as base64 or as a data URL. URLs and paths are refused.",
}
TEXT_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1, "pattern": r"\S"}
TEXTS_SCHEMA: dict[str, Any] = {
    "anyOf": [TEXT_SCHEMA, {"type": "array", "items": TEXT_SCHEMA, "minItems": 1}],
    "description": "One or many.",
}
ImageBytes = Annotated[bytes, BeforeValidator(_image), WithJsonSchema(IMAGE_SCHEMA)]
Text = Annotated[str, AfterValidator(_text), WithJsonSchema(TEXT_SCHEMA)]
Texts = Annotated[list[Text], BeforeValidator(_listed), AfterValidator(_counted), WithJsonSchema(TEXTS_SCHEMA)]
Word = Annotated[str, Field(min_length=1, max_length=200)]
Tagged = Annotated[
    list[Word | list[Annotated[int, Field(ge=0)]]],
    Field(min_length=1, max_length=200, description="Words, and lists of indices of objects."),
]
Candidates = Annotated[list[Tagged], Field(min_length=2, max_length=10)]


class Request(BaseModel):
    """What all requests share."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    json_fields: ClassVar[frozenset[str]] = frozenset()

    model: str | None = Field(
        default=None, description="The name of a model of /v1/models. Default: the first that can do this."
    )


class AskRequest(Request):
    """Answer questions about an image."""

    image: ImageBytes
    question: Texts
    top_k: int = Field(default=5, ge=1, le=100, description="Number of answers to each question.")


class MatchRequest(Request):
    """Is a text true of an image?"""

    image: ImageBytes
    text: Texts


class ClassifyRequest(Request):
    """Which label fits an image best?"""

    image: ImageBytes
    label: Texts
    template: str = Field(
        default="a photo of a {}.",
        max_length=200,
        pattern=r"\{\}",
        description="The text of a label, with {} in its place.",
    )


class CompareRequest(Request):
    """Is a text true of two images?"""

    left: ImageBytes
    right: ImageBytes
    text: Texts


class LocateRequest(Request):
    """Which patches of an image does a phrase describe?"""

    image: ImageBytes
    text: Texts
    paint: bool = Field(default=False, description="Also return the image as PNG, bright where the phrase is.")


class ExplainRequest(Request):
    """Where did the model look?"""

    image: ImageBytes
    text: Text
    method: Literal["rollout", "attention", "gradient", "pbc"] = Field(
        default="rollout",
        description="Attention through all layers, of the last one, weighted by gradients (EVE), or PBC (VLE).",
    )
    sheet: bool = Field(default=False, description="Also return a PNG with one map per word.")


class ObjectBox(BaseModel):
    """An object of an image: a rectangle in its pixels, whose upper left corner is (x, y), and its class."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    x: float = Field(ge=-1e6, le=1e6)
    y: float = Field(ge=-1e6, le=1e6)
    width: float = Field(gt=0, le=1e6)
    height: float = Field(gt=0, le=1e6)
    label: str = Field(min_length=1, max_length=200, pattern=r"\S")


class AnswerRequest(Request):
    """Which answer to a question is right (VCR)?"""

    json_fields = frozenset({"objects", "question", "answers"})

    image: ImageBytes
    objects: list[ObjectBox] = Field(max_length=100, description="What the texts can name, by index from 0.")
    question: Tagged
    answers: Candidates


class ReasonRequest(AnswerRequest):
    """Which reason for an answer is right (VCR)?"""

    json_fields = frozenset({"objects", "question", "answers", "reasons"})

    answer: int = Field(ge=0, description="The index of the answer to find a reason for.")
    reasons: Candidates


class Item(BaseModel):
    """A text or an image."""

    model_config = ConfigDict(extra="forbid")

    text: Text | None = None
    image: ImageBytes | None = None


def _item(value: Any) -> Any:
    """A text alone, or the bytes of a file, as an item."""
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, bytes):
        return {"image": value}
    if isinstance(value, dict) and len(value) == 1 and (value.get("text") or value.get("image")) is not None:
        return value
    raise ValueError('give a text, {"text": ...} or {"image": base64}')


ITEM_SCHEMA: dict[str, Any] = {
    "anyOf": [
        TEXT_SCHEMA,
        *(
            {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}
            for name, schema in (("text", TEXT_SCHEMA), ("image", IMAGE_SCHEMA))
        ),
    ]
}
ITEMS_SCHEMA: dict[str, Any] = {"type": "array", "items": ITEM_SCHEMA, "minItems": 1}
INPUT_SCHEMA: dict[str, Any] = {
    "anyOf": [*ITEM_SCHEMA["anyOf"], ITEMS_SCHEMA],
    "description": "Texts or images, one or many.",
}
AnItem = Annotated[Item, BeforeValidator(_item), WithJsonSchema(ITEM_SCHEMA)]


class EmbeddingsRequest(Request):
    """Embed texts and images, in the form of OpenAI's API."""

    input: Annotated[list[AnItem], BeforeValidator(_listed), AfterValidator(_counted), WithJsonSchema(INPUT_SCHEMA)]
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64: little-endian float32, as OpenAI's clients ask for."
    )
    dimensions: int | None = Field(
        default=None, ge=1, description="Must be the model's own: embeddings are not shortened."
    )
    user: str | None = Field(default=None, max_length=200, description="Written to the log.")


class RerankRequest(Request):
    """Order documents by how well they fit a query."""

    query: AnItem
    documents: Annotated[list[AnItem], BeforeValidator(_listed), AfterValidator(_counted), WithJsonSchema(INPUT_SCHEMA)]
    top_n: int | None = Field(default=None, ge=1, description="Return the best N only. Default: all.")
    return_documents: bool = Field(default=False, description="Repeat the texts of the documents.")


# Answers


class Answer(BaseModel):
    answer: str
    score: float


class Answered(Answer):
    question: str
    answers: list[Answer]


class Scored(BaseModel):
    text: str
    score: float


class Labelled(BaseModel):
    label: str
    score: float


class Located(BaseModel):
    text: str
    scores: list[list[float]]
    image: str | None = None


class Explained(BaseModel):
    words: list[str]
    maps: list[list[list[float]]]
    whole: list[list[float]]
    sheet: str | None = None


class Chosen(BaseModel):
    choice: int
    scores: list[float]


class AskResponse(BaseModel):
    """One result per question, best answers first."""

    model: str
    results: list[Answered]


class ScoredResponse(BaseModel):
    """One probability per text."""

    model: str
    results: list[Scored]


class ClassifyResponse(BaseModel):
    """The labels, best first."""

    model: str
    results: list[Labelled]


class LocateResponse(BaseModel):
    """One grid of probabilities per text, row by row."""

    model: str
    results: list[Located]


class ExplainResponse(BaseModel):
    """One map per word, and one for the whole text."""

    model: str
    results: list[Explained]


class ChooseResponse(BaseModel):
    """The index of the chosen candidate, and the probability of each."""

    model: str
    results: list[Chosen]


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """One vector per input, of length 1."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: Usage


class Document(BaseModel):
    text: str


class Ranked(BaseModel):
    index: int
    relevance_score: float
    document: Document | None = None


class RerankResponse(BaseModel):
    """The documents, best first, as their index in the request."""

    id: str
    model: str
    results: list[Ranked]


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    abilities: list[str]


class ModelsResponse(BaseModel):
    """What is loaded."""

    object: Literal["list"]
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    message: str
    type: str
    request_id: str


class ErrorResponse(BaseModel):
    """Why there is no result, in one line."""

    error: ErrorDetail


class Status(BaseModel):
    status: str
