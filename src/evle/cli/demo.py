"""The verb that shows trained models on a page in the browser: `main` takes it in."""

from pathlib import Path
from typing import Annotated

import typer

from evle.errors import ConfigError

HOST, PORT, CHAT_MODEL, KEY_VARIABLE = "127.0.0.1", 7860, "default", "OPENAI_API_KEY"


def demo(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Run folders, model folders or hub names; default: those in models/.", show_default=False),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(help="An image index to search, instead of the example images.", show_default=False),
    ] = None,
    chat: Annotated[
        str | None,
        typer.Option(help="Base URL of a chat server (OpenAI's protocol) that words answers.", show_default=False),
    ] = None,
    chat_model: Annotated[
        str | None, typer.Option(help="The model's name on that server.", show_default=CHAT_MODEL)
    ] = None,
    key_variable: Annotated[
        str | None, typer.Option(help="The environment variable with its key.", show_default=KEY_VARIABLE)
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for other machines.")] = HOST,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen at.")] = PORT,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Try models on a page in the browser.

    \b
      evle demo
      evle demo runs/quickstart/vqa-pretrained runs/quickstart/retrieval-pretrained
      evle demo runs/vqa --chat http://localhost:8000/v1 --chat-model NAME
    """
    from evle.demo import launch

    language = None
    if chat is not None:
        from evle.pipelines import ChatEndpoint

        language = ChatEndpoint(chat, chat_model or CHAT_MODEL, key_variable or KEY_VARIABLE)
    elif chat_model is not None or key_variable is not None:
        option = "--chat-model" if chat_model is not None else "--key-variable"
        raise ConfigError(f"{option} is for a chat server; name the server with --chat")
    launch(models or (), index=index, language=language, host=host, port=port, browser=browser)


VERBS = (demo,)
