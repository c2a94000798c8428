"""Search images by words while they are typed, or by another image."""

from collections.abc import Mapping, Sequence

import gradio as gr

from evle.data.images import open_image
from evle.demo import html, parts
from evle.demo.served import Served
from evle.errors import SampleError
from evle.search import Hit, ImageIndex

COUNTS = (4, 8, 16, 24)
RERANKED = 24
"""How many of the best images are looked at again when the results are re-ranked."""


def build(models: Sequence[Served], indices: Mapping[str, ImageIndex], queries: Sequence[str], reranks: bool) -> None:
    """The controls of the tab; `indices` by the names of `models`, `reranks` where their images can be matched."""

    def by_text(name: str, text: str, count: int, rerank: bool) -> str:
        index = indices[parts.model_called(models, name).name]
        return shown(index.query(parts.text_of(text, "query"), k=count, rerank=RERANKED if rerank else 0))

    def by_image(name: str, path: str | None, count: int) -> str:
        index = indices[parts.model_called(models, name).name]
        return shown(index.query(image=parts.image_of(path), k=count))

    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            text = parts.text_input("Look for", "", placeholder=queries[0])
            rerank = gr.Checkbox(False, label="Re-rank with the matching head", visible=reranks)
            count = gr.Dropdown(list(COUNTS), value=COUNTS[1], label="Results", filterable=False)
            model = parts.model_input(models)
            button = gr.Button("Search", variant="primary")
            with gr.Accordion("Search by an image", open=False):
                image = parts.image_input("Image")
                like_button = gr.Button("Find images like this one")
        with gr.Column(min_width=280, scale=2):
            answer = gr.HTML(html.hint(f"The best of {len(indices[models[0].name])} images appear here as you type."))
    read = [model, text, count, rerank]
    parts.run_on([button.click, text.input, text.submit, rerank.input, count.input], by_text, read, answer)
    parts.run_on([like_button.click], by_image, [model, image, count], answer)
    for query, chosen in zip(queries, parts.example_buttons([(query, None) for query in queries]), strict=True):
        parts.fill_on(chosen, [query], [text], by_text, read, answer)


def shown(hits: Sequence[Hit]) -> str:
    """The hits as a grid; an image that has gone since it was indexed is named."""
    items, gone = [], []
    for hit in hits:
        try:
            image = open_image(hit.path, size_hint=480)
        except SampleError:
            gone.append(hit.key)
            continue
        note = f"similarity {hit.score:.2f}" + ("" if hit.match is None else f" · match {hit.match:.0%}")
        items.append((image, hit.caption or hit.key, note))
    missing = html.alert(f"no longer readable: {', '.join(gone)}; bring the index up to date") if gone else ""
    return html.cards(items) + missing
