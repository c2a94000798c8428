"""The models of the page: what each can do, and the pipelines that do it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evle
from evle.errors import ConfigError
from evle.pipelines.abilities import display_names, load_abilities
from evle.tasks.trained import run_settings

TAB_OF = {"embed": "search"}
"""An ability names the tab that it serves, but for these; "match" re-ranks searches, "answer" belongs to "reason"."""


@dataclass
class Served:
    """A model of the page: what it is called there, and a pipeline for each of its abilities."""

    name: str
    source: str
    pipelines: dict[str, Any] = field(default_factory=dict)

    @property
    def scenes(self) -> Mapping[str, Any] | None:
        """The options of the synthetic scenes that the model was tested on; None for other data."""
        tested = (run_settings(self.source).get("data") or {}).get("test")
        first = tested[0] if isinstance(tested, list) and tested else tested
        return first if isinstance(first, dict) and first.get("source") == "scenes" else None


def load_served(source: str | Path, name: str) -> Served:
    """The model in `source`, loaded once for each head that it has. Raises CheckpointError for anything else."""
    pipelines = {TAB_OF.get(ability, ability): each for ability, each in load_abilities(source).items()}
    return Served(name, str(source), pipelines)


def load_all(sources: Sequence[str | Path]) -> list[Served]:
    """Every model of `sources`, or without any of them the models in `models/`."""
    listed = list(sources) or bundled()
    if not listed:
        raise ConfigError(
            "no model is given, and there is none in models/; train one with `evle train quickstart`, then run "
            "`evle demo runs/quickstart/vqa-pretrained`"
        )
    return [load_served(source, name) for source, name in zip(listed, display_names(listed), strict=True)]


def bundled() -> list[Path]:
    """The models in the folder `models` of the working directory, or else of the checkout."""
    for root in (Path.cwd(), Path(evle.__file__).parents[2]):
        found = sorted(
            folder
            for folder in (root / "models").glob("*")
            if (folder / "config.json").is_file() or (folder / "model" / "config.json").is_file()
        )
        if found:
            return found
    return []
