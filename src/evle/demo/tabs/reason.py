"""Choose one of four answers to a question about objects in an image, and then one of four reasons (VCR)."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw, ImageFont

from evle.data.samples import Box
from evle.demo import html, parts
from evle.demo.examples import Story
from evle.demo.served import Served
from evle.errors import ConfigError, EvleError
from evle.pipelines.typed import check_inside, typed_boxes, typed_sample, written_boxes

MODEL_CHOOSES = "let the model choose"
NUM_CHOICES = 4
MAX_OBJECTS = 10
COLOURS = ("#e4572e", "#17bebb", "#8e44ad", "#2e86ab", "#c98a00", "#3d9970", "#d6336c", "#495057")


def build(answering: Sequence[Served], reasoning: Sequence[Served], stories: Sequence[Story]) -> None:
    """The controls of the tab; `answering` models choose answers, `reasoning` models choose reasons."""

    def choose(answerer: str, reasoner: str, path: str | None, objects: str, question: str, right: str,
               *texts: str) -> str:  # fmt: skip
        image, boxes = parts.image_of(path), boxes_of(objects)
        if not boxes:
            raise ConfigError("there is no object; click two corners on the image below, or write one into the list")
        check_inside(boxes, image)
        answers, reasons = texts[:NUM_CHOICES], texts[NUM_CHOICES:]
        sample = typed_sample(
            image,
            boxes,
            parts.text_of(question, "question"),
            [parts.text_of(text, f"answer {i}") for i, text in enumerate(answers, 1)],
            [parts.text_of(text, f"reason {i}") for i, text in enumerate(reasons, 1)],
        )
        shown, because = [], ""
        if right == MODEL_CHOOSES:
            choice = parts.model_called(answering, answerer).pipelines["answer"]([sample])[0]
            number = choice.choice
            shown.append(html.bars(list(zip(answers, choice.scores, strict=True)), number, "Answers"))
        else:
            number = int(right) - 1
        if reasoning:
            choice = parts.model_called(reasoning, reasoner).pipelines["reason"]([sample], answers=[number])[0]
            shown.append(html.bars(list(zip(reasons, choice.scores, strict=True)), choice.choice, "Reasons"))
            because = html.note(f"because {reasons[choice.choice]}")
        return html.headline(answers[number]) + because + "".join(shown)

    first = stories[0]
    corner = gr.State(None)
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            image = parts.image_input("Image", first.image)
            preview = gr.Image(
                drawn(parts.image_of(str(first.image)), first.objects), label="Objects",
                interactive=False, height=280, buttons=[], format="png",
                elem_classes="evle-preview",
            )  # fmt: skip
            gr.HTML(html.note("Click two corners to draw an object. Click in a box to name it in the question."))
            objects = gr.Textbox(
                written_boxes(first.objects), label="Objects, one per line: name left top width height (pixels)",
                lines=4, max_lines=MAX_OBJECTS, elem_id="evle-objects",
            )  # fmt: skip
        with gr.Column(min_width=280):
            question = gr.Textbox(first.question, label="Question; [1] names the first object", max_lines=4)
            answers = [gr.Textbox(text, label=f"Answer {i}", max_lines=3) for i, text in enumerate(first.answers, 1)]
            with gr.Accordion("Reasons", open=False, visible=bool(reasoning)):
                reasons = [
                    gr.Textbox(text, label=f"Reason {i}", max_lines=3) for i, text in enumerate(first.reasons, 1)
                ]
            choices = [*([MODEL_CHOOSES] if answering else []), *map(str, range(1, NUM_CHOICES + 1))]
            right = gr.Dropdown(
                choices, value=choices[0], label="Give reasons for answer", filterable=False, visible=bool(reasoning)
            )
            answerer = parts.model_input(answering or reasoning)
            reasoner = parts.model_input(reasoning or answering, "Model of the reasons")
            button = gr.Button("Choose", variant="primary")
        with gr.Column(min_width=280):
            answer = gr.HTML(html.hint("The chosen answer and its reason appear here."))
    read = [answerer, reasoner, image, objects, question, right, *answers, *reasons]
    parts.run_on([button.click, question.submit], choose, read, answer)
    _connect_boxes(image, preview, objects, question, corner, answer)
    filled = [image, objects, question, *answers, *reasons]
    for story, chosen in zip(
        stories, parts.example_buttons([(story.question, story.image) for story in stories]), strict=True
    ):
        values = [str(story.image), written_boxes(story.objects), story.question, *story.answers, *story.reasons]
        chosen.click(lambda values=values: values, None, filled, show_progress="hidden", api_visibility="private").then(
            redrawn, [image, objects], [preview, corner], show_progress="hidden", api_visibility="private"
        ).then(parts.on_page(choose), read, answer, show_progress="minimal", api_visibility="private")


def _connect_boxes(image: Any, preview: Any, objects: Any, question: Any, corner: Any, answer: Any) -> None:
    """Clicks on the preview draw and pick boxes; a new image or a changed list redraws it."""

    def clicked(path: str | None, text: str, asked: str, start: Any, event: gr.SelectData) -> tuple[Any, ...]:
        try:
            text, asked, start = after_click(text, asked, start, (float(event.index[0]), float(event.index[1])))
            return text, asked, start, drawn(parts.image_of(path), boxes_of(text), start), gr.skip()
        except EvleError as error:
            return text, asked, None, gr.skip(), html.alert(str(error))

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    preview.select(clicked, [image, objects, question, corner], [objects, question, corner, preview, answer], **quiet)
    image.input(lambda: ("", None), None, [objects, corner], **quiet).then(
        redrawn, [image, objects], [preview, corner], **quiet
    )
    objects.blur(redrawn, [image, objects], [preview, corner], **quiet)


def redrawn(path: str | None, text: str) -> tuple[Any, None]:
    """The preview of what is in the inputs; what cannot be read is reported when a visitor presses the button."""
    try:
        return drawn(parts.image_of(path), boxes_of(text)), None
    except EvleError:
        return None, None


def after_click(
    text: str, question: str, start: tuple[float, float] | None, point: tuple[float, float]
) -> tuple[str, str, tuple[float, float] | None]:
    """The list of objects, the question and the first corner of a new box, after a click at `point`.

    A click in a box appends its tag to the question; a click elsewhere is the first corner of a new box, and the next
    click its second.
    """
    boxes = boxes_of(text)
    if start is not None:
        (left, right), (top, bottom) = sorted((start[0], point[0])), sorted((start[1], point[1]))
        if right - left < 2 or bottom - top < 2:
            raise ConfigError("both corners are at the same position; click two opposite corners of the object")
        return written_boxes([*boxes, Box(left, top, right - left, bottom - top, "thing")]), question, None
    inside = [
        index
        for index, box in enumerate(boxes, 1)
        if box.x <= point[0] <= box.x + box.width and box.y <= point[1] <= box.y + box.height
    ]
    if inside:
        smallest = min(inside, key=lambda index: boxes[index - 1].width * boxes[index - 1].height)
        return text, f"{question.rstrip()} [{smallest}]".lstrip(), None
    return text, question, point


def boxes_of(text: str) -> tuple[Box, ...]:
    """The objects of the page's list, one per line. Raises SampleError that names the line that cannot be read."""
    return typed_boxes(parts.text_of(text, "list of objects").splitlines() if (text or "").strip() else [], MAX_OBJECTS)


def drawn(image: Image.Image, boxes: Sequence[Box], start: tuple[float, float] | None = None) -> Image.Image:
    """`image` with numbered boxes, and a cross at the first corner of a new one."""
    shown = image.copy()
    draw = ImageDraw.Draw(shown)
    line = max(1, round(max(image.size) / 160))
    font = ImageFont.load_default(size=max(9, round(max(image.size) / 22)))
    for number, box in enumerate(boxes, 1):
        colour = COLOURS[(number - 1) % len(COLOURS)]
        draw.rectangle((box.x, box.y, box.x + box.width, box.y + box.height), outline=colour, width=line)
        left, top, right, bottom = draw.textbbox((box.x + line, box.y + line), str(number), font=font)
        draw.rectangle((left - line, top - line, right + line, bottom + line), fill=colour)
        draw.text((box.x + line, box.y + line), str(number), fill="white", font=font)
    if start is not None:
        x, y = start
        for ends in ((x - 5 * line, y, x + 5 * line, y), (x, y - 5 * line, x, y + 5 * line)):
            draw.line(ends, fill=COLOURS[0], width=line)
    return shown
