"""A run from its configuration: pretrain(), finetune(), evaluate() put a task on the road with data and engine and
return a report.

    RunConfig -> samples -> processor -> task -> model -> fit -> evaluation -> Report

From Python, objects may stand in for what a configuration names: `finetune(config, task=MyTask, samples={"train":
my_samples})`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from evle.config import Config, apply_overrides, load_yaml, merge
from evle.data.loader import Loader
from evle.data.samples import made
from evle.distributed import is_main, rank, world_size
from evle.engine.devices import join_processes
from evle.engine.optim import OptimConfig
from evle.engine.run import Run, make_output
from evle.engine.trainer import FitResult, TrainConfig, fit
from evle.errors import CheckpointError, ConfigError, nearest
from evle.initialization import (
    Loaded,
    ModelConfig,
    ModelOptions,
    build_model,
    build_processor,
    read_processor,
    read_tokenizer,
    refuse_lacking_tokens,
    size_notes,
    starting_config,
)
from evle.pipelines import model_folder, run_settings
from evle.precision import Precision
from evle.recipes import find_recipe
from evle.report import Report, plain, write_whole
from evle.reporting import curves, file_lines, score_lines, score_rows, skipped_lines, skipped_table, write_report
from evle.splits import (
    DataOptions,
    Samples,
    Split,
    describe,
    hash_samples,
    left_out_by,
    read_split,
    read_splits,
    refuse_unread_path,
    refuse_unread_root,
    texts_of,
)
from evle.tasks import TASKS
from evle.tasks.task import Evaluation, EvaluationSettings, Task, TextOptions
from evle.tasks.vqa import has_slot
from evle.transforms.image_options import ImageOptions
from evle.transforms.text import clean_caption, train_tokenizer
from evle.zero_shot import asked_fields, load_to_score, recipe_for, refuse_training_settings, with_fields


class TokenizerOptions(Config):
    """Where words come from. By default: the tokenizer of `model.init`, else one trained on the training texts."""

    path: str | None = None
    """A tokenizer's directory, of `evle tokenizer train` or any that AutoTokenizer reads."""
    vocab_size: int | None = Field(default=None, ge=261)
    """Tokens of a tokenizer trained here, at most; by default as many as the model's preset has."""
    reads: tuple[str, ...] = ()
    """Kinds of training samples whose texts it is trained on ("captions", "vqa", "nlvr2"); by default the task's
    own."""
    samples: int | None = Field(default=None, ge=1)
    """Samples of each kind that are read for it at most, spread evenly; by default all."""


class EvaluateOptions(Config):
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
    model: ModelOptions = ModelOptions()
    tokenizer: TokenizerOptions = TokenizerOptions()
    data: DataOptions = DataOptions()
    image: ImageOptions = ImageOptions()
    text: TextOptions = TextOptions()
    optim: OptimConfig = OptimConfig.build({}, "optim")
    train: TrainConfig
    evaluate: EvaluateOptions = EvaluateOptions()
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


@dataclass
class Prepared:
    """All that a run needs, made from its configuration: `evle finetune --dry-run` stops here."""

    task: Task
    loaded: Loaded
    samples: dict[Split, Samples]
    loader: Loader
    train: TrainConfig
    data_hash: str
    notes: list[str] = field(default_factory=list)


