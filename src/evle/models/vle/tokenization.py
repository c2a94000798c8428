"""DeBERTa's tokenizer, built from the SentencePiece model in released directories (`spm.model`), with equal results.

The DeBERTa tokenizer of transformers 5 ignores the model's table of characters, so that full-width forms, no-break
spaces or an ellipsis are tokenized differently. This one uses the table. The file is a Protocol Buffers message
(`sentencepiece_model.proto` of github.com/google/sentencepiece) and is read without another library.

The tokenizers library applies that table to graphemes and drops what a rule does not match: a mark after a full-width
letter would be lost, and decomposed text (file names of macOS, above all Korean) would stay decomposed. `_by_table`
works around both. Differences remain only in unusual texts: marks that are not in Unicode's order, a mark that composes
across another one, and a mark that composes with the last letter of a ligature.
"""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from evle.errors import CheckpointError, in_one_line
from evle.models.folders import is_panic

SPECIAL_TOKENS = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
"""DeBERTa's special tokens; one without a piece in the model, such as [MASK], is added after the pieces."""

UNKNOWN, BYTE = 2, 6
UNIGRAM = 1
SPACE = "▁"
APART = "\U0010ffff"
"""Separates a character from its mark temporarily; a noncharacter of Unicode, which no text may contain."""


@dataclass
class SentencePieceModel:
    """A SentencePiece unigram model: pieces with scores, and the settings that turn text into pieces."""

    pieces: list[tuple[str, float]]
    unknown: int
    """The index of the unknown piece."""
    has_bytes: bool
    """Whether characters without a piece fall back to their bytes."""
    characters: bytes
    """The precompiled table that normalises characters; empty for none."""
    adds_prefix: bool
    """Whether a space is put in front of the text."""
    collapses_spaces: bool
    """Whether spaces at both ends are removed, and repeated spaces become one."""

    @classmethod
    def read(cls, path: str | Path) -> "SentencePieceModel":
        """The model in a file. Raises `CheckpointError` if the file is not a model of the unigram kind."""
        data = Path(path).read_bytes()
        try:
            message = list(_fields(data))
            pieces = [_Piece.read(content) for number, content in message if number == 1]
            trainer = dict(_fields(next((content for number, content in message if number == 2), b"")))
            normalizer = dict(_fields(next((content for number, content in message if number == 3), b"")))
        except (IndexError, struct.error, UnicodeDecodeError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path}: not a SentencePiece model ({error})") from None
        unknown = [index for index, piece in enumerate(pieces) if piece.kind == UNKNOWN]
        if not unknown:
            raise CheckpointError(f"{path}: not a SentencePiece model (it has no unknown piece)")
        if (kind := trainer.get(3, UNIGRAM)) != UNIGRAM:
            raise CheckpointError(f"{path}: a SentencePiece model of type {kind}; DeBERTa's are unigram models (1)")
        if odd := next((piece for piece in pieces if not math.isfinite(piece.score)), None):
            raise CheckpointError(f"{path}: damaged (the piece {odd.text!r} has the score {odd.score}); copy it again")
        return cls(
            pieces=[(piece.text, piece.score) for piece in pieces],
            unknown=unknown[0],
            has_bytes=any(piece.kind == BYTE for piece in pieces),
            characters=normalizer.get(2, b""),
            adds_prefix=bool(normalizer.get(3, True)),
            collapses_spaces=bool(normalizer.get(4, True)),
        )

    def tokenizer(self, lower_case: bool = False) -> Tokenizer:
        """The same segmentation by the tokenizers library, without special tokens."""
        tokenizer = Tokenizer(models.Unigram(self.pieces, unk_id=self.unknown, byte_fallback=self.has_bytes))
        steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if lower_case else []
        if self.characters:
            steps += _by_table(self.characters)
        if self.collapses_spaces:
            steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        elif self.adds_prefix:
            steps.append(normalizers.Prepend(" "))  # also before a text that begins with a space
        tokenizer.normalizer = normalizers.Sequence(steps)
        prefix = "always" if self.adds_prefix and self.collapses_spaces else "never"
        # Word by word, which is faster, unless a piece spans several words.
        spans = any(SPACE in text[1:] and text.strip(SPACE) for text, _ in self.pieces)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=prefix, split=not spans)
        tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=prefix)
        return tokenizer


class SentencePieceTokenizer(PreTrainedTokenizerFast):
    """A tokenizer that keeps the SentencePiece model it was built from, for readers that need that file."""

    pieces: bytes
    lower_case: bool

    def save_pieces(self, folder: str | Path) -> dict[str, Any]:
        """Write `spm.model` and, for tokens without a piece, `added_tokens.json`. Returns the settings that
        `read_sentencepiece` and DeBERTa's tokenizer of transformers 4 need with them."""
        (Path(folder) / "spm.model").write_bytes(self.pieces)
        vocabulary = self.backend_tokenizer.get_vocab(with_added_tokens=False)
        added = {token: number for token, number in self.get_added_vocab().items() if token not in vocabulary}
        (Path(folder) / "added_tokens.json").write_text(json.dumps(added, indent=2) + "\n", encoding="utf-8")
        return {"do_lower_case": self.lower_case, "split_by_punct": False}


