"""The verbs that ask a trained model about images: `main` takes them in.

As there, nothing heavy is imported before a verb needs it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evle.cli.shared import AsJson, image_source, print_json, print_next, text_list
from evle.errors import ConfigError

if TYPE_CHECKING:
    from evle.pipelines import LanguageModel

Run = Annotated[
    Path, typer.Argument(help="A run's folder, a model folder or a hub name (owner/name@revision).", show_default=False)
]
Image = Annotated[Path, typer.Argument(help="An image; - reads stdin.", show_default=False)]
CHAT_MODEL, KEY_VARIABLE = "default", "OPENAI_API_KEY"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def _image_name(path: Path) -> Path:
    """Refused before any work is done for it."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--output {path}: not the name of an image; end it in {', '.join(SUFFIXES)}")
    return path


Picture = Annotated[
    Path,
    typer.Option("--output", "-o", help="The image to write.", show_default=False, callback=_image_name),
]


def ask(
    run: Run,
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
    chat: Annotated[
        str | None,
        typer.Option(help="Base URL of a chat server (OpenAI's protocol) that words the answer.", show_default=False),
    ] = None,
    chat_model: Annotated[
        str | None, typer.Option(help="The model's name on that server.", show_default=CHAT_MODEL)
    ] = None,
    key_variable: Annotated[
        str | None, typer.Option(help="The environment variable with its key.", show_default=KEY_VARIABLE)
    ] = None,
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
      evle ask runs/vqa a.jpg "what is this?" --caption "a street" --chat http://localhost:8000/v1
    """
    from evle.pipelines import ChatEndpoint, LanguageVQAPipeline, LocalCaptioner, LocalLanguageModel, VQAPipeline

    if chat is not None and language_model is not None:
        raise ConfigError("--chat and --language-model both name a language model; give one of them")
    if chat is None and language_model is None and (caption is not None or captioner is not None):
        raise ConfigError("a caption is for a language model; name one with --chat or --language-model")
    if caption is not None and captioner is not None:
        raise ConfigError("--caption and --captioner both give a caption; give one of them")
    if chat is None and not (chat_model is None and key_variable is None):
        option = "--chat-model" if chat_model is not None else "--key-variable"
        raise ConfigError(f"{option} is for a chat server; name the server with --chat")
    language: LanguageModel | None = None
    if chat is not None:
        language = ChatEndpoint(chat, chat_model or CHAT_MODEL, key_variable or KEY_VARIABLE)
    elif language_model is not None:
        language = LocalLanguageModel(language_model)
    described = LocalCaptioner(captioner) if captioner is not None else None
    questions = text_list([question], image)
    pipeline = LanguageVQAPipeline(VQAPipeline(run), language, described)
    for result in pipeline(image_source(image), questions, captions=caption, top_k=k):
        if as_json:
            print_json(result)
            continue
        if len(questions) > 1:
            print(f"{result['question']}:")
        for row in result["answers"]:
            print(f"{row['score']:6.1%}  {row['answer']}")
        if result["caption"]:
            print(f"caption: {result['caption']}")
        if language is not None:
            print(result["reply"])


def match(
    run: Run,
    image: Annotated[Path | None, typer.Argument(help="An image; - reads stdin.", show_default=False)] = None,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts to compare it with; - reads one per line.", show_default=False),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Score a table of images and captions instead.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The scored rows, as JSON lines.", show_default=False)
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
      evle match runs/coco --pairs photos/captions.jsonl -o scored.jsonl --keep 0.3
    """
    from evle.pipelines import MatchPipeline, score_pairs

    if (pairs is None) == (image is None) or (pairs is None) != bool(texts):
        raise ConfigError("give an image and texts, or a table with --pairs")
    if (pairs is None) != (output is None) or (pairs is None and (keep, top) != (None, None)):
        raise ConfigError("--pairs and --output (-o) belong together; --keep and --top are for them")
    if pairs is not None and output is not None:
        pipeline = MatchPipeline(run, batch_size=batch_size, num_workers=num_workers)
        scored = score_pairs(pipeline, pairs, output, keep=keep, top=top)
        if as_json:
            print_json(vars(scored))
            return
        print(f"{scored.output}: {scored.num_scored:,} texts scored, {scored.num_failed:,} could not be")
        if scored.kept_file is not None:
            print(f"{scored.kept_file}: {scored.num_kept:,} texts kept, from {scored.threshold:.3f} on")
        print(f"report: {scored.report}")
        if scored.kept_file is not None:
            print_next("evle", "data", "check", scored.kept_file)
        return
    assert image is not None
    rows = MatchPipeline(run)(image_source(image), text_list(texts or [], image))
    for row in sorted(rows, key=lambda row: -row["score"]):
        print_json(row) if as_json else print(f"{row['score']:6.1%}  {row['text']}")


def compare(
    run: Run,
    left: Image,
    right: Annotated[Path, typer.Argument(help="Another image.", show_default=False)],
    text: Annotated[str, typer.Argument(help="A sentence about the two; - reads one per line.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Judge a sentence about two images.

    Prints how likely it is that the sentence is true. Takes a run of NLVR2.

    \b
      evle compare runs/nlvr2 a.jpg b.jpg "both images show a dog"
    """
    from evle.pipelines import ComparePipeline

    texts = text_list([text], left)
    for row in ComparePipeline(run)(image_source(left), right, texts):
        print_json(row) if as_json else print(f"{row['score']:6.1%}  {row['text']}")


def embed(
    run: Run,
    inputs: Annotated[list[str], typer.Argument(help="Texts; - reads one per line.", show_default=False)],
    images: Annotated[bool, typer.Option("--images", help="The inputs are paths of images.")] = False,
) -> None:
    """Print embeddings as JSON lines.

    Takes a retrieval run, a model folder or a hub name; also CLIP and SigLIP.

    \b
      evle embed runs/pictures/retrieval "a red apple" "a blue sky"
      evle embed runs/pictures/retrieval --images a.jpg b.jpg
    """
    from evle.pipelines import EmbedPipeline

    listed = text_list(inputs)
    pipeline = EmbedPipeline(run)
    vectors = pipeline.images([image_source(Path(each)) for each in listed]) if images else pipeline.texts(listed)
    for given, vector in zip(listed, vectors.tolist(), strict=True):
        print_json({"image" if images else "text": given, "embedding": [round(value, 6) for value in vector]})


def classify(
    run: Run,
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
    from evle.pipelines import ClassifyPipeline

    for row in ClassifyPipeline(run)(image_source(image), text_list(labels, image), template=template)[0]:
        print_json(row) if as_json else print(f"{row['score']:6.1%}  {row['label']}")


def locate(
    run: Run,
    image: Image,
    text: Annotated[str, typer.Argument(help="A phrase that names what to find.", show_default=False)],
    output: Picture,
    as_json: AsJson = False,
) -> None:
    """Paint where an image shows what a phrase names.

    Takes a VLE pre-trained with patch-box classification (pbc).

    \b
      evle locate runs/vle a.jpg "the red circle" -o found.png
    """
    from evle.pipelines import LocalisePipeline

    found = LocalisePipeline(run)(image_source(image), text)[0]
    found.image.save(output)
    if as_json:
        print_json({"text": text, "output": output, "scores": found.scores.tolist()})
        return
    surer = int((found.scores > 0.5).sum())
    print(
        f"{output}: {surer} of {found.scores.numel()} patches above 50 %, the highest {float(found.scores.max()):.1%}"
    )


def explain(
    run: Run,
    image: Image,
    text: Annotated[str, typer.Argument(help="A text or a question about it.", show_default=False)],
    output: Picture,
    method: Annotated[str, typer.Option(help="rollout (all layers) or attention (last layer).")] = "rollout",
    as_json: AsJson = False,
) -> None:
    """Paint the attention for each word of a text.

    \b
      evle explain runs/quickstart/vqa-pretrained a.jpg "which colour is the circle?" -o map.png
    """
    from evle.pipelines.explaining import ExplainPipeline

    found = ExplainPipeline(run)(image_source(image), text, method=method)
    found.to_image().save(output)
    if as_json:
        maps = [{"word": word, "map": each.tolist()} for word, each in zip(found.words, found.maps, strict=True)]
        print_json({"text": text, "output": output, "words": maps})
        return
    print(f"{output}: {len(found.words)} words; brightest where attention is highest")


VERBS = (ask, match, compare, locate, explain, embed, classify)
