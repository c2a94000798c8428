"""The verb that shows trained models on a page in the browser: `main` takes it in."""

from pathlib import Path
from typing import Annotated

import typer

from evle.cli.shared import ChatModel, ChatURL, KeyVariable, chat_server

HOST, PORT = "127.0.0.1", 7860


def demo(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Run folders, model folders or hub names; default: those in models/.", show_default=False),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(help="An image index to search, instead of the example images.", show_default=False),
    ] = None,
    chat: ChatURL = None,
    chat_model: ChatModel = None,
    key_variable: KeyVariable = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for other machines.")] = HOST,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen at.")] = PORT,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Try models on a page in the browser.

    \b
      evle demo
      evle demo runs/quickstart/vqa-pretrained \\
          runs/quickstart/retrieval-pretrained
      evle demo runs/vqa --chat http://localhost:8000/v1 --chat-model NAME
    """
    from evle.demo import launch

    language = None
    if (endpoint := chat_server(chat, chat_model, key_variable)) is not None:
        from evle.pipelines import ChatEndpoint

        language = ChatEndpoint(*endpoint)
    launch(models or (), index=index, language=language, host=host, port=port, browser=browser)


VERBS = (demo,)