def read_sentencepiece(
    path: str | Path, settings: dict[str, Any] | None = None, added: dict[str, int] | None = None
) -> SentencePieceTokenizer:
    """DeBERTa's tokenizer, `[CLS] text [SEP]` or `[CLS] text [SEP] text [SEP]`, from a SentencePiece model.

    `settings` are those of a `tokenizer_config.json` beside it (special tokens, `do_lower_case`), `added` the tokens of
    an `added_tokens.json` with their ids.

    Raises:
        CheckpointError: no unigram model, a damaged one, a setting that is not supported, or added tokens whose ids do
            not fit.
    """
    try:
        return _build(Path(path), settings or {}, added or {})
    except CheckpointError:
        raise
    except BaseException as error:  # the tokenizers library raises bare exceptions, and panics
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise CheckpointError(
            f"{path}: no tokenizer can be built of it and the files beside it ({type(error).__name__}: "
            f"{in_one_line(error)}); copy them again"
        ) from None


def _build(path: Path, settings: dict[str, Any], added: dict[str, Any]) -> SentencePieceTokenizer:
    if settings.get("split_by_punct"):
        raise CheckpointError(f"{path}: tokenizer_config.json asks for split_by_punct, which is not supported")
    tokens: dict[str, Any] = {
        name: _text(settings.get(name) or default, path, name) for name, default in SPECIAL_TOKENS.items()
    }
    lower_case = bool(settings.get("do_lower_case"))
    fast = SentencePieceTokenizer(tokenizer_object=SentencePieceModel.read(path).tokenizer(lower_case))
    fast.pieces, fast.lower_case = path.read_bytes(), lower_case
    for token, number in added.items():
        if not isinstance(number, int):
            raise CheckpointError(
                f"{path}: added_tokens.json gives {token!r} the id {json.dumps(number)[:40]}, where a whole number is "
                "needed; copy it again"
            )
    for token, number in sorted(added.items(), key=lambda item: item[1]):
        fast.add_tokens(token, special_tokens=token in tokens.values())
        if (found := fast.convert_tokens_to_ids(token)) != number:
            raise CheckpointError(f"{path}: added_tokens.json gives {token!r} the id {number}, the model {found}")
    fast.add_special_tokens(tokens)
    cls_token, sep_token = tokens["cls_token"], tokens["sep_token"]
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls_token} $A {sep_token}",
        pair=f"{cls_token} $A {sep_token} $B:1 {sep_token}:1",
        special_tokens=[(token, fast.convert_tokens_to_ids(token)) for token in (cls_token, sep_token)],
    )
    return fast


def _by_table(characters: bytes) -> list[normalizers.Normalizer]:
    """The steps that normalise by a model's table of characters, as SentencePiece does."""
    table = normalizers.Precompiled(characters)
    if table.normalize_str("e\u0301") != "é":  # this table composes nothing: marks stay as they are
        return [table]
    apart = normalizers.Replace(Regex(r"(?<=\P{M})(?=\p{M})"), APART)
    return [normalizers.NFC(), apart, table, normalizers.Replace(APART, ""), normalizers.NFC()]


def read_json(path: str | Path | None) -> dict[str, Any]:
    """The object in a JSON file; empty without a file. Raises `CheckpointError` for anything else."""
    if path is None:
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not an object")
    return content


@dataclass
class _Piece:
    text: str
    score: float
    kind: int

    @classmethod
    def read(cls, data: bytes) -> "_Piece":
        fields = dict(_fields(data))
        if not isinstance(fields.get(1), bytes):
            raise ValueError("it has a piece without text")
        return cls(fields[1].decode(), struct.unpack("<f", fields.get(2, bytes(4)))[0], fields.get(3, 1))


def _text(token: Any, path: Path, name: str) -> str:
    """The text of a special token, which a configuration may give as an object. Raises CheckpointError."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise CheckpointError(
            f"{path}: tokenizer_config.json beside it has the {name} {json.dumps(token)[:40]}, which is no text; "
            "write the token in quotes, or copy the file again"
        )
    return text


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a Protocol Buffers message: number and content (an int for varints, else bytes)."""
    offset = 0

    def varint() -> int:
        nonlocal offset
        value, shift = 0, 0
        while True:
            byte = data[offset]
            offset += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while offset < len(data):
        tag = varint()
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            yield number, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"field {number} has wire type {kind}")
        size = {1: 8, 5: 4}.get(kind) or (varint() if kind == 2 else 0)
        if offset + size > len(data):
            raise ValueError(f"field {number} is cut short")
        yield number, data[offset : offset + size]
        offset += size
