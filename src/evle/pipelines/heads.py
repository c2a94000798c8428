"""What a model can be asked, read from its configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evle.models.folders import model_folder, read_fields
from evle.models.loading import ALL_PROCESSORS

ABILITIES_OF_HEAD = {
    "ForVQA": ("ask",),
    "ForRetrieval": ("embed", "match"),
    "ForITM": ("match",),
    "ForNLVR2": ("compare",),
    "ForVCRQ2A": ("answer",),
    "ForVCRQA2R": ("reason",),
    "ForPBC": ("locate",),
}
JOINT_FAMILIES = {"eve", "vle"}
"""Families that read an image and a text together; those of dual encoders embed."""


def abilities(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """What a model with these fields of config.json can do: names of `abilities.PIPELINES`, "explain" last.

    >>> abilities({"model_type": "eve", "architectures": ["EVEForVQA"]})
    ('ask', 'explain')
    """
    family, head = fields["model_type"], (fields.get("architectures") or [""])[0]
    if family not in JOINT_FAMILIES:
        return ("embed",)
    if head.endswith("ForPreTraining"):
        objectives = set(fields.get("objectives") or ())
        retrieves = {"itc", "itm"} <= objectives
        heads = (
            ("embed", retrieves),
            ("match", "itm" in objectives if family == "vle" else retrieves),
            ("locate", "pbc" in objectives),
        )
        return (*(name for name, has_it in heads if has_it), "explain")
    return (*next((able for end, able in ABILITIES_OF_HEAD.items() if head.endswith(end)), ()), "explain")


def abilities_of(source: str | Path) -> tuple[str, ...]:
    """`abilities` of the model in a folder or of a hub name. Raises CheckpointError for what is not a model of evle."""
    return abilities(read_fields(model_folder(source), ALL_PROCESSORS))
