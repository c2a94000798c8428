"""The verb that serves trained models over HTTP: `main` takes it in."""

import os
from typing import Annotated

import typer

from evle.errors import ConfigError

HOST, PORT = "127.0.0.1", 8000


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, model folders or hub names; NAME=MODEL gives a name.",
            metavar="MODEL...",
            show_default=False,
        ),
    ],
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for other machines.")] = HOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen at; 0 takes a free one.")] = PORT,
    key_variable: Annotated[
        str | None,
        typer.Option(help="The environment variable with the key that requests need.", show_default=False),
    ] = None,
    device: Annotated[str | None, typer.Option(help="The device, such as cuda:1.", show_default=False)] = None,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows of one batch through a model.")] = 16,
    wait_ms: Annotated[float, typer.Option(min=0, help="Milliseconds that a row waits for others.")] = 5.0,
    queue: Annotated[int, typer.Option(min=1, help="Rows that wait for one model; more get 429.")] = 512,
    requests: Annotated[int, typer.Option(min=1, help="Requests in work at once; more get 429.")] = 128,
    body_bytes: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 10_000_000,
    pixels: Annotated[int, typer.Option(min=1, help="Pixels of an image.")] = 25_000_000,
    texts: Annotated[int, typer.Option(min=1, help="Texts or documents of a request.")] = 64,
    text_length: Annotated[int, typer.Option(min=1, help="Characters of a text.")] = 2000,
    seconds: Annotated[float, typer.Option(min=0.05, help="Seconds from request to answer.")] = 30.0,
) -> None:
    """Serve models over HTTP.

    The page /docs lists every path with its fields and examples.

    \b
      evle serve runs/quickstart/vqa-pretrained runs/coco
      evle serve search=runs/coco --host 0.0.0.0 --key-variable EVLE_KEY
    """
    key = None
    if key_variable is not None:
        key = os.environ.get(key_variable, "").strip()
        if not key:
            raise ConfigError(f"--key-variable {key_variable}: this environment variable is empty; put the key into it")
    try:
        from evle.server import Limits, build_app, load_served
        from evle.server import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("fastapi", "uvicorn", "prometheus_client", "starlette"):
            raise ConfigError(f"{error.name} is not installed; run: pip install 'evle[serve]'") from None
        raise
    limits = Limits(
        body_bytes=body_bytes,
        pixels=pixels,
        texts=texts,
        text_length=text_length,
        requests=requests,
        queue=queue,
        batch_rows=batch_rows,
        wait_ms=wait_ms,
        seconds=seconds,
    )
    run(
        build_app(load_served(models, device=device, batch_rows=batch_rows), limits=limits, key=key),
        host=host,
        port=port,
    )


VERBS = (serve,)
