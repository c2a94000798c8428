"""The verbs of the command line: each parses, calls one function, and prints its report.

Nothing heavy is imported before a verb needs it, so that `evle --help` answers at once. What a user can cause is one
line on stderr and exit code 2; an interrupted run ends with 130.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from evle import __version__
from evle.cli import ask, data
from evle.errors import EvleError
from evle.terminal import PrintableStream, log_to_terminal, printable

if TYPE_CHECKING:
    from evle.report import Report, Table

DEBUG = "EVLE_DEBUG"


class Verbs(TyperGroup):
    """The group of all verbs, where errors become one line."""

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
            raise _end(
                "interrupted; repeat the command with --resume to go on with a run that has a checkpoint", 130
            ) from None
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
                    f"the disk is full{where}: make room, and repeat the command (a training with --resume)", 2
                ) from None
            raise _end(_in_words(error), 2) from None


def _in_words(error: OSError) -> str:
    """What the machine refused, of which file, and where there is one, the cure."""
    if not error.filename:
        return str(error)
    if isinstance(error, PermissionError):
        return f"{error.filename}: may not be read or written; change its permissions, or name another place"
    if isinstance(error, IsADirectoryError):
        return f"{error.filename}: is a folder, where a file is needed; name the file, or move the folder away"
    if isinstance(error, FileExistsError):
        return f"{error.filename}: is a file, where a folder is to be made; choose another output"
    return f"{error.strerror}: {error.filename}"


def _end(message: str, exit_code: int) -> typer.Exit:
    print(f"evle: {printable(' '.join(message.split()))}", file=sys.stderr)
    return typer.Exit(exit_code)


STYLE: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
}
app = typer.Typer(
    cls=Verbs,
    help="""Vision-language encoders EVE and VLE: pre-train, fine-tune, evaluate, search.

\b
Start here:
  evle run quickstart                     pre-training, VQA and retrieval on synthetic scenes, in minutes
  evle run scenes-vle                     the same with VLE, and choices of answers and reasons
  evle recipes                            the recipes that come with evle
  evle data check FOLDER                  is my folder of images and captions in order?
  evle run pictures data.path=FOLDER      train on it and report
  evle index FOLDER -o INDEX --model runs/pictures/retrieval
  evle search INDEX "a red car"
  evle ask runs/quickstart/vqa-pretrained a.jpg "which colour is it?"
""",
    **STYLE,
)
tokenizer_app = typer.Typer(
    help="""Train a tokenizer.

\b
  evle tokenizer train books.txt wiki.txt -o tokenizers/eve --vocab-size 64000
""",
    **STYLE,
)
data_app = typer.Typer(
    help="""Look at data before training on it.

\b
  evle data check FOLDER
  evle data show karpathy path=COCO --split test -o look
""",
    **STYLE,
)
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(data_app, name="data")

Recipe = Annotated[
    str, typer.Argument(help="A recipe's name (see `evle recipes`) or a .yaml file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Settings that replace the recipe's, such as optim.lr=1e-4.", show_default=False
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete the run in the output folder first.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The folder to write.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Build everything, try two batches, write nothing.")]


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


@app.command()
def pretrain(
    recipe: Recipe,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Pre-train a model on images with captions, by the objectives that the recipe names.

    \b
      evle pretrain eve-base-pretrain --dry-run
      evle pretrain eve-base-pretrain train.batch_size=512 -o runs/base
      evle pretrain eve-base-pretrain train.batch_size=512 -o runs/base --resume
      accelerate launch -m evle pretrain eve-base-pretrain
    """
    _train("pretrain", recipe, overrides, output, resume, overwrite, dry_run)


