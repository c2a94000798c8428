"""Build a new VLE from two trained encoders, and save it as a folder to start training from."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from evle.errors import CheckpointError, ConfigError, in_one_line
from evle.models.folders import from_folder, local_folder
from evle.models.vle.modeling import VLEModel
from evle.models.vle.processing import VLEProcessor
from evle.models.vle.tokenization import read_json, read_sentencepiece
from evle.models.vle.tower_weights import read_tower_config
from evle.models.vocabulary import tokens_noted

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spm.model")


def new_vle(
    vision: str | Path,
    text: str | Path,
    output: str | Path,
    *,
    image_size: int | None = None,
    vision_layers: int | None = None,
    overwrite: bool = False,
    **config_fields: Any,
) -> VLEModel:
    """Build a VLE from the image encoder `vision` and the text encoder `text`, and save it with its processor.

    Both are folders or hub names of models of transformers or, for images, timm. The towers keep their weights; the
    fusion starts at random, with the text encoder's width unless `hidden_size` is given. Colour statistics and image
    size come from `vision`, the tokenizer from `text`. The folder can be used as `model.init`.

    Args:
        output: the folder to write.
        image_size: side in pixels; positions are interpolated. By default the image encoder's own.
        vision_layers: how many layers of the image encoder to keep, from the first; all by default.
        overwrite: replace a model in the output.
        config_fields: fields of `VLEConfig`, such as `num_hidden_layers`.

    Raises:
        CheckpointError: a tower that is not an encoder or is incomplete, or a text encoder without a tokenizer.
        ConfigError: impossible fields, or a model in `output` already.
    """
    folder = Path(output)
    if (folder / "config.json").exists() and not overwrite:
        raise ConfigError(f"{folder} already holds a model; give another folder, or replace it with --overwrite")
    read_tower_config(vision, "vision_config")
    text_config: Any = read_tower_config(text, "text_config")
    tokenizer = _tokenizer(text)
    if image_size is not None:
        config_fields["image_size"] = image_size
    width = config_fields.setdefault("hidden_size", text_config.hidden_size)
    config_fields.setdefault("num_attention_heads", text_config.num_attention_heads)
    config_fields.setdefault("intermediate_size", 4 * width)
    model = VLEModel.from_vision_text_pretrained(vision, text, vision_layers=vision_layers, **config_fields)
    if len(tokenizer) > model.config.vocab_size:
        raise CheckpointError(
            f"{text}: the tokenizer has {len(tokenizer)} tokens, but the model has {model.config.vocab_size}; give "
            "the tokenizer that the model was trained with"
        )
    processor = VLEProcessor.for_size(model.config.image_size, tokenizer, vision)
    with tokens_noted(model, tokenizer):
        model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def _tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder of a text encoder. Raises CheckpointError if there is none."""

    folder = local_folder(path)

    def find(name: str) -> Path | None:
        file = folder / name
        return file if file.is_file() else None

    try:
        if pieces := find("spm.model"):
            settings, added = read_json(find("tokenizer_config.json")), read_json(find("added_tokens.json"))
            return read_sentencepiece(pieces, settings, added)
        if not any(map(find, TOKENIZER_FILES)):  # transformers would create one without words
            raise CheckpointError(f"{path}: holds no tokenizer (none of {', '.join(TOKENIZER_FILES)}); put it there")
        tokenizer: PreTrainedTokenizerBase = from_folder(AutoTokenizer, folder)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: holds no tokenizer ({in_one_line(error)}); put its files there") from None
    if tokenizer.pad_token_id is None or tokenizer.mask_token_id is None:
        raise CheckpointError(f"{path}: the tokenizer has no pad or mask token; give that of the text encoder")
    return tokenizer
