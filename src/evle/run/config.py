"""The configuration of a run, and recipes of one or several stages that describe runs.

A recipe of several stages has `defaults:`, from which every stage starts, and `stages:`, each with its differences.
`model.init: stage:NAME` starts from the model of an earlier stage. Beside the stages, `vcr: {NAME: [Q2A_STAGE,
QA2R_STAGE]}` scores two of them together, VCR's Q to AR; `claims: {NAME: {...}}` compares two of them (see
`evle.run.claims`); and `quick: {...}` is a short form (see `evle.run.quick`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from evle.config import Config, apply_overrides, load_yaml, merge, unknown_key
from evle.engine.optim import OptimConfig
from evle.engine.train_config import TrainConfig
from evle.errors import ConfigError, nearest
from evle.precision import Precision
from evle.recipes import find_recipe
from evle.run.claims import Claim, read_claim
from evle.run.quick import quick_form
from evle.run.splits import DataConfig, refuse_unread_path, refuse_unread_root
from evle.run.tokenizer import TokenizerConfig
from evle.run.weights import CONFIGS, ModelConfig, config_fields
from evle.storage import fetch, is_url, join, local
from evle.tasks import TASKS
from evle.tasks.task import EvaluationSettings, Task, TextConfig
from evle.transforms.image_config import ImageConfig

STAGE = "stage:"
TOP_KEYS = {"title", "about", "needs", "output", "defaults", "stages", "vcr", "claims", "quick"}
"""The keys of a recipe of several stages."""
BESIDE = {"image", "text"}
"""Options of every task that are beside `task` in a recipe."""
VCR_TASKS = ("vcr-q2a", "vcr-qa2r")


class EvaluateConfig(Config):
    """How evaluations run."""

    batch_size: int = Field(default=64, ge=1)
    """Rows per batch, on each process. Pre-training scores of itc and itm depend on this size, because their negatives
    come from the same batch: compare them only at equal sizes."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that prepare data."""
    precision: Precision = "no"
    """Autocast type."""
    examples: int = Field(default=12, ge=0)
    """Number of random examples in the report. A third of this number is added from the best and from the worst."""
    seed: int = Field(default=0, ge=0)
    """Seed of the choice of examples."""

    def settings(self, quick: bool) -> EvaluationSettings:
        return EvaluationSettings(self.batch_size, self.num_workers, self.precision, self.examples, quick, self.seed)


class RunConfig(Config):
    """One run: everything that its folder's config.yaml holds."""

    title: str = ""
    """Title of the report."""
    needs: str = ""
    """Hardware that the run needs, printed by `evle recipes`."""
    task: dict[str, Any]
    """The task's `name` and its options."""
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    image: ImageConfig = ImageConfig()
    text: TextConfig = TextConfig()
    optim: OptimConfig = OptimConfig.build({}, "optim")
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of weights, order, augmentation, masks and dropout."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = ()
    """Run once per seed, each in the folder seed-N of the output, and report mean and standard deviation."""
    output: str
    """Folder of the run; by default runs/NAME of the recipe."""

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if not isinstance(self.task.get("name"), str):
            raise ValueError(f"task.name is missing; choose one of: {', '.join(sorted(TASKS))}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: a seed is repeated; name each once")
        return self

    @classmethod
    def read(cls, tree: Mapping[str, Any]) -> tuple[Self | None, list[str]]:
        """As `Config.read`, including the options of the task in `tree`."""
        config, problems = super().read(tree)
        task = tree.get("task")
        kind = TASKS.get(str(task.get("name"))) if isinstance(task, Mapping) else None
        if kind is not None and isinstance(task, Mapping):
            own = task_keys(kind)
            others = [key for key in cls.known_keys() if not key.startswith("task.")]
            known = [*others, *(f"task.{key}" for key in ("name", *own))]
            problems += [unknown_key(f"task.{key}", known) for key in task if key not in ("name", *own)]
            problems += [
                f"task.{problem}"
                for problem in kind.config_type.read({key: task[key] for key in task if key in own})[1]
            ]
        return (None if problems else config), problems

    @classmethod
    def known_keys(cls) -> list[str]:
        """As `Config.known_keys`, including the options of all tasks and the fields of the model's configuration."""
        keys: list[str] = []
        for key in super().known_keys():
            if key == "task":
                options = dict.fromkeys(option for task in TASKS.values() for option in task_keys(task))
                keys += [f"task.{option}" for option in ("name", *options)]
            elif key == "model.overrides":
                fields = dict.fromkeys(name for family in CONFIGS.values() for name in config_fields(family))
                keys += [f"{key}.{name}" for name in fields]
            else:
                keys.append(key)
        return keys

    def plain(self) -> dict[str, Any]:
        """As plain values, for config.yaml; `build` reads them back."""
        return self.model_dump(mode="json")

    def with_local_inputs(self) -> "RunConfig":
        """The same run with what its model, tokenizer and task read from URLs downloaded. Raises StorageError."""
        tree = self.plain()
        fetched = {part: _fetched(tree[part]) for part in ("model", "tokenizer", "task")}
        if all(tree[part] == own for part, own in fetched.items()):
            return self
        return RunConfig.build({**tree, **fetched}, "the configuration")

    def with_init(self, folder: str) -> Self:
        """The same run from the model in another folder."""
        return self.model_copy(update={"model": self.model.model_copy(update={"init": folder})})

    def with_teacher(self, folder: str) -> Self:
        """The same run with another teacher of MIM."""
        return self.model_copy(update={"task": {**self.task, "mim_teacher": folder}})

    def by_seed(self) -> list["RunConfig"]:
        """The runs that this configuration describes: itself, or one per seed."""
        if not self.seeds:
            return [self]
        return [
            self.model_copy(update={"seed": seed, "seeds": (), "output": join(self.output, f"seed-{seed}")})
            for seed in self.seeds
        ]


