"""What the tabs share: inputs, examples, checks of what a visitor gave, and errors shown on the page."""

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from evle.data.images import open_image
from evle.demo import html
from evle.demo.served import Served
from evle.errors import ConfigError, EvleError, SampleError

log = logging.getLogger(__name__)

MAX_CHARACTERS = 1000
"""A longer text is refused: a model would silently read its beginning alone."""
MAX_PIXELS = 60_000_000


def image_input(label: str, value: Path | None = None) -> gr.Image:
    """An image that is uploaded, pasted or taken with a camera; handlers get the path of its file.

    gradio would open the file itself, and answer a damaged one or a decompression bomb with its own error.
    """
    image = gr.Image(
        None if value is None else str(value),
        label=label,
        type="filepath",
        sources=["upload", "webcam", "clipboard"],
        height=280,
        buttons=[],
        interactive=True,
    )
    image.preprocess = _path_of  # type: ignore[method-assign]
    return image


def _path_of(payload: Any) -> Any:
    return payload and payload.path


def text_input(label: str, value: str, **options: Any) -> gr.Textbox:
    """One line of text."""
    return gr.Textbox(value, label=label, max_lines=4, **options)


def model_input(models: Sequence[Served], label: str = "Model") -> gr.Dropdown:
    """The choice between models, hidden where there is none."""
    names = [model.name for model in models]
    return gr.Dropdown(names, value=names[0], label=label, visible=len(names) > 1, filterable=False)


def example_buttons(examples: Sequence[tuple[str, Path | None]]) -> list[gr.Button]:
    """One button per example, with its text and its image."""
    gr.HTML('<div class="evle-examples-title">Examples</div>')
    with gr.Row(elem_classes="evle-examples"):
        return [
            gr.Button(text, icon=None if image is None else str(image), size="sm", min_width=120)
            for text, image in examples
        ]


def model_called(models: Sequence[Served], name: str) -> Served:
    """The model that a visitor chose."""
    return next((model for model in models if model.name == name), models[0])


def image_of(path: str | None, what: str = "image") -> Image.Image:
    """The image that a visitor gave. Raises ConfigError for none, SampleError for one that cannot be read."""
    if not path:
        raise ConfigError(f"there is no {what}; upload, paste or take one, or choose an example")
    try:
        return open_image(path, max_pixels=MAX_PIXELS)
    except SampleError as error:
        reason = str(error).replace(str(path), Path(path).name).partition("; ")[0]
        raise SampleError(f"{reason}; choose another image") from None


def text_of(text: str | None, what: str) -> str:
    """The text that a visitor typed. Raises ConfigError for none and for one of more than MAX_CHARACTERS."""
    text = (text or "").strip()
    if not text:
        raise ConfigError(f"the {what} is empty; type one, or choose an example")
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"the {what} has {len(text):,} characters; shorten it to {MAX_CHARACTERS:,} or fewer")
    return text


def on_page(function: Callable[..., str]) -> Callable[..., str]:
    """A handler whose errors appear on the page, in place of its HTML."""

    @wraps(function)
    def call(*values: Any) -> str:
        try:
            return html.result(function(*values))
        except EvleError as error:
            return html.alert(str(error))
        except Exception:  # a fault of ours: the visitor and the terminal see it, and the page keeps working
            log.exception("the demo failed to answer")
            return html.alert("something went wrong; the terminal that runs the demo shows the details")

    return call


def run_on(events: Sequence[Any], handler: Callable[..., str], inputs: Sequence[Any], output: Any) -> None:
    """Run `handler` at any of `events`; of events that arrive while it runs, only the last is kept."""
    gr.on(
        list(events), on_page(handler), list(inputs), output, trigger_mode="always_last", show_progress="minimal",
        api_visibility="private",
    )  # fmt: skip


def fill_on(button: gr.Button, values: Sequence[Any], inputs: Sequence[Any], handler: Any, read: Any, out: Any) -> None:
    """At a click, put an example's `values` into `inputs` and run `handler` on `read`."""
    filled = values[0] if len(values) == 1 else list(values)
    button.click(lambda: filled, None, list(inputs), show_progress="hidden", api_visibility="private").then(
        on_page(handler), list(read), out, show_progress="minimal", api_visibility="private"
    )
