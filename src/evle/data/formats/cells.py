"""The texts in one cell of a table, however the program that wrote the table stored them.

A cell holds a text, a number, a list, a record (`{"raw": "a dog", "tokens": [...]}`), or a list written as text by
JSON, Python, pandas or numpy (`["a", "b"]`, `['a', 'b']`, `['a' 'b']`).
"""

import ast
import datetime
import decimal
import html
import io
import math
import re
import tokenize
import unicodedata
from typing import Any

import numpy as np

from evle.errors import DataError
from evle.files import parse_json

MAX_CHARACTERS = 100_000
"""A longer text is refused: it is no caption or question, and a tokenizer would need gigabytes for it."""

NULL_WORDS = frozenset(
    {
        "nan",
        "NaN",
        "NAN",
        "null",
        "NULL",
        "<NA>",
        "NaT",
        "#N/A",
        "#NAME?",
        "#REF!",
        "#VALUE!",
        "#DIV/0!",
        "#NUM!",
        "#NULL!",
        "#ERROR!",
        "N/A",
        "n/a",
        "Null",
        "-nan",
        "-NaN",
        "\\N",
        "#NA",
        "#N/A N/A",
        "1.#IND",
        "-1.#IND",
        "1.#QNAN",
        "-1.#QNAN",
        "(null)",
        "(NULL)",
        "<null>",
        "<NULL>",
    }
)
"""What programs write into a text column where there is no value; those with # are the errors of a spreadsheet."""

BARE_WORDS = frozenset({"NA", "None", "NONE", "nil", "undefined"})
"""What programs write there too, and people as an answer."""

TEXT_MEMBERS = ("raw", "caption", "text", "answer", "sentence", "value")
"""The members of a record that can hold its text."""

_ARRAY = re.compile(r"^array\((\[.*\])(?:,\s*dtype=[^()]*)?\)$", re.DOTALL)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_BYTES = re.compile(r"""b(?:'[^']*'|"[^"]*")""", re.DOTALL)
_WRITTEN_LIST = re.compile(
    r"""^\s*("\s*\[\s*\\"|\[\s*(?:b?['"]|[\[{\](]|(?:nan|None)\s*[,\]])|\(\s*['"]|\[?\{\s*['"])"""
)
_DECIMAL = re.compile(r"\d*\.\d+")
_NUMBER = re.compile(r"\d*\.?\d+")
_NUMBERS = re.compile(r"^\s*\[[\s\d.,eE+-]*\]\s*$")


def texts_of(value: Any, separators: str = "", *, answers: bool = False) -> list[str]:
    """The texts of a cell without the empty ones; with `separators`, one text may hold several.

    HTML's entities become their signs ("&amp;" is "&"). A number is written without the ".0" that pandas adds to a
    column with a gap. The words that programs write for no value ("nan", "NULL", "NA") are no texts. Of `answers`,
    true is "yes", and a word such as "NA" is one, but for "None" alone in its cell. Raises TypeError, with the reason,
    for a value that holds no text.

    >>> texts_of('["a dog", "a brown dog"]'), texts_of("dog; animal", ";,"), texts_of(None), texts_of(2.0)
    (['a dog', 'a brown dog'], ['dog', 'animal'], [], ['2'])
    >>> texts_of("['a dog' 'a cat']"), texts_of([{"answer": "yes", "answer_id": 1}])
    (['a dog', 'a cat'], ['yes'])
    >>> texts_of("NA"), texts_of("NA", answers=True), texts_of(True, answers=True)
    ([], ['NA'], ['yes'])
    """
    try:
        return _cell_texts(value, separators, answers)
    except RecursionError:
        raise TypeError("lists within lists, too deep to read") from None


