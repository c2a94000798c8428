"""Ask a question about an image; a language model can word the answer."""

from collections.abc import Sequence

import gradio as gr

from evle.demo import html, parts
from evle.demo.examples import Example
from evle.demo.served import Served
from evle.pipelines import LanguageModel, LanguageVQAPipeline


def build(models: Sequence[Served], examples: Sequence[Example], language: LanguageModel | None) -> None:
    """The controls of the tab."""

    def ask(name: str, path: str | None, question: str, caption: str) -> str:
        image, question = parts.image_of(path), parts.text_of(question, "question")
        described = parts.text_of(caption, "caption") if caption.strip() else None
        pipeline = LanguageVQAPipeline(parts.model_called(models, name).pipelines["ask"], language)
        row = pipeline(image, question, captions=described, top_k=5)[0]
        candidates = [(each["answer"], each["score"]) for each in row["answers"]]
        remark = "" if language is None else html.note("Worded by the language model, from the candidates below.")
        return html.headline(row["reply"]) + remark + html.bars(candidates, title="Candidates")

    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            image = parts.image_input("Image", examples[0].images[0])
            question = parts.text_input("Question", examples[0].text)
            caption = parts.text_input(
                "Caption of the image, for the language model (optional)", "", visible=language is not None
            )
            model = parts.model_input(models)
            button = gr.Button("Ask", variant="primary")
        with gr.Column(min_width=280):
            answer = gr.HTML(html.hint("The answer appears here, with the candidates and their probabilities."))
    read = [model, image, question, caption]
    parts.run_on([button.click, question.submit], ask, read, answer)
    buttons = parts.example_buttons([(example.text, example.images[0]) for example in examples])
    for example, chosen in zip(examples, buttons, strict=True):
        parts.fill_on(chosen, [str(example.images[0]), example.text], [image, question], ask, read, answer)
