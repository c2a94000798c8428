"""Score a trained model with another recipe: zero-shot retrieval, or a corpus that it was not fine-tuned on.

The recipe names task and data. Images and texts are read as in the training of the model. Fields of the model's config
can be changed if its weights do not depend on them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from evle.data.samples import Samples, Split, describe
from evle.distributed import is_main
from evle.engine.devices import join_processes
from evle.engine.run_folder import Run, make_output
from evle.errors import CheckpointError, ConfigError, EvleError
from evle.exported.folder import is_exported
from evle.exported.model import open_model
from evle.models.dual import DUAL_ENCODERS
from evle.models.folders import from_folder, model_folder, read_fields
from evle.models.loading import ALL_PROCESSORS, load_model
from evle.report import Report
from evle.run.by_label import score
from evle.run.config import RunConfig, task_class
from evle.run.prepare import build_task, task_options
from evle.run.reporting import (
    data_read,
    file_lines,
    interval_table,
    score_lines,
    score_rows,
    skipped_lines,
    skipped_table,
    split_read,
    write_report,
)
from evle.run.splits import read_split
from evle.run.weights import read_config, read_processor
from evle.share.facts import run_facts
from evle.storage import fetch, join, open_mirror, session, shown
from evle.tasks.dual import DualEncoderTask
from evle.tasks.pretraining import PreTrainingTask
from evle.tasks.retrieval import RetrievalTask
from evle.tasks.task import Task
from evle.tasks.trained import run_settings


def asked_fields(overrides: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """The `model.overrides` of a configuration that the run which trained the model in `folder` did not have."""
    made_with = (run_settings(folder).get("model") or {}).get("overrides") or {}
    return {name: value for name, value in overrides.items() if name not in made_with or made_with[name] != value}


def with_fields(model: PreTrainedModel, fields: Mapping[str, Any]) -> PreTrainedModel:
    """`model` with changed fields of its config, such as `capacity_factor`, and its weights as they are.

    Raises ConfigError for fields that cannot be, and for those that need other weights.
    """
    if not fields:
        return model
    built = type(model)(model.config.with_changes(**fields))
    weights = model.state_dict()
    shapes, needed = ({name: each.shape for name, each in part.items()} for part in (weights, built.state_dict()))
    if other := sorted(name for name in shapes.keys() | needed.keys() if shapes.get(name) != needed.get(name)):
        cure = "set image.size to score at another size" if "image_size" in fields else "leave it out, or train again"
        raise ConfigError(
            f"model.overrides: {', '.join(f'{name}={value}' for name, value in fields.items())} needs other weights "
            f"than the trained ones ({len(other)} tensors, first {other[0]}); {cure}"
        )
    built.load_state_dict(weights)
    torch.nn.Module.to(built, model.dtype)
    built.train(False)
    return built


def load_to_score(folder: str | Path, task: type[Task]) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model in `folder` with the head of `task`, as `load_model`; a pre-trained one scores retrieval as it is,
    and so do CLIP and SigLIP.

    Pre-trained by contrast without matching, its matching head counts as never learned. Raises CheckpointError for a
    pre-trained model without contrast, and otherwise as `load_model`.
    """
    if task.models is not RetrievalTask.models or is_exported(folder):
        return open_model(folder, task.models)
    if read_fields(model_folder(folder), ALL_PROCESSORS)["model_type"] in DUAL_ENCODERS:
        return load_model(folder, DUAL_ENCODERS)
    config: Any = read_config(folder)
    pretrained = PreTrainingTask.models.get(config.model_type)
    if pretrained is None or config.architectures != [pretrained.__name__] or {"itc", "itm"} <= set(config.objectives):
        return load_model(folder, task.models)
    if "itc" not in config.objectives:
        wanted = ",".join(dict.fromkeys((*config.objectives, "itc", "itm")))
        raise CheckpointError(
            f"{folder} was pre-trained by {', '.join(config.objectives)}: without contrast (itc) it has no embeddings "
            "to rank images and texts by; fine-tune it for retrieval with model.init, or pre-train with "
            f"model.overrides.objectives=[{wanted}]"
        )
    weights = {**(config.objective_weights or {}), "itm": 0.0}
    model: Any = task.models[config.model_type]
    model = from_folder(model, model_folder(folder), objective_weights=weights)
    return model, read_processor(folder, config.model_type)


@session()
def evaluate(
    config: RunConfig,
    *,
    model: str | Path | None = None,
    output: str | Path | None = None,
    samples: Samples | None = None,
) -> Report:
    """Score a trained model on data.test of a configuration (on data.val if it has no test) and write a report.

    `model` is a run's or a model's folder, by default the run in config.output; the report goes to `output`, by default
    its subfolder `evaluation`. `samples` stand in for what the configuration names.
    """
    device = join_processes()
    folder = fetch(model or config.output)
    task_type = task_class(config)
    split: Split = "test" if config.data.test is not None else "val"
    named = samples is None
    if samples is None:
        samples = read_split(config.data, split, task_type.reads)
    if samples is None:
        raise ConfigError("no data to evaluate on: name it with data.test.source=... data.test.split=...")
    trained, task = load_trained(config, folder, task_type)
    trained.to(device)  # type: ignore[arg-type]
    target = make_output(open_mirror(output or join(shown(folder), "evaluation"), writes=is_main()))
    found = score(task, trained, samples, config.evaluate.settings(quick=False))
    where, data = (split_read(config.data, split), data_read(config.data, split)) if named else (split, "")
    weights = _weights_in(folder)
    report = Report(
        title=f"{config.title or folder.name}: evaluation",
        summary=[
            *score_lines(task, found, where, data),
            *filter(None, (task.ranking(), weights)),
            *file_lines(found),
            *skipped_lines(found.skipped),
        ],
        provenance={
            "model": shown(folder),
            "data": {split: describe(samples)},
            "config": config.plain(),
            "trained in": Run(folder).environment(),
            "training": {"weights": weights},
            "ranking": task.ranking(),
        },
        tables=[*interval_table(found), *found.tables, *skipped_table(found.skipped)],
        galleries=found.galleries,
        scores=score_rows(where, found),
    )
    write_report(report, found, target)
    return report


def _weights_in(folder: Path) -> str:
    """Which of its training's weights a run's or model folder holds, and whether they were chosen on val; empty where
    that is unknown."""
    try:
        weights = run_facts(model_folder(folder)).get("weights")
    except EvleError:  # an exported model, or a run whose report is damaged
        return ""
    return weights if isinstance(weights, str) else ""


def load_trained(config: RunConfig, folder: str | Path, task_type: type[Task]) -> tuple[PreTrainedModel, Task]:
    """The model in a run's or model folder, with the `model.overrides` that `config` asks for, and its task with the
    options of `config`. Raises CheckpointError, and ConfigError for overrides that need other weights."""
    model, processor = load_to_score(folder, task_type)
    model = with_fields(model, asked_fields(config.plain()["model"]["overrides"], folder))
    if model.config.model_type in DUAL_ENCODERS:
        options: Any = task_options(task_type, config)
        return model, DualEncoderTask.for_model(options, processor, model.config)
    task = build_task(task_type, config, processor)
    task.restore(_read_state(model_folder(folder)))
    task.bind(model.config)
    return model, task


def _read_state(folder: Path) -> dict[str, Any]:
    file = folder / "task.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
