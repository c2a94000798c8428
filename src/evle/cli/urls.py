"""URLs on the command line: whatever path a verb takes may be one, and the verb sees a local path.

Inputs are downloaded before the verb begins. Outputs are written to a local folder, which is named, and uploaded when
the verb ends. Training opens its own output, to upload every checkpoint.
"""

import copy
import functools
import inspect
import operator
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from evle.cli.verb import Verb as VerbCommand

Verb = TypeVar("Verb", bound=Callable[..., Any])

OUTPUTS = {"output", "html", "destination"}
"""Parameters that name what a verb writes."""
CHANGED_IN_PLACE = {("card", "model")}
"""Inputs that a verb also writes to."""
TEXTS = {"text", "texts", "question", "caption", "chat", "host", "template", "labels", "message", "where", "options"}
"""Parameters that name no path, whatever they look like."""
CONFIGURED = {"overrides", "recipe"}
"""Parameters that the configuration reads, which knows URLs itself; of training, its output too."""
NAMED = re.compile(r"([\w.-]+)=(\w[\w+.-]+://.*)", re.DOTALL)
"""NAME=URL, as `evle serve` takes models."""


class App(typer.Typer):
    """An application whose verbs take URLs."""

    def command(self, *args: Any, **options: Any) -> Callable[[Verb], Verb]:
        register = super().command(*args, **{**options, "cls": options.get("cls") or VerbCommand})

        def decorate(verb: Verb) -> Verb:
            register(takes_urls(verb))
            return verb

        return decorate


def takes_urls(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The same verb, called with local paths in the place of URLs.

    Paths are taken as text, because pathlib would join the slashes of a URL.
    """
    hints = get_type_hints(verb, include_extras=True)
    # `evle train` takes its output as text for the configuration; `evle tokenizer train` takes a path.
    opens_itself = verb.__name__ == "train" and "output" in hints and not _is_path(hints["output"])
    own = CONFIGURED | ({"output"} if opens_itself else set())

    @functools.wraps(verb)
    def with_local_paths(**given: Any) -> Any:
        for name in sorted(given.keys() - TEXTS - own, key=lambda name: name in OUTPUTS):  # an input may not exist
            is_output = name in OUTPUTS or (verb.__name__, name) in CHANGED_IN_PLACE
            given[name] = _local(given[name], is_output, _is_path(hints[name]))
        return verb(**given)

    changed = {name: _as_text(hint) if name not in own else hint for name, hint in hints.items()}
    parameters = inspect.signature(verb).parameters.values()
    shown: Any = with_local_paths
    shown.__signature__ = inspect.Signature([each.replace(annotation=changed[each.name]) for each in parameters])
    shown.__annotations__ = changed
    del shown.__wrapped__
    return with_local_paths


def _is_path(hint: Any) -> bool:
    return hint is Path or any(map(_is_path, get_args(hint)))


def _as_text(hint: Any) -> Any:
    """The type of a parameter with text in the place of paths."""
    if hint is Path:
        return str
    if get_origin(hint) is not Annotated:
        return _replaced(hint)
    inner, *extras = get_args(hint)
    if not _is_path(inner):
        return hint
    extras = [copy.copy(extra) for extra in extras]
    for extra in extras:
        if extra.callback is not None:
            extra.callback = _checking_path(extra.callback)
    return Annotated[_replaced(inner), *extras]


def _replaced(hint: Any) -> Any:
    if hint is Path:
        return str
    if get_origin(hint) is list:
        return types.GenericAlias(list, (_replaced(get_args(hint)[0]),))
    if get_args(hint):
        return functools.reduce(operator.or_, map(_replaced, get_args(hint)))
    return hint


def _checking_path(check: Callable[[Path], Path]) -> Callable[[str], str]:
    def check_text(value: str) -> str:
        check(Path(value))
        return value

    return check_text


def _local(value: Any, is_output: bool, is_path: bool) -> Any:
    if isinstance(value, list):
        return [_local(each, is_output, is_path) for each in value]
    if isinstance(value, str):
        if match := NAMED.fullmatch(value):
            return f"{match[1]}={_opened(match[2], is_output)}"
        local = _opened(value, is_output) if "://" in value else value
        return Path(local) if is_path else str(local)
    return value


def _opened(url: str, is_output: bool) -> Path:
    from evle.storage import fetch, open_mirror

    return open_mirror(url) if is_output else fetch(url)
