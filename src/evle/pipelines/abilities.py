"""What a model can be asked, read from its configuration, and the pipelines that ask it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evle.errors import CheckpointError
from evle.models.folders import model_folder, read_fields
from evle.models.loading import ALL_PROCESSORS
from evle.pipelines.answering import VQAPipeline
from evle.pipelines.classifying import ClassifyPipeline
from evle.pipelines.explaining import ExplainPipeline
from evle.pipelines.localising import LocalisePipeline
from evle.pipelines.matching import ComparePipeline, MatchPipeline
from evle.pipelines.pipeline import Pipeline
from evle.pipelines.reasoning import AnswerChoicePipeline, ReasonChoicePipeline
from evle.tasks.retrieval import learns_matching

PIPELINES: Mapping[str, type[Pipeline]] = {
    "ask": VQAPipeline,
    "embed": ClassifyPipeline,
    "match": MatchPipeline,
    "compare": ComparePipeline,
    "answer": AnswerChoicePipeline,
    "reason": ReasonChoicePipeline,
    "locate": LocalisePipeline,
    "explain": ExplainPipeline,
}
"""By ability. A model that embeds images and texts also classifies: `ClassifyPipeline` is an `EmbedPipeline`."""

ABILITIES_OF_HEAD = {
    "ForVQA": ("ask",),
    "ForRetrieval": ("embed", "match"),
    "ForITM": ("match",),
    "ForNLVR2": ("compare",),
    "ForVCRQ2A": ("answer",),
    "ForVCRQA2R": ("reason",),
    "ForPBC": ("locate",),
}
DUAL_FAMILIES = ClassifyPipeline.models.keys() - ExplainPipeline.models.keys()


def abilities(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """What a model with these fields of config.json can do: names of PIPELINES, "explain" last.

    >>> abilities({"model_type": "eve", "architectures": ["EVEForVQA"]})
    ('ask', 'explain')
    """
    family, head = fields["model_type"], (fields.get("architectures") or [""])[0]
    if family in DUAL_FAMILIES:
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


def load_abilities(source: str | Path, **options: Any) -> dict[str, Any]:
    """A pipeline for each ability of the model in `source`, by ability; `options` are `Pipeline`'s.

    Weights are loaded once for each head. Raises CheckpointError for what is not a model of evle.
    """
    fields = read_fields(model_folder(source), ALL_PROCESSORS)
    result: dict[str, Any] = {}
    for ability in abilities(fields):
        pipeline_class, first = PIPELINES[ability], next(iter(result.values()), None)
        shares = ability == "explain" or (ability == "match" and "embed" in result)
        if first is None or not shares:
            result[ability] = pipeline_class(source, **options)
        elif ability == "explain" or learns_matching(first.model.config):
            kept = {name: value for name, value in options.items() if name != "device"}
            result[ability] = pipeline_class(model=first.model, processor=first.processor, text=first.text, **kept)
    if not result:
        raise CheckpointError(f"{source}: this model has no head that can be asked; fine-tune it for a task")
    return result


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
