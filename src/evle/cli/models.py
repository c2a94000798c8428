"""The verbs that make model folders from other weights: `main` adds them to the command line."""

from pathlib import Path
from typing import Annotated

import typer

from evle.cli.shared import print_next
from evle.cli.showing import show_report


def merge(
    run: Annotated[
        str, typer.Argument(help="A run's folder or a model folder with an adapter (model.lora).", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in the output.")] = False,
) -> None:
    """Merge an adapter with the model that it adapts.

    The result needs neither the base model nor peft.

    \b
      evle train my-vqa.yaml model.init=models/base model.lora.rank=8 \\
          -o runs/vqa-lora
      evle merge runs/vqa-lora -o models/vqa
    """
    from evle.run.adapting import merge_adapter

    print(f"merged: {merge_adapter(run, output, overwrite=overwrite)}")
    print_next("evle", "evaluate", output)


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
      evle convert eve eve_base_vqa.th models/eve-base-vqa \\
          --tokenizer tokenizers/eve --answers answer_list.json
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
    if destination.is_dir():
        print_next("evle", "card", destination)
    else:
        print_next("evle", "convert", "eve", destination, "FOLDER")


def interpolate(
    before: Annotated[
        str, typer.Argument(help="The run's or the model's folder before fine-tuning.", show_default=False)
    ],
    after: Annotated[str, typer.Argument(help="The folder after it.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.", show_default=False)],
    weight: Annotated[float, typer.Option(help="Weight of the fine-tuned model, from 0 to 1.")] = 0.5,
    curve: Annotated[bool, typer.Option("--curve", help="Score several weights on both runs' test data.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in the output.")] = False,
) -> None:
    """Blend weights before and after fine-tuning.

    The blend learns the new data and forgets less of the old. `model.interpolate` does the same at the end of training.

    \b
      evle interpolate runs/pictures/retrieval runs/mine -o runs/both \\
          --weight 0.5 --curve
      evle train mine.yaml model.init=runs/pictures/retrieval \\
          model.interpolate=0.5 -o runs/mine
    """
    from evle.run import interpolating

    show_report(
        interpolating.interpolate(before, after, output, weight=weight, curve=curve, overwrite=overwrite), output
    )
    print_next("evle", "evaluate", output)


VERBS = (merge, interpolate, convert)
