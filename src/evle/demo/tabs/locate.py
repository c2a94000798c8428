"""Show which patches of an image a phrase describes."""

from collections.abc import Sequence

import gradio as gr

from evle.demo import html, parts
from evle.demo.examples import Example
from evle.demo.served import Served


def build(models: Sequence[Served], examples: Sequence[Example]) -> None:
    """The controls of the tab."""

    def locate(name: str, path: str | None, phrase: str) -> str:
        phrase = parts.text_of(phrase, "phrase")
        location = parts.model_called(models, name).pipelines["locate"](parts.image_of(path), phrase)[0]
        best = float(location.scores.max())
        return html.figure(
            location.image, f"“{phrase}”: brighter patches are likelier; the best has a probability of {best:.0%}"
        )

    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            image = parts.image_input("Image", examples[0].images[0])
            phrase = parts.text_input("Phrase", examples[0].text)
            model = parts.model_input(models)
            button = gr.Button("Locate", variant="primary")
        with gr.Column(min_width=280):
            answer = gr.HTML(html.hint("The image appears here, brighter where the phrase describes it."))
    read = [model, image, phrase]
    parts.run_on([button.click, phrase.submit], locate, read, answer)
    buttons = parts.example_buttons([(example.text, example.images[0]) for example in examples])
    for example, chosen in zip(examples, buttons, strict=True):
        parts.fill_on(chosen, [str(example.images[0]), example.text], [image, phrase], locate, read, answer)
