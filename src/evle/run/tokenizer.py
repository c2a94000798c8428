"""The tokenizer of a run: read from a folder, taken from the model it starts from, or trained on its texts."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

from pydantic import Field
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from evle.config import Config
from evle.errors import CheckpointError, ConfigError, EvleError, in_one_line
from evle.models.folders import from_folder, hub_folder, is_hub_name, model_folder
from evle.models.vle.tokenization import read_json, read_sentencepiece
from evle.models.vocabulary import refuse_other_tokenizer, report_few_tokens
from evle.run.weights import EncoderConfig, ModelConfig, read_processor
from evle.transforms.text import readable_part, train_tokenizer

PROBES = ("A man rides two brown horses", "it's the bird's nest: 12.5 m high", "caf\u00e9 na\u00efve \u00dcber")
"""Texts that two equal tokenizers split equally."""
MANY_PIECES = 1.7
"""Tokens of a word on average, from which a vocabulary is called too small. Thousands of tokens give 1.1 to 1.6."""


class TokenizerConfig(Config):
    """Where words come from. By default: the tokenizer of `model.init`, else one trained on the training texts."""

    path: str | None = None
    """A tokenizer's folder, of `evle tokenizer train` or any that AutoTokenizer reads, or a hub name
    (owner/name@revision)."""
    vocab_size: int | None = Field(default=None, ge=261)
    """Tokens of a tokenizer trained here, at most; by default as many as the model's preset has."""
    reads: tuple[str, ...] = ()
    """Kinds of training samples whose texts it is trained on ("captions", "vqa", "nlvr2"); by default the task's
    own."""
    samples: int | None = Field(default=None, ge=1)
    """Samples of each kind that are read for it at most, spread evenly; by default all."""


def make_tokenizer(
    options: TokenizerConfig, model: ModelConfig, start: EncoderConfig, texts: Callable[[], Iterable[str]]
) -> PreTrainedTokenizerBase:
    """The tokenizer of a run that starts from `model`, whose config is `start`; `texts` are read only to train one.

    Raises ConfigError and CheckpointError for a folder or model without one.
    """
    if options.path is not None:
        refuse_no_folder(options.path)
        tokenizer = read_tokenizer(options.path)
        _refuse_other_words(tokenizer, options.path, model, start)
        return tokenizer
    if model.init is not None:
        return cast(PreTrainedTokenizerBase, read_processor(model.init, start.model_type).tokenizer)
    if model.text is not None:
        tokenizer = read_tokenizer(model.text)
        report_few_tokens(model.text, tokenizer, start.vocab_size)
        return tokenizer
    return train_tokenizer(texts(), options.vocab_size or start.vocab_size)


def _refuse_other_words(
    tokenizer: PreTrainedTokenizerBase, path: str, model: ModelConfig, start: EncoderConfig
) -> None:
    """Raise ConfigError where the weights were trained with a tokenizer that gives other ids to the same words: their
    word embeddings would mean something else. A model without a tokenizer of its own cannot be compared."""
    weights = model.init or model.text
    if weights is None:
        return
    try:
        own = read_processor(weights, start.model_type).tokenizer if model.init else read_tokenizer(weights)
    except EvleError:
        if model.init:
            refuse_other_tokenizer(model_folder(model.init), tokenizer, start.vocab_size)
        return
    known, given = own.get_vocab(), tokenizer.get_vocab()
    differing = sorted((index, token) for token, index in known.items() if given.get(token) != index)
    if differing:
        index, token = differing[0]
        other = tokenizer.convert_ids_to_tokens(index) if index < len(tokenizer) else None
        raise ConfigError(
            f"tokenizer.path={path}: not the tokenizer that {weights} was trained with ({len(differing)} of "
            f"{len(known)} tokens differ; number {index} is {other!r} instead of {token!r}); leave tokenizer.path out"
        )
    others = [text for text in PROBES if own(text)["input_ids"] != tokenizer(text)["input_ids"]]
    if others:
        raise ConfigError(
            f"tokenizer.path={path}: has the tokens of {weights}, but splits texts otherwise ({others[0]!r} for one); "
            "leave tokenizer.path out"
        )


