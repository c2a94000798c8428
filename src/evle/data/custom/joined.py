"""Several texts in one cell: what shows that a table joins its captions, or answers, by a sign that nobody named."""

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

NEVER = 2.0
TOKENS = ("a", "an", "the", "of", "is", "in", "on", "and", "with", ".")
"""Words that are no captions: a list that holds one as a text is a list of words."""


class Sign(NamedTuple):
    """A sign, as a pattern of RE2 that matches nothing else, that may stand between texts: the shares of the captions,
    and of the answers, that hold it then."""

    pattern: str
    captions: float = 0.5
    answers: float = 0.5
    shown: str = ""
    """The sign, where the pattern matches more than it."""


LISTS = (Sign(r"^\[[^\[\]]*,[^\[\]]*\]$"), Sign(r'^["“][^"“”]*["”]\s*,\s*["“]'), Sign(r"^\{[^{}]+\}$"))
"""Lists in a form that is not read, the last of them PostgreSQL's."""
SIGNS = (
    Sign(r"(?i)\[sep\]|<sep>|</?s>|<\|[a-z_]+\|>"),
    Sign(r"[|¦]"),
    Sign(r";", 0.8),
    Sign(r"\r\n|[\n\r\x{2028}]"),
    Sign(r"\t"),
    Sign(r"##"),
    Sign(r"@@"),
    Sign(r"&&"),
    Sign(r" //? "),
    Sign(r"(?i)<br ?/?>"),
    Sign(r"•"),
    Sign(r"\\n"),
    Sign(r"\pL/\pL", NEVER, 0.5, "/"),
    Sign(r",\s*\pL", NEVER, 0.8, ","),  # "1,5" is one answer
)
UNUSUAL = ("|", "\t", "##", "@@", "&&", "•", "\\n")
"""Signs that hardly any text holds, and those that look like a tag."""


def joined_note(column: pa.ChunkedArray, noun: str) -> str:
    """What is unclear where most captions (or answers), in lists, look like several ones in one text, or like the words
    of one; "" for nothing."""
    texts = pc.list_flatten(column)
    return sign_note(texts, noun) or ("" if noun == "answers" else _words_note(column, texts))


def sign_note(texts: pa.ChunkedArray, noun: str) -> str:
    """What is unclear where most texts look like several ones, "" for nothing."""
    is_answers = noun == "answers"
    for each in (*LISTS, *SIGNS):
        share = each.answers if is_answers else each.captions
        count = _count(texts, each.pattern)
        if count < max(2, share * len(texts)):
            continue
        if each in LISTS:
            shown = _first(texts, each.pattern)[:40]
            return f"{count:,} of {len(texts):,} {noun} look like lists, such as {shown!r}; write lists as JSON"
        sign = each.shown or _sign(texts, each.pattern)
        owner = "a question" if is_answers else "an image"
        return (
            f"{count:,} of {len(texts):,} {noun} hold {sign!r}; set caption_separator={sign!r} if it stands between "
            f"the {noun} of {owner}, or caption_separator='' if it belongs to the {noun}"
        )
    return ""


def some_joined(column: pa.ChunkedArray, noun: str) -> list[str]:
    """What a check says of texts of which a few, two at least, hold a sign that hardly any text holds; a run reads them
    as they are."""
    texts = pc.list_flatten(column)
    lines = []
    for each in SIGNS:
        if (count := _count(texts, each.pattern)) < 2 or each.shown:
            continue
        sign = _sign(texts, each.pattern)
        if sign in UNUSUAL or sign[:1] in "[<":
            first = _first(texts, each.pattern)[:40]
            lines.append(
                f"{count:,} of {len(texts):,} {noun} hold {sign!r}, such as {first!r}; caption_separator={sign!r} "
                "divides them"
            )
    return lines


def _words_note(column: pa.ChunkedArray, texts: pa.ChunkedArray) -> str:
    is_word = pc.is_in(texts, pa.array(TOKENS, pa.large_string()))
    with_word = pc.unique(pc.filter(pc.list_parent_indices(column), is_word))
    count = pc.sum(pc.greater_equal(pc.list_value_length(column).take(with_word), 3)).as_py() or 0
    if not count or 2 * count < len(column):
        return ""
    return (
        f"{count:,} of {len(column):,} rows hold lists of words, such as 'a', as captions; join the words of a caption "
        "with blanks, or set caption_separator='' if each of them is a caption"
    )


def _count(texts: pa.ChunkedArray, pattern: str) -> int:
    return pc.sum(pc.match_substring_regex(texts, pattern)).as_py() or 0


def _first(texts: pa.ChunkedArray, pattern: str) -> str:
    return str(texts.filter(pc.match_substring_regex(texts, pattern))[0].as_py())


def _sign(texts: pa.ChunkedArray, pattern: str) -> str:
    """The sign as the first text has it."""
    found = pc.extract_regex(pa.array([_first(texts, pattern)]), f"(?P<sign>{pattern})")
    return str(found[0]["sign"].as_py())
