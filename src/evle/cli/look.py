"""The verbs that ask about parts of an image: where, why, and which of its objects; `main` takes them in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from evle.cli.opening import open_pipeline
from evle.cli.shared import (
    SHOWN_IMAGES,
    AsJson,
    Image,
    Model,
    answering,
    checked_text,
    file_name,
    image_source,
    numbered,
    print_json,
    print_next,
    print_opening,
    refuse_replacing,
    text_list,
)
from evle.errors import ConfigError, DataError, SampleError

PAGE = ".html"
MAX_LINE = 1_000_000
"""Characters of a line of JSON."""
NO_REASONER = "reasons need a model that chooses them (vcr-qa2r); name it with --reason-model"


def locate(
    model: Model,
    image: Image,
    text: Annotated[
        str, typer.Argument(help="A phrase that names what to find; - reads one per line.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The image to write; numbered if several.", show_default=False
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Paint where an image shows what a phrase names.

    Takes a VLE pre-trained with patch-box classification (pbc).

    \b
      evle locate runs/vle a.jpg "the red circle" -o found.png
    """
    file_name(output, *SHOWN_IMAGES)
    texts, source = text_list([text], image), image_source(image)
    refuse_replacing((numbered(output, number, len(texts)) for number in range(len(texts))), [image])
    pipeline = open_pipeline("LocalisePipeline", model)
    with answering() as answered:
        rows = answered.each(texts, lambda some: pipeline(source, some))
        for number, (phrase, location) in enumerate(rows):
            file = numbered(output, number, len(rows))
            location.image.save(file)
            if as_json:
                print_json({"text": phrase, "output": file, "scores": location.scores.tolist()})
                continue
            surer, most = int((location.scores > 0.5).sum()), float(location.scores.max())
            print(f"{file}: {surer} of {len(location.scores) ** 2} patches above 50 %, the highest {most:.1%}")
        if rows:
            named = "IMAGE" if str(image) == "-" else image
            print_next("evle", "explain", model, named, rows[0][0], "--method", "pbc", "-o", output.with_suffix(PAGE))


def explain(
    model: Model,
    image: Image,
    text: Annotated[str, typer.Argument(help="A text or a question; - reads one per line.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="A page (.html) or an image to write; numbered if several.",
            show_default=False,
        ),
    ],
    method: Annotated[
        str, typer.Option(help="rollout, attention, gradient (EVE with a head) or pbc (VLE).")
    ] = "rollout",
    as_json: AsJson = False,
) -> None:
    """Show a map over the image for each word of a text.

    On the page, hover or choose a word to see its map, with the answer of the model.

    \b
      evle explain runs/quickstart/vqa-pretrained a.jpg \\
          "which colour is the circle?" -o page.html
      evle explain runs/vle a.jpg "a red circle" --method pbc -o maps.png
    """
    from evle.pipelines.explaining import ExplainPipeline

    file_name(output, PAGE, *SHOWN_IMAGES)
    texts, source = text_list([text], image), image_source(image)
    refuse_replacing((numbered(output, number, len(texts)) for number in range(len(texts))), [image])
    pipeline = ExplainPipeline(model)
    with answering() as answered:
        rows = answered.each(texts, lambda some: [pipeline(source, each, method=method) for each in some])
        for number, (asked, explained) in enumerate(rows):
            file = explained.save(numbered(output, number, len(rows)))
            if as_json:
                pairs = zip(explained.words, explained.maps, strict=True)
                maps = [{"word": word, "map": each.tolist()} for word, each in pairs]
                answer = {"answer": explained.answer, "score": explained.score} if explained.answer else {}
                print_json({"text": asked, "output": file, **answer, "words": maps})
                continue
            answer_words = f"; {explained.answer} {explained.score:.1%}" if explained.answer else ""
            print(f"{file}: {len(explained.words)} words, brightest where the map is highest{answer_words}")
        if rows:
            print_opening(output)


class Story(NamedTuple):
    """A question about the objects of an image, as it is typed."""

    image: Any
    objects: list[str]
    question: str
    answers: list[str]
    reasons: list[str]
    right: int | None


