"""The verbs that ask a trained model about images: `main` takes them in.

As there, nothing heavy is imported before a verb needs it.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evle.cli.opening import open_pipeline
from evle.cli.shared import (
    AsJson,
    ChatModel,
    ChatURL,
    Image,
    KeyVariable,
    Model,
    answering,
    chat_server,
    file_name,
    image_source,
    print_error,
    print_json,
    print_next,
    refuse_images,
    refuse_replacing,
    text_list,
)
from evle.errors import ConfigError

if TYPE_CHECKING:
    from evle.pipelines import LanguageModel, LanguageVQAPipeline


def ask(
    model: Model,
    image: Image,
    question: Annotated[str, typer.Argument(help="The question; - reads one per line.", show_default=False)],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of answers.")] = 5,
    caption: Annotated[
        str | None, typer.Option(help="A caption of the image, for the language model.", show_default=False)
    ] = None,
    captioner: Annotated[
        Path | None,
        typer.Option(
            help="A folder with an image-to-text model of transformers that writes the caption instead.",
            show_default=False,
        ),
    ] = None,
    chat: ChatURL = None,
    chat_model: ChatModel = None,
    key_variable: KeyVariable = None,
    language_model: Annotated[
        Path | None,
        typer.Option(
            help="A folder with a causal language model of transformers, instead of a server.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question about an image.

    A language model can word the answer.

    \b
      evle ask runs/quickstart/vqa-pretrained a.jpg "which colour is the circle?"
      cat questions.txt | evle ask a.jpg - --model runs/vqa --json
      evle ask runs/vqa a.jpg "what is this?" --caption "a street" \\
          --chat http://localhost:8000/v1
    """
    if chat is not None and language_model is not None:
        raise ConfigError("--chat and --language-model both name a language model; give one of them")
    if chat is None and language_model is None and (caption is not None or captioner is not None):
        raise ConfigError("a caption is for a language model; name one with --chat or --language-model")
    if caption is not None and captioner is not None:
        raise ConfigError("--caption and --captioner both give a caption; give one of them")
    endpoint = chat_server(chat, chat_model, key_variable)
    questions, source = text_list([question], image), image_source(image)
    words_it = chat is not None or language_model is not None
    vqa = open_pipeline("VQAPipeline", model)
    worded = None
    if words_it:
        worded = _worded(vqa, model, endpoint, language_model, captioner)

    def answer(some: list[str]) -> list[dict[str, Any]]:
        nonlocal caption
        if worded is not None:
            rows = worded(source, some, captions=caption, top_k=k)
            caption = rows[0]["caption"]  # of the same image: a captioner describes it once
            return rows
        return [{**row, "caption": None, "reply": row["answer"]} for row in vqa(source, some, top_k=k)]

    # A server may fail at any question: what it has answered before is printed.
    groups = [[each] for each in questions] if words_it else [questions]
    with answering() as answered:
        for _, result in (row for some in groups for row in answered.each(some, answer)):
            if as_json:
                print_json(result)
                continue
            if len(questions) > 1:
                print(f"{result['question']}:")
            for row in result["answers"]:
                print(f"{row['score']:6.1%}  {row['answer']}")
            if result["caption"]:
                print(f"caption: {result['caption']}")
            if words_it:
                print(result["reply"])


def _worded(
    vqa: Any, model: str, endpoint: tuple[str, str, str] | None, language_model: Path | None, captioner: Path | None
) -> "LanguageVQAPipeline":
    """The pipeline whose answers a language model words; for an exported model, too, which torch then runs."""
    from evle.pipelines import ChatEndpoint, LanguageVQAPipeline, LocalCaptioner, LocalLanguageModel, VQAPipeline

    language: LanguageModel
    if endpoint is not None:
        language = ChatEndpoint(*endpoint)
    else:
        assert language_model is not None
        language = LocalLanguageModel(language_model)
    described = LocalCaptioner(captioner) if captioner is not None else None
    return LanguageVQAPipeline(vqa if isinstance(vqa, VQAPipeline) else VQAPipeline(model), language, described)


