"""The configuration to score a trained model with: its run's own, or that of another recipe.

`evle.run.config` reads recipes; `evle.run.evaluation` scores by what is read here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evle.config import apply_overrides, load_yaml, merge
from evle.errors import ConfigError
from evle.models.dual import DUAL_ENCODERS
from evle.models.folders import is_hub_name, model_folder, read_fields
from evle.models.loading import ALL_PROCESSORS
from evle.recipes import find_recipe
from evle.run.config import RunConfig, read_recipe
from evle.run.splits import refuse_unread_path, refuse_unread_root
from evle.run.weights import ModelConfig
from evle.storage import fetch, is_url
from evle.tasks.trained import family_text_options, run_settings

TRAINING = ("optim", "train", "tokenizer", "seed")
"""The parts of a configuration that only training reads."""
EVALUATED = ("batch_size", "num_workers", "precision")
"""Settings of training for which an evaluation has its own values."""


def read_run(folder: str | Path, overrides: Sequence[str] = (), recipe: str | Path | None = None) -> RunConfig:
    """The configuration of the run in `folder` with `key=value` overrides, to evaluate by; with `recipe`, its task and
    data instead (see `evle.run.evaluation`).

    A model folder or a hub name serves, too; of a model without a run, `recipe` or `overrides` name task and data.
    Raises ConfigError, and CheckpointError for a name that holds no model.
    """
    refuse_training_settings(overrides)
    file = Path(folder) / "config.yaml"
    if recipe is not None:
        file, tree = find_recipe(recipe), recipe_for(folder, recipe)
    elif file.is_file():
        tree = load_yaml(file)
    elif (Path(folder) / "config.json").is_file() or is_hub_name(folder):
        file, tree = Path(folder), settings_of(folder)
    else:
        raise ConfigError(f"{folder}: neither a run's folder (no config.yaml) nor a model folder (no config.json)")
    tree = apply_overrides(tree, overrides)
    if "task" not in tree:
        raise ConfigError(
            f"{folder}: no run documents what to score it by; name a recipe with --recipe, or task and data, such as "
            "task.name=retrieval data.path=FOLDER data.test.source=folder"
        )
    is_tested = (tree.get("data") or {}).get("test") is not None
    for override in overrides:
        if is_tested and override.startswith(("data.val.", "data.val=")):
            raise ConfigError(f"{override} has no effect, because data.test is scored; set data.test instead")
        if override.startswith("output="):
            raise ConfigError(f"{override}: {folder} is scored; set the folder of its report with -o FOLDER")
    if is_tested:
        tree = merge(tree, {"data": {"val": None}})  # nothing is selected any more: data of val may be scored too
    config = RunConfig.build({**tree, "output": str(folder)}, str(file))
    if any(override.startswith("data.path=") for override in overrides):
        refuse_unread_path([config.data], ["val", "test"])
    if any(override.startswith("data.root=") for override in overrides):
        refuse_unread_root(config.data, ["val", "test"])
    return config


def read_to_score(
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    recipe: str | Path | None = None,
    model: str | Path | None = None,
) -> RunConfig:
    """The configuration by which to evaluate: that of `read_run`, or of a recipe whose output folder holds its run.

    `model` is the folder of another model to score, whose own settings are then under `model`. Raises ConfigError, and
    CheckpointError if a recipe's run or `model` does not exist.
    """
    run = str(fetch(run)) if is_url(run) else run
    model = fetch(model) if model is not None and is_url(model) else model
    is_file = Path(run).suffix in (".yaml", ".yml")
    is_run = recipe is not None or Path(run).is_dir() or (is_hub_name(run) and not is_file)
    refuse_training_settings(overrides)
    config = read_run(run, overrides, recipe) if is_run else read_recipe(run, overrides)
    if is_run and model is None:
        return config
    folder = model or fetch(config.output)
    own = {"model": run_settings(folder).get("model") or {}}
    asked = apply_overrides(own, [each for each in overrides if each.startswith("model.")])
    return config.model_copy(update={"model": ModelConfig.build(asked["model"], str(folder))})


def recipe_for(folder: str | Path, recipe: str | Path) -> dict[str, Any]:
    """The settings by which `recipe` scores the model in a run's or model's folder.

    `image.size`, `text` and `model` are those of the run; of a model without a run, its processor's size, the recipe's
    text, and nothing. CLIP and SigLIP read texts as they are.
    Raises ConfigError for a recipe that does not exist or has several stages, CheckpointError without a model.
    """
    path = find_recipe(recipe)
    tree = load_yaml(path)
    if "stages" in tree:
        raise ConfigError(f"{path} has several stages ({', '.join(tree['stages'])}): score by a recipe of one run")
    settings = settings_of(folder)
    tree = merge(tree, {"image": {"size": (settings.get("image") or {}).get("size")}})
    tree["model"] = settings.get("model") or {}
    return merge(tree, {"text": settings["text"]}) if "text" in settings else tree


def settings_of(folder: str | Path) -> dict[str, Any]:
    """The configuration of the run that trained a model; without a run, little more than how a CLIP or SigLIP reads
    texts."""
    if settings := run_settings(folder):
        return settings
    family = read_fields(model_folder(folder), ALL_PROCESSORS)["model_type"]
    nothing = {"train": {"steps": 1}}  # every configuration has a number of steps; an evaluation takes none
    as_it_is = {"text": family_text_options(family).model_dump(mode="json")}
    return nothing | as_it_is if family in DUAL_ENCODERS else nothing


def refuse_training_settings(overrides: Sequence[str]) -> None:
    """Raise ConfigError for `key=value` overrides that no evaluation reads, with what to set instead."""
    for override in overrides:
        path = override.partition("=")[0].strip()
        keys = path.split(".")
        if keys[0] == "model" and keys[1:2] != ["overrides"]:
            raise ConfigError(f"{override}: an evaluation scores a trained model; name another with --model FOLDER")
        if keys[0] == "train" and keys[-1] in EVALUATED:
            raise ConfigError(f"{override} has no effect on an evaluation; set evaluate.{keys[-1]}")
        if keys[0] in TRAINING or keys[:2] == ["data", "train"]:
            raise ConfigError(f"{override} has no effect on an evaluation, which trains nothing; leave it out")
