"""The verbs that look at data before training on it, `evle data ...`.

Nothing heavy is imported before a verb needs it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from evle.cli.group import STYLE, Verbs
from evle.cli.shared import print_next, print_opening, refuse_replacing
from evle.cli.urls import App
from evle.terminal import one_line

Kind = Annotated[
    str | None,
    typer.Option(
        help="What to read: captions, vqa, nlvr2 or vcr. By default what a folder's table holds, else captions or what "
        "the source has.",
        show_default=False,
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        help="The split. By default all, or train where a source reads one split at a time (scenes, vqav2, ...).",
        show_default=False,
    ),
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


def check(
    source: Source,
    options: SourceOptions = None,
    kind: Kind = None,
    split: SplitOption = None,
    most: Annotated[int, typer.Option(help="Findings of each kind to print.")] = 20,
) -> None:
    """Check every row and every image.

    Reads every row, decodes every image, and names what cannot be used. The exit code is 1 if there is any.

    \b
      evle data check FOLDER
      evle data check FOLDER --kind vqa --most 1000
      evle data check karpathy path=COCO --split val
    """
    from evle.data.formats.table_files import kind_of_table
    from evle.inspection.folder_check import check_folder
    from evle.inspection.sample_check import check_samples

    with _progress() as progress:
        if _is_source(source, options) or options or split is not None or not _is_plain_folder(source, kind):
            found: Any = check_samples(_samples(source, options, kind, split), progress=progress)
        else:
            found = check_folder(source, kind or kind_of_table(Path(source)), progress=progress)
    print("\n".join(map(one_line, found.lines(most))))
    if not found.ok:
        raise typer.Exit(1)


def show(
    source: Source,
    options: SourceOptions = None,
    kind: Kind = None,
    split: SplitOption = None,
    num: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 24,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write; look by default.", show_default=False)
    ] = None,
) -> None:
    """Show samples on a page, images with their texts.

    \b
      evle data show FOLDER --split val -o look
      evle data show scenes --kind vqa size=128
    """
    from evle.inspection import showing

    folder = output or Path("look")
    title = source if kind is None else f"{source}: {kind}"
    page = showing.show(_samples(source, options, kind, split), num, title).write(folder)
    print(f"page: {page}")
    print_opening(page)


def stats(source: Source, options: SourceOptions = None, kind: Kind = None, split: SplitOption = None) -> None:
    """Count texts, answers, tags and question types.

    \b
      evle data stats FOLDER --split train
      evle data stats scenes --kind vqa count=5000
    """
    from evle.inspection import showing

    samples = _samples(source, options, kind, split)
    print("\n".join(map(one_line, showing.count(samples))))


def answers(
    source: Source,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The list: JSON, or .txt with one per line.", show_default=False
        ),
    ],
    options: SourceOptions = None,
    split: SplitOption = None,
    min_count: Annotated[
        int, typer.Option(min=1, help="Smallest number of questions with an answer as their main one.")
    ] = 9,
) -> None:
    """List the answers that a VQA model can give.

    The most frequent come first, written as the official evaluator normalises them.

    \b
      evle data answers FOLDER --split train -o answers.json --min-count 2
      evle data answers vqav2 path=FOLDER split=trainval -o answers.json
      evle train my-vqa.yaml task.answers=answers.json
    """
    from evle.data.formats.table_files import tables_in
    from evle.tasks.answers import write_answers

    refuse_replacing([output], tables_in(Path(source)) if Path(source).is_dir() else [source])
    print(write_answers(_samples(source, options, "vqa", split), output, min_count))
    print_next("evle", "train", "RECIPE", f"task.answers={output}")


def shards(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the shards.", show_default=False)],
    options: SourceOptions = None,
    kind: Kind = None,
    split: SplitOption = None,
    per_shard: Annotated[int, typer.Option(min=1, help="Samples per shard.")] = 10_000,
    num_threads: Annotated[int, typer.Option(min=1, help="Threads that read and check images.")] = 4,
) -> None:
    """Pack samples into webdataset shards.

    Repeat the command to resume after an interruption.

    \b
      evle data shards FOLDER --split train -o SHARDS/train
      evle data shards scenes --kind vqa count=100000 -o SHARDS
      evle data stats shards path=SHARDS/train
    """
    from evle.data.custom.packing import pack

    samples = _samples(source, options, kind, split)
    with _progress() as progress:
        done = pack(samples, output, per_shard=per_shard, num_threads=num_threads, progress=progress)
    left_out = list(getattr(samples, "skipped", ()))
    print("\n".join(map(one_line, [*done.lines(), *(f"left out by the source: {line}" for line in left_out[:20])])))
    of_kind = ["--kind", kind] if kind else []
    print_next("evle", "data", "stats", "shards", f"path={output}", *of_kind)


def _samples(source: str, options: list[str] | None, kind: str | None, split: str | None) -> Any:
    from evle.config import apply_overrides
    from evle.data.formats.table_files import kind_of_table
    from evle.data.sources import SOURCES, read_source, source_of
    from evle.errors import ConfigError, nearest

    named: dict[str, Any] = {name: value for name, value in (("task", kind), ("split", split)) if value is not None}
    if not _is_source(source, options):
        if not Path(source).exists():
            raise ConfigError(f"{source!r} is neither a folder nor a source; {nearest(source, SOURCES)}")
        named["path"], source = source, source_of(source)
        if source == "folder":
            named.setdefault("task", kind_of_table(Path(named["path"])))
    return read_source(source, apply_overrides(named, options or []))


def _is_plain_folder(path: str, kind: str | None) -> bool:
    """Whether a folder holds images as files; its table, if any, is read row by row."""
    from evle.data.custom.folder import holds_images
    from evle.data.formats.table_files import kind_of_table
    from evle.data.sources import source_of
    from evle.errors import DataError

    if not Path(path).exists() or source_of(path) != "folder":
        return False
    try:
        return not holds_images(path, kind or kind_of_table(Path(path)))
    except DataError:
        return True  # no table: the images alone are checked


def _is_source(name: str, options: list[str] | None) -> bool:
    """Whether `name` is a source's; a folder of that name wins, unless the options give another path."""
    from evle.data.sources import SOURCES

    has_path = any(option.startswith("path=") for option in options or [])
    return name in SOURCES and (has_path or not Path(name).is_dir())


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A function of (images done, images in all) that shows progress, which begins with its first call."""
    from contextlib import ExitStack

    from evle.terminal import ProgressLine

    with ExitStack() as stack:
        lines: list[ProgressLine] = []

        def show(done: int, total: int) -> None:
            if not lines:
                lines.append(stack.enter_context(ProgressLine(total, "images")))
            lines[0].update(done)

        yield show


app = App(
    cls=Verbs,
    help="""Look at data before training on it.

\b
  evle data check FOLDER
  evle data show karpathy path=COCO --split test -o look
""",
    add_completion=False,
    **STYLE,
)
for verb in (check, show, stats, answers, shards):
    app.command()(verb)
