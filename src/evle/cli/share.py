"""The verbs that make a model ready for others: `main` takes them in. Nothing heavy is imported before it is needed."""

from pathlib import Path
from typing import Annotated

import typer

from evle.cli.shared import print_next
from evle.cli.showing import exported_use, show_use
from evle.errors import ConfigError

Model = Annotated[Path, typer.Argument(help="A run's folder, or a model folder.", show_default=False)]


def card(
    model: Model,
    report: Annotated[
        Path | None, typer.Option(help="Take the scores from this report's folder.", show_default=False)
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", "--licence", help="Licence of the weights.", show_default=False)
    ] = None,
    data_licence: Annotated[
        str | None,
        typer.Option("--data-license", "--data-licence", help="Licence of data that state none.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a README.md that is no card.")] = False,
) -> None:
    """Write or refresh the card of a model.

    \b
      evle card runs/pictures/retrieval --license apache-2.0
      evle card runs/pictures/retrieval \\
          --report runs/pictures/retrieval/evaluation
    """
    from evle.models.folders import model_folder
    from evle.share.card import write_card

    folder = model_folder(model)
    print(write_card(folder, report=report, licence=licence, data_licence=data_licence, overwrite=overwrite))
    print_next("evle", "push", folder, "OWNER/NAME")


def push(
    model: Model,
    name: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new model private.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch to write to.", show_default=False)] = None,
    message: Annotated[str, typer.Option("--message", "-m", help="What the commit says.")] = "Upload with evle",
    without_scores: Annotated[
        bool, typer.Option("--without-scores", help="Upload a model whose card has no scores.")
    ] = False,
) -> None:
    """Upload a model and its card to the hub.

    \b
      evle push runs/pictures/retrieval me/eve-photos
      evle search photos.index "a red car" --model me/eve-photos
    """
    from evle.models.folders import model_folder
    from evle.share.facts import run_facts
    from evle.share.hub import push as upload

    print(upload(model, name, private=private, revision=revision, message=message, without_scores=without_scores))
    task = (run_facts(model_folder(model)).get("config") or {}).get("task")
    if isinstance(task, dict):
        show_use(str(task.get("name")), name)


def export(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.", show_default=False)],
    form: Annotated[str, typer.Option("--format", help="onnx, or torch (programs of torch.export).")] = "onnx",
    opset: Annotated[
        int | None, typer.Option(help="Version of ONNX's operators, 20 by default.", show_default=False)
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Keep weights in 8 bits.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Data to measure the change of scores on; the run's own by default.", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="The split of that data.", show_default=False)] = None,
) -> None:
    """Export a model as ONNX or torch.export graphs.

    Pipelines, index and search run from the folder without torch. With --int8, the scores of the model before and
    after are printed.

    \b
      evle export runs/pictures/retrieval -o exported/photos
      evle export runs/vqa -o exported/vqa-int8 --int8
      evle export runs/vqa -o exported/vqa --format torch
    """
    from evle.export.graphs import export as write_graphs
    from evle.exported.folder import ExportedModel
    from evle.report.markdown import markdown_table
    from evle.run.exported import change_of_scores
    from evle.storage import fetch

    if not int8 and (data is not None or split is not None):
        raise ConfigError("--data and --split are for --int8, whose scores they measure")
    if data is not None and not fetch(data).exists():
        raise ConfigError(f"--data {data}: no such folder; name the data to measure the change of scores on")
    table = write_graphs(model, output, form, opset=opset, int8=int8)  # type: ignore[arg-type]
    print(markdown_table(table))
    print(f"{output}: {table.note}")
    if int8:
        change = change_of_scores(model, output, data=data, split=split)
        if change is None:
            print("the change of scores was not measured; name data with --data")
        else:
            print(f"\n{markdown_table(change)}\n{change.note}")
    if form == "onnx":
        facts = ExportedModel(output).facts
        show_use(exported_use(facts["task"], facts["runs"]), output)


VERBS = (export, card, push)
