"""Weights between those before and after fine-tuning (WiSE-FT, Wortsman et al. 2022): a model that learns the new data
and forgets less of the old."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from evle.data.samples import Samples, Split
from evle.engine.checkpoint import load_model_state, model_state
from evle.engine.run_folder import make_output
from evle.engine.steps import write_whole_model
from evle.errors import ConfigError, EvleError
from evle.models import eve, vle
from evle.models.adapters import has_adapter, refuse_peft_adapter
from evle.models.folders import from_folder, model_folder, read_fields, read_tensors
from evle.models.loading import without_bars
from evle.models.soundness import refuse_odd_images, refuse_odd_tensors
from evle.models.vocabulary import tokens_noted
from evle.report import Curve, Report, Table
from evle.run.by_label import score
from evle.run.config import RunConfig, task_class
from evle.run.evaluation import load_trained
from evle.run.scoring import read_run
from evle.run.splits import read_split
from evle.run.weights import ModelConfig, build_model, read_config, read_processor
from evle.tasks.task import EvaluationSettings, Task
from evle.tasks.trained import run_settings

State = Mapping[str, Tensor]
COMPUTED_BY = (
    *("model_type", "patch_size", "num_channels", "num_attention_heads", "hidden_act", "layer_norm_eps"),
    *("stem_channels", "stem_blocks", "soft_layers", "deep_feed_forward"),
    *("num_experts", "num_experts_per_tok", "modality_routing"),
    *("relative_attention", "max_relative_positions", "position_buckets", "pos_att_type", "share_att_key"),
    *("norm_rel_ebd", "position_biased_input"),
)
"""Fields of a configuration or a tower that decide what its weights compute. Image sizes, dropout and heads may differ:
fine-tuning changes them."""

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Weights of the fine-tuned model at which a curve is measured; the asked one is added."""


class Between:
    """The models between the one in the folder `before` and a fine-tuned `model`, whose weights are `after`.

    Heads and other tensors that `before` does not hold stay as in `after`. Raises CheckpointError for a `before` that
    shares no backbone with the model, ConfigError for one with another vocabulary.
    """

    def __init__(
        self,
        before: str | Path,
        model: PreTrainedModel,
        after: Mapping[str, Tensor],
        tokenizer: PreTrainedTokenizerBase,
    ):
        config: Any = model.config
        _refuse_other_vocabulary(before, read_processor(before, config.model_type), tokenizer)
        answers = {"id2label": config.id2label, "label2id": config.label2id}
        start = build_model(type(model), ModelConfig(init=str(before)), config, answers)
        self.model, self.after, self.new = model, dict(after), start.new
        self.before = start.model.state_dict()

    @property
    def shared(self) -> list[str]:
        """The tensors that both models have."""
        return [name for name in self.after if name in self.before and name not in self.new]

    def at(self, weight: float) -> dict[str, Tensor]:
        """The tensors at `weight`: 0 is `before`, 1 is `after`."""
        return blended(self.before, self.after, weight, self.new)

    def go_to(self, weight: float) -> None:
        """Give the model the tensors at `weight`. Every process must call it."""
        own = model_state(self.model)  # with buffers, which no file holds
        mixed = {name: tensor for name, tensor in self.at(weight).items() if name in own}
        load_model_state(self.model, {**own, **mixed}, "interpolated weights")


def blended(before: State, after: State, weight: float, new: Collection[str] = ()) -> dict[str, Tensor]:
    """`after` with its numbers replaced by (1 - weight) * before + weight * after, where `before` has them.

    >>> blended({"a": torch.zeros(1)}, {"a": torch.ones(1), "b": torch.ones(1)}, 0.25)
    {'a': tensor([0.2500]), 'b': tensor([1.])}
    """
    mixed = dict(after)
    for name, tensor in after.items():
        if name in before and name not in new and tensor.is_floating_point():
            mixed[name] = torch.lerp(before[name].float().to(tensor.device), tensor.float(), weight).to(tensor.dtype)
    return mixed


