"""A trained model scored by another recipe: zero-shot retrieval of a pre-trained one, or a corpus it was not tuned on.

The recipe says task and data; how pictures and texts are read is the trained model's own, which knows no other way. Of
the model's config, what its weights do not depend on may be set anew.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from evle.config import load_yaml, merge
from evle.errors import CheckpointError, ConfigError
from evle.initialization import read_config, read_processor
from evle.pipelines import load_model, model_folder, run_settings
from evle.recipes import find_recipe
from evle.tasks.pretraining import PreTrainingTask
from evle.tasks.retrieval import RetrievalTask
from evle.tasks.task import Task

TRAINING = ("optim", "train", "tokenizer", "seed")
"""The parts of a configuration that only training reads."""
EVALUATED = ("batch_size", "num_workers", "precision")
"""Settings of training that an evaluation has of its own."""


def recipe_for(folder: str | Path, recipe: str | Path) -> dict[str, Any]:
    """The settings by which `recipe` scores the model in a run's or model's folder.

    `image.size`, `text` and `model` are those of the run; of a model without a run, its processor's size, the recipe's
    text, and nothing.
    Raises ConfigError for a recipe that does not exist or has several stages, CheckpointError without a model.
    """
    path = find_recipe(recipe)
    tree = load_yaml(path)
    if "stages" in tree:
        raise ConfigError(f"{path} has several stages ({', '.join(tree['stages'])}): score by a recipe of one run")
    settings = run_settings(folder)
    tree = merge(tree, {"image": {"size": (settings.get("image") or {}).get("size")}})
    tree["model"] = settings.get("model") or {}
    return merge(tree, {"text": settings["text"]}) if "text" in settings else tree


def refuse_training_settings(overrides: Sequence[str]) -> None:
    """Say so where `key=value` overrides set what no evaluation reads. Raises ConfigError with what to set instead."""
    for override in overrides:
        path = override.partition("=")[0].strip()
        keys = path.split(".")
        if keys[0] == "model" and keys[1:2] != ["overrides"]:
            raise ConfigError(f"{override}: an evaluation scores a trained model; name another with --model FOLDER")
        if keys[0] == "train" and keys[-1] in EVALUATED:
            raise ConfigError(f"{override} has no effect on an evaluation; set evaluate.{keys[-1]}")
        if keys[0] in TRAINING or keys[:2] == ["data", "train"]:
            raise ConfigError(f"{override} has no effect on an evaluation, which trains nothing; leave it out")


def asked_fields(overrides: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """Those of a configuration's `model.overrides` that the run which made the model in `folder` did not have."""
    made_with = (run_settings(folder).get("model") or {}).get("overrides") or {}
    return {name: value for name, value in overrides.items() if name not in made_with or made_with[name] != value}


def with_fields(model: PreTrainedModel, fields: Mapping[str, Any]) -> PreTrainedModel:
    """`model` with fields of its config set anew, such as `capacity_factor`, and its weights as they are.

    Raises ConfigError for fields that cannot be, and for those that need other weights.
    """
    if not fields:
        return model
    built = type(model)(model.config.with_changes(**fields))
    weights = model.state_dict()
    shapes, needed = ({name: each.shape for name, each in part.items()} for part in (weights, built.state_dict()))
    if other := sorted(name for name in shapes.keys() | needed.keys() if shapes.get(name) != needed.get(name)):
        cure = "set image.size to score at another size" if "image_size" in fields else "leave it out, or train anew"
        raise ConfigError(
            f"model.overrides: {', '.join(f'{name}={value}' for name, value in fields.items())} needs other weights "
            f"than the trained ones ({len(other)} tensors, first {other[0]}); {cure}"
        )
    built.load_state_dict(weights)
    torch.nn.Module.to(built, model.dtype)
    return built.eval()


def load_to_score(folder: str | Path, task: type[Task]) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model in `folder` with the head of `task`, as `load_model`; a pre-trained one serves retrieval as it is.

    Pre-trained by contrast without matching, its matching head counts as never learned. Raises CheckpointError for a
    pre-trained model without contrast, and otherwise as `load_model`.
    """
    if task.models is not RetrievalTask.models:
        return load_model(folder, task.models)
    config: Any = read_config(folder)
    pretrained = PreTrainingTask.models.get(config.model_type)
    if pretrained is None or config.architectures != [pretrained.__name__] or {"itc", "itm"} <= set(config.objectives):
        return load_model(folder, task.models)
    if "itc" not in config.objectives:
        wanted = ",".join(dict.fromkeys((*config.objectives, "itc", "itm")))
        raise CheckpointError(
            f"{folder} was pre-trained by {', '.join(config.objectives)}: without contrast (itc) it has no embeddings "
            "to rank pictures and texts by; fine-tune it for retrieval with model.init, or pre-train with "
            f"model.overrides.objectives=[{wanted}]"
        )
    weights = {**(config.objective_weights or {}), "itm": 0.0}
    model: Any = task.models[config.model_type]
    model = model.from_pretrained(model_folder(folder), objective_weights=weights, local_files_only=True)
    return model, read_processor(folder, config.model_type)
