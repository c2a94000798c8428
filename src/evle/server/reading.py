"""The body of a request, JSON or a form, as a checked request."""

import json
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from evle.server.errors import RefusedError
from evle.server.limits import Limits
from evle.server.schemas import Request as Schema

Checked = TypeVar("Checked", bound=Schema)
SHOWN = 3  # problems in one message


async def form_fields(request: Request, schema: type[Schema], limits: Limits) -> dict[str, Any]:
    """The fields of a multipart form: files as bytes, repeated fields as lists. Raises RefusedError, status 400."""
    result: dict[str, Any] = {}
    most = limits.texts + len(schema.model_fields)
    try:
        form = await request.form(max_files=most, max_fields=most, max_part_size=limits.body_bytes)
    except HTTPException as error:
        raise RefusedError(400, f"the form cannot be read: {error.detail}") from None
    except Exception as error:  # the parser raises several kinds on damaged forms
        raise RefusedError(400, f"the form cannot be read: {type(error).__name__}") from None
    try:
        for name in form:
            values = [await each.read() if isinstance(each, UploadFile) else each for each in form.getlist(name)]
            result[name] = _from_json(name, values[0]) if name in schema.json_fields else values
            if name not in schema.json_fields and len(values) == 1:
                result[name] = values[0]
    finally:
        await form.close()
    return result


def _from_json(name: str, value: str | bytes) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RefusedError(422, f"{name}: this field of a form is JSON, and this is not") from None


def media_type(request: Request) -> str:
    """The media type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_json(body: bytes, schema: type[Checked], limits: Limits) -> Checked:
    """The request in a JSON body. Raises RefusedError, status 422 (400 where it is no JSON)."""
    try:
        return schema.model_validate_json(body, strict=True, context=limits)
    except ValidationError as error:
        raise _refused(error) from None


def check_form(fields: dict[str, Any], schema: type[Checked], limits: Limits) -> Checked:
    """The request in the fields of a form. Raises RefusedError, status 422."""
    try:
        return schema.model_validate(fields, context=limits)
    except ValidationError as error:
        raise _refused(error) from None


def _refused(error: ValidationError) -> RefusedError:
    problems = error.errors(include_url=False, include_input=False)
    if problems[0]["type"] == "json_invalid":
        return RefusedError(400, f"the body is not valid JSON: {problems[0].get('ctx', {}).get('error', '')}")
    lines = []
    for problem in problems[:SHOWN]:
        where = ".".join(str(part)[:50] for part in problem["loc"] if not _is_type(part))
        reason = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {reason}" if where else reason)
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return RefusedError(422, "; ".join(dict.fromkeys(lines)) + more)


def _is_type(part: object) -> bool:
    """Pydantic names the member of a union in an error's location, such as list[int]."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int"))
