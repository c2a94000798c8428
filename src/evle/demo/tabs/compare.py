"""Decide whether a statement is true of two images."""

from collections.abc import Sequence

import gradio as gr

from evle.demo import html
from evle.demo.examples import Example
from evle.demo.parts import (
    example_buttons,
    fill_on,
    image_input,
    image_of,
    model_called,
    model_input,
    run_on,
    text_input,
    text_of,
)
from evle.demo.served import Served


def build(models: Sequence[Served], examples: Sequence[Example]) -> None:
    """The controls of the tab."""

    def compare(name: str, left: str | None, right: str | None, statement: str) -> str:
        images = image_of(left, "left image"), image_of(right, "right image")
        pipeline = model_called(models, name).pipelines["compare"]
        score = pipeline(*images, text_of(statement, "statement"))[0]["score"]
        rows = [("true", score), ("false", 1 - score)]
        return html.headline("true" if score >= 0.5 else "false") + html.bars(rows, chosen=int(score < 0.5))

    with gr.Row(equal_height=False):
        left = image_input("Left image", examples[0].images[0])
        right = image_input("Right image", examples[0].images[1])
        with gr.Column(min_width=280):
            statement = text_input("Statement about both images", examples[0].text)
            model = model_input(models)
            button = gr.Button("Compare", variant="primary")
            answer = gr.HTML(html.hint("Whether the statement is true of the two images appears here."))
    read = [model, left, right, statement]
    run_on([button.click, statement.submit], compare, read, answer)
    buttons = example_buttons([(example.text, example.images[0]) for example in examples])
    for example, chosen in zip(examples, buttons, strict=True):
        values = [*map(str, example.images), example.text]
        fill_on(chosen, values, [left, right, statement], compare, read, answer)
