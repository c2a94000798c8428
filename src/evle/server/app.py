"""The application: one route per task, OpenAI's embeddings and models, re-ranking, health and metrics."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import torch
from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from evle import __version__
from evle.errors import EvleError, SampleError
from evle.server import openapi, schemas
from evle.server.errors import RefusedError, body_of, headers_of
from evle.server.gate import Gate
from evle.server.limits import Limits
from evle.server.models import ServedModel, choose
from evle.server.observing import Metrics
from evle.server.reading import check_form, check_json, form_fields, media_type
from evle.server.tasks import ENDPOINTS, Endpoint, Work, embed, in_order, matches, rerank_by_match, unreadable

READERS = 2
"""Threads that decode images and check requests."""


class Server:
    """Loaded models and what runs their requests: threads that read, and a thread per model that computes."""

    def __init__(self, models: Sequence[ServedModel], limits: Limits):
        self.models, self.limits = models, limits
        self.metrics = Metrics()
        self.readers: ThreadPoolExecutor | None = None
        self.ready = False
        self.started = int(time.time())

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Inside, requests are taken; at the end those that wait are answered."""
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        for model in self.models:
            model.start(self.limits, self.metrics.observe_batch)
            assert model.batcher is not None
            self.metrics.watch_queue(model.name, lambda batcher=model.batcher: batcher.waiting)  # type: ignore[misc]
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            for model in self.models:
                await asyncio.to_thread(model.close)
            self.readers.shutdown()

    async def read(self, request: Request, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function` in a thread that reads; it may raise RefusedError."""
        assert self.readers is not None
        loop = asyncio.get_running_loop()
        return await self._within(request, loop.run_in_executor(self.readers, function, *arguments))

    async def checked(self, request: Request, schema: type[schemas.Request]) -> Any:
        """The request's body as `schema`."""
        kind = media_type(request)
        if kind == "multipart/form-data":
            fields = await form_fields(request, schema, self.limits)
            return await self.read(request, check_form, fields, schema, self.limits)
        if kind != "application/json":
            raise RefusedError(
                415, f"the media type is {kind[:100]!r}; send application/json, or a form as multipart/form-data"
            )
        return await self.read(request, check_json, await request.body(), schema, self.limits)

    async def run(self, request: Request, model: ServedModel, work: Sequence[Work]) -> list[Any]:
        """The results of `work`, batched with that of other requests."""
        if model.batcher is None:
            raise RefusedError(503, "the server is not ready; try later")
        request.state.log_fields.update(model=model.name, rows=sum(each.rows for each in work))
        futures = []
        try:
            for each in work:
                futures.append(model.batcher.submit(each.key, each.run, each.payload, each.rows))
            return await self._within(request, asyncio.gather(*map(asyncio.wrap_future, futures)))
        finally:
            for future in futures:
                future.cancel()  # what nobody waits for any more leaves the queue

    async def _within(self, request: Request, waiting: Any) -> Any:
        try:
            async with asyncio.timeout(request.state.deadline - time.monotonic()):
                return await waiting
        except TimeoutError:
            raise RefusedError(503, f"no answer in {self.limits.seconds:g} seconds; try later") from None


def build_app(models: Sequence[ServedModel], *, limits: Limits | None = None, key: str | None = None) -> FastAPI:
    """The application that serves `models`, an ASGI app; with `key`, requests need the header Authorization."""
    limits = limits or Limits()
    server = Server(models, limits)
    app = FastAPI(
        title="evle",
        version=__version__,
        description="Vision-language encoders, asked over HTTP.",
        lifespan=server.running,
        docs_url=None,
        redoc_url=None,
    )
    app.state.server = server
    for endpoint in ENDPOINTS:
        _add_task(app, server, endpoint)
    _add_embeddings(app, server)
    _add_rerank(app, server)
    _add_operation(app, server)
    openapi.document(app, with_key=key is not None)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(EvleError, _refused)
    app.add_middleware(Gate, limits=limits, metrics=server.metrics, key=key)
    return app


def _add_task(app: FastAPI, server: Server, endpoint: Endpoint) -> None:
    async def task(request: Request) -> Response:
        asked = await server.checked(request, endpoint.request)
        model, ability = choose(server.models, asked.model, endpoint.ability)
        work = await server.read(request, endpoint.prepare, model.pipelines[ability], asked)
        (rows,) = await server.run(request, model, [work])
        return JSONResponse({"model": model.name, "results": rows})

    _post(app, f"/v1/{endpoint.name}", task, endpoint.request, endpoint.response, {"example": endpoint.example})


def _add_embeddings(app: FastAPI, server: Server) -> None:
    async def embeddings(request: Request) -> Response:
        asked = await server.checked(request, schemas.EmbeddingsRequest)
        model, ability = choose(server.models, asked.model, "embed")
        pipeline = model.pipelines[ability]
        if asked.user is not None:
            request.state.log_fields["user"] = asked.user
        work = await server.read(request, embed, pipeline, asked.input, "input")
        rows = in_order(asked.input, await server.run(request, model, work))
        width = len(rows[0][0])
        if asked.dimensions not in (None, width):
            raise RefusedError(422, f"dimensions: embeddings of {model.name} have {width} numbers; leave it out")
        tokens = sum(count for _, count in rows)
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, asked.encoding_format)}
            for index, (vector, _) in enumerate(rows)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "model": model.name, "data": data, "usage": usage})

    examples = {
        "texts": {"input": ["a red wall", "a blue sky"]},
        "images": {"input": [{"image": schemas.EXAMPLE_IMAGE}, {"text": "a red wall"}]},
    }
    _post(app, "/v1/embeddings", embeddings, schemas.EmbeddingsRequest, schemas.EmbeddingsResponse, examples)


def _encoded(vector: torch.Tensor, form: str) -> Any:
    if form == "float":
        return vector.tolist()
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()


def _add_rerank(app: FastAPI, server: Server) -> None:
    async def rerank(request: Request) -> Response:
        asked = await server.checked(request, schemas.RerankRequest)
        matched = matches(asked.query, asked.documents)
        model, ability = choose(server.models, asked.model, *(("match", "embed") if matched else ("embed",)))
        pipeline = model.pipelines[ability]
        if ability == "match":
            work = await server.read(request, rerank_by_match, pipeline, asked.query, asked.documents)
            (scores,) = await server.run(request, model, [work])
        else:
            sides = (([asked.query], "query", True), (asked.documents, "documents", False))
            work = [await server.read(request, embed, pipeline, *side) for side in sides]
            results = await server.run(request, model, [each for side in work for each in side])
            query, documents = results[: len(work[0])], results[len(work[0]) :]
            ((vector, _),) = in_order([asked.query], query)
            vectors = torch.stack([each for each, _ in in_order(asked.documents, documents)])
            scores = ((1 + vectors @ vector) / 2).clamp(0, 1).tolist()
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n]
        found: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
        if asked.return_documents:
            for row in found:
                if (text := asked.documents[row["index"]].text) is not None:
                    row["document"] = {"text": text}
        return JSONResponse({"id": request.state.request_id, "model": model.name, "results": found})

    examples = {
        "texts": {"query": {"image": schemas.EXAMPLE_IMAGE}, "documents": ["a red wall", "a blue sky"], "top_n": 1},
        "images": {"query": "a red wall", "documents": [{"image": schemas.EXAMPLE_IMAGE}]},
    }
    for path in ("/rerank", "/v1/rerank"):
        _post(app, path, rerank, schemas.RerankRequest, schemas.RerankResponse, examples)


def _post(
    app: FastAPI,
    path: str,
    function: Callable[..., Any],
    request: type[schemas.Request],
    response: type[Any],
    examples: dict[str, Any],
) -> None:
    app.add_api_route(
        path,
        function,
        methods=["POST"],
        summary=(request.__doc__ or "").strip(),
        operation_id=path.strip("/").replace("/", "_"),
        responses={200: {"model": response}, **openapi.ERRORS},
        response_model=None,
        openapi_extra={"requestBody": openapi.request_body(request, examples)},
    )


def _add_operation(app: FastAPI, server: Server) -> None:
    def get(path: str, function: Callable[..., Any], **options: Any) -> None:
        app.add_api_route(path, function, methods=["GET"], response_model=None, **options)

    async def healthz() -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz() -> Response:
        if not server.ready:
            raise RefusedError(503, "the server is not ready; try later")
        return JSONResponse({"status": "ready"})

    async def metrics() -> Response:
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def models() -> Response:
        cards = [
            {
                "id": model.name,
                "object": "model",
                "created": server.started,
                "owned_by": "evle",
                "abilities": list(model.pipelines),
            }
            for model in server.models
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def docs() -> Response:
        return HTMLResponse(openapi.page(app.openapi()))

    async def root() -> Response:
        return RedirectResponse("docs")

    errors = {status: openapi.ERRORS[status] for status in (401, 429, 500)}
    status = {200: {"model": schemas.Status}}
    get("/v1/models", models, responses={200: {"model": schemas.ModelsResponse}, **errors}, summary="What is loaded")
    get("/healthz", healthz, responses=status, summary="Is the process alive?")
    get("/readyz", readyz, responses={**status, 503: openapi.ERRORS[503]}, summary="Are requests taken?")
    get(
        "/metrics",
        metrics,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors},
        response_class=Response,
        summary="Metrics for Prometheus",
    )
    get("/docs", docs, include_in_schema=False)
    get("/", root, include_in_schema=False)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {404: "there is no such path; GET /docs lists them", 405: "this path takes another method"}.get(
        error.status_code, str(error.detail)
    )
    return _answer(request, error.status_code, message, dict(error.headers or {}))


async def _refused(request: Request, error: Exception) -> Response:
    """What a user can cause is 422, unless it says otherwise."""
    if isinstance(error, SampleError):
        error = unreadable(error)
    return _answer(request, getattr(error, "status", 422), " ".join(str(error).split())[:500], {})


def _answer(request: Request, status: int, message: str, headers: dict[str, str]) -> Response:
    request.state.log_fields["reason"] = message
    body = body_of(status, message, request.state.request_id)
    return JSONResponse(body, status, {**headers, **headers_of(status)})