def _fetched(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _fetched(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_fetched(each) for each in value]
    return str(fetch(value)) if is_url(value) else value


@dataclass(frozen=True)
class Stage:
    """One run of a recipe: `name` is its folder in the recipe's output, `group` that name without a seed.

    `after` is the name of the earlier stage whose model it starts from, `teacher` of the one whose image states MIM
    predicts; "" where these come from elsewhere.
    """

    name: str
    group: str
    config: RunConfig
    after: str = ""
    teacher: str = ""

    @property
    def task(self) -> str:
        return str(self.config.task["name"])

    @property
    def output(self) -> Path:
        """The local folder; where `config.output` is a URL, the one that is uploaded."""
        return local(self.config.output)

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def reads(self) -> set[str]:
        """The names of the stages whose models it reads."""
        return {self.after, self.teacher} - {""}

    @property
    def start(self) -> str:
        """The origin of its weights, without a seed; "" for random weights."""
        return self.after.split("/")[0] or self.config.model.init or ""


@dataclass(frozen=True)
class JointStage:
    """Two stages scored together: which answer is right, and for which reason."""

    name: str
    group: str
    q2a: Stage
    qa2r: Stage
    output: Path

    @property
    def task(self) -> str:
        return "vcr"

    @property
    def seed(self) -> int:
        return self.q2a.seed

    @property
    def reads(self) -> set[str]:
        """The names of the stages whose models it reads."""
        return {self.q2a.name, self.qa2r.name}

    @property
    def start(self) -> str:
        return self.q2a.start if self.q2a.start == self.qa2r.start else f"{self.q2a.start} and {self.qa2r.start}"


@dataclass(frozen=True)
class Stages:
    """A recipe of one or several stages, resolved and checked. With one run, its folder is `output` itself."""

    title: str
    about: str
    output: Path
    stages: list[Stage]
    joint: list[JointStage]
    claims: tuple[Claim, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of the report on the whole recipe."""
        return self.output if len(self.every) > 1 else self.stages[0].output

    @property
    def every(self) -> list[Stage | JointStage]:
        """The stages that are trained, then those that are scored together."""
        return [*self.stages, *self.joint]


def task_class(config: RunConfig) -> type[Task]:
    """The task that a configuration names. Raises ConfigError for an unknown one."""
    name = config.task["name"]
    if name not in TASKS:
        raise ConfigError(f"task.name={name!r} does not exist; {nearest(name, TASKS)}")
    return TASKS[name]


def task_keys(task: type[Task]) -> list[str]:
    """The options of a task, as they are written below `task` in a recipe."""
    return [key for key in task.config_type.model_fields if key not in BESIDE]


# Recipes


def read_recipe(name: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a recipe of one run (see `find_recipe`) with `key=value` overrides.

    Raises ConfigError with all problems, and for a recipe of several stages (see `read_stages`).
    """
    path = find_recipe(name)
    return _read_one(path, load_yaml(path), overrides)


def read_stages(recipe: RunConfig | str | Path, overrides: Sequence[str] = (), *, quick: bool = False) -> Stages:
    """A recipe of one or several stages with `key=value` overrides, which hold for every stage;
    `stages.NAME.key=value` for one. A configuration is a recipe of one stage. With `quick`, the recipe's quick form.

    Raises ConfigError with all problems.
    """
    if isinstance(recipe, RunConfig):
        tree = apply_overrides(recipe.plain(), overrides)
        return _one_stage(RunConfig.build(tree, "the configuration") if overrides else recipe)
    path = find_recipe(recipe)
    tree = load_yaml(path)
    of_quick = [each for each in overrides if each.split("=")[0].split(".")[0] == "quick"]
    if of_quick and not quick:
        raise ConfigError(f"{of_quick[0]} has no effect without the quick form; add --quick, or leave it out")
    if quick:
        tree = apply_overrides(tree, of_quick)
        if "stages" in tree:
            _refuse_malformed(path, tree)
        tree = quick_form(tree, str(path))
        overrides = [each for each in overrides if each not in of_quick]
    if "stages" not in tree:
        return _one_stage(_read_one(path, tree, overrides))
    top = [each for each in overrides if each.split("=")[0].split(".")[0] in TOP_KEYS]
    everywhere = [each for each in overrides if each not in top]
    tree = apply_overrides(tree, top)
    _refuse_malformed(path, tree)
    output = str(tree.get("output") or f"runs/{path.stem}{'-quick' if quick else ''}")
    is_alone = len(tree["stages"]) == 1
    stages: list[Stage] = []
    for group, own in tree["stages"].items():
        own = apply_overrides(merge(tree.get("defaults") or {}, own or {}), everywhere)
        stages += _read_stage(f"{path}, stage {group}", group, own, output if is_alone else join(output, group), stages)
    refuse_unread_path([stage.config.data for stage in stages])
    joint = list(_joint_stages(path, tree.get("vcr") or {}, stages, local(output)))
    claims = _claims(path, tree.get("claims") or {}, [*stages, *joint])
    title, about = str(tree.get("title") or path.stem), str(tree.get("about") or "")
    return Stages(title, about, local(output), stages, joint, claims)


def _read_one(path: Path, tree: Mapping[str, Any], overrides: Sequence[str]) -> RunConfig:
    if "stages" in tree:
        raise ConfigError(f"{path} has several stages ({', '.join(tree['stages'])}); read it with read_stages")
    config = RunConfig.build({"output": f"runs/{path.stem}", **apply_overrides(tree, overrides)}, str(path))
    refuse_unread_path([config.data])
    if any(override.startswith("data.root=") for override in overrides):
        refuse_unread_root(config.data)
    return config


def _one_stage(config: RunConfig) -> Stages:
    output = local(config.output)
    stages = [Stage(local(each.output).name, output.name, each) for each in config.by_seed()]
    return Stages(config.title or output.name, "", output, stages, [])


def _refuse_malformed(path: Path, tree: Mapping[str, Any]) -> None:
    """Raise ConfigError for a malformed recipe of several stages."""
    if unknown := [f"{key!r} ({nearest(str(key), TOP_KEYS)})" for key in tree if key not in TOP_KEYS]:
        raise ConfigError(
            f"{path}: unknown key {', '.join(unknown)} beside stages; put keys that all stages share into defaults"
        )
    for key in ("stages", "defaults", "vcr", "claims", "quick"):
        if not isinstance(tree.get(key) or {}, Mapping):
            raise ConfigError(f"{path}: {key} must hold NAME: {{...}}, not {tree[key]!r}")
    if not tree["stages"]:
        raise ConfigError(f"{path}: stages must hold at least one NAME: {{...}}")
    for name, stage in tree["stages"].items():
        if not isinstance(name, str) or not name.strip() or "/" in name or name.startswith("."):
            raise ConfigError(f"{path}: the stage {name!r} is not a valid folder name; use letters, digits and dashes")
        if not isinstance(stage or {}, Mapping):
            raise ConfigError(f"{path}: stages.{name} must hold `key: value` lines, not {stage!r}")
    for name, own in (("defaults", tree.get("defaults")), *tree["stages"].items()):
        if "output" in (own or {}):
            raise ConfigError(f"{path}: {name}.output has no effect; every stage's folder is in the recipe's output")


def _read_stage(where: str, group: str, own: dict[str, Any], output: str, earlier: Sequence[Stage]) -> list[Stage]:
    """A stage of a recipe, once per seed; `earlier` are those whose models it may read: to start from (model.init), and
    as a teacher (task.mim_teacher)."""
    config = RunConfig.build({"title": group, **own, "output": output}, where)
    start = _runs_read(where, config, "model.init", config.model.init, earlier)
    teacher = _runs_read(where, config, "task.mim_teacher", config.task.get("mim_teacher"), earlier)
    stages = []
    for each in config.by_seed():
        read = {}
        if start:
            read["after"] = start[each.seed].name
            each = each.with_init(start[each.seed].config.output)
        if teacher:
            read["teacher"] = teacher[each.seed].name
            each = each.with_teacher(teacher[each.seed].config.output)
        stages.append(Stage(_name(group, config, each), group, each, **read))
    return stages


def _runs_read(where: str, config: RunConfig, key: str, value: Any, earlier: Sequence[Stage]) -> dict[int, Stage]:
    """The run whose model each seed of a stage reads, where `value` of its setting `key` names an earlier stage."""
    if not isinstance(value, str) or not value.startswith(STAGE):
        return {}
    sources = [stage for stage in earlier if stage.group == value.removeprefix(STAGE)]
    if not sources:
        names = dict.fromkeys(stage.group for stage in earlier)
        hint = nearest(value.removeprefix(STAGE), names) if names else "the first stage has none before it"
        raise ConfigError(f"{where}: {key}={value} is no earlier stage; {hint}")
    seeds = [source.seed for source in sources]
    if len(sources) > 1 and sorted(config.seeds) != sorted(seeds):
        raise ConfigError(f"{where}: {key}={value} has seeds={seeds}; give this stage the same seeds")
    if len(sources) == 1:
        return dict.fromkeys(config.seeds or (config.seed,), sources[0])
    return dict(zip(seeds, sources, strict=True))


def _name(group: str, whole: RunConfig, one: RunConfig) -> str:
    return f"{group}/seed-{one.seed}" if whole.seeds else group


def _joint_stages(path: Path, pairs: Mapping[str, Any], stages: Sequence[Stage], output: Path) -> Iterator[JointStage]:
    groups: dict[str, list[Stage]] = {}
    for stage in stages:
        groups.setdefault(stage.group, []).append(stage)
    for name, pair in pairs.items():
        named = [groups[each] for each in pair if each in groups] if isinstance(pair, list) else []
        if [stages[0].task for stages in named] != [*VCR_TASKS]:
            raise ConfigError(
                f"{path}: vcr.{name}: {pair} must be two stages, of the tasks {VCR_TASKS[0]} and {VCR_TASKS[1]}"
            )
        if name in groups:
            raise ConfigError(f"{path}: vcr.{name}: a stage has that name already")
        seeds = [[stage.config.seed for stage in stages] for stages in named]
        if len(seeds[0]) > 1 and seeds[0] != seeds[1]:
            raise ConfigError(f"{path}: vcr.{name}: its stages have other seeds, {seeds[0]} and {seeds[1]}")
        for q2a, qa2r in zip(*named, strict=True):
            own = q2a.name.replace(q2a.group, name, 1)
            yield JointStage(own, name, q2a, qa2r, output / own)


def _claims(path: Path, trees: Mapping[str, Any], stages: Sequence[Stage | JointStage]) -> tuple[Claim, ...]:
    """The claims of a recipe. Raises ConfigError for one that its stages cannot decide."""
    tasks = {stage.group: stage.task for stage in stages}
    return tuple(read_claim(tree, f"{path}, claims.{name}", tasks) for name, tree in trees.items())
