"""The description of the API: the bodies that routes read themselves, errors, the key, and a page without scripts."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from jinja2 import Environment
from pydantic.json_schema import models_json_schema

from evle.server.schemas import EmbeddingsRequest, ErrorResponse, Request, RerankRequest
from evle.server.tasks import ENDPOINTS

REASONS = {
    400: "The body cannot be read.",
    401: "The key is missing or wrong.",
    404: "No such model, or none that can do this.",
    408: "The body took too long.",
    413: "The body is too large.",
    415: "Neither JSON nor a form.",
    422: "Something in the request cannot be used.",
    429: "Too many requests; see Retry-After.",
    500: "The server failed.",
    503: "Not ready, shutting down, or no answer in time; see Retry-After.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": reason} for status, reason in REASONS.items()
}
REQUESTS: tuple[type[Request], ...] = (
    *(endpoint.request for endpoint in ENDPOINTS),
    EmbeddingsRequest,
    RerankRequest,
)
REFERENCE = "#/components/schemas/{model}"
OPEN = ("/healthz", "/readyz")


def request_body(schema: type[Request], examples: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI of a body that is JSON or a form."""
    shown = {name: {"value": value} for name, value in examples.items()}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": REFERENCE.format(model=schema.__name__)}, "examples": shown},
            "multipart/form-data": {"schema": form_schema(schema)},
        },
    }


def form_schema(schema: type[Request]) -> dict[str, Any]:
    """The same fields in a form: files for images, repeated fields for lists, JSON for what is nested."""
    whole = schema.model_json_schema(ref_template=REFERENCE)
    properties: dict[str, Any] = {}
    for name, field in whole["properties"].items():
        kept = {key: field[key] for key in ("description", "title") if key in field}
        if name in schema.json_fields:
            properties[name] = {**kept, "type": "string", "contentMediaType": "application/json"}
        elif field.get("format") == "byte":
            properties[name] = {**kept, "type": "string", "format": "binary"}
        elif name in ("input", "query", "documents"):
            properties[name] = {**kept, "type": "string", "description": "A text, or the file of an image; repeatable."}
        elif "anyOf" in field and {"type": "null"} not in field["anyOf"]:
            properties[name] = next(each for each in field["anyOf"] if each.get("type") == "array")
        elif "anyOf" in field:
            properties[name] = {**kept, **next(each for each in field["anyOf"] if each != {"type": "null"})}
        else:
            properties[name] = {key: value for key, value in field.items() if key != "default"}
    return {
        "type": "object",
        "properties": properties,
        "required": whole.get("required", []),
        "additionalProperties": False,
    }


def document(app: FastAPI, *, with_key: bool) -> None:
    """Make `app.openapi()` complete: the requests' schemas, and the key where one is needed."""

    def whole() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        described = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, definitions = models_json_schema([(each, "validation") for each in REQUESTS], ref_template=REFERENCE)
        components = described.setdefault("components", {})
        components.setdefault("schemas", {}).update(definitions["$defs"])
        if with_key:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, methods in described["paths"].items():
                for operation in methods.values() if path not in OPEN else ():
                    operation["security"] = [{"key": []}]
        app.openapi_schema = described
        return described

    app.openapi = whole  # type: ignore[method-assign]


def page(described: dict[str, Any]) -> str:
    """A page of every path with its fields and examples; it needs no script and no other server."""
    template = Environment(autoescape=True).from_string(Path(__file__).with_name("docs.html").read_text("utf-8"))
    return template.render(api=described, schemas=described["components"]["schemas"])