def reason(
    model: Model,
    image: Image,
    question: Annotated[
        str,
        typer.Argument(help="The question; [1] names the first object. - reads JSON lines.", show_default=False),
    ],
    objects: Annotated[
        list[str] | None,
        typer.Option("--object", help='An object, "name left top width height"; repeat.', show_default=False),
    ] = None,
    answers: Annotated[
        list[str] | None, typer.Option("--answer", "-a", help="A possible answer; repeat.", show_default=False)
    ] = None,
    reasons: Annotated[
        list[str] | None, typer.Option("--reason", "-r", help="A possible reason; repeat.", show_default=False)
    ] = None,
    reason_model: Annotated[
        str | None,
        typer.Option(help="The model that chooses reasons (vcr-qa2r), if MODEL answers.", show_default=False),
    ] = None,
    right: Annotated[
        int | None,
        typer.Option(min=1, help="The right answer, from 1: MODEL then chooses the reason alone.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose an answer about objects, and a reason.

    MODEL is a run of vcr-q2a, or with --right of vcr-qa2r. With - as the question, each line of stdin is a JSON object
    with the keys question, objects, answers, reasons and image; those that options give can be left out.

    \b
      evle reason runs/q2a a.jpg "why is [1] here?" --object "person 2 2 40 80" \\
          -a "[1] waits" -a "[1] works"
      evle reason runs/q2a a.jpg - --reason-model runs/qa2r \\
          --json < questions.jsonl
    """
    from evle.pipelines import AnswerChoicePipeline, ReasonChoicePipeline

    given = Story(None, objects or [], question, answers or [], reasons or [], right)
    lines = text_list([question], image)
    source = image_source(image)
    listed = question == "-"
    if not listed and (wrong := _problem(given)):
        raise ConfigError(wrong)
    only_reasons = right is not None
    choosing = None if only_reasons else AnswerChoicePipeline(model)
    reasoner = model if only_reasons else reason_model
    if only_reasons and reason_model is not None:
        raise ConfigError("--right leaves only the reason to choose: give its model as MODEL, without --reason-model")
    if reasoner is None and given.reasons:
        raise ConfigError(NO_REASONER)
    reasoning = None if reasoner is None else ReasonChoicePipeline(reasoner)

    def chosen(line: str) -> dict[str, Any]:
        story = _read_story(line, given) if listed else given
        for text in (story.question, *story.answers, *story.reasons):
            checked_text(text)
        return _chosen(story._replace(image=story.image or source), choosing, reasoning)

    with answering() as answered:
        rows = answered.each(lines, lambda some: [chosen(line) for line in some], most=MAX_LINE)
        for _, row in rows:
            print_json(row) if as_json else _print_choices(row, with_question=len(rows) > 1)


def _problem(story: Story) -> str:
    """What is wrong with a story, "" for nothing."""
    if not story.objects:
        return 'there is no object; give at least one with --object "name left top width height"'
    if len(story.answers) < 2:
        return f"{len(story.answers)} answers; give at least 2 to choose from, each with --answer (-a)"
    if len(story.reasons) == 1:
        return "1 reason; give at least 2 to choose from, each with --reason (-r)"
    if story.right is not None and not 1 <= story.right <= len(story.answers):
        return f"--right {story.right}: there are {len(story.answers)} answers, counted from 1"
    if story.right is not None and not story.reasons:
        return "--right names the answer to give reasons for; give them with --reason (-r)"
    return ""


def _read_story(line: str, given: Story) -> Story:
    """The story of a line of JSON; what it lacks is as `given`. Raises SampleError."""
    from evle.files import parse_json

    try:
        fields: Mapping[str, Any] = parse_json(line, f"line {line[:40]!r}", kind=dict)
    except DataError as error:
        raise SampleError(str(error)) from None
    known = ("image", "objects", "question", "answers", "reasons")
    if unknown := [name for name in fields if name not in known]:
        raise SampleError(f"line {line[:40]!r}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
    for name in known:
        value, is_list = fields.get(name, ""), name not in ("image", "question")
        listed = value if isinstance(value, list) else [value]
        if name in fields and (isinstance(value, list) != is_list or not all(isinstance(each, str) for each in listed)):
            raise SampleError(f"line {line[:40]!r}: {name} must be a {'list of texts' if is_list else 'text'}")
    story = given._replace(**fields)
    if "question" not in fields:
        raise SampleError(f"line {line[:40]!r}: there is no question; give it the key question")
    if wrong := _problem(story):
        raise SampleError(f"line {line[:40]!r}: {wrong}")
    return story


def _chosen(story: Story, choosing: Any, reasoning: Any) -> dict[str, Any]:
    """What the models choose, as a row. Raises SampleError."""
    from evle.data.images import open_image
    from evle.pipelines.typed import check_inside, typed_boxes, typed_sample

    image, boxes = open_image(story.image), typed_boxes(story.objects)
    check_inside(boxes, image)
    sample = typed_sample(image, boxes, story.question, story.answers, story.reasons)
    row: dict[str, Any] = {"question": story.question}
    right = None if story.right is None else story.right - 1
    if choosing is not None:
        choice = choosing([sample])[0]
        right = choice.choice
        row |= {"answer": story.answers[right], "answers": _scored(story.answers, choice.scores)}
    if reasoning is None and story.reasons:
        raise SampleError(NO_REASONER)
    if reasoning is not None and story.reasons:
        choice = reasoning([sample], answers=[right])[0]
        row |= {"reason": story.reasons[choice.choice], "reasons": _scored(story.reasons, choice.scores)}
    return row


def _scored(texts: Sequence[str], scores: Sequence[float]) -> list[dict[str, Any]]:
    return [{"text": text, "score": score} for text, score in zip(texts, scores, strict=True)]


def _print_choices(row: Mapping[str, Any], *, with_question: bool) -> None:
    if with_question:
        print(f"{row['question']}:")
    for name, title in (("answers", ""), ("reasons", "because")):
        if name not in row:
            continue
        if title:
            print(title)
        for each in sorted(row[name], key=lambda each: -each["score"]):
            print(f"{each['score']:6.1%}  {each['text']}")


VERBS = (locate, explain, reason)
