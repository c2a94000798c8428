"""Checks of the fields of a configuration one by one: the type of the value, its range, and that it names no code."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_utils import AttentionInterface

from evle.errors import CheckpointError, nearest

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
"""Share of what is dropped."""

STRICT = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


def checker(kinds: Mapping[str, Any]) -> type[BaseModel]:
    """A checker for fields with these names and types, for `field_problems`."""
    fields: dict[str, Any] = {name: (kind, None) for name, kind in kinds.items()}
    return create_model("Fields", __config__=STRICT, **fields)


def field_problems(config: PreTrainedConfig, fields: type[BaseModel], where: str = "") -> Iterator[str]:
    """One line for each field of `config` whose type or range differs from `fields`; `where` is put before names.

    Activations, and the attention implementation if one is given, must be known to transformers.
    """
    values = {name: getattr(config, name) for name in fields.model_fields if hasattr(config, name)}  # DeBERTa's vary
    try:
        fields.model_validate(values)
    except ValidationError as error:
        for detail in error.errors():
            name = ".".join(str(part) for part in detail["loc"])
            message = detail["msg"].replace("Input should", "should").replace("valid tuple", "valid list")
            yield f"{where}{name} {detail['input']!r} {message}"
    act = values.get("hidden_act")
    if isinstance(act, str) and act not in ACT2FN:
        yield f"{where}hidden_act {act!r} does not exist; {nearest(act, ACT2FN, 'ACT2FN of transformers')}"
    attention = config._attn_implementation
    if isinstance(attention, str) and "/" not in attention and not where:  # a kernel's name on the hub has a slash
        known = ("eager", *AttentionInterface().valid_keys())
        if attention not in known:
            yield f"attn_implementation {attention!r} does not exist; {nearest(attention, known)}"


_KERNELS = ("/", "flash", "deepgemm", "sonicmoe")
"""Parts of the names by which transformers finds attention and experts on the hub."""


def refuse_kernels(fields: Mapping[str, Any], where: str | Path) -> None:
    """Raise CheckpointError where fields that were read from a file, or those of a part such as text_config, name a
    kernel as their attention or their experts: transformers would download its code from the hub and run it, for flash
    attention where its package is not installed. A program may still ask for one."""
    parts: list[tuple[str, Any]] = [("", fields)]
    while parts:
        name, value = parts.pop()
        if isinstance(value, Mapping):
            parts += [(f"{name}.{key}" if name else str(key), each) for key, each in value.items()]
        elif isinstance(value, list | tuple):
            parts += [(name, each) for each in value]
        elif isinstance(value, str) and "_implementation" in name and any(part in value for part in _KERNELS):
            known = "eager, grouped_mm" if "experts" in name else "eager, sdpa"
            raise CheckpointError(
                f"{where}: {name} {value!r} names code to download, which is never run; remove the field, or choose "
                f"one of: {known}"
            )
