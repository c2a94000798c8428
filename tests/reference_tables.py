"""The tables of docs/recipes.md, docs/eve.md and docs/vle.md with the meaning of every key, generated from the code.

python tests/reference_tables.py        writes them between the marks; a test compares them with the code
"""

import inspect
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from transformers import PreTrainedConfig

from evle.engine.optim import OptimConfig
from evle.engine.train_config import TrainConfig
from evle.models.eve import EVEConfig
from evle.models.vle import VLEConfig
from evle.report import plain
from evle.run.config import EvaluateConfig, RunConfig, TokenizerConfig
from evle.run.splits import DataConfig
from evle.run.weights import ModelConfig
from evle.tasks import TASKS
from evle.tasks.task import TaskConfig, TextConfig
from evle.transforms.image_config import ImageConfig

DOCS = Path(__file__).parents[1] / "docs"
SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelConfig,
    "tokenizer": TokenizerConfig,
    "data": DataConfig,
    "image": ImageConfig,
    "text": TextConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
}
OWN_SECTIONS = {*SECTIONS, "task"}


def rows(prefix: str, model: type[BaseModel], leave_out: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """A table's row for each field of a configuration class: its key, default and meaning."""
    lines = []
    for name, field in model.model_fields.items():
        if name in leave_out:
            continue
        meaning = " ".join((field.description or "").split())
        default = "required" if field.is_required() else f"`{json.dumps(plain(field.get_default()))}`"
        if get_origin(field.annotation) is Literal:
            meaning = f"{meaning.rstrip('.')} ({', '.join(get_args(field.annotation))})"
        lines.append(f"| `{prefix}{name}` | {default} | {meaning.rstrip('.')} |")
    return lines


def recipe_tables() -> str:
    head = ["", "| key | default | meaning |", "|---|---|---|"]
    parts = ["### The run", *head, *rows("", RunConfig, OWN_SECTIONS)]
    common = {"image", "text"}
    parts += ["", "### task, whatever its name", *head, "| `task.name` | required | " + ", ".join(TASKS) + " |"]
    parts += rows("task.", TaskConfig, common)
    for name, task in TASKS.items():
        if own := rows("task.", task.config_type, common | TaskConfig.model_fields.keys()):
            parts += ["", f"### task, when its name is {name}", *head, *own]
    for name, model in SECTIONS.items():
        parts += ["", f"### {name}", *head, *rows(f"{name}.", model)]
    return "\n".join(parts)


def model_table(config: type[PreTrainedConfig], size: str) -> str:
    """The fields of a model's configuration as its docstring describes them, with their defaults."""
    described: dict[str, str] = {}
    section = ""
    lines = [f"| field | default ({size}) | meaning |", "|---|---|---|"]
    for block in re.split(r"\n(?= {4}\w|\w)", inspect.cleandoc(config.__doc__ or "")):
        text = " ".join(block.split())
        if heading := re.fullmatch(r"Attributes: ([\w-]+)", text):
            section = heading[1]
        elif section and (item := re.match(r"([a-z0-9_, ]+): (.*)", text)):
            described[item[1]] = item[2]
    default = config()
    for names, meaning in described.items():
        fields = [name.strip() for name in names.split(",")]
        defaults = ", ".join(f"`{json.dumps(plain(_default(default, name)))}`" for name in fields)
        lines.append(f"| {', '.join(f'`{name}`' for name in fields)} | {defaults} | {meaning.rstrip('.')} |")
    return "\n".join(lines)


def _default(config: PreTrainedConfig, name: str) -> Any:
    """A field's default; of a part that is a configuration itself, none: its own fields are described elsewhere."""
    value = getattr(config, name) if name != "id2label" else None
    return None if isinstance(value, PreTrainedConfig) else value


TABLES: dict[str, Callable[[], str]] = {
    "recipes.md": recipe_tables,
    "eve.md": partial(model_table, EVEConfig, "EVE-Base"),
    "vle.md": partial(model_table, VLEConfig, "VLE-base"),
}
BEGIN, END = "<!-- made by tests/reference_tables.py -->", "<!-- end -->"


def filled(name: str) -> str:
    """A page of docs/ with its table made anew."""
    text = (DOCS / name).read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{TABLES[name]()}\n\n{END}{after}"


if __name__ == "__main__":
    for name in TABLES:
        (DOCS / name).write_text(filled(name), encoding="utf-8")
