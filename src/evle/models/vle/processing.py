"""VLE's processor: images and text in, the model's tensors out."""

import json
from pathlib import Path
from typing import Any, Self

from transformers import CLIPImageProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from evle.models.folders import HUB_OPTIONS
from evle.models.processing import PairProcessor, colour_statistics
from evle.models.vle.tokenization import SentencePieceTokenizer, read_json, read_sentencepiece


class VLEProcessor(PairProcessor):
    """An image processor of CLIP's kind (shortest edge, centre crop, bicubic, CLIP's statistics) and any tokenizer.

    `processor(text=..., images=..., padding=True, return_tensors="pt")` gives `pixel_values`, `input_ids` and
    `attention_mask`. `padding`, `truncation` and `max_length` go only to the tokenizer. An image may have any PIL mode.
    """

    def __init__(self, image_processor: CLIPImageProcessor, tokenizer: PreTrainedTokenizerBase):
        super().__init__(image_processor, tokenizer)

    @classmethod
    def for_size(cls, image_size: int, tokenizer: PreTrainedTokenizerBase, start: str | Path | None = None) -> Self:
        """The processor of a model for square images with a side of `image_size` pixels.

        `start` is the folder or hub name of its image tower, or of the model that it is trained from, whose colour
        statistics are used; by default those of CLIP. The tokenizer no longer returns the sentence types of BERT, which
        no VLE reads.
        """
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
        options: dict[str, Any] = {}
        if start is not None and (statistics := colour_statistics(start)) is not None:
            options = {"image_mean": statistics[0], "image_std": statistics[1]}
        size = {"height": image_size, "width": image_size}
        return cls(CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=size, **options), tokenizer)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> Self:
        """The processor in a directory or hub repository, released or of `save_pretrained`.

        The tokenizer is built from `spm.model` if there is one, so that it tokenizes exactly as SentencePiece does
        (`tokenization.py`), else it is read from `tokenizer.json`; without both, transformers reads it. `options` are
        those of transformers (`revision`, `token`, `local_files_only`, ...).

        Raises:
            CheckpointError: `spm.model` or a file beside it holds something that is not supported.
            OSError: no directory, or no `preprocessor_config.json`.
        """
        path = str(pretrained_model_name_or_path)
        hub = {name: value for name, value in options.items() if name in HUB_OPTIONS}

        def find(name: str) -> str | None:
            return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub)

        if pieces := find("spm.model"):
            added = read_json(find("added_tokens.json"))
            tokenizer = read_sentencepiece(pieces, read_json(find("tokenizer_config.json")), added)
        elif find("tokenizer.json"):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path, **hub)
        else:
            return super().from_pretrained(path, **options)
        return cls(CLIPImageProcessor.from_pretrained(path, **options), tokenizer)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **options: Any) -> Any:
        """Write the processor's files as transformers 5 does, in a form that transformers 4 can read, too.

        Version 4 reads the image size from a separate file and does not know the name that version 5 gives to the class
        of the tokenizer. For a tokenizer that was built from `spm.model`, that file is written too, because the
        released code reads it.
        """
        written = super().save_pretrained(save_directory, push_to_hub, **options)
        self.image_processor.save_pretrained(save_directory)
        settings = Path(save_directory) / "tokenizer_config.json"
        facts = read_json(settings)
        if isinstance(self.tokenizer, SentencePieceTokenizer):
            facts |= {"tokenizer_class": "PreTrainedTokenizerFast", **self.tokenizer.save_pieces(save_directory)}
        elif facts.get("tokenizer_class") == "TokenizersBackend":
            facts["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return written