@app.command()
def finetune(
    recipe: Recipe,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune a model on a task, choose the best weights on val, score them on test.

    \b
      evle finetune my-vqa.yaml model.init=runs/base --dry-run
      evle finetune my-vqa.yaml model.init=runs/base optim.lr=1e-4 -o runs/vqa
    """
    _train("finetune", recipe, overrides, output, resume, overwrite, dry_run)


def _train(
    verb: str, name: str, overrides: list[str] | None, output: Path | None, resume: bool, overwrite: bool, dry_run: bool
) -> None:
    from evle.run import config as reading
    from evle.run import training
    from evle.run.dry_run import rehearse

    config = reading.read_recipe(name, _with_output(overrides, output))
    if dry_run:
        found = rehearse(config)
        print("\n".join(found.said()))
        if found.missing:
            raise typer.Exit(2)
        return
    run = training.pretrain if verb == "pretrain" else training.finetune
    _show(run(config, resume=resume, overwrite=overwrite), Path(config.output))


@app.command()
def evaluate(
    run: Annotated[
        str, typer.Argument(help="A run's folder, or a recipe whose output folder holds its run.", show_default=False)
    ],
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="Score this model folder instead of the run's.", show_default=False)
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--recipe", help="Score by this recipe's task and data, not the run's own.", show_default=False),
    ] = None,
    output: Output = None,
) -> None:
    """Score a trained model on its test data, on any other, or by another recipe (zero-shot).

    \b
      evle evaluate runs/pictures/retrieval
      evle evaluate runs/eve-base-pretrain --recipe eve-base-coco-retrieval data.path=FOLDER
      evle evaluate runs/pictures/retrieval data.test.split=val data.path=FOLDER
      evle evaluate runs/pictures/retrieval data.test.split=test task.k_test=0 -o scores
      evle evaluate runs/pictures/retrieval model.overrides.capacity_factor=1.0 -o scores
    """
    from evle.run import config as reading
    from evle.run import evaluation

    if by is None and not Path(run).is_dir() and "/" in run and Path(run).suffix not in (".yaml", ".yml"):
        raise EvleError(f"{run}: no such folder; give a run's folder, or a recipe")
    config = reading.read_to_score(run, overrides or [], recipe=by, model=model)
    name = "evaluation" if by is None else f"evaluation-{Path(by).stem}"
    folder = output or Path(config.output) / name
    _show(evaluation.evaluate(config, model=model, output=folder), folder)


@app.command()
def vcr(
    q2a: Annotated[str, typer.Argument(help="A run or model folder of vcr-q2a, which answers.", show_default=False)],
    qa2r: Annotated[
        str, typer.Argument(help="One of vcr-qa2r, which gives the reason for an answer.", show_default=False)
    ],
    overrides: Overrides = None,
    output: Output = None,
) -> None:
    """Score two models together, question to answer and reason, and write the leaderboard's file.

    \b
      evle vcr runs/q2a runs/qa2r
      evle vcr models/q2a models/qa2r data.test.source=vcr data.test.split=val data.path=FOLDER -o scores
    """
    from evle.run.vcr import judge_vcr

    folder = output or Path(qa2r) / "joint"
    _show(judge_vcr(q2a, qa2r, overrides or [], output=folder), folder)


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    output: Output = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Run every stage anew.")] = False,
) -> None:
    """Run a recipe with all its stages; finished stages are kept, an unfinished one is resumed.

    \b
      evle run quickstart
      evle run pictures data.path=FOLDER
      evle run pictures data.path=FOLDER stages.retrieval.train.epochs=5 -o runs/short
    """
    from evle.run import stages

    read = stages.read_stages(recipe, _with_output(overrides, output))
    report = stages.run_stages(read, overwrite=overwrite)
    _show(report, read.output, report.all_tables()[:1])


@app.command()
def recipes() -> None:
    """List the recipes that come with evle, and where their files are, to copy and change.

    \b
      evle recipes
    """
    from evle.recipes import listing
    from evle.recipes import recipes as known
    from evle.report import text_table

    for table in listing():
        print(f"{table.title}\n\n{text_table(table)}\n")
    print(f"The files: {next(iter(known().values())).parent}")


@app.command()
def index(
    images: Annotated[Path, typer.Argument(help="A folder of images, or a table that names them.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The index's folder.", show_default=False)],
    model: Annotated[Path, typer.Option("--model", "-m", help="A retrieval run or model folder.", show_default=False)],
    batch_size: Annotated[int, typer.Option(help="Images at once.")] = 32,
    num_workers: Annotated[int, typer.Option(help="Threads that read images.")] = 2,
) -> None:
    """Make a folder of images searchable, or add new images to its index.

    \b
      evle index photos -o photos.index --model runs/pictures/retrieval
    """
    from evle.search import build_index

    built = build_index(model, images, output, batch_size=batch_size, num_workers=num_workers)
    print(f"{output}: {len(built)} images; {built.change}")


@app.command()
def search(
    index: Annotated[Path, typer.Argument(help="An index's folder.", show_default=False)],
    text: Annotated[str | None, typer.Argument(help="What to look for.", show_default=False)] = None,
    image: Annotated[
        Path | None, typer.Option("--image", "-i", help="Look for images like this one.", show_default=False)
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 10,
    rerank: Annotated[int, typer.Option(min=0, help="Look at so many of the best again, together with the text.")] = 0,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page of the images found.", show_default=False)
    ] = None,
) -> None:
    """Find images by words or by another image.

    \b
      evle search photos.index "a dog on a beach" --rerank 50 --html found.html
      evle search photos.index --image dog.jpg -k 20
    """
    from evle.search import ImageIndex, write_contact_sheet

    hits = ImageIndex.load(index).query(text, image=image, k=k, rerank=rerank)
    for hit in hits:
        match = "" if hit.match is None else f"  match {hit.match:6.1%}"
        print(f"{hit.score:7.3f}{match}  {hit.path}")
    if html is not None:
        print(f"page: {write_contact_sheet(hits, text or str(image), html, query_image=image)}")


for verb in ask.VERBS:
    app.command()(verb)
for look in data.VERBS:
    data_app.command()(look)


@app.command()
def convert(
    family: Annotated[str, typer.Argument(help="eve; a released VLE is read as it is.", show_default=False)],
    source: Annotated[
        Path, typer.Argument(help="A released checkpoint file, or a model folder of ours.", show_default=False)
    ],
    destination: Annotated[Path, typer.Argument(help="The model folder, or the file, to write.", show_default=False)],
    num_attention_heads: Annotated[
        int | None, typer.Option(help="The weights do not tell it; width / 64 by default.", show_default=False)
    ] = None,
    released_routing: Annotated[
        bool, typer.Option("--released-routing", help="Drop tokens over capacity, as the released code does.")
    ] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer's folder, to save beside the weights.", show_default=False)
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="A JSON list of the answers of a VQA checkpoint.", show_default=False)
    ] = None,
) -> None:
    """Convert a checkpoint of the authors' release to a model folder, or back.

    \b
      evle convert eve eve_base_vqa.th models/eve-base-vqa --tokenizer tokenizers/eve --answers answer_list.json
      evle convert eve models/eve-base-vqa eve_base_vqa.th
    """
    from evle.errors import ConfigError, nearest
    from evle.models.eve.convert import convert_eve

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
    print(written)


@tokenizer_app.command("train")
def train_tokenizer(
    corpus: Annotated[
        list[Path],
        typer.Argument(help="Text files (a text a line), tables of captions, or folders with one.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The tokenizer's folder.", show_default=False)],
    vocab_size: Annotated[int, typer.Option(help="Tokens, at most.")] = 64000,
    clean: Annotated[bool, typer.Option(help="Lower case without punctuation, as training reads texts.")] = True,
) -> None:
    """Train a byte-level BPE tokenizer on a corpus.

    \b
      evle tokenizer train books.txt wiki.txt -o tokenizers/eve --vocab-size 64000
      evle pretrain eve-base-pretrain tokenizer.path=tokenizers/eve
    """
    from evle.data.custom.corpus import read_texts
    from evle.engine.run_folder import make_output
    from evle.transforms.text import clean_caption
    from evle.transforms.text import train_tokenizer as train

    texts = read_texts(corpus)
    make_output(output)
    trained = train((clean_caption(text, None) for text in texts) if clean else texts, vocab_size)
    trained.save_pretrained(output)
    print(f"{output}: {len(trained)} tokens")


def _with_output(overrides: list[str] | None, output: Path | None) -> list[str]:
    return [*(overrides or []), *([f"output={output}"] if output is not None else [])]


def _show(report: "Report", folder: Path, tables: Sequence["Table"] = ()) -> None:
    """The report's lines, some of its tables, and where it lies, said by the main process."""
    from evle.distributed import is_main
    from evle.report import text_table

    if is_main():
        print("\n".join([report.title, *(f"  {line}" for line in report.summary)]))
        for table in tables:
            print(f"\n{text_table(table)}\n")
        print(f"report: {folder / 'report.html'}")


def main() -> None:
    """The entry point of `evle`."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # every verb says itself what it reads and writes
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files that are not UTF-8, byte for byte
    app()


if __name__ == "__main__":
    main()
