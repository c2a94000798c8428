"""The verbs of the command line: each parses, calls one function, and prints its report.

Nothing heavy is imported before a verb needs it, so that `evle --help` answers at once. What a user can cause is one
line on stderr and exit code 2; an interrupted run ends with 130.
"""

import contextlib
import errno
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from evle import __version__
from evle.cli import ask, data, demo, models, new, search, serve, share, train
from evle.errors import EvleError
from evle.terminal import PrintableStream, log_to_terminal, printable

if TYPE_CHECKING:
    pass

DEBUG = "EVLE_DEBUG"


class Verbs(TyperGroup):
    """The group of all verbs: errors become one line, and help lists the verbs by panel."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panel = getattr(command, "rich_help_panel", None)
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, _short(command)))
        for panel in sorted(panels, key=lambda name: [*PANELS, name].index(name)):
            with formatter.section(panel):
                formatter.write_dl(panels[panel])

    def invoke(self, ctx: Any) -> Any:
        log_to_terminal()
        try:
            with contextlib.redirect_stdout(PrintableStream(sys.stdout)):  # type: ignore[type-var]
                return super().invoke(ctx)
        except EvleError as error:
            if os.environ.get(DEBUG):
                raise
            raise _end(str(error), error.exit_code) from None
        except KeyboardInterrupt:
            raise _end("interrupted; repeat the command to resume a run that has a checkpoint", 130) from None
        except (MemoryError, RuntimeError) as error:
            if os.environ.get(DEBUG) or not (isinstance(error, MemoryError) or "can't allocate memory" in str(error)):
                raise
            raise _end("out of memory: take a smaller model, smaller images or a smaller batch", 2) from None
        except OSError as error:
            if os.environ.get(DEBUG) or error.errno == errno.EPIPE:
                raise
            if error.errno == errno.ENOSPC:
                where = f" ({error.filename})" if error.filename else ""
                raise _end(
                    f"the disk is full{where}: make room and repeat the command, which resumes a run", 2
                ) from None
            raise _end(_in_words(error), 2) from None


def _in_words(error: OSError) -> str:
    """What the machine refused, of which file, and where there is one, the cure."""
    if not error.filename:
        return str(error)
    if isinstance(error, PermissionError):
        return f"{error.filename}: may not be read or written; change its permissions, or choose another path"
    if isinstance(error, IsADirectoryError):
        return f"{error.filename}: is a folder, where a file is needed; name the file, or move the folder away"
    if isinstance(error, FileExistsError):
        return f"{error.filename}: is a file, where a folder is needed; choose another output"
    return f"{error.strerror}: {error.filename}"


def _end(message: str, exit_code: int) -> typer.Exit:
    print(f"evle: {printable(' '.join(message.split()))}", file=sys.stderr)
    return typer.Exit(exit_code)


def _short(command: Any) -> str:
    """The first sentence of a verb's help."""
    first: str = (command.help or "").strip().splitlines()[0]
    return first.rstrip(".")


TRAIN, USE, DATA, SHARE = PANELS = ("Train", "Use", "Data", "Share")
"""The groups of verbs, in the order of the help."""
STYLE: dict[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
}
app = typer.Typer(
    cls=Verbs,
    help="""Train and use the vision-language encoders EVE and VLE.

\b
Start here:
  evle train quickstart              pre-training, VQA, retrieval in minutes
  evle recipes                       what else can be trained
  evle data check FOLDER             are these images and captions in order?
  evle train pictures data.path=FOLDER
  evle index FOLDER -o INDEX --model runs/pictures/retrieval
  evle search INDEX "a red car"
  evle ask runs/quickstart/vqa-pretrained a.jpg "which colour is it?"
""",
    **STYLE,
)
tokenizer_app = typer.Typer(
    cls=Verbs,
    help="""Train a tokenizer.

\b
  evle tokenizer train books.txt wiki.txt -o tokenizers/eve --vocab-size 64000
""",
    add_completion=False,
    **STYLE,
)
data_app = typer.Typer(
    cls=Verbs,
    help="""Look at data before training on it.

\b
  evle data check FOLDER
  evle data show karpathy path=COCO --split test -o look
""",
    add_completion=False,
    **STYLE,
)
app.add_typer(tokenizer_app, name="tokenizer", rich_help_panel=DATA)
app.add_typer(data_app, name="data", rich_help_panel=DATA)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"evle {__version__}")
        raise typer.Exit


