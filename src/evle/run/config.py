"""The configuration of a run, and every way to read one: a recipe, a run's folder, what to score a model by."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from evle.config import Config, apply_overrides, load_yaml, merge
from evle.engine.optim import OptimConfig
from evle.engine.trainer import TrainConfig
from evle.errors import ConfigError, nearest
from evle.precision import Precision
from evle.recipes import find_recipe
from evle.run.splits import DataConfig, refuse_unread_path, refuse_unread_root
from evle.run.tokenizer import TokenizerConfig
from evle.run.weights import ModelConfig
from evle.tasks import TASKS
from evle.tasks.task import EvaluationSettings, Task, TextConfig
from evle.tasks.trained import run_settings
from evle.transforms.image_config import ImageConfig

TRAINING = ("optim", "train", "tokenizer", "seed")
"""The parts of a configuration that only training reads."""
EVALUATED = ("batch_size", "num_workers", "precision")
"""Settings of training that an evaluation has of its own."""


class EvaluateConfig(Config):
    """How evaluations run."""

    batch_size: int = Field(default=64, ge=1)
    """Rows at once, on each process. Contrast and the negatives of matching are of one batch in pre-training: there,
    scores of itc and itm compare at one size only."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that prepare data."""
    precision: Precision = "no"
    """Autocast type."""
    examples: int = Field(default=12, ge=0)
    """Examples in each gallery of the report."""

    def settings(self, quick: bool) -> EvaluationSettings:
        return EvaluationSettings(self.batch_size, self.num_workers, self.precision, self.examples, quick)


class RunConfig(Config):
    """One run: everything that its folder's config.yaml holds."""

    title: str = ""
    """What the report is called."""
    needs: str = ""
    """What the run needs of a machine, for `evle recipes`."""
    task: dict[str, Any]
    """`name` of the task, and its options."""
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    image: ImageConfig = ImageConfig()
    text: TextConfig = TextConfig()
    optim: OptimConfig = OptimConfig.build({}, "optim")
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    seed: int = Field(default=0, ge=0)
    """Of weights, order, augmentation, masks and dropout."""
    output: str
    """The run's folder; of a recipe that leaves it out, runs/NAME."""

    @model_validator(mode="after")
    def _task_is_known(self) -> "RunConfig":
        name = self.task.get("name")
        if not isinstance(name, str):
            raise ValueError(f"task.name is missing; choose one of: {', '.join(sorted(TASKS))}")
        return self

    def plain(self) -> dict[str, Any]:
        """As plain values, for config.yaml; `build` reads them back."""
        return self.model_dump(mode="json")


def task_class(config: RunConfig) -> type[Task]:
    """The task that a configuration names. Raises ConfigError for an unknown one."""
    name = config.task["name"]
    if name not in TASKS:
        raise ConfigError(f"task.name={name!r} does not exist; {nearest(name, TASKS)}")
    return TASKS[name]


def read_recipe(name: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a recipe (see `find_recipe`) with `key=value` overrides. Raises ConfigError naming all
    that is wrong."""
    path = find_recipe(name)
    tree = load_yaml(path)
    if "stages" in tree:
        raise ConfigError(f"{path} has several stages ({', '.join(tree['stages'])}): run it with `evle run {name}`")
    config = RunConfig.build({"output": f"runs/{path.stem}", **apply_overrides(tree, overrides)}, str(path))
    refuse_unread_path([config.data])
    if any(override.startswith("data.root=") for override in overrides):
        refuse_unread_root(config.data)
    return config


def read_run(folder: str | Path, overrides: Sequence[str] = (), recipe: str | Path | None = None) -> RunConfig:
    """The configuration of the run in `folder` with `key=value` overrides, to evaluate by; with `recipe`, its task and
    data instead (see `evle.run.evaluation`). Raises ConfigError."""
    refuse_training_settings(overrides)
    file = Path(folder) / "config.yaml" if recipe is None else find_recipe(recipe)
    if not file.is_file():
        raise ConfigError(f"{folder}: no run's folder (no config.yaml)")
    tree = apply_overrides(load_yaml(file) if recipe is None else recipe_for(folder, recipe), overrides)
    is_tested = (tree.get("data") or {}).get("test") is not None
    for override in overrides:
        if is_tested and override.startswith(("data.val.", "data.val=")):
            raise ConfigError(f"{override} has no effect, as data.test is what is scored: set data.test instead")
        if override.startswith("output="):
            raise ConfigError(f"{override}: what is scored is {folder}; say where its report goes with -o FOLDER")
    if is_tested:
        tree = merge(tree, {"data": {"val": None}})  # nothing is chosen any more: what val held may be measured too
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
    """What to evaluate by: as `read_run`, or of a recipe by name whose output folder holds its run.

    `model` is the folder of another model to score, whose own settings then stand under `model`. Raises ConfigError,
    and CheckpointError where a recipe's run or `model` is not there.
    """
    is_run = recipe is not None or Path(run).is_dir()
    refuse_training_settings(overrides)
    config = read_run(run, overrides, recipe) if is_run else read_recipe(run, overrides)
    if is_run and model is None:
        return config
    folder = model or config.output
    own = {"model": run_settings(folder).get("model") or {}}
    asked = apply_overrides(own, [each for each in overrides if each.startswith("model.")])
    return config.model_copy(update={"model": ModelConfig.build(asked["model"], str(folder))})


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
