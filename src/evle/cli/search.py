"""The verbs that make an image index and search it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evle.cli.shared import (
    AsJson,
    answering,
    checked_text,
    image_source,
    print_error,
    print_json,
    print_next,
    print_opening,
    refuse_images,
    refuse_replacing,
    text_list,
)
from evle.errors import ConfigError
from evle.terminal import one_line

if TYPE_CHECKING:
    from evle.search import Filter, Hit, ImageIndex

PAGES = (".html", ".htm")
ROW = ("query", "rank", "score", "match", "image", "path", "columns")
"""The keys of a JSON line of results. A column of the table with one of these names is under the last of them."""
Root = Annotated[
    Path | None, typer.Option(help="The images' folder, if it moved without the index.", show_default=False)
]


def index(
    images: Annotated[
        Path | None, typer.Argument(help="A folder of images, or a table that names them.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The index's folder.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A retrieval run, a model folder or a hub name; also CLIP and SigLIP. Default: the index's own.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per batch.")] = 32,
    num_workers: Annotated[int, typer.Option(help="Threads that read images.")] = 2,
    remove: Annotated[
        list[str] | None,
        typer.Option(help="Take a path, folder or pattern out of the index; may be repeated.", show_default=False),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Remember that the images are in this folder now.", show_default=False)
    ] = None,
    list_images: Annotated[bool, typer.Option("--list", help="List the images of the index.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print facts about the index.")] = False,
    duplicates: Annotated[bool, typer.Option("--duplicates", help="List images with equal files.")] = False,
    similar: Annotated[
        float | None, typer.Option(help="List images of at least this cosine similarity.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Index a folder of images, or update its index.

    Captions and filters come from a table in the folder. Unreadable images are named; exit code 0 unless all are.

    \b
      evle index photos -o photos.index --model runs/pictures/retrieval
      evle index photos -o photos.index
      evle index -o photos.index --stats
      evle index -o photos.index --similar 0.98
      evle index -o photos.index --remove 2019 --remove "*.gif"
      evle index -o photos.index --root /new/photos
    """
    from evle.search import ImageIndex, build_index, find_duplicates

    if output is None:
        raise ConfigError("no index is named; give its folder with -o")
    remarks = sys.stderr if as_json else sys.stdout
    if root is not None:
        _opened(output).move_root(root)
        print(f"{output}: its images are in {root}", file=remarks)
    if images is not None:
        if model is None:
            built = ImageIndex.load(output, batch_size=batch_size, num_workers=num_workers)
            built.add(images)
        else:
            built = build_index(model, images, output, batch_size=batch_size, num_workers=num_workers)
        _print_change(built, output, as_json)
    elif not (remove or root or list_images or stats or duplicates or similar is not None):
        raise ConfigError(
            "nothing to do; name images, or one of --list, --stats, --remove, --root, --duplicates, --similar"
        )
    elif model is not None:
        raise ConfigError(f"--model {model}: is the model that embeds images; name the images as well")
    opened = _opened(output)
    if remove:
        change = opened.remove(*remove)
        print(f"{output}: {len(change.vanished)} removed, {change.num_kept} kept", file=remarks)
    if list_images:
        for key in opened.keys:
            print_json({"image": key}) if as_json else print(one_line(key))
    if stats:
        _print_facts(opened.stats(), as_json)
    for wanted, similarity in ((duplicates, None), (similar is not None, similar)):
        if wanted:
            _print_groups(find_duplicates(opened, similarity=similarity), as_json)


def _print_change(index: "ImageIndex", output: Path, as_json: bool) -> None:
    if as_json:
        print_json({"index": output, "images": len(index), **vars(index.change)})
    else:
        print(f"{output}: {len(index)} images; {index.change}")
    print_next("evle", "search", output, "a dog on a beach")


def _print_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        print(f"{name:>10}  {value:,}" if isinstance(value, int) else f"{name:>10}  {value}")


def _opened(output: Path) -> Any:
    from evle.search import ImageIndex

    return ImageIndex.load(output)


def _print_groups(groups: list[list[str]], as_json: bool) -> None:
    for group in groups:
        print_json({"images": group}) if as_json else print("  ".join(map(one_line, group)))
    if not as_json:
        print(f"{len(groups)} groups, {sum(map(len, groups)) - len(groups)} images more than needed")


