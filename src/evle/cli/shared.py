"""What the verbs that use a model share: the model by argument or option, images and lists from stdin, JSON lines, exit
codes, and the next command.

Exit codes: 0, everything was answered; 1, some inputs failed, each in one line on stderr, and their number at the end;
2, nothing was answered, or the command makes no sense.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from evle.cli.verb import Verb
from evle.errors import ConfigError, SampleError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a list.")]
Model = Annotated[
    str,
    typer.Argument(
        help="A run's folder, a model folder or a hub name (owner/name@revision); or give it as --model.",
        show_default=False,
    ),
]
ChatURL = Annotated[
    str | None,
    typer.Option(help="Base URL of a chat server (OpenAI's protocol) that words answers.", show_default=False),
]
ChatModel = Annotated[
    str | None, typer.Option(help="The model's name on that server; 'default' by default.", show_default=False)
]
KeyVariable = Annotated[
    str | None,
    typer.Option(help="The environment variable with its key, OPENAI_API_KEY by default.", show_default=False),
]
Image = Annotated[Path, typer.Argument(help="An image; - reads stdin.", show_default=False)]

MAX_STDIN = 200_000_000
"""Bytes that are read from stdin at most."""
MAX_CHARACTERS = 10_000
"""Characters of one text: a longer one is a mistake, of which a model would silently read the beginning alone."""
SHOWN_IMAGES = (".png", ".jpg", ".jpeg", ".webp")


def chat_server(url: str | None, model: str | None, key_variable: str | None) -> tuple[str, str, str] | None:
    """A chat server's URL, model and variable with the key, from a verb's options; None without a server.

    Raises ConfigError for options of a server that is not named.
    """
    if url is not None:
        return url, model or "default", key_variable or "OPENAI_API_KEY"
    if model is not None or key_variable is not None:
        option = "--chat-model" if model is not None else "--key-variable"
        raise ConfigError(f"{option} is for a chat server; name the server with --chat")
    return None


class ModelCommand(Verb):
    """A verb whose first argument is a model, which `--model MODEL` (`-m`) can give too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, model_first(args))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Model"):
            formatter.write_dl([("-m, --model MODEL", "The model, instead of the first argument.")])


def model_first(args: Sequence[str]) -> list[str]:
    """Arguments in which the value of `--model` or `-m` is the first.

    >>> model_first(["a.jpg", "-m", "runs/vqa", "what is this?"])
    ['runs/vqa', 'a.jpg', 'what is this?']
    """
    for index, arg in enumerate(args):
        if arg == "--":
            break
        if arg in ("--model", "-m") and index + 1 < len(args):
            return [args[index + 1], *args[:index], *args[index + 2 :]]
        if arg.startswith("--model="):
            return [arg.partition("=")[2], *args[:index], *args[index + 1 :]]
    return list(args)


def _stdin() -> bytes:
    """All of stdin. Raises ConfigError where it is empty or too large."""
    data = sys.stdin.buffer.read(MAX_STDIN + 1)
    if not data.strip():
        raise ConfigError("-: stdin is empty; pipe an image, or one text per line, into the command")
    if len(data) > MAX_STDIN:
        raise ConfigError(f"-: stdin holds more than {MAX_STDIN:,} bytes; give a file, or fewer texts")
    return data


def image_source(path: Path) -> Path | bytes:
    """The image that a verb is given: a path, or with "-" the bytes of stdin."""
    return _stdin() if str(path) == "-" else path


def text_list(texts: Iterable[str], *images: Path | None) -> list[str]:
    """The texts that a verb is given; a single "-" stands for the lines of stdin that are not blank.

    A line that is not UTF-8 keeps its bytes as lone surrogates, which `checked_text` refuses. Raises ConfigError
    where one of `images` is to be read from stdin as well.
    """
    listed = list(texts)
    if sum(str(image) == "-" for image in images) + (listed == ["-"]) > 1:
        raise ConfigError("- stands for stdin, which can be read only once; give the other inputs as files or texts")
    if listed != ["-"]:
        return listed
    text = _stdin().decode("utf-8-sig", errors="surrogateescape")
    return [line.strip() for line in text.splitlines() if line.strip()]


def refuse_images(texts: Iterable[str], option: str) -> None:
    """Raise ConfigError for a text that is the name of an image file; `option` takes images."""
    from evle.data.formats.listing import IMAGE_SUFFIXES

    for text in texts:
        if os.path.splitext(text)[1].lower() in IMAGE_SUFFIXES and os.path.isfile(text):
            raise ConfigError(f"{text}: is an image, where a text is needed; give it with {option}")


