"""The verb that builds models: `main` takes it in."""

from pathlib import Path
from typing import Annotated

import typer

from evle.cli.shared import print_next
from evle.errors import ConfigError, nearest


def new(
    family: Annotated[str, typer.Argument(help="vle, the family that is built of other models.", show_default=False)],
    vision: Annotated[str, typer.Option("--vision", help="An image encoder's folder or hub name.", show_default=False)],
    text: Annotated[str, typer.Option("--text", help="A text encoder's folder or hub name.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model folder to write.", show_default=False)],
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Width and height of an image in pixels; the image encoder's own by default.", show_default=False
        ),
    ] = None,
    vision_layers: Annotated[
        int | None, typer.Option(min=1, help="Keep this many layers of the image encoder.", show_default=False)
    ] = None,
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of the fusion.")] = 6,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in the output.")] = False,
) -> None:
    """Build a VLE of two trained encoders.

    The towers keep their weights, the fusion starts at random. Train it with model.init=FOLDER.

    \b
      evle new vle --vision google/siglip2-base-patch16-224 \\
          --text answerdotai/ModernBERT-base -o models/start
      evle new vle --vision clip-vit-base-patch16 --text deberta-v3-base \\
          --vision-layers 11 -o models/start
    """
    from evle.models.loading import without_bars
    from evle.models.vle.new import new_vle
    from evle.share.card import save_card

    if family != "vle":
        raise ConfigError(f"only a vle is built of other models, not {family!r}; {nearest(family, ['vle'])}")
    with without_bars():
        model = new_vle(
            vision,
            text,
            output,
            image_size=image_size,
            vision_layers=vision_layers,
            num_hidden_layers=blocks,
            overwrite=overwrite,
        )
    save_card(output)
    config = model.config
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(
        f"{output}: {millions:.1f} M parameters; images of {config.image_size} x {config.image_size} pixels in "
        f"{config.patches_per_side} x {config.patches_per_side} patches, texts of at most "
        f"{config.max_position_embeddings} tokens"
    )
    print_next("evle", "train", "vle-base-pretrain", f"model.init={output}")


VERBS = (new,)
