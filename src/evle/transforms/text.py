"""Text to tokens, and a byte-level BPE tokenizer trained on any corpus."""

import re
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from evle.errors import ConfigError, DataError
from evle.transforms.words import kept_tokens

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Each token's id is its index here: padding is 0."""

MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
"""Every byte is a token, so that no text of any script is unknown."""

LONGEST_WORD = 200
"""Longest run of characters without a blank that a tokenizer is trained on: no merge is learnt from base64."""
LONGEST_RUN = 10_000
"""A tokenizer is trained only on the beginning of a longer run of characters without a blank. Paragraphs in scripts
that use no blanks are shorter."""
LONGEST_TEXT = 100_000
"""Maximum number of characters of a text that are turned into tokens, which give more tokens than any model reads."""


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 64_000, *, lowercase: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens, which encodes texts as `[CLS] ... [SEP]`.

    `texts` is read once, lazily. The result depends only on the texts, not on the machine. A small corpus may give
    fewer than `vocab_size` tokens: size the model by `len(tokenizer)`. `save_pretrained` writes a directory that
    `AutoTokenizer` reads. Set `lowercase` for text that `clean_caption` has not lower-cased. EVE: 64,000 tokens from
    BookCorpus and Wikipedia.

    Raises ConfigError for a `vocab_size` below `MIN_VOCAB_SIZE`, DataError for a corpus without text.

    >>> tokenizer = train_tokenizer(["a red ball", "a blue ball"], 300)
    >>> tokenizer.decode(tokenizer("a ball")["input_ids"])
    '[CLS] a ball[SEP]'
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ConfigError(
            f"vocab_size={vocab_size} is too small; the bytes and the special tokens alone are {MIN_VOCAB_SIZE}"
        )
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    steps = [normalizers.NFC(), normalizers.Lowercase()] if lowercase else [normalizers.NFC()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    # With a blank before the first word, a word has the same tokens at every position.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    # [MASK] takes the blank before it along, because a masked word's token holds that blank, too.
    special = [AddedToken(each, lstrip=each == "[MASK]", special=True) for each in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    counted = _Counted(texts)
    tokenizer.train_from_iterator(counted, trainer)
    if not counted.num_texts:
        raise DataError("the tokenizer's corpus holds no text; check the files and the column they are read from")
    cls, sep = SPECIAL_TOKENS.index("[CLS]"), SPECIAL_TOKENS.index("[SEP]")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="[CLS] $A [SEP]",
                pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],  # transformers' own pipelines pass on whatever it returns
    )


class _Counted:
    """Iterates over the texts that are not blank, with overlong words cut, and counts them."""

    def __init__(self, texts: Iterable[str]):
        self.texts = texts
        self.num_texts = 0

    def __iter__(self) -> Iterator[str]:
        endless_run = re.compile(rf"(\S{{{LONGEST_RUN}}})\S+")
        endless = re.compile(rf"\S{{{LONGEST_WORD}}}")
        for text in self.texts:
            if text.strip():
                self.num_texts += 1
                yield endless.sub(lambda match: match.group() + " ", endless_run.sub(r"\1", text))


def encode(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> list[int]:
    """Token ids of `text` with the tokenizer's special tokens, at most `max_length` in all."""
    encoding = _encoding(tokenizer, text)
    token_ids: list[int] = encoding["input_ids"]
    return [
        token_ids[index]
        for index in kept_tokens(encoding["special_tokens_mask"], max_length, tokenizer.truncation_side)
    ]


def readable_part(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text or, if it has more than `LONGEST_TEXT` characters, the end or beginning that `tokenizer` keeps."""
    if len(text) <= LONGEST_TEXT:
        return text
    return text[-LONGEST_TEXT:] if tokenizer.truncation_side == "left" else text[:LONGEST_TEXT]


def _encoding(tokenizer: PreTrainedTokenizerBase, text: str, **options: bool) -> BatchEncoding:
    """The text, not cut to a number of tokens: a fast tokenizer keeps that number as state, which all threads would
    share."""
    text = readable_part(tokenizer, text)
    return tokenizer(text, return_attention_mask=False, return_special_tokens_mask=True, verbose=False, **options)


def encode_with_slot(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> list[int]:
    """Token ids as `encode` gives them, with a [MASK] before the last token for the model to fill."""
    tokens = encode(tokenizer, text, max_length - 1)
    return [*tokens[:-1], int(tokenizer.mask_token_id), tokens[-1]]


def encode_words(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> tuple[list[int], list[bool]]:
    """Token ids as `encode` gives them, and for each token whether a new word starts there (special tokens count as
    words). For whole-word masking.

    Raises ConfigError for a tokenizer without a fast backend, which does not know its words.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"whole-word masking needs a fast tokenizer, and {type(tokenizer).__name__} is not one; "
            "load its fast form, or mask single tokens"
        )
    text = readable_part(tokenizer, text)
    encoding = _encoding(tokenizer, text, return_offsets_mapping=True)
    kept = kept_tokens(encoding["special_tokens_mask"], max_length, tokenizer.truncation_side)
    word_ids = encoding.word_ids()
    words = [word_ids[index] for index in kept]
    offsets = [encoding["offset_mapping"][index] for index in kept]
    token_ids = [encoding["input_ids"][index] for index in kept]

    def starts(index: int) -> bool:
        if index == 0 or words[index] is None or words[index] != words[index - 1]:
            return True
        # If pieces may span words (in some SentencePiece models), a whole text counts as one word: look for blanks.
        (_, end), (begin, _) = offsets[index - 1 : index + 1]
        return text[begin : begin + 1].isspace() or (end < begin and text[begin - 1].isspace())

    return token_ids, [starts(index) for index in range(len(words))]