def match(
    model: Model,
    image: Annotated[Path | None, typer.Argument(help="An image; - reads stdin.", show_default=False)] = None,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to compare it with; - reads one per line.", show_default=False),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Score a table of images and captions instead.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The scored rows, as JSON lines.", show_default=False),
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="Keep captions of at least this probability.", show_default=False)
    ] = None,
    top: Annotated[float | None, typer.Option(help="Keep this share of the captions.", show_default=False)] = None,
    batch_size: Annotated[int, typer.Option(help="Pairs per batch.")] = 32,
    num_workers: Annotated[int, typer.Option(help="Threads that read images.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Match texts to an image, the likeliest first.

    With --pairs every caption of a table is scored, and a part of them can be kept. Repeat the command to resume.

    \b
      evle match runs/coco a.jpg "a red apple" "a green frog"
      evle match runs/coco --pairs photos/captions.jsonl -o scored.jsonl \\
          --keep 0.3
    """
    if (pairs is None) == (image is None) or (pairs is None) != bool(texts):
        raise ConfigError("give an image and texts, or a table with --pairs")
    if (pairs is None) != (output is None) or (pairs is None and (keep, top) != (None, None)):
        raise ConfigError("--pairs and --output (-o) belong together; --keep and --top are for them")
    if pairs is not None and output is not None:
        from evle.data.formats.listing import IMAGE_SUFFIXES
        from evle.pipelines import MatchPipeline

        if output.suffix.lower() in IMAGE_SUFFIXES:
            raise ConfigError(f"--output {output}: an image's name, but JSON lines are written; end it in .jsonl")
        matching = MatchPipeline(model, batch_size=batch_size, num_workers=num_workers)
        _score_table(matching, pairs, output, keep, top, as_json)
        return
    assert image is not None
    listed, source = text_list(texts or [], image), image_source(image)
    pipeline = open_pipeline("MatchPipeline", model, batch_size=batch_size, num_workers=num_workers)
    with answering() as answered:
        rows = [row for _, row in answered.each(listed, lambda some: pipeline(source, some))]
        for row in sorted(rows, key=lambda row: -row["score"]):
            print_json(row) if as_json else print(f"{row['score']:6.1%}  {row['text']}")


def _score_table(
    pipeline: object, pairs: Path, output: Path, keep: float | None, top: float | None, as_json: bool
) -> None:
    """Score a table; images that cannot be read make the exit code 1, as the head of `shared` says."""
    from evle.pipelines import MatchPipeline, score_pairs

    assert isinstance(pipeline, MatchPipeline)
    scored = score_pairs(pipeline, pairs, output, keep=keep, top=top)
    if as_json:
        print_json(vars(scored))
    else:
        print(f"{scored.output}: {scored.num_scored:,} texts scored, {scored.num_failed:,} could not be")
        if scored.kept_file is not None:
            print(f"{scored.kept_file}: {scored.num_kept:,} texts kept, from {scored.threshold:.3f} on")
        print(f"report: {scored.report}")
    if scored.num_kept and scored.kept_file is not None:
        print_next("evle", "data", "check", scored.kept_file)
    elif scored.num_scored:
        print_next("evle", "match", pipeline.source, "--pairs", pairs, "-o", output, "--top", "0.5")
    if scored.num_failed:
        print_error(f"{scored.num_failed:,} texts could not be scored; the first: {scored.first_error}")
        raise typer.Exit(1 if scored.num_scored else 2)


def compare(
    model: Model,
    left: Image,
    right: Annotated[Path, typer.Argument(help="Another image; - reads stdin.", show_default=False)],
    text: Annotated[str, typer.Argument(help="A sentence about the two; - reads one per line.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Judge a sentence about two images.

    Prints how likely it is that the sentence is true. Takes a run of NLVR2.

    \b
      evle compare runs/nlvr2 a.jpg b.jpg "both images show a dog"
    """
    texts, lefts, rights = text_list([text], left, right), image_source(left), image_source(right)
    pipeline = open_pipeline("ComparePipeline", model)
    with answering() as answered:
        for _, row in answered.each(texts, lambda some: pipeline(lefts, rights, some)):
            print_json(row) if as_json else print(f"{row['score']:6.1%}  {row['text']}")


def embed(
    model: Model,
    inputs: Annotated[
        list[str], typer.Argument(help="Texts, or paths of images; - reads one per line.", show_default=False)
    ],
    images: Annotated[
        bool, typer.Option("--images", help="The inputs are paths of images; a single - is an image.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the vectors to this .npy file.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines; the default without --output.")] = False,
) -> None:
    """Embed texts or images.

    Takes a retrieval run, a model folder or a hub name; also CLIP and SigLIP.

    \b
      evle embed runs/pictures/retrieval "a red apple" "a blue sky"
      evle embed runs/pictures/retrieval --images a.jpg b.jpg -o vectors.npy
    """
    import numpy as np

    output = file_name(output, ".npy")
    is_image = images and inputs == ["-"]
    texts = inputs if is_image else text_list(inputs)
    refuse_images(() if images else texts, "--images")
    listed: list[Any] = [Path(each) for each in texts] if images else texts  # a name need not be a text in UTF-8
    if output is not None and images:
        refuse_replacing([output], listed)
    first = image_source(Path("-")) if is_image else None
    pipeline = open_pipeline("EmbedPipeline", model)

    def vectors(some: list[Any]) -> list[list[float]]:
        sources = some if first is None else [first]
        result: list[list[float]] = (pipeline.images(sources) if images else pipeline.texts(some)).tolist()
        return result

    with answering() as answered:
        rows = answered.each(listed, vectors)
        if as_json or output is None:
            for given, vector in rows:
                rounded = [round(value, 6) for value in vector]
                print_json({"image" if images else "text": given, "embedding": rounded})
        if output is not None and rows:
            np.save(output, np.array([vector for _, vector in rows], dtype=np.float32))
            print(f"{output}: {len(rows)} vectors of {len(rows[0][1])} numbers")
            print_next("python", "-c", f"import numpy; v = numpy.load({json.dumps(str(output))}); print(v @ v.T)")


def classify(
    model: Model,
    image: Image,
    labels: Annotated[list[str], typer.Argument(help="Labels; - reads one per line.", show_default=False)],
    template: Annotated[str, typer.Option(help="The text of a label, with {} for the label.")] = "a photo of a {}.",
    as_json: AsJson = False,
) -> None:
    """Choose a label for an image without training.

    Takes what `evle embed` takes.

    \b
      evle classify openai/clip-vit-base-patch32 a.jpg dog cat horse
    """
    listed, source = text_list(labels, image), image_source(image)
    pipeline = open_pipeline("ClassifyPipeline", model)
    with answering() as answered:
        usable = [label for label, _ in answered.each(listed, lambda some: some)]
        for row in pipeline(source, usable, template=template)[0] if usable else ():
            print_json(row) if as_json else print(f"{row['score']:6.1%}  {row['label']}")


VERBS = (ask, match, compare, embed, classify)
