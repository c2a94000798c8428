"""The verb that trains a tokenizer, `evle tokenizer train`."""

from pathlib import Path
from typing import Annotated

import typer

from evle.cli.group import STYLE, Verbs
from evle.cli.shared import print_next
from evle.cli.urls import App

app = App(
    cls=Verbs,
    help="""Train a tokenizer.

\b
  evle tokenizer train books.txt wiki.txt -o tokenizers/eve --vocab-size 64000
""",
    add_completion=False,
    **STYLE,
)


@app.command()
def train(
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
      evle tokenizer train books.txt wiki.txt -o tokenizers/eve \\
          --vocab-size 64000
      evle train eve-base-pretrain tokenizer.path=tokenizers/eve
    """
    from evle.data.custom.corpus import read_texts
    from evle.engine.run_folder import make_output
    from evle.transforms.text import train_tokenizer
    from evle.transforms.words import clean_caption

    texts = read_texts(corpus)
    make_output(output)
    trained = train_tokenizer((clean_caption(text, None) for text in texts) if clean else texts, vocab_size)
    trained.save_pretrained(output)
    print(f"{output}: {len(trained)} tokens")
    print_next("evle", "train", "eve-base-pretrain", f"tokenizer.path={output}")
