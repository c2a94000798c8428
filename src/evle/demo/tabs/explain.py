"""Show where a model looked for each word: hover a word or choose it, and see its map."""

from collections.abc import Sequence
from itertools import count

import gradio as gr

from evle.demo import html, parts
from evle.demo.examples import Example
from evle.demo.served import Served
from evle.transforms.heatmap import heat

numbers = count()


def build(models: Sequence[Served], examples: Sequence[Example]) -> None:
    """The controls of the tab."""

    def explain(name: str, path: str | None, text: str, method: str) -> str:
        pipeline = parts.model_called(models, name).pipelines["explain"]
        explanation = pipeline(parts.image_of(path), parts.text_of(text, "text"), method=method)
        maps = [
            (name, heat(explanation.image, weights / max(float(weights.max()), 1e-12), framing=explanation.framing))
            for name, weights in [
                ("all words", explanation.whole),
                *zip(explanation.words, explanation.maps, strict=True),
            ]
        ]
        answer = html.headline(f"{explanation.answer} ({explanation.score:.0%})") if explanation.answer else ""
        remark = html.note("Hover a word, or choose it: its map covers the image, brightest where it is highest.")
        return answer + html.layers(explanation.image, maps, f"words-{next(numbers)}") + remark

    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            image = parts.image_input("Image", examples[0].images[0])
            text = parts.text_input("Text", examples[0].text)
            method = methods_of(models[0])
            model = parts.model_input(models)
            model.input(
                lambda name: methods_of(parts.model_called(models, name)), model, method, show_progress="hidden",
                api_visibility="private",
            )  # fmt: skip
            button = gr.Button("Explain", variant="primary")
        with gr.Column(min_width=280):
            answer = gr.HTML(html.hint("The words appear here; each shows where the model looked for it."))
    read = [model, image, text, method]
    parts.run_on([button.click, text.submit, method.input], explain, read, answer)
    buttons = parts.example_buttons([(example.text, example.images[0]) for example in examples])
    for example, chosen in zip(examples, buttons, strict=True):
        parts.fill_on(chosen, [str(example.images[0]), example.text], [image, text], explain, read, answer)


def methods_of(model: Served) -> gr.Radio:
    """The choice between the methods that a model has."""
    methods = model.pipelines["explain"].methods
    return gr.Radio(list(methods), value=methods[0], label="Method")
