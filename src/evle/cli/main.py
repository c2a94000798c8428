"""The command line, assembled: each verb parses, calls one function, and prints its report.

Nothing heavy is imported before a verb needs it, so that `evle --help` answers at once. What a user can cause is one
line on stderr and exit code 2; a run that diverges ends with 3, an interrupted one with 130.
"""

import io
import logging
import os
import sys
from typing import Annotated

import typer

from evle import __version__
from evle.cli import ask, data, demo, look, models, new, search, serve, share, tokenizer, train
from evle.cli.group import DATA, DEBUG, SHARE, STYLE, TRAIN, USE, Verbs
from evle.cli.shared import ModelCommand
from evle.cli.urls import App
from evle.machine import settle

app = App(
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
app.add_typer(tokenizer.app, name="tokenizer", rich_help_panel=DATA)
app.add_typer(data.app, name="data", rich_help_panel=DATA)


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


PANEL_VERBS = {
    TRAIN: (*train.VERBS, *new.VERBS),
    USE: (*search.VERBS, *ask.VERBS, *look.VERBS, *demo.VERBS, *serve.VERBS),
    SHARE: (*models.VERBS, *share.VERBS),
}
for panel, verbs in PANEL_VERBS.items():
    for verb in verbs:
        asks = verb in ask.VERBS or verb in look.VERBS
        app.command(rich_help_panel=panel, cls=ModelCommand if asks else None)(verb)


def main() -> None:
    """The entry point of `evle`."""
    settle()
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # what torchao calls there, it warns of
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # every verb says itself what it reads and writes
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not UTF-8, byte for byte
    app()


if __name__ == "__main__":
    main()