def search(
    index: Annotated[Path, typer.Argument(help="An index's folder.", show_default=False)],
    text: Annotated[
        str | None, typer.Argument(help="What to look for; - reads one text per line.", show_default=False)
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", "-i", help="Look for images like this one; - reads stdin.", show_default=False),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of results.")] = 10,
    rerank: Annotated[int, typer.Option(min=0, help="Re-rank this many of the best by the match score.")] = 0,
    rerank_model: Annotated[
        str | None,
        typer.Option(help="An EVE or VLE that re-ranks, if the index's model does not match.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The model that made the index, if it moved.", show_default=False),
    ] = None,
    root: Root = None,
    folder: Annotated[str, typer.Option(help="Only images below this folder of the root.", show_default=False)] = "",
    since: Annotated[str, typer.Option(help="Only files changed on this day or later.", show_default=False)] = "",
    until: Annotated[str, typer.Option(help="Only files changed on this day or earlier.", show_default=False)] = "",
    where: Annotated[
        list[str] | None,
        typer.Option(help='A condition on a column of the table, such as "year>=2019".', show_default=False),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Ignore the approximate index of a large index.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page of the results.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", "--jsonl", help="Print JSON lines instead of a list.")] = False,
) -> None:
    """Find images by words or by another image.

    \b
      evle search photos.index "a dog on a beach" --html found.html
      evle search photos.index --image dog.jpg -k 20
      evle search photos.index "a dog" --folder 2019 --where "author=Ann" --json
      cat queries.txt | evle search photos.index - --json
    """
    from evle.search import Filter, ImageIndex, write_contact_sheet
    from evle.search.listing import is_gone

    opened = ImageIndex.load(index, model=model, root=root, match_model=rerank_model)
    options: dict[str, Any] = {
        "k": k,
        "rerank": rerank or (k if rerank_model else 0),
        "where": Filter(folder, since, until, where or ()),
        "exact": exact,
    }
    if text is None and image is None:
        raise ConfigError("nothing to look for; give a text, or an image with --image")
    texts = [] if text is None else text_list([text], image)
    _check_texts(texts, image)
    _check_page(html, [index, image], texts)
    source = None if image is None else image_source(image)

    def found(some: list[Any]) -> list[list["Hit"]]:
        if source is None:
            return opened.query_many(texts=some, **options)
        return [opened.query(checked_text(texts[0]) if texts else None, image=source, **options)]

    with answering() as answered:
        rows = answered.each(texts if source is None else [image], found)
        for name, hits in rows:
            if len(rows) > 1 and not as_json:
                print(f"{name}:")
            for rank, hit in enumerate(hits, 1):
                print_json(_row(str(name), rank, hit)) if as_json else print(_line(hit))
        if any(not hits for _, hits in rows):
            _report_none(opened, options["where"])
        if any(is_gone(hit.path) for _, hits in rows for hit in hits):
            print_error(
                f"some images are not below {opened.root} any more; name their folder with --root, or for good with "
                f"`evle index -o {index} --root FOLDER`"
            )
        if html is not None and rows:
            page = write_contact_sheet(rows[0][1], str(rows[0][0]), html, query_image=source, index=opened)
            if not as_json:
                print(f"page: {page}")
            print_opening(page)


def _check_texts(texts: Sequence[str], image: Path | None) -> None:
    """Raise ConfigError for several texts beside an image, and for the name of an image where a text is needed."""
    refuse_images(texts, "--image")
    if image is not None and len(texts) > 1:
        raise ConfigError(f"{len(texts)} texts with --image, which goes with one; search for them one by one")


def _check_page(page: Path | None, inputs: Sequence[Path | None], texts: Sequence[str]) -> None:
    """Raise ConfigError for a page that is not named as one, or that is or is in one of `inputs`; or several texts."""
    if page is None:
        return
    if len(texts) > 1:
        raise ConfigError("--html shows the results of one query; give one text")
    if page.suffix.lower() not in PAGES:
        raise ConfigError(f"--html {page}: not the name of a page to write; end it in .html")
    refuse_replacing([page], filter(None, inputs), "--html")


def _report_none(opened: "ImageIndex", where: "Filter") -> None:
    """Report that no image passes a filter. Raises ConfigError for a condition on a column that no image has."""
    where.refuse_unknown(opened.columns())
    print_error(f"no image of {opened.path} fits {_in_words(where)}")


def _in_words(where: "Filter") -> str:
    """The conditions of a filter as options of the command line."""
    given: dict[str, list[Any]] = {"folder": [where.folder], "since": [where.since], "until": [where.until]}
    given["where"] = list(where.where)
    return " and ".join(f"--{name} {value!r}" for name, values in given.items() for value in values if value)


def _row(query: str, rank: int, hit: "Hit") -> dict[str, Any]:
    match = {} if hit.match is None else {"match": hit.match}
    row = {"query": query, "rank": rank, "score": hit.score, **match, "image": hit.key, "path": hit.path}
    hidden = {name: value for name, value in hit.fields.items() if name in ROW}
    others = {name: value for name, value in hit.fields.items() if name not in ROW}
    return {**row, **others, **({"columns": hidden} if hidden else {})}


def _line(hit: "Hit") -> str:
    match = "" if hit.match is None else f"  match {hit.match:6.1%}"
    return f"{hit.score:7.3f}{match}  {one_line(str(_nearby(hit.path)))}"


def _nearby(path: Path) -> Path:
    """A path below the working folder as relative to it, any other as it is."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


VERBS = (index, search)
