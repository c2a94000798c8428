"""What a user can cause and cure: one exception family, one line each.

A message names the value, where it stands (file, key, sample) and what to do next. The command line prints
it without a traceback.
"""

import difflib
from collections.abc import Iterable
from numbers import Integral
from typing import Any, ClassVar


class EvleError(ValueError):
    """Anything a user can cause and cure; `str(error)` is one clear line."""

    exit_code: ClassVar[int] = 2
    """What the command line ends with."""


class ConfigError(EvleError):
    """A recipe, an option or a model configuration that cannot work."""


class DataError(EvleError):
    """A data set that cannot be read: a missing file, a wrong form, an unknown split."""


class SampleError(DataError):
    """One sample that cannot be used. Long work skips it, counts it and reports it."""


class CheckpointError(EvleError):
    """Weights that are missing, damaged, or of another model."""


class StorageError(EvleError):
    """Remote storage that cannot be read or written: no such bucket, no credentials, no connection."""


class ServiceError(EvleError):
    """Another program, such as a language model's server, that gives no usable answer."""


def at_least(least: int, value: Any, name: str) -> int:
    """`value`, if it is a whole number of `least` or more; raises ConfigError, which calls it `name`.

    >>> at_least(1, 32, "batch_size")
    32
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}; a whole number of at least {least} is needed")
    return int(value)


IN_OUR_WORDS = {
    "Weights only load failed": "it holds more than tensors, and code in a file is never run: ask for safetensors",
    "Couldn't instantiate the backend tokenizer": "no tokenizer.json or other tokenizer there",
    "Can't load image processor": "no processor_config.json or preprocessor_config.json there",
    "`ignore_mismatched_sizes`": "its weights are of another size than its config.json says",
}
"""Messages of libraries that speak to programmers, by a part of them; some advise what must not be done."""


def in_one_line(error: BaseException) -> str:
    """What a library's error says, for a message of ours: its first line, or our words for it.

    >>> in_one_line(OSError("no such thing\\nand more"))
    'no such thing'
    """
    text = str(error).strip()
    ours = next((words for part, words in IN_OUR_WORDS.items() if part in text), None)
    return ours or (text.splitlines()[0][:200] if text else type(error).__name__)


def nearest(name: str, known: Iterable[str], where: str = "") -> str:
    """A hint for an unknown `name`: the nearest known name, else what exists; where that is much, `where` it is listed.

    >>> nearest("imge", ["image", "text"])
    "did you mean 'image'?"
    >>> nearest("nope", ["image", "text"], "docs/eve.md")
    'they are listed in docs/eve.md'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    if where:
        return f"they are listed in {where}"
    return "choose one of: " + ", ".join(names)