@app.callback()
def options(
    traceback: Annotated[
        bool, typer.Option("--traceback", help=f"Show where an error arose (or set {DEBUG}=1).")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    if traceback:
        os.environ[DEBUG] = "1"


for training_verb in train.VERBS:
    app.command(rich_help_panel=TRAIN)(training_verb)
for building_verb in new.VERBS:
    app.command(rich_help_panel=TRAIN)(building_verb)
for asking_verb in (*search.VERBS, *ask.VERBS, *demo.VERBS, *serve.VERBS):
    app.command(rich_help_panel=USE)(asking_verb)
for sharing_verb in (*models.VERBS, *share.VERBS):
    app.command(rich_help_panel=SHARE)(sharing_verb)
for data_verb in data.VERBS:
    data_app.command()(data_verb)


@app.command(rich_help_panel=SHARE)
def convert(
    family: Annotated[str, typer.Argument(help="eve; a released VLE needs no conversion.", show_default=False)],
    source: Annotated[
        Path, typer.Argument(help="A released checkpoint file, or a model folder of evle.", show_default=False)
    ],
    destination: Annotated[Path, typer.Argument(help="The model folder, or the file, to write.", show_default=False)],
    num_attention_heads: Annotated[
        int | None, typer.Option(help="Not stored in the weights; width / 64 by default.", show_default=False)
    ] = None,
    released_routing: Annotated[
        bool, typer.Option("--released-routing", help="Drop tokens over capacity, as the released code does.")
    ] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer's folder to save with the weights.", show_default=False)
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="A JSON list of the answers of a VQA checkpoint.", show_default=False)
    ] = None,
) -> None:
    """Convert released weights, or convert back.

    \b
      evle convert eve eve_base_vqa.th models/eve-base-vqa --tokenizer tokenizers/eve --answers answer_list.json
      evle convert eve models/eve-base-vqa eve_base_vqa.th
    """
    from evle.errors import ConfigError, nearest
    from evle.models.eve.convert import convert_eve
    from evle.share.card import save_card

    if family != "eve":
        raise ConfigError(f"there is nothing to convert for the family {family!r}; {nearest(family, ['eve'])}")
    written = convert_eve(
        source,
        destination,
        num_attention_heads=num_attention_heads,
        released_routing=released_routing,
        tokenizer=tokenizer,
        answers=answers,
    )
    if destination.is_dir():
        save_card(destination)
    print(written)


@tokenizer_app.command("train")
def train_tokenizer(
    corpus: Annotated[
        list[Path],
        typer.Argument(
            help="Text files (one text per line), tables of captions, or folders with one.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The tokenizer's folder.", show_default=False)],
    vocab_size: Annotated[int, typer.Option(help="Largest number of tokens.")] = 64000,
    clean: Annotated[bool, typer.Option(help="Lower case, without punctuation, as training reads texts.")] = True,
) -> None:
    """Train a byte-level BPE tokenizer on a corpus.

    \b
      evle tokenizer train books.txt wiki.txt -o tokenizers/eve --vocab-size 64000
      evle train eve-base-pretrain tokenizer.path=tokenizers/eve
    """
    from evle.data.custom.corpus import read_texts
    from evle.engine.run_folder import make_output
    from evle.transforms.text import clean_caption
    from evle.transforms.text import train_tokenizer as train_on

    texts = read_texts(corpus)
    make_output(output)
    trained = train_on((clean_caption(text, None) for text in texts) if clean else texts, vocab_size)
    trained.save_pretrained(output)
    print(f"{output}: {len(trained)} tokens")


def main() -> None:
    """The entry point of `evle`."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # every verb says itself what it reads and writes
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not UTF-8, byte for byte
    app()


if __name__ == "__main__":
    main()
