"""What export.json tells a program without torch: how the model's images and texts become inputs of its graphs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evle.errors import CheckpointError
from evle.export.heads import Graph
from evle.exported.reading import ImageReader, TextReader
from evle.models.dual import PADDED_TO_THE_END
from evle.models.folders import from_folder
from evle.models.loading import ALL_PROCESSORS
from evle.pipelines.answering import VQAPipeline
from evle.pipelines.classifying import ClassifyPipeline
from evle.pipelines.embedding import fingerprint
from evle.pipelines.explaining import ExplainPipeline
from evle.pipelines.localising import LocalisePipeline
from evle.pipelines.matching import ComparePipeline, MatchPipeline
from evle.pipelines.pipeline import Pipeline
from evle.pipelines.reasoning import AnswerChoicePipeline, ReasonChoicePipeline
from evle.tasks.trained import text_options
from evle.transforms.image import framing_of

PIPELINES: dict[str, type[Pipeline]] = {
    "image": ClassifyPipeline,
    "match": MatchPipeline,
    "answer": VQAPipeline,
    "compare": ComparePipeline,
    "locate": LocalisePipeline,
}
LEVELS = 2
"""Levels of 255 by which a pixel may differ from the task's: Pillow rounds other than torch."""
PROBE = "The quick (brown) fox—isn't it?—jumps over 2 lazy dogs’ “ﬁne” naïve 猫…"


def facts_of(folder: Path, graphs: Sequence[Graph], heads: Sequence[str]) -> tuple[dict[str, Any], Pipeline]:
    """The fields `family`, `task`, `heads`, `image`, `text`, `scale` and `fingerprint` of export.json, and a pipeline
    of the model.

    Raises CheckpointError for a tokenizer without a fast form, or images that are not prepared as here.
    """
    pipeline = _pipeline(folder, graphs, heads)
    processor, config = pipeline.processor, pipeline.model.config
    tokenizer = processor.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"{folder}: {type(tokenizer).__name__} has no fast form (tokenizer.json), which an exported model needs"
        )
    side, framing = framing_of(processor.image_processor)
    image = {
        "side": pipeline.task.image_size if config.model_type in ("eve", "vle") else side,
        "framing": framing,
        "mean": list(processor.image_processor.image_mean),
        "std": list(processor.image_processor.image_std),
    }
    _check_images(folder, pipeline, image)
    options = pipeline.task.options
    slot = getattr(pipeline.task, "reads_slot", False)
    text = {
        "max_length": options.text.max_length,
        "clean": options.text.clean,
        "max_words": getattr(options, "max_test_words", options.text.max_words),
        "pad": tokenizer.pad_token_id,
        "slot": tokenizer.mask_token_id if slot else None,
        "truncation_side": tokenizer.truncation_side,
        "padded_to": options.text.max_length if config.model_type in PADDED_TO_THE_END else None,
    }
    facts: dict[str, Any] = {
        "family": config.model_type,
        "task": pipeline.task.name,
        "heads": list(heads),
        "image": image,
        "text": text,
        "fingerprint": fingerprint(pipeline),
    }
    if isinstance(pipeline, ClassifyPipeline):
        facts["scale"] = float(pipeline.scale())
    return facts, pipeline


def _pipeline(folder: Path, graphs: Sequence[Graph], heads: Sequence[str]) -> Pipeline:
    """A pipeline of the model, which reads images and texts as its graphs are to get them."""
    first = graphs[0]
    kind = next((PIPELINES[graph.function] for graph in graphs if graph.function in PIPELINES), None)
    if first.function == "choose":
        kind = AnswerChoicePipeline if heads[0].endswith("Q2A") else ReasonChoicePipeline
    if kind is not None:
        return kind(folder, device="cpu")
    # Masked words have no pipeline: they are read as a retrieval model reads texts.
    processor = from_folder(ALL_PROCESSORS[first.config.model_type], folder)
    return ExplainPipeline(model=first.model, processor=processor, text=text_options(folder))


def check_texts(folder: Path, facts: Mapping[str, Any], pipeline: Pipeline) -> None:
    """Raise CheckpointError unless the tokenizer.json in `folder` reads a text as the task reads it."""
    ours, theirs = TextReader(folder, facts["text"]).read(PROBE), pipeline.task.read_text(PROBE)
    if ours != theirs:
        raise CheckpointError(
            f"{folder}: tokenizer.json reads {PROBE!r} as {ours}, but the model's task as {theirs}; save the model "
            "with a tokenizer of transformers that has a fast form"
        )


def _check_images(folder: Path, pipeline: Pipeline, facts: dict[str, Any]) -> None:
    """Raise CheckpointError unless an image is prepared as the task prepares it, to within LEVELS."""
    y, x = np.mgrid[0:90, 0:140]
    probe = Image.fromarray(np.stack([x * 255 // 140, y * 255 // 90, (x + y) % 256], -1).astype(np.uint8))
    reader = ImageReader(facts)
    ours = reader.collate([reader.read(probe)])["pixel_values"]
    read: Any = pipeline.read(probe)
    theirs = pipeline.task.collate_images([read]).numpy()
    if ours.shape != theirs.shape or np.abs(ours - theirs).max() > LEVELS / 255 / min(facts["std"]) + 1e-6:
        raise CheckpointError(
            f"{folder}: its image processor prepares images in another way than an exported model can; "
            "export a model whose images are resized bicubically to a square or its centre"
        )
