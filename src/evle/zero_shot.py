"""A trained model scored by another recipe: zero-shot retrieval of a pre-trained one, or a corpus it was not tuned on.

The recipe says task and data; how pictures and texts are read is the trained model's own, which knows no other way.
"""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from evle.config import load_yaml, merge
from evle.errors import CheckpointError, ConfigError
from evle.initialization import read_config, read_processor
from evle.pipelines import load_model, model_folder, run_settings
from evle.recipes import find_recipe
from evle.tasks.pretraining import PreTrainingTask
from evle.tasks.retrieval import RetrievalTask
from evle.tasks.task import Task


def recipe_for(folder: str | Path, recipe: str | Path) -> dict[str, Any]:
    """The settings by which `recipe` scores the model in a run's or model's folder.

    `image.size` and `text` are those of the run; of a model without a run, its processor's size and the recipe's text.
    Raises ConfigError for a recipe that does not exist or has several stages, CheckpointError without a model.
    """
    path = find_recipe(recipe)
    tree = load_yaml(path)
    if "stages" in tree:
        raise ConfigError(f"{path} has several stages ({', '.join(tree['stages'])}): score by a recipe of one run")
    settings = run_settings(folder)
    tree = merge(tree, {"image": {"size": (settings.get("image") or {}).get("size")}})
    return merge(tree, {"text": settings["text"]}) if "text" in settings else tree


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