def pretrain(
    config: RunConfig,
    *,
    task: type[Task] | None = None,
    samples: Mapping[Split, Samples] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Report:
    """Run a configuration whose task is pretraining; otherwise as `finetune`."""
    if task is None and config.task["name"] != "pretraining":
        raise ConfigError(f"the task is {config.task['name']}, not pretraining: use `evle finetune`")
    return _train(config, task, samples, resume, overwrite)


def finetune(
    config: RunConfig,
    *,
    task: type[Task] | None = None,
    samples: Mapping[Split, Samples] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Report:
    """Train on the configuration's task, choose the best weights on val, score them on test, and write the run's
    folder.

    Args:
        config: the run.
        task: a class that stands in for the task that the configuration names.
        samples: sequences of samples by split that stand in for the configuration's data.
        resume: go on with the run in config.output, if there is one.
        overwrite: delete the run in config.output first.

    Raises:
        EvleError: whatever a user can cause; the message says what to do.
    """
    if task is None and config.task["name"] == "pretraining":
        raise ConfigError("the task is pretraining: use `evle pretrain`")
    return _train(config, task, samples, resume, overwrite)


def evaluate(
    config: RunConfig,
    *,
    model: str | Path | None = None,
    output: str | Path | None = None,
    samples: Samples | None = None,
) -> Report:
    """Score a trained model on data.test of a configuration (on data.val where there is no test) and write a report.

    `model` is a run's or a model's folder, by default the run in config.output; the report goes to `output`, by default
    its subfolder `evaluation`. `samples` stand in for what the configuration names.
    """
    device = join_processes()
    folder = Path(model or config.output)
    task_type = task_class(config)
    split: Split = "test" if config.data.test is not None else "val"
    if samples is None:
        samples = read_split(config.data, split, task_type.reads)
    if samples is None:
        raise ConfigError("there is nothing to evaluate on: name it with data.test.source=... data.test.split=...")
    trained, task = load_trained(config, folder, task_type)
    torch.nn.Module.to(trained, device)
    target = make_output(Path(output or folder / "evaluation"))
    found = task.evaluate(trained, samples, config.evaluate.settings(quick=False))
    report = Report(
        title=f"{config.title or folder.name}: evaluation",
        summary=[*score_lines(task, found, split), *file_lines(found), *skipped_lines(len(found.skipped))],
        provenance={
            "model": str(folder),
            "data": {split: describe(samples)},
            "config": config.plain(),
            "trained in": Run(folder).environment(),
        },
        tables=skipped_table(found.skipped),
        galleries=found.galleries,
        scores=score_rows(split, found),
    )
    write_report(report, found, target)
    return report


def load_trained(config: RunConfig, folder: str | Path, task_type: type[Task]) -> tuple[PreTrainedModel, Task]:
    """The model in a run's or model folder, with the `model.overrides` that `config` asks for, and its task with the
    options of `config`. Raises CheckpointError, and ConfigError for overrides that need other weights."""
    model, processor = load_to_score(folder, task_type)
    model = with_fields(model, asked_fields(config.plain()["model"]["overrides"], folder))
    task = _build_task(task_type, config, processor)
    task.restore(_read_state(model_folder(folder)))
    task.bind(model.config)
    return model, task


def read_run(folder: str | Path, overrides: Sequence[str] = (), recipe: str | Path | None = None) -> RunConfig:
    """The configuration of the run in `folder` with `key=value` overrides, to evaluate by; with `recipe`, its task and
    data instead (see `evle.zero_shot`). Raises ConfigError."""
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
    return config.model_copy(update={"model": ModelOptions.build(asked["model"], str(folder))})


def prepare(
    config: RunConfig, task: type[Task] | None = None, samples: Mapping[Split, Samples] | None = None
) -> Prepared:
    """Read the data and build tokenizer, processor, task, model and loader of a run, without writing anything."""
    task_type = task or task_class(config)
    start = starting_config(config.model)
    found = dict(samples) if samples is not None else read_splits(config.data, task_type.reads)
    if "train" not in found:
        raise ConfigError("data.train is missing: name a source, such as data.train.source=folder data.path=FOLDER")
    training = found["train"]
    torch.manual_seed(config.seed)
    family = start.model_type
    tokenizer = _tokenizer(config, task_type, training, start.vocab_size, family)
    hides = config.task["name"] == "pretraining" and "mlm" in start.objectives
    hides |= config.task["name"] == "vqa" and has_slot(start)
    refuse_lacking_tokens(tokenizer, hides, str(config.tokenizer.path or config.model.init or config.model.text))
    image_size = config.image.size or start.image_size
    built = _build_task(task_type, config, build_processor(family, tokenizer, image_size))
    built.prepare(training, start)
    changes = {"image_size": image_size, "vocab_size": _vocab_size(config, tokenizer, start), **built.model_overrides()}
    if config.text.max_length > start.max_position_embeddings:
        raise ConfigError(
            f"text.max_length={config.text.max_length} is more than the model's {start.max_position_embeddings} "
            "positions; lower it, or set model.overrides.max_position_embeddings"
        )
    loaded = build_model(built.model_class(family), config.model, start, changes)
    built.bind(loaded.model.config)
    loader = Loader(
        training,
        partial(built.features, train=True),
        built.collate,
        batch_size=config.train.micro_batch_size(world_size()),
        seed=config.seed,
        drop_last=len(training) >= config.train.batch_size,
        accumulation=config.train.accumulation,
        num_workers=config.train.num_workers,
        rank=rank(),
        world_size=world_size(),
    )
    data_hash = hash_samples(found)
    notes = [*loaded.lines(), *size_notes(config.model.overrides, image_size), *built.notes()]
    return Prepared(built, loaded, found, loader, config.train, data_hash, notes)


def _train(
    config: RunConfig,
    task: type[Task] | None,
    samples: Mapping[Split, Samples] | None,
    resume: bool,
    overwrite: bool,
) -> Report:
    join_processes()
    ready = prepare(config, task, samples)
    run = Run.start(
        config.output,
        config.plain(),
        seed=config.seed,
        data_hash=ready.data_hash,
        resume=resume,
        overwrite=overwrite,
        complete=lambda tree: RunConfig.build(tree, str(Path(config.output) / "config.yaml")).plain(),
    )
    val = ready.samples.get("val")
    quick = config.evaluate.settings(quick=True)
    result = fit(
        ready.loaded.model,
        ready.task,
        ready.loader,
        train=ready.train,
        optim=config.optim,
        run=run,
        seed=config.seed,
        new_parameters=ready.loaded.new,
        evaluate=None if val is None else lambda model: ready.task.evaluate(model, val, quick).scores,
        metric=ready.task.metric,
        resume=resume,
    )
    _write_state(ready.task, run.model_folder)
    return _report_run(config, ready, run, result)


def _report_run(config: RunConfig, ready: Prepared, run: Run, result: FitResult) -> Report:
    """Score the finished model on test (on val where there is none) and write the run's report."""
    task, model = ready.task, ready.loaded.model
    split: Split = "test" if "test" in ready.samples else "val"
    measured = ready.samples.get(split)
    found = Evaluation({})
    if measured is not None:
        found = task.evaluate(model, measured, config.evaluate.settings(quick=False))
    left_out, num_left = left_out_by(ready.samples)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    summary = [
        *score_lines(task, found, split),
        *file_lines(found),
        f"{result.steps} steps of {ready.train.batch_size} samples in {result.seconds:.0f} s "
        f"({result.samples_per_second:.0f} samples/s), {parameters / 1e6:.1f} M parameters",
        *ready.notes,
    ]
    unreadable = list(dict.fromkeys([*result.skipped, *found.skipped]))
    skipped, num_skipped = [*left_out, *unreadable], num_left + len(unreadable)
    summary += skipped_lines(num_skipped)
    if result.best_step is not None:
        summary.append(f"best {task.metric} on val {result.best_score:.4g} at step {result.best_step}")
    report = Report(
        title=config.title or Path(config.output).name,
        summary=summary,
        provenance={
            **run.environment(),
            "data": {split: describe(samples) for split, samples in ready.samples.items()},
            "config": config.plain(),
        },
        tables=skipped_table(skipped, num_skipped),
        curves=curves(run, task),
        galleries=found.galleries,
        scores=score_rows(split, found),
    )
    write_report(report, found, run.folder)
    return report


# Tokenizer, processor, task


def _tokenizer(
    config: RunConfig, task: type[Task], training: Samples, vocab_size: int, family: str
) -> PreTrainedTokenizerBase:
    options = config.tokenizer
    if options.path is not None:
        if not Path(options.path).is_dir():
            raise ConfigError(
                f"tokenizer.path={options.path}: no such folder; make one with `evle tokenizer train CORPUS -o FOLDER`"
            )
        return read_tokenizer(options.path)
    if config.model.init is not None:
        return read_processor(config.model.init, family).tokenizer
    if config.model.text is not None:
        return read_tokenizer(config.model.text)
    kinds = options.reads or (task.reads,)
    others = (read_split(config.data, "train", kind) for kind in kinds if kind != task.reads)
    corpora = [*([training] if task.reads in kinds else []), *(each for each in others if each is not None)]
    read = (sample for corpus in corpora for sample in made(corpus, _spread(len(corpus), options.samples)))
    texts: Iterator[str] = chain.from_iterable(map(texts_of, read))
    if config.text.clean:
        texts = (clean_caption(text, config.text.max_words) for text in texts)
    return train_tokenizer(texts, options.vocab_size or vocab_size)


def _spread(length: int, most: int | None) -> Iterator[int]:
    """At most `most` places of a sequence, evenly spread."""
    number = length if most is None else min(length, most)
    return (place * length // number for place in range(number))


def _vocab_size(config: RunConfig, tokenizer: PreTrainedTokenizerBase, start: ModelConfig) -> int:
    """Rows of the word embedding. Weights keep theirs, which must do for the tokenizer."""
    weights = config.model.init or config.model.text
    if weights is None:
        wanted = config.model.overrides.get("vocab_size", len(tokenizer))
        if wanted < len(tokenizer):
            raise ConfigError(
                f"model.overrides.vocab_size={wanted} is less than the tokenizer's {len(tokenizer)} tokens; "
                "leave it out"
            )
        return wanted
    if len(tokenizer) > start.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} tokens, but {weights} knows {start.vocab_size}; "
            "use the tokenizer that the model was trained with (leave out tokenizer.path)"
        )
    return start.vocab_size


def task_class(config: RunConfig) -> type[Task]:
    """The task that a configuration names. Raises ConfigError for an unknown one."""
    name = config.task["name"]
    if name not in TASKS:
        raise ConfigError(f"task.name={name!r} does not exist; {nearest(name, TASKS)}")
    return TASKS[name]


def _build_task(task: type[Task], config: RunConfig, processor: ProcessorMixin) -> Task:
    options = {name: value for name, value in config.task.items() if name != "name"}
    return task(task.options_type.build({**options, "image": config.image, "text": config.text}, "task"), processor)


def _write_state(task: Task, folder: Path) -> None:
    if is_main() and task.state():
        write_whole(folder / "task.json", json.dumps(plain(task.state()), ensure_ascii=False, indent=1) + "\n")


def _read_state(folder: Path) -> dict[str, Any]:
    file = folder / "task.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


# Report
