"""A page in the browser on which trained models can be tried: ask, search, compare, reason, locate, explain."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from evle.errors import ConfigError

if TYPE_CHECKING:
    from evle.pipelines import LanguageModel

HOST, PORT = "127.0.0.1", 7860


def launch(
    models: Sequence[str | Path] = (),
    *,
    index: str | Path | None = None,
    language: "LanguageModel | None" = None,
    host: str = HOST,
    port: int = PORT,
    browser: bool = False,
) -> None:
    """Load `models`, serve the page at `host`:`port`, and return when the process is interrupted.

    The default is every model in `models/`, in the working directory or in the checkout. `index` is an image index to
    search instead of the example images; `language` words the answers of the ask tab; `browser` opens the page. Raises
    ConfigError without gradio, without a model, and for a port that is in use, and what loading a model raises.
    """
    if find_spec("gradio") is None:
        raise ConfigError("the demo needs gradio; install it with: pip install 'evle[demo]'")
    from evle.demo.page import serve

    serve(models, index=index, language=language, host=host, port=port, browser=browser)