def interpolate(
    before: str | Path,
    after: str | Path,
    output: str | Path,
    *,
    weight: float = 0.5,
    curve: bool = False,
    overwrite: bool = False,
) -> Report:
    """Write the model between the run or model folders `before` and `after`; `weight` is that of `after`.

    `output` becomes a folder of the same kind as `after`, with its processor and, of a run, its config.yaml. With
    `curve`, both folders are runs of one task, and the report has the scores of several weights on the test data of
    both. Raises ConfigError and CheckpointError, before anything is written, for folders that do not fit each other or
    hold weights that are not finite, and for an output in one of them.
    """
    folder, output = model_folder(after), Path(output)
    is_run = _is_run(folder)
    target = output / "model" if is_run else output
    for source in (before, after):
        _refuse_output_in(source, output, target)
    if not 0 <= weight <= 1:
        raise ConfigError(f"weight={weight} must be from 0 (the model before) to 1 (the model after)")
    if (target / "config.json").exists() and not overwrite:
        raise ConfigError(f"{output} holds a model already; choose another output, or replace it with --overwrite")
    if has_adapter(folder):
        raise ConfigError(f"{after} holds an adapter; make its weights whole first with: evle merge {after} -o FOLDER")
    configs = [read_run(path) for path in (before, after)] if curve else []
    if configs and configs[0].task["name"] != configs[1].task["name"]:
        tasks = " and ".join(str(config.task["name"]) for config in configs)
        raise ConfigError(f"{before} and {after} are of different tasks ({tasks}): one model cannot be scored on both")
    refuse_peft_adapter(folder)
    with without_bars():
        fields = read_fields(folder, ("eve", "vle"))
        family: Any = {"eve": eve, "vle": vle}[fields["model_type"]]
        model: PreTrainedModel = from_folder(getattr(family, fields["architectures"][0]), folder)
        tensors = read_tensors(folder)
        refuse_odd_tensors(tensors, model.state_dict(), folder)
        refuse_unlike(before, after)
        tokenizer = read_processor(folder, fields["model_type"]).tokenizer
        between = Between(before, model, tensors, tokenizer)
        make_output(target)
        shutil.copytree(folder, target, dirs_exist_ok=True)
        with tokens_noted(model, tokenizer):
            write_whole_model(model, between.at(weight), target)
    if is_run:
        shutil.copy(folder.parent / "config.yaml", output)
    report = Report(
        title=f"Between {before} and {after}",
        summary=[f"{len(between.shared)} tensors at weight {weight:g} of {after}, {len(between.new)} are its own"],
        provenance={"before": str(before), "after": str(after), "weight": weight},
    )
    if configs:
        between.model, task = load_trained(configs[1], folder, task_class(configs[1]))
        old, new = (_test_samples(config) for config in configs)
        table, drawn = retention(between, task, old, new, configs[1].evaluate.settings(quick=True), weight)
        report.tables, report.curves = [table], [drawn]
    report.write(output)
    return report


def refuse_unlike(before: str | Path, after: str | Path) -> None:
    """Raise ConfigError for two model folders whose weights would be computed with in different ways, or whose images
    are normalised in different ways, so that weights between them have no sense."""
    configs: list[Any] = [read_config(before), read_config(after)]
    processors: list[Any] = [read_processor(path, config.model_type) for path, config in zip((before, after), configs)]
    for path, processor, config in zip((before, after), processors, configs, strict=True):
        refuse_odd_images(processor, config.image_size, model_folder(path))
    _refuse_other_computing((before, after), configs)
    _refuse_other_colours((before, after), processors)


def before_training(config: RunConfig, model: PreTrainedModel, processor: ProcessorMixin) -> Samples | None:
    """What a run with `model.interpolate` needs at its end, looked at before its hours: the test data of the run that
    it starts from (see `old_samples`).

    Raises ConfigError where `model.init` and the model to train have no weights between them, and EvleError where that
    test data cannot be read.
    """
    start = config.model.init
    assert start is not None
    own, trained = read_config(start), "the model to train"
    earlier: Any = read_processor(start, own.model_type)
    current: Any = processor
    _refuse_other_computing((start, trained), (own, model.config))
    _refuse_other_vocabulary(start, earlier, current.tokenizer)
    _refuse_other_colours((start, trained), (earlier, current))
    try:
        return old_samples(config)
    except EvleError as error:
        raise type(error)(
            f"model.interpolate={config.model.interpolate:g} scores on the test data of {start}, too: {error}"
        ) from None