def checked_text(text: str, most: int = MAX_CHARACTERS) -> str:
    """`text`, if a model can read it. Raises SampleError for one that is empty, of punctuation alone, too long or not
    UTF-8."""
    from evle.data.formats.cells import says_something

    name = repr(text[:40] + "…" if len(text) > 40 else text)
    if not text.strip():
        raise SampleError(f"{name}: the text is empty; give words")
    if len(text) > most:
        raise SampleError(f"{name}: {len(text):,} characters; shorten the text to {most:,} or fewer")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SampleError(f"{name}: not UTF-8; convert the text") from None
    if not says_something(text):
        raise SampleError(f"{name}: the text is punctuation alone; give words")
    return text


class Answered:
    """The answers of one command, and which of its inputs failed."""

    def __init__(self) -> None:
        self.num_answered = 0
        self.failures: list[SampleError] = []

    def each(
        self, inputs: Sequence[Any], answer: Callable[[list[Any]], Iterable[Any]], *, most: int = MAX_CHARACTERS
    ) -> list[tuple[Any, Any]]:
        """Each input with its answer, in order, without those that failed. Texts are checked first, `most` as there.

        `answer` takes a list of inputs and returns one answer per input. All are answered together; if that raises
        SampleError, one by one.
        """
        good = []
        for each in inputs:
            try:
                good.append(checked_text(each, most) if isinstance(each, str) else each)
            except SampleError as error:
                self.failures.append(error)
        rows: list[tuple[Any, Any]] = []
        try:
            rows = list(zip(good, answer(good), strict=True)) if good else []
        except SampleError as error:
            if len(good) == 1:
                self.failures.append(error)
            else:
                rows = [row for each in good for row in self._alone(each, answer)]
        self.num_answered += len(rows)
        return rows

    def _alone(self, each: Any, answer: Callable[[list[Any]], Iterable[Any]]) -> list[tuple[Any, Any]]:
        try:
            return [(each, row) for row in answer([each])]
        except SampleError as error:
            self.failures.append(error)
            return []


@contextmanager
def answering() -> Iterator[Answered]:
    """Inside, a verb prints its answers; at the end failures are reported and decide the exit code, as the head of this
    file says. A failure of all inputs for one reason is that reason."""
    answered = Answered()
    yield answered
    reasons = list(dict.fromkeys(map(str, answered.failures)))
    if reasons and not answered.num_answered and len(reasons) == 1:
        raise answered.failures[0]
    for reason in reasons:
        print_error(reason)
    if reasons:
        total = len(answered.failures) + answered.num_answered
        print_error(f"{len(answered.failures)} of {total} inputs failed")
        raise typer.Exit(1 if answered.num_answered else 2)


def numbered(output: Path, number: int, total: int) -> Path:
    """The file for one of several results: found.png, found-2.png, found-3.png.

    >>> numbered(Path("found.png"), 1, 3).name
    'found-2.png'
    """
    return output if total == 1 or number == 0 else output.with_name(f"{output.stem}-{number + 1}{output.suffix}")


def file_name(path: Path | None, *endings: str) -> Path | None:
    """An output that ends in one of `endings`; refused before any work is done for it."""
    if path is not None and path.suffix.lower() not in endings:
        raise ConfigError(f"--output {path}: not the name of a file to write; end it in {', '.join(endings)}")
    if path is not None and not path.parent.is_dir():
        raise ConfigError(f"--output {path}: there is no folder {path.parent}; create it first")
    return path


def refuse_replacing(outputs: Iterable[Path], inputs: Iterable[object], option: str = "--output") -> None:
    """Raise ConfigError for an output that is one of the files or folders that a command reads, or is in such a folder.

    An input that is no path of this machine, such as "-", is passed over.
    """
    outputs = list(outputs)
    for given in (Path(str(given)) for given in inputs):
        for output in outputs:
            if _is_same(output, given) or (given.is_dir() and output.resolve().is_relative_to(given.resolve())):
                raise ConfigError(
                    f"{option} {output}: would change {given}, which this command reads; give another name"
                )


def _is_same(output: Path, given: Path) -> bool:
    """Whether two paths are of one file, also by links."""
    try:
        return os.path.samefile(output, given)
    except (OSError, ValueError):
        return False  # one of them does not exist


def print_error(message: str) -> None:
    """One line on stderr, as errors of the command line are printed."""
    from evle.terminal import printable

    print(f"evle: {printable(' '.join(message.split()))}", file=sys.stderr)


def print_json(row: Mapping[str, Any]) -> None:
    """One JSON line; paths become text."""
    from evle.files import json_line

    print(json_line(row))


def print_next(*command: object) -> None:
    """The next useful command, ready to be copied."""
    from evle.storage import shown
    from evle.terminal import one_line

    print("next: " + one_line(shlex.join(shown(str(part)) for part in command)), file=sys.stderr)


def print_opening(page: Path) -> None:
    """The command that shows a page or an image."""
    print_next("python", "-m", "webbrowser", "-t", page.resolve().as_uri())
