"""Configuration: typed, immutable, read from YAML and `key=value` overrides, refused whole if any of it is wrong.

The YAML read here is the 1.2 core: `1e-3` is a number, `no` and `off` are words, only `true` and `false` are booleans.
PyYAML follows 1.1, so its patterns are replaced. ruamel.yaml follows 1.2, but would need patterns of its own too: it
reads the folder 2024_01 as the number 202401, and 2024-01-01 as a date.
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from evle.errors import ConfigError

Tree = dict[str, Any]


class Config(BaseModel):
    """The parent of every configuration class: immutable, unknown keys refused, a docstring below every field."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def build(cls, tree: Mapping[str, Any], where: str) -> Self:
        """The configuration that `tree` describes; `where` names its origin (a file, a command line) in messages.

        Raises:
            ConfigError: naming every problem at once, unknown keys with the nearest known one.
        """
        config, problems = cls.read(tree)
        if config is None or problems:
            raise ConfigError(f"{where}: " + "; ".join(problems))
        return config

    @classmethod
    def read(cls, tree: Mapping[str, Any]) -> tuple[Self | None, list[str]]:
        """The configuration that `tree` describes, or None, and every problem in words."""
        try:
            return cls.model_validate(tree), []
        except ValidationError as error:
            return None, [_problem(cls, detail, cls.known_keys()) for detail in error.errors()]

    @classmethod
    def known_keys(cls) -> list[str]:
        """Every key as it is written in an override: `seed`, `optim.lr`, ..."""
        keys: list[str] = []
        for name, field in cls.model_fields.items():
            section = _section_in(field.annotation)
            keys += [name] if section is None else [f"{name}.{key}" for key in section.known_keys()]
        return keys


def load_yaml(path: str | os.PathLike[str]) -> Tree:
    """The mapping that a YAML file holds; an empty file is an empty mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds something else than a mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    tree = parse_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, not a {type(tree).__name__}")
    return tree


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises ConfigError naming `where`, and the line where it is known."""
    try:
        value = yaml.load(text, Loader=_Loader)
        _refuse_odd(value)
        return value
    except RecursionError:
        raise ConfigError(f"{where}: not valid YAML (nested too deeply, or in itself)") from None
    except (ValueError, AttributeError, LookupError, TypeError, OverflowError):  # `!!int abc`, 5,000 digits, ...
        raise ConfigError(f"{where}: not valid YAML (a value does not fit its tag, or is too long)") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "malformed"
        raise ConfigError(f"{where}{line}: not valid YAML ({reason})") from None


def _refuse_odd(value: Any) -> None:
    """Raise a YAMLError for values that no configuration holds: dates, sets, bytes, and what aliases make huge."""
    left, depth = 1_000_000, 0
    level = [value]
    while level:
        left, depth = left - len(level), depth + 1
        if left < 0 or depth > 200:
            raise yaml.constructor.ConstructorError(None, None, "it is too large, or an alias repeats it without end")
        for each in level:
            if not isinstance(each, dict | list | str | int | float | None):
                kind = type(each).__name__
                raise yaml.constructor.ConstructorError(None, None, f"a {kind} is no value of a configuration")
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]


def dump_yaml(tree: Mapping[str, Any]) -> str:
    """`tree` as YAML that `load_yaml` reads back to an equal mapping, fields in their own order."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """`base` with `over` laid on it: mappings are merged key by key, anything else is replaced. Neither is changed.

    >>> merge({"optim": {"lr": 1, "clip": 2}}, {"optim": {"lr": 3}})
    {'optim': {'lr': 3, 'clip': 2}}
    """
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> Tree:
    """`tree` with `dotted.key=value` overrides applied in order; values are YAML, a number in a path indexes a list.

    >>> apply_overrides({"optim": {"lr": 1}}, ["optim.lr=1e-3", "optim.clip=2"])
    {'optim': {'lr': 0.001, 'clip': 2}}
    """
    result: Tree = dict(tree)
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise ConfigError(f"override {override!r}: write it as key=value, such as optim.lr=1e-3")
        result = _set(result, keys, parse_yaml(text, f"override {override!r}"), override)
    return result


def _set(node: Any, keys: list[str], value: Any, override: str) -> Any:
    if not keys:
        return value
    key, *rest = keys
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            raise ConfigError(f"override {override!r}: {key!r} is no position in a list of {len(node)}")
        return [_set(item, rest, value, override) if i == int(key) else item for i, item in enumerate(node)]
    if node is None:
        node = {}
    if not isinstance(node, Mapping):
        raise ConfigError(f"override {override!r}: {key!r} lies below a single value ({node!r})")
    return {**node, key: _set(node.get(key), rest, value, override)}


def _problem(cls: type[Config], detail: Any, known: Sequence[str]) -> str:
    """One validation problem in words: the key, the value, and the cure."""
    key = ".".join(str(part) for part in detail["loc"]) or "the whole"
    if detail["type"] == "extra_forbidden":
        return unknown_key(key, known)
    if detail["type"] == "missing":
        return f"{key} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{key}: {message}" if detail["loc"] else message
    return f"{key}={_short(detail['input'])}: {message[:1].lower()}{message[1:]}"


def _short(value: Any) -> str:
    """A value for a message, cut if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of more than 4,300 digits, a value nested deeply
        return "(a very long value)"
    return text if len(text) <= 200 else f"{text[:200]}..."


def unknown_key(key: str, known: Sequence[str]) -> str:
    """A message about an unknown key, with the nearest of all `known` ones, in whatever section.

    >>> unknown_key("lr", ["seed", "optim.lr", "train.steps"])
    "unknown key 'lr'; did you mean optim.lr?"
    >>> unknown_key("train.stepps", ["seed", "optim.lr", "train.steps"])
    "unknown key 'train.stepps'; did you mean train.steps?"
    """
    section, _, name = key.rpartition(".")
    siblings = [each for each in known if each.rpartition(".")[0] == section]
    near = [*siblings, *_sections(known, section)]
    for names in ([each for each in known if _last(each) == name], near, known):
        close = difflib.get_close_matches(name, map(_last, names), n=1)
        if close:
            hits = [each for each in names if _last(each) == close[0]]
            return f"unknown key {key!r}; did you mean {' or '.join(hits[:3])}?"
    return f"unknown key {key!r}; choose one of: {', '.join(near)}"


def refuse_no_pattern(pattern: str) -> None:
    """Raise ValueError, which a validator reports with its key, for what is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression ({error})") from None


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _sections(known: Sequence[str], section: str) -> list[str]:
    """The sections inside of a section ("" for the whole), in order."""
    depth = len(section.split(".")) if section else 0
    inside = (each.split(".") for each in known if not section or each.startswith(f"{section}."))
    return list(dict.fromkeys(".".join(parts[: depth + 1]) for parts in inside if len(parts) > depth + 1))


def _section_in(annotation: Any) -> type[Config] | None:
    """The configuration class that an annotation holds, such as of `Optim | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    inner = (_section_in(each) for each in getattr(annotation, "__args__", ()))
    return next((each for each in inner if each is not None), None)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the words of YAML 1.2 (PyYAML follows 1.1, where `1e-3` is a string and `no` is false), in which
    a duplicated key is an error: the first value would be lost silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is duplicated", key.start_mark)
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes by the same rules as `_Loader` reads, and writes tuples as lists."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_RESOLVERS = [
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
]
for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in _RESOLVERS:
        _kind.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value, 16 if "x" in node.value else 10))
_Dumper.add_representer(tuple, lambda dumper, data: dumper.represent_list(data))