def _refuse_other_computing(names: Sequence[str | Path], configs: Sequence[Any]) -> None:
    before, after = names
    for part in ("", "text_config", "vision_config"):
        one, other = (getattr(config, part, None) if part else config for config in configs)
        for name in COMPUTED_BY:
            values = [_comparable(getattr(each, name, None)) for each in (one, other)]
            if values[0] != values[1]:
                field = f"{part}.{name}" if part else name
                raise ConfigError(
                    f"{after} has {field} {values[1]} and {before} has {values[0]}, so that their weights cannot be "
                    "interpolated; give the model that fine-tuning started from"
                )


def _refuse_other_vocabulary(before: str | Path, processor: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    if processor.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"{before} has another vocabulary, so that word embeddings cannot be interpolated; give the model that "
            "fine-tuning started from"
        )


def _refuse_other_colours(names: Sequence[str | Path], processors: Sequence[Any]) -> None:
    before, after = names
    for name in ("image_mean", "image_std"):
        values = [[*getattr(each.image_processor, name)] for each in processors]
        if len({tuple(value * (3 // len(value))) for value in values}) > 1:
            raise ConfigError(
                f"{after} has {name} {values[1]} and {before} has {values[0]}: one model cannot read both kinds of "
                "images; give the model that fine-tuning started from"
            )


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_run(folder: Path) -> bool:
    """Whether a model folder is that of a run."""
    return folder.name == "model" and (folder.parent / "config.yaml").is_file()


def _refuse_output_in(source: str | Path, output: Path, target: Path) -> None:
    """Raise ConfigError where `output`, or the model folder `target` in it, is `source`, or is in its model folder."""
    folder = model_folder(source).resolve()
    written = {output.resolve(), target.resolve()}
    if written & {folder, Path(source).resolve()} or any(folder in path.parents for path in written):
        raise ConfigError(f"{output} is {source}, or is in it, and would overwrite it; choose another output")


def retention(
    between: Between, task: Task, old: Samples, new: Samples, settings: EvaluationSettings, weight: float
) -> tuple[Table, Curve]:
    """What models between two score on the old and on the new data, as a table and as a curve; the model is afterwards
    at `weight`."""
    weights = sorted({*WEIGHTS, weight})
    data: dict[str, Samples] = {"old data": old, "new data": new}
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in data}
    for each in weights:
        between.go_to(each)
        for name, samples in data.items():
            points[name].append((each, score(task, between.model, samples, settings).scores[task.metric]))
    between.go_to(weight)
    rows = [[each, *(points[name][index][1] for name in data)] for index, each in enumerate(weights)]
    note = f"Weight 0 is the model before fine-tuning, 1 the one after it; the kept model has {weight:g}."
    table = Table(f"Retention: {task.metric} by weight", ["weight", *data], rows, note)
    return table, Curve(f"Retention: {task.metric}", "weight of the fine-tuned model", task.metric, points)


def old_samples(config: RunConfig) -> Samples | None:
    """The test data of the run that a run starts from, where that run has the same task; None for other models."""
    assert config.model.init is not None
    settings = run_settings(config.model.init)
    if not settings or settings["task"]["name"] != config.task["name"]:
        return None
    before = RunConfig.build({**settings, "output": config.model.init}, config.model.init)
    return None if before.data.test is None else read_split(before.data, "test", task_class(before).reads)


def _test_samples(config: RunConfig) -> Samples:
    split: Split = "test" if config.data.test is not None else "val"
    samples = read_split(config.data, split, task_class(config).reads)
    if samples is None:
        raise ConfigError(f"{config.output} has no test data to score on")
    return samples
