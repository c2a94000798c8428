"""The verbs of the command line: each parses, calls one function, and prints its report.

Nothing heavy is imported before a verb needs it, so that `evle --help` answers at once. What a user can cause is one
line on stderr and exit code 2; an interrupted run ends with 130.
"""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from evle import __version__, asking
from evle.errors import EvleError

if TYPE_CHECKING:
    from evle.report import Report, Table

DEBUG = "EVLE_DEBUG"


class Verbs(TyperGroup):
    """The group of all verbs, where errors become one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EvleError as error:
            if os.environ.get(DEBUG):
                raise
            raise _end(str(error), error.exit_code) from None
        except KeyboardInterrupt:
            raise _end(
                "interrupted; repeat the command with --resume to go on with a run that has a checkpoint", 130
            ) from None
        except OSError as error:
            if os.environ.get(DEBUG) or error.errno == errno.EPIPE:
                raise
            if error.errno == errno.ENOSPC:
                where = f" ({error.filename})" if error.filename else ""
                raise _end(f"the disk is full{where}: make room, and repeat the command with --resume", 2) from None
            raise _end(f"{error.strerror}: {error.filename}" if error.filename else str(error), 2) from None


def _end(message: str, exit_code: int) -> typer.Exit:
    print(f"evle: {' '.join(message.split())}", file=sys.stderr)
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
  evle data check FOLDER                  is my folder of pictures and captions in order?
  evle run pictures data.path=FOLDER      train on it and report
  evle index FOLDER -o INDEX --model runs/pictures/retrieval
  evle search INDEX "a red car"
  evle ask runs/quickstart/vqa-pretrained a.jpg "which colour is it?"
""",
    **STYLE,
)
tokenizer_app = typer.Typer(help="Train a tokenizer.", **STYLE)
data_app = typer.Typer(help="Look at data before training on it.", **STYLE)
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
    """Pre-train a model on pictures with captions, by the objectives that the recipe names.

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
    from evle import recipe, rehearsal

    config = recipe.read_recipe(name, _with_output(overrides, output))
    if dry_run:
        found = rehearsal.rehearse(config)
        print("\n".join(found.said()))
        if found.missing:
            raise typer.Exit(2)
        return
    run = recipe.pretrain if verb == "pretrain" else recipe.finetune
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
    """
    from evle import recipe

    if by is not None:
        config, name = recipe.read_run(run, overrides or [], by), f"evaluation-{Path(by).stem}"
    else:
        is_run = (Path(run) / "config.yaml").is_file() or Path(run).is_dir()
        config, name = (recipe.read_run if is_run else recipe.read_recipe)(run, overrides or []), "evaluation"
    folder = output or Path(config.output) / name
    _show(recipe.evaluate(config, model=model, output=folder), folder)


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
    from evle import joint

    folder = output or Path(qa2r) / "joint"
    _show(joint.judge_vcr(q2a, qa2r, overrides or [], output=folder), folder)


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
    from evle import stages

    read = stages.read_stages(recipe, _with_output(overrides, output))
    report = stages.run_stages(read, overwrite=overwrite)
    _show(report, read.output, report.all_tables()[:1])


@app.command()
def recipes() -> None:
    """List the recipes that come with evle, and where their files are, to copy and change."""
    from evle.recipes import listing
    from evle.recipes import recipes as known
    from evle.report import text_table

    for table in listing():
        print(f"{table.title}\n\n{text_table(table)}\n")
    print(f"The files: {next(iter(known().values())).parent}")


@app.command()
def index(
    pictures: Annotated[
        Path, typer.Argument(help="A folder of pictures, or a table that names them.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The index's folder.", show_default=False)],
    model: Annotated[Path, typer.Option("--model", "-m", help="A retrieval run or model folder.", show_default=False)],
    batch_size: Annotated[int, typer.Option(help="Pictures at once.")] = 32,
    num_workers: Annotated[int, typer.Option(help="Threads that read pictures.")] = 2,
) -> None:
    """Make a folder of pictures searchable, or add new pictures to its index.

    \b
      evle index photos -o photos.index --model runs/pictures/retrieval
    """
    from evle.search import build_index

    built = build_index(model, pictures, output, batch_size=batch_size, num_workers=num_workers)
    print(f"{output}: {len(built)} pictures; {built.change}")


