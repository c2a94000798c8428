"""Show which patches of an image a phrase describes."""

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

    def locate(name: str, path: str | None, phrase: str) -> str:
        phrase = text_of(phrase, "phrase")
        location = model_called(models, name).pipelines["locate"](image_of(path), phrase)[0]
        best = float(location.scores.max())
        return html.figure(
            location.image, f"“{phrase}”: brighter patches are likelier; the best has a probability of {best:.0%}"
        )

    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            image = image_input("Image", examples[0].images[0])
            phrase = text_input("Phrase", examples[0].text)
            model = model_input(models)
            button = gr.Button("Locate", variant="primary")
        with gr.Column(min_width=280):
            answer = gr.HTML(html.hint("The image appears here, brighter where the phrase describes it."))
    read = [model, image, phrase]
    run_on([button.click, phrase.submit], locate, read, answer)
    buttons = example_buttons([(example.text, example.images[0]) for example in examples])
    for example, chosen in zip(examples, buttons, strict=True):
        fill_on(chosen, [str(example.images[0]), example.text], [image, phrase], locate, read, answer)
