"""The page: its tabs, its look, and the server that shows it on this machine without calling any other."""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: it would report to its makers

import gradio as gr

from evle.demo.examples import ExampleImages
from evle.demo.served import Served, load_all
from evle.demo.tabs import ask, compare, explain, locate, reason, search
from evle.errors import ConfigError
from evle.pipelines import EmbedPipeline, LanguageModel, Pipeline
from evle.search import ImageIndex, build_index

log = logging.getLogger(__name__)

MAX_FILE = "50mb"
CSS = Path(__file__).with_name("page.css")
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "DejaVu Sans Mono", "monospace")
HEAD = (
    "<header class='evle-head'><h1>evle</h1><p>Trained vision-language encoders, answering on this machine. "
    "Images that you upload stay here.</p></header>"
)


def serve(
    sources: Sequence[str | Path],
    *,
    index: str | Path | None = None,
    language: LanguageModel | None = None,
    host: str,
    port: int,
    browser: bool = False,
) -> None:
    """`evle.demo.launch`, once gradio is known to be installed."""
    with demo(sources, index=index, language=language) as page:
        start(page, host=host, port=port, browser=browser)
        page.block_thread()


def start(page: gr.Blocks, *, host: str, port: int, browser: bool = False) -> str:
    """Serve `page` in a thread; returns its URL. Raises ConfigError for a port that cannot be used."""
    try:
        _, url, _ = page.launch(
            server_name=host, server_port=port, inbrowser=browser, prevent_thread_lock=True, quiet=True, share=False,
            ssr_mode=False, show_error=False, max_file_size=MAX_FILE, footer_links=[], theme=theme(), css_paths=CSS,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"port {port} of {host} cannot be used ({error}); choose another one with --port") from None
    log.info("the demo is at %s (Ctrl+C ends it)", url)
    return str(url)


@contextmanager
def demo(
    sources: Sequence[str | Path], *, index: str | Path | None = None, language: LanguageModel | None = None
) -> Iterator[gr.Blocks]:
    """The page of the models in `sources`; example images and their indices last as long as the context."""
    opened = None if index is None else ImageIndex.load(index)
    if opened is not None:
        _ = opened.embed  # a model that has gone or changed ends the command, not each search
    models = load_all(sources)
    with tempfile.TemporaryDirectory(prefix="evle-demo-", ignore_cleanup_errors=True) as folder:
        page = build(models, Path(folder), opened, language)
        try:
            yield page
        finally:
            page.close(verbose=False)


def build(
    models: Sequence[Served], folder: Path, opened: ImageIndex | None, language: LanguageModel | None
) -> gr.Blocks:
    """The page with the tabs that `models` can serve; `folder` takes example images and indices."""

    def able(ability: str) -> list[Served]:
        return [model for model in models if ability in model.pipelines]

    images = ExampleImages(folder)
    with gr.Blocks(title="evle", analytics_enabled=False) as page:
        page.queue(default_concurrency_limit=2, max_size=64, api_open=False)
        gr.HTML(HEAD)
        with gr.Tabs(overflow_behavior="wrap"):
            if asked := able("ask"):
                with gr.Tab("Ask", id="ask"):
                    ask.build(asked, images.questions(asked[0].scenes), language)
            searched = [Served(opened.path.name, str(opened.path))] if opened is not None else able("search")
            if searched:
                with gr.Tab("Search", id="search"):
                    matcher = next((model.pipelines["match"] for model in able("match")), None)
                    _build_search(searched, images, opened, matcher)
            if compared := able("compare"):
                with gr.Tab("Compare", id="compare"):
                    compare.build(compared, images.statements(compared[0].scenes))
            if chosen := [*able("answer"), *able("reason")]:
                with gr.Tab("Reason", id="reason"):
                    reason.build(able("answer"), able("reason"), images.stories(chosen[0].scenes))
            if located := able("locate"):
                with gr.Tab("Locate", id="locate"):
                    locate.build(located, images.captions(located[0].scenes))
            # A model that answers comes first: its examples are questions, and its maps are those of an answer.
            if explained := sorted(able("explain"), key=lambda model: "ask" not in model.pipelines):
                with gr.Tab("Explain", id="explain"):
                    first = explained[0]
                    of_kind = images.questions if "ask" in first.pipelines else images.captions
                    explain.build(explained, of_kind(first.scenes))
    return page


def _build_search(
    models: Sequence[Served], images: ExampleImages, opened: ImageIndex | None, matcher: Pipeline | None
) -> None:
    """The tab of search; without an index of the user's, one of example images is made for each model."""
    scenes = None if opened is not None else models[0].scenes
    if opened is not None:
        indices = {models[0].name: opened}
        matcher = matcher or _own_matcher(opened)
        queries = [str(text) for text in images.queries(None)]
    else:
        indices = {}
        table = images.search_table(scenes)
        for number, model in enumerate(models):
            embed: EmbedPipeline = model.pipelines["search"]
            output = images.folder / f"index-{number}"
            build_index(embed, table, output, progress=False)
            own = model.pipelines.get("match", matcher)
            indices[model.name] = ImageIndex.load(output, model=embed, match_model=own)
        queries = images.queries(scenes)
    search.build(models, indices, queries, reranks=matcher is not None)


def _own_matcher(opened: ImageIndex) -> Any:
    """The matching head of the model that made an index, or None where it has none."""
    try:
        return opened.match
    except ConfigError:
        return None


def theme() -> gr.themes.Base:
    """System fonts, so that nothing is downloaded; colours for light and dark."""
    look = gr.themes.Base(
        primary_hue=gr.themes.colors.blue, neutral_hue=gr.themes.colors.slate, radius_size=gr.themes.sizes.radius_lg,
        font=FONT, font_mono=MONO,
    )  # fmt: skip
    return look.set(  # with enough contrast for small type, and for white on the main button
        body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400",
        block_label_text_color="*neutral_600", block_label_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_600", block_title_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_600", button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600", button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        checkbox_border_color="*neutral_500", checkbox_border_color_dark="*neutral_400",
    )  # fmt: skip