@app.command()
def search(
    index: Annotated[Path, typer.Argument(help="An index's folder.", show_default=False)],
    text: Annotated[str | None, typer.Argument(help="What to look for.", show_default=False)] = None,
    image: Annotated[
        Path | None, typer.Option("--image", "-i", help="Look for pictures like this one.", show_default=False)
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 10,
    rerank: Annotated[int, typer.Option(min=0, help="Look at so many of the best again, together with the text.")] = 0,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page of the pictures found.", show_default=False)
    ] = None,
) -> None:
    """Find pictures by words or by another picture.

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


for verb in asking.VERBS:
    app.command()(verb)


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
    from evle.convert import convert_eve
    from evle.errors import ConfigError, nearest

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
    from evle.data.corpus import read_texts
    from evle.transforms.text import clean_caption
    from evle.transforms.text import train_tokenizer as train

    texts = read_texts(corpus)
    trained = train((clean_caption(text, None) for text in texts) if clean else texts, vocab_size)
    trained.save_pretrained(output)
    print(f"{output}: {len(trained)} tokens")


Kind = Annotated[
    str | None,
    typer.Option(
        help="What to read: captions, vqa, nlvr2 or vcr; by default what the source holds, captions of a folder.",
        show_default=False,
    ),
]
SplitOption = Annotated[
    str | None, typer.Option(help="The split; all by default, train for scenes.", show_default=False)
]
Source = Annotated[
    str,
    typer.Argument(
        help="A folder (a table, shards, a saved data set), or a source such as karpathy.", show_default=False
    ),
]
SourceOptions = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the source.", show_default=False)
]


@data_app.command("check")
def check(
    source: Source,
    options: SourceOptions = None,
    kind: Kind = None,
    split: SplitOption = None,
    most: Annotated[int, typer.Option(help="Findings of each kind to print.")] = 20,
) -> None:
    """Read every row and decode every picture; name what cannot be used.

    The exit code is 1 if anything cannot.

    \b
      evle data check FOLDER
      evle data check FOLDER --kind vqa --most 1000
      evle data check karpathy path=COCO --split val
    """
    from evle.data.check import check_folder
    from evle.data.sample_check import check_samples

    told = _progress if sys.stderr.isatty() else None
    if _is_source(source, options) or options or split is not None or not _is_plain_folder(source, kind):
        found: Any = check_samples(_samples(source, options, kind, split), progress=told)
    else:
        found = check_folder(source, kind or "captions", progress=told)
    print("\n".join(found.lines(most)))
    if not found.ok:
        raise typer.Exit(1)


@data_app.command("show")
def show(
    source: Source,
    options: SourceOptions = None,
    kind: Kind = None,
    split: SplitOption = None,
    num: Annotated[int, typer.Option(min=1, help="How many samples.")] = 24,
    output: Output = None,
) -> None:
    """Write a page of samples, pictures with their words.

    \b
      evle data show FOLDER --split val -o look
      evle data show scenes --kind vqa size=128
    """
    from evle import showing

    folder = output or Path("look")
    title = source if kind is None else f"{source}: {kind}"
    print(f"page: {showing.show(_samples(source, options, kind, split), num, title).write(folder)}")


@data_app.command("stats")
def stats(source: Source, options: SourceOptions = None, kind: Kind = None, split: SplitOption = None) -> None:
    """Count what the data holds: texts, answers, tags, and types.

    \b
      evle data stats FOLDER --split train
      evle data stats scenes --kind vqa count=5000
    """
    from evle import showing

    samples = _samples(source, options, kind, split)
    print("\n".join(showing.count(samples)))


@data_app.command("answers")
def list_answers(
    source: Source,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The list: JSON, or .txt of one a line.", show_default=False)
    ],
    options: SourceOptions = None,
    split: SplitOption = None,
    min_count: Annotated[int, typer.Option(min=1, help="Questions that must have an answer as their main one.")] = 9,
) -> None:
    """Write the list of answers that a VQA model shall know, the most frequent first.

    They are written as the official evaluator normalises them.

    \b
      evle data answers FOLDER --split train -o answers.json --min-count 2
      evle data answers vqav2 path=FOLDER split=trainval -o answers.json
      evle finetune my-vqa.yaml task.answers=answers.json
    """
    from evle.tasks.answers import write_answers

    print(write_answers(_samples(source, options, "vqa", split), output, min_count))


@data_app.command("shards")
def pack_shards(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the shards.", show_default=False)],
    options: SourceOptions = None,
    kind: Kind = None,
    split: SplitOption = None,
    per_shard: Annotated[int, typer.Option(min=1, help="Samples in a shard.")] = 10_000,
    num_threads: Annotated[int, typer.Option(min=1, help="Threads that read and check pictures.")] = 4,
) -> None:
    """Pack samples into webdataset shards.

    Repeat the command to go on after an interruption.

    \b
      evle data shards FOLDER --split train -o SHARDS/train
      evle data shards scenes --kind vqa count=100000 -o SHARDS
      evle data stats shards path=SHARDS/train
    """
    from evle.data.packing import pack

    samples = _samples(source, options, kind, split)
    told = _progress if sys.stderr.isatty() else None
    done = pack(samples, output, per_shard=per_shard, num_threads=num_threads, progress=told)
    left_out = list(getattr(samples, "skipped", ()))
    print("\n".join([*done.lines(), *(f"left out by the source: {line}" for line in left_out[:20])]))


def _samples(source: str, options: list[str] | None, kind: str | None, split: str | None) -> Any:
    from evle.config import apply_overrides
    from evle.data.sources import SOURCES, read_source, source_of
    from evle.errors import ConfigError, nearest

    named: dict[str, Any] = {name: value for name, value in (("task", kind), ("split", split)) if value is not None}
    if not _is_source(source, options):
        if not Path(source).exists():
            raise ConfigError(f"{source!r} is neither a folder nor a source; {nearest(source, SOURCES)}")
        named["path"], source = source, source_of(source)
    return read_source(source, apply_overrides(named, options or []))


def _is_plain_folder(path: str, kind: str | None) -> bool:
    """Whether pictures lie in a folder as files, whose table (if any) is read row by row."""
    from evle.data.sources import source_of
    from evle.data.tables import holds_pictures
    from evle.errors import DataError

    if not Path(path).exists() or source_of(path) != "folder":
        return False
    try:
        return not holds_pictures(path, kind or "captions")
    except DataError:
        return True  # no table: the pictures alone are checked


def _is_source(name: str, options: list[str] | None) -> bool:
    """Whether `name` is a source's; a folder of that name wins, unless the options give another path."""
    from evle.data.sources import SOURCES

    has_path = any(option.startswith("path=") for option in options or [])
    return name in SOURCES and (has_path or not Path(name).is_dir())


def _progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done:,} of {total:,} pictures", end=end, file=sys.stderr, flush=True)


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
    app()


if __name__ == "__main__":
    main()
