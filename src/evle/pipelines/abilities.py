"""The pipelines that ask a model, by what its configuration can do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evle.errors import CheckpointError
from evle.pipelines.answering import VQAPipeline
from evle.pipelines.classifying import ClassifyPipeline
from evle.pipelines.explaining import ExplainPipeline
from evle.pipelines.heads import abilities_of
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


def load_abilities(source: str | Path, **options: Any) -> dict[str, Any]:
    """A pipeline for each ability of the model in `source`, by ability; `options` are `Pipeline`'s.

    Weights are loaded once for each head. Raises CheckpointError for what is not a model of evle.
    """
    result: dict[str, Any] = {}
    for ability in abilities_of(source):
        pipeline_class, first = PIPELINES[ability], next(iter(result.values()), None)
        shares = ability == "explain" or (ability == "match" and "embed" in result)
        if first is None or not shares:
            result[ability] = pipeline_class(source, **options)
        elif ability == "explain" or learns_matching(first.model.config):
            kept = {name: value for name, value in options.items() if name != "device"}
            if ability == "explain":
                kept["localise"] = result.get("locate")
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
