"""The verbs that ask a trained model about images: `main` takes them in.

As there, nothing heavy is imported before a verb needs it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evle.errors import ConfigError

if TYPE_CHECKING:
    from evle.pipelines import LanguageModel

Run = Annotated[Path, typer.Argument(help="A run's folder, or a model folder.", show_default=False)]
Image = Annotated[Path, typer.Argument(help="An image.", show_default=False)]
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
    question: Annotated[str, typer.Argument(help="The question.", show_default=False)],
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
    asked = LanguageVQAPipeline(VQAPipeline(run), language, described)
    found = asked(image, question, captions=caption, top_k=k)[0]
    for row in found["answers"]:
        print(f"{row['score']:6.1%}  {row['answer']}")
    if found["caption"]:
        print(f"caption: {found['caption']}")
    if language is not None:
        print(found["reply"])


def match(
    run: Run,
    image: Image,
    texts: Annotated[list[str], typer.Argument(help="Texts to compare it with.", show_default=False)],
) -> None:
    """Match texts to an image, the likeliest first.

    \b
      evle match runs/pictures/retrieval a.jpg "a red apple" "a green frog"
    """
    from evle.pipelines import MatchPipeline

    for row in sorted(MatchPipeline(run)(image, texts), key=lambda row: -row["score"]):
        print(f"{row['score']:6.1%}  {row['text']}")


def compare(
    run: Run,
    left: Image,
    right: Annotated[Path, typer.Argument(help="Another image.", show_default=False)],
    text: Annotated[str, typer.Argument(help="A sentence about the two.", show_default=False)],
) -> None:
    """Judge a sentence about two images.

    Prints how likely it is that the sentence is true. Takes a run of NLVR2.

    \b
      evle compare runs/nlvr2 a.jpg b.jpg "both images show a dog"
    """
    from evle.pipelines import ComparePipeline

    row = ComparePipeline(run)(left, right, text)[0]
    print(f"{row['score']:6.1%}  {row['text']}")


def localise(
    run: Run,
    image: Image,
    text: Annotated[str, typer.Argument(help="A phrase that names what to find.", show_default=False)],
    output: Picture,
) -> None:
    """Paint where an image shows what a phrase names.

    Takes a VLE pre-trained with patch-box classification (pbc).

    \b
      evle localise runs/vle a.jpg "the red circle" -o found.png
    """
    from evle.pipelines import LocalisePipeline

    found = LocalisePipeline(run)(image, text)[0]
    found.image.save(output)
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
) -> None:
    """Paint the attention for each word of a text.

    \b
      evle explain runs/quickstart/vqa-pretrained a.jpg "which colour is the circle?" -o map.png
    """
    from evle.pipelines.explaining import ExplainPipeline

    found = ExplainPipeline(run)(image, text, method=method)
    found.to_image().save(output)
    print(f"{output}: {len(found.words)} words; brightest where attention is highest")


VERBS = (ask, match, compare, localise, explain)