def refuse_no_folder(path: str) -> None:
    """Raise ConfigError where `path` is neither a folder nor a hub name."""
    if not Path(path).is_dir() and not is_hub_name(path):
        raise ConfigError(
            f"tokenizer.path={path}: no such folder; make one with `evle tokenizer train CORPUS -o FOLDER`"
        )


def read_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or of a hub name: a SentencePiece model as DeBERTa's release has it, or any that
    AutoTokenizer reads.

    Raises ConfigError for a folder without one, CheckpointError for damaged files and a hub name that cannot be read.
    """
    folder = hub_folder(str(path), weights=False) if is_hub_name(path) else Path(path)
    if (folder / "spm.model").is_file():
        settings, added = (folder / name for name in ("tokenizer_config.json", "added_tokens.json"))
        return read_sentencepiece(
            folder / "spm.model",
            read_json(settings if settings.is_file() else None),
            read_json(added if added.is_file() else None),
        )
    try:
        return cast(PreTrainedTokenizerBase, from_folder(AutoTokenizer, folder))
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no tokenizer ({in_one_line(error)})") from None


def refuse_lacking_tokens(tokenizer: PreTrainedTokenizerBase, hides: bool, where: str) -> None:
    """Raise ConfigError for a tokenizer, read from `where`, without a token for padding, or, where a model `hides`
    words, without one to hide them with."""
    for kind, is_needed in (("pad", True), ("mask", hides)):
        if is_needed and getattr(tokenizer, f"{kind}_token_id") is None:
            raise ConfigError(
                f"{where}: the tokenizer has no {kind} token; name it as {kind}_token in its tokenizer_config.json, or "
                "make a tokenizer with `evle tokenizer train CORPUS -o FOLDER`"
            )


def text_notes(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, is_new: bool) -> list[str]:
    """Lines for what a run would do to its texts in silence: ends that are cut off and, with a tokenizer that `is_new`,
    words in pieces because its vocabulary is too small for them."""
    lengths = [len(tokenizer(readable_part(tokenizer, text), verbose=False)["input_ids"]) for text in texts]
    cut = sum(length > max_length for length in lengths)
    notes = []
    if cut:
        notes.append(
            f"text.max_length={max_length} cuts the ends off {cut} of {len(texts)} texts that were looked at; the "
            f"longest has {max(lengths)} tokens"
        )
    words = [word for text in texts for word in re.findall(r"[a-z]+", text.lower())]
    if is_new and words:
        pieces = sum(map(len, tokenizer(words, add_special_tokens=False)["input_ids"])) / len(words)
        if pieces > MANY_PIECES:
            notes.append(
                f"a word has {pieces:.1f} tokens on average, because the tokenizer has {len(tokenizer):,} in all; a "
                "larger tokenizer.vocab_size keeps words whole, which is faster and learns more"
            )
    return notes


def vocab_size_for(tokenizer: PreTrainedTokenizerBase, model: ModelConfig, start: EncoderConfig) -> int:
    """Rows of the word embedding. Weights keep theirs, which must be enough for the tokenizer. Raises EvleError."""
    weights = model.init or model.text
    if weights is None:
        wanted = model.overrides.get("vocab_size", len(tokenizer))
        if wanted < len(tokenizer):
            raise ConfigError(
                f"model.overrides.vocab_size={wanted} is less than the tokenizer's {len(tokenizer)} tokens; "
                "leave it out"
            )
        return int(wanted)
    if len(tokenizer) > start.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} tokens, but {weights} knows {start.vocab_size}; "
            "use the tokenizer that the model was trained with (leave out tokenizer.path)"
        )
    return start.vocab_size
