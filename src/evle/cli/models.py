"""The verbs that make model folders of others: `main` takes them in."""

from pathlib import Path
from typing import Annotated

import typer

from evle.cli.shared import print_next


def merge(
    run: Annotated[
        str, typer.Argument(help="A run's or model folder with an adapter (model.lora).", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in the output.")] = False,
) -> None:
    """Merge an adapter with the model that it adapts.

    The result needs neither the base model nor peft.

    \b
      evle train my-vqa.yaml model.init=models/base model.lora.rank=8 -o runs/vqa-lora
      evle merge runs/vqa-lora -o models/vqa
    """
    from evle.run.adapting import merge_adapter

    print(f"merged: {merge_adapter(run, output, overwrite=overwrite)}")
    print_next("evle", "evaluate", output)


VERBS = (merge,)