def _cell_texts(value: Any, separators: str, answers: bool) -> list[str]:
    if isinstance(value, str):
        text = value.strip()
        if text == "None":
            return []
        if text == "{}":
            return []
        if _BYTES.fullmatch(text):
            return _texts(ast.literal_eval(text), answers)
        if (texts := _written(text, answers)) is not None:
            return texts
        text = unescaped(text)
        mark = next((each for each in separators if each in text), None)
        return [part for each in (text.split(mark) if mark else [text]) for part in _plain(each, answers)]
    return _texts(value, answers)


def unescaped(text: str) -> str:
    """A text with the signs that HTML's entities stand for.

    >>> unescaped("a dog &amp; a cat, 5 &gt; 3 &#39;"), unescaped("AT&T; x")
    ("a dog & a cat, 5 > 3 '", 'AT&T; x')
    """
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text) if "&" in text else text


def number_text(value: Any) -> str:
    """A number, date or text as the text that a person would write: 7.0 is "7".

    >>> number_text(7024521.0), number_text(0.5), number_text("a"), number_text(0.10000000149011612)
    ('7024521', '0.5', 'a', '0.1')
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return str(int(value))
    if isinstance(value, float) and abs(value) < 1e30 and value == float(short := np.float32(value)):
        return str(short)  # a column of 32 bits holds 0.1 as 0.10000000149
    return str(value)


def says_something(text: str) -> bool:
    """Whether a caption or question holds more than punctuation, of which a clean-up leaves nothing.

    >>> says_something("..."), says_something("a dog"), says_something("犬")
    (False, True, True)
    """
    if any(map(str.isalnum, text)):
        return True
    return any(unicodedata.category(sign)[0] not in "PZC" for sign in text if sign not in "`~^|<>+=$")


def separated(texts: list[str], separator: str | None) -> list[str]:
    """The parts of texts that hold several, with `separator` between them; "" and None divide nothing."""
    if not separator:
        return texts
    lines = separator in ("\\n", "\n", "\r\n", "\r", "\u2028")
    sign = r"\r\n|[\n\r\u2028]|\\n" if lines else re.escape("\t" if separator == "\\t" else separator)
    return [part.strip() for text in texts for part in re.split(sign, text) if part.strip()]


def is_null(value: Any) -> bool:
    """Whether a cell says that it holds nothing.

    >>> is_null(None), is_null(float("nan")), is_null(" NULL "), is_null("NA"), is_null("none"), is_null(0)
    (True, True, True, True, False, False)
    """
    if isinstance(value, str):
        return not (text := value.strip()) or text in NULL_WORDS or text in BARE_WORDS
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing, or a list of nothing.

    >>> is_blank([]), is_blank(["", None]), is_blank("[]"), is_blank(["a"]), is_blank(0)
    (True, True, True, False, False)
    """
    if isinstance(value, list | tuple):
        return all(is_null(each) for each in value)
    return is_null(value) or (isinstance(value, str) and value.strip() == "[]")


def _texts(value: Any, answers: bool) -> list[str]:
    if is_null(value) and not isinstance(value, str):
        return []
    match value:
        case str():
            return _plain(unescaped(value), answers)
        case bool():
            if not answers:
                raise TypeError(f"{str(value).lower()} is no text")
            return ["yes" if value else "no"]
        case float() if math.isinf(value):
            raise TypeError("an infinite number is not text")
        case int() | float() | decimal.Decimal() | datetime.date() | datetime.time():
            return [number_text(value)]
        case bytes():
            return _plain(unescaped(_decoded(value)), answers)
        case list() if value and all(isinstance(each, tuple) and len(each) == 2 for each in value):
            return _texts(_member(dict(value)), answers)  # a map of Parquet, as pairs of keys and values
        case list() | tuple():
            if pair := next((each for each in value if is_weighted(each, answers)), None):
                raise TypeError(f"a text with a number beside it, {pair!r:.40}, as of a weight, which is not read")
            return [text for each in value for text in _texts(each, answers)]
        case dict():
            return _texts(_member(value), answers)
    raise TypeError(f"{type(value).__name__} is not text")


