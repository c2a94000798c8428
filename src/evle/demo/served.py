"""Which tabs a model can serve, and the pipelines that serve them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evle
from evle.errors import ConfigError
from evle.models.folders import model_folder, read_fields
from evle.models.loading import ALL_PROCESSORS
from evle.pipelines import (
    AnswerChoicePipeline,
    ComparePipeline,
    EmbedPipeline,
    ExplainPipeline,
    LocalisePipeline,
    MatchPipeline,
    Pipeline,
    ReasonChoicePipeline,
    VQAPipeline,
)
from evle.tasks.retrieval import learns_matching
from evle.tasks.trained import run_settings

PIPELINES: Mapping[str, type[Pipeline]] = {
    "ask": VQAPipeline,
    "search": EmbedPipeline,
    "match": MatchPipeline,
    "compare": ComparePipeline,
    "answer": AnswerChoicePipeline,
    "reason": ReasonChoicePipeline,
    "locate": LocalisePipeline,
    "explain": ExplainPipeline,
}
"""By ability, which names the tab that it serves; but "match" re-ranks searches, and "answer" belongs to "reason"."""

OF_HEAD = {
    "ForVQA": ("ask",),
    "ForRetrieval": ("search", "match"),
    "ForITM": ("match",),
    "ForNLVR2": ("compare",),
    "ForVCRQ2A": ("answer",),
    "ForVCRQA2R": ("reason",),
    "ForPBC": ("locate",),
}
DUAL_FAMILIES = EmbedPipeline.models.keys() - ExplainPipeline.models.keys()


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


def abilities(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """What a model with these fields of config.json can do, names of PIPELINES, "explain" last.

    >>> abilities({"model_type": "eve", "architectures": ["EVEForVQA"]})
    ('ask', 'explain')
    """
    family, head = fields["model_type"], (fields.get("architectures") or [""])[0]
    if family in DUAL_FAMILIES:
        return ("search",)
    if head.endswith("ForPreTraining"):
        objectives = set(fields.get("objectives") or ())
        retrieves = {"itc", "itm"} <= objectives
        heads = (
            ("search", retrieves),
            ("match", "itm" in objectives if family == "vle" else retrieves),
            ("locate", "pbc" in objectives),
        )
        return (*(name for name, has_it in heads if has_it), "explain")
    return (*next((able for end, able in OF_HEAD.items() if head.endswith(end)), ()), "explain")


def load_served(source: str | Path, name: str) -> Served:
    """The model in `source`, loaded once for each head that it has. Raises CheckpointError for anything else."""
    fields = read_fields(model_folder(source), ALL_PROCESSORS)
    served = Served(name, str(source))
    for ability in abilities(fields):
        pipeline_class, first = PIPELINES[ability], next(iter(served.pipelines.values()), None)
        fits = ability == "explain" or (ability == "match" and "search" in served.pipelines)
        if first is not None and fits:  # explaining reads any head, and re-ranking the head that searches
            if ability == "match" and not learns_matching(first.model.config):
                continue
            pipeline = pipeline_class(model=first.model, processor=first.processor, text=first.text)
        else:
            pipeline = pipeline_class(source)
        served.pipelines[ability] = pipeline
    return served


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


def display_names(sources: Sequence[str | Path]) -> list[str]:
    """The last part of each path, with as many more parts as are needed to tell them apart.

    >>> display_names(["runs/a/vqa", "runs/b/vqa", "models/vle"])
    ['a/vqa', 'b/vqa', 'vle']
    """
    parts = [[part for part in Path(source).parts if part != "/"] for source in sources]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]) or str(Path.cwd().name))
    return names
