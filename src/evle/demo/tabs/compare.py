"""Decide whether a statement is true of two images."""

from collections.abc import Sequence

import gradio as gr

from evle.demo import html, parts
from evle.demo.examples import Example
from evle.demo.served import Served


def build(models: Sequence[Served], examples: Sequence[Example]) -> None:
    """The controls of the tab."""

    def compare(name: str, left: str | None, right: str | None, statement: str) -> str:
        images = parts.image_of(left, "left image"), parts.image_of(right, "right image")
        pipeline = parts.model_called(models, name).pipelines["compare"]
        score = pipeline(*images, parts.text_of(statement, "statement"))[0]["score"]
        rows = [("true", score), ("false", 1 - score)]
        return html.headline("true" if score >= 0.5 else "false") + html.bars(rows, chosen=int(score < 0.5))

    with gr.Row(equal_height=False):
        left = parts.image_input("Left image", examples[0].images[0])
        right = parts.image_input("Right image", examples[0].images[1])
        with gr.Column(min_width=280):
            statement = parts.text_input("Statement about both images", examples[0].text)
            model = parts.model_input(models)
            button = gr.Button("Compare", variant="primary")
            answer = gr.HTML(html.hint("Whether the statement is true of the two images appears here."))
    read = [model, left, right, statement]
    parts.run_on([button.click, statement.submit], compare, read, answer)
    buttons = parts.example_buttons([(example.text, example.images[0]) for example in examples])
    for example, chosen in zip(examples, buttons, strict=True):
        values = [*map(str, example.images), example.text]
        parts.fill_on(chosen, values, [left, right, statement], compare, read, answer)