def is_weighted(value: Any, answers: bool = False) -> bool:
    """Whether a part of a list is a text with a number beside it, which may be written as a text. Of two `answers`, one
    may be a whole number.

    >>> is_weighted(["a dog", 0.9]), is_weighted(["a", "b"]), is_weighted("a dog"), is_weighted(["a dog", "0.9"])
    (True, False, False, True)
    >>> is_weighted(["a dog", "2"]), is_weighted(["two", "2"], answers=True)
    (True, False)
    """
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    texts = [each for each in value if isinstance(each, str)]
    if len(texts) == 2:
        numbers = _DECIMAL if answers else _NUMBER
        return sum(numbers.fullmatch(each.strip()) is not None for each in texts) == 1
    number = next((each for each in value if not isinstance(each, str)), None)
    return len(texts) == 1 and isinstance(number, int | float) and not isinstance(number, bool)


def _plain(text: str, answers: bool) -> list[str]:
    if len(text) > MAX_CHARACTERS:
        raise TypeError(f"{len(text):,} characters are more than the limit of {MAX_CHARACTERS:,}")
    text = text.strip()
    return [text] if text and text not in NULL_WORDS and (answers or text not in BARE_WORDS) else []


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise TypeError("these bytes are not UTF-8 text") from None


def _member(record: dict[Any, Any]) -> Any:
    """The member of a record that is its text."""
    names = [name for name in TEXT_MEMBERS if name in record]
    values = [record[name] for name in names]
    if not names:
        raise TypeError(f"a record of {', '.join(map(str, list(record)[:8]))} has none of {', '.join(TEXT_MEMBERS)}")
    if any(value != values[0] for value in values[1:]):
        raise TypeError(f"a record has the texts {' and '.join(names)}; keep one of them")
    return values[0]


def _written(text: str, answers: bool) -> list[str] | None:
    """The texts of a list or record that is written as one text; None for an ordinary text."""
    if len(text) <= MAX_CHARACTERS and (array := _ARRAY.match(text)):
        text = array[1]
    if not _WRITTEN_LIST.match(text) and not _NUMBERS.match(text):
        return None
    if len(text) > MAX_CHARACTERS:
        raise TypeError(f"{len(text):,} characters are more than the limit of {MAX_CHARACTERS:,}")
    try:
        value = parse_json(text, "the list")
        return _cell_texts(value, "", answers) if isinstance(value, str) else _texts(value, answers)
    except DataError as error:
        reason = str(error)
    if (value := python_value(text)) is not None:
        return _texts(value, answers)
    closed = {"[": "]", "(": ")", "{": "}"}.get(text[0], "")
    if not text.endswith(closed) and text[0] != "[":  # ("quoted" words) at the beginning of a sentence
        return None
    if text[:1] == "[" and not text.endswith("]") and "]" in text:  # ["Rex"] on the beach
        return None
    raise TypeError(f"{text[:40]!r} looks like a list and cannot be read as one ({reason})")


def python_value(text: str) -> Any:
    """The list or record that Python, pandas or numpy wrote as text; None where it is none."""
    try:
        tokens = [each for each in tokenize.generate_tokens(io.StringIO(text).readline) if each.string.strip()]
        kinds = [each.type for each in tokens]
        side_by_side = any(kinds[n] == kinds[n + 1] == tokenize.STRING for n in range(len(kinds) - 1))
        if not side_by_side:
            if any(
                each.string == "nan" for each in tokens
            ):  # pandas writes a missing text so, and Python has no such word
                text = " ".join("None" if each.string == "nan" else each.string for each in tokens)
            value = ast.literal_eval(text)
            return value if isinstance(value, list | tuple | dict) else None
        # numpy writes no commas, and Python would join the texts into one
        if any(each.type != tokenize.STRING and each.string not in "[,]" for each in tokens):
            return None
        return [ast.literal_eval(each.string) for each in tokens if each.type == tokenize.STRING]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError, tokenize.TokenError):
        return None
