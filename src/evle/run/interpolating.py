"""Weights between those before and after fine-tuning (WiSE-FT, Wortsman et al. 2022): a model that learns the new data
and forgets less of the old."""

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

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
from evle.run.weights import COUNTING, Loaded, ModelConfig, build_model, read_config, read_processor
from evle.tasks.task import EvaluationSettings, Task
from evle.tasks.trained import run_settings

State = Mapping[str, Tensor]
MAY_DIFFER = re.compile(
    "^_|drop|init|image_size|num_patches|pretrained_cfg|vocab_size|_token_id|num_token_types|object_classes"
    "|answer_tokens|num_classes|label_names|use_cache|output_|objective|joint_masking|mim_|router_aux_loss_coef"
    "|second_choice|vqa_balance_loss|vcr_shares_image|projection_dim|decoder_hidden_size"
)
"""In names of fields of a configuration or a tower: what decides only how a model is trained or begins, which heads it
has and of what size, or what another check covers. All other fields decide what the same weights compute."""

OF_HEADS = {
    "contrast.": ("pooling", "released_eval_features"),
    "classifier.": ("vqa_slot",),
    "head.": ("nlvr2_head",),
    "decoder.": ("decoder_num_layers", "decoder_num_heads", "mim_target", "norm_pixel_target"),
    "mim_head.": ("mim_target",),
    "mlm_": ("tie_word_embeddings",),
    "mpc_": ("mpc_readout",),
    "vcr_": ("vcr_token_types", "vcr_box_tokens"),
}
"""Fields that decide what a head computes, by the beginning of its tensors' names: they may differ where only one of
both models has that head."""

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Weights of the fine-tuned model at which a curve is measured; the asked one is added."""


class Between:
    """The models between the one in the folder `before` and a fine-tuned `model`, whose weights are `after`.

    Heads and other tensors that `before` does not hold stay as in `after`, and with `new_heads` all heads. Raises
    CheckpointError for a `before` that shares no backbone with the model, ConfigError for one with other layers or with
    heads of another kind.
    """

    def __init__(
        self, before: str | Path, model: PreTrainedModel, after: Mapping[str, Tensor], *, new_heads: bool = False
    ):
        config: Any = model.config
        answers = {"id2label": config.id2label, "label2id": config.label2id}
        options = ModelConfig(init=str(before), new_heads=new_heads)
        start = build_model(type(model), options, config, answers)
        own = read_config(before)
        names = (before, getattr(model, "name_or_path", "") or "the model after fine-tuning")
        _refuse_other_layers(names, (own, config), start, new_heads=new_heads)
        self.model, self.after, self.new = model, dict(after), start.new
        self.before = start.model.state_dict()
        self.no_curve = _no_curve(own, start)
        """Why weight 0 is not the model before, so that no curve is drawn; "" where it is."""

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
    both, or the reason why there are none: other answers, or another head. Raises ConfigError and CheckpointError,
    before anything is written, for folders that do not fit each other or hold weights that are not finite, and for an
    output in one of them.
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
        held = read_fields(folder, ("eve", "vle"))
        family: Any = {"eve": eve, "vle": vle}[held["model_type"]]
        model: PreTrainedModel = from_folder(getattr(family, held["architectures"][0]), folder)
        tensors = read_tensors(folder)
        refuse_odd_tensors(tensors, model.state_dict(), folder)
        refuse_unlike(before, after)
        tokenizer = read_processor(folder, held["model_type"]).tokenizer
        between = Between(before, model, tensors, new_heads=_has_new_heads(folder))
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
    if configs and between.no_curve:
        report.summary.append(between.no_curve)
    elif configs:
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
    _refuse_unlike((before, after), configs, processors)


def before_training(config: RunConfig, loaded: Loaded, processor: ProcessorMixin) -> Samples | str:
    """What a run with `model.interpolate` needs at its end, looked at before its hours: the test data of the run that
    it starts from (see `old_samples`), or why its report will have no curve.

    Raises ConfigError where `model.init` and the model to train have no weights between them, and EvleError where that
    test data cannot be read.
    """
    start = config.model.init
    assert start is not None
    own, names, changed = read_config(start), (start, "the model to train"), loaded.model.config
    _refuse_unlike(names, (own, changed), (read_processor(start, own.model_type), processor))
    _refuse_other_layers(names, (own, changed), loaded, new_heads=config.model.new_heads)
    if reason := _no_curve(own, loaded):
        return reason
    try:
        return old_samples(config)
    except EvleError as error:
        raise type(error)(
            f"model.interpolate={config.model.interpolate:g} scores on the test data of {start}, too: {error}"
        ) from None


def _refuse_unlike(names: Sequence[str | Path], configs: Sequence[Any], processors: Sequence[Any]) -> None:
    """Raise ConfigError for two models (before, after) of different families, vocabularies, ways to compute with the
    weights that both have, or colours."""
    _refuse_other(names, "model_type", [config.model_type for config in configs])
    if processors[0].tokenizer.get_vocab() != processors[1].tokenizer.get_vocab():
        raise ConfigError(
            f"{names[0]} has another vocabulary, so that word embeddings cannot be interpolated; give the model that "
            "fine-tuning started from"
        )
    for part in ("", "text_config", "vision_config"):
        parts = [getattr(config, part, None) if part else config for config in configs]
        of_parts: list[dict[str, Any]] = [{} if each is None else _computing(each) for each in parts]
        for name in dict.fromkeys([*of_parts[0], *of_parts[1]]):
            _refuse_other(names, f"{part}.{name}" if part else name, [each.get(name) for each in of_parts])
    _refuse_other_colours(names, processors)


def _computing(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a configuration that decide what its backbone's weights compute."""
    apart = {"text_config", "vision_config", *(field.name for field in fields(PreTrainedConfig))}
    apart |= {name for names in OF_HEADS.values() for name in names}
    own = config.to_dict()
    if isinstance(own.get("model_args"), dict):  # of a tower of timm
        own["model_args"] = {name: value for name, value in own["model_args"].items() if name != "img_size"}
    kept = {name: value for name, value in own.items() if name not in apart and not MAY_DIFFER.search(name)}
    return {"model_type": config.model_type, **kept}


def _refuse_other(names: Sequence[str | Path], field: str, values: Sequence[Any]) -> None:
    one, other = (list(value) if isinstance(value, tuple) else value for value in values)
    if one != other:
        raise ConfigError(
            f"{names[1]} has {field} {other} and {names[0]} has {one}, so that their weights cannot be interpolated; "
            "give the model that fine-tuning started from"
        )


def _refuse_other_layers(
    names: Sequence[str | Path], configs: Sequence[Any], loaded: Loaded, *, new_heads: bool
) -> None:
    """Raise ConfigError where the model `loaded` from another one lacks tensors of its backbone or has others, and
    where both have a head, unless it starts again, that computes in different ways."""
    backbone = loaded.model.base_model_prefix + "."
    if odd := [name for name in _weights([*loaded.new, *loaded.unused]) if name.startswith(backbone)]:
        raise ConfigError(
            f"{names[1]} and {names[0]} do not both have {odd[0]}{f' and {len(odd) - 1} more' if odd[1:] else ''}, so "
            "that their weights cannot be interpolated; give the model that fine-tuning started from"
        )
    own = loaded.model.state_dict()
    for start, of_head in OF_HEADS.items():
        if not new_heads and all(any(name.startswith(start) for name in each) for each in (own, loaded.held)):
            for field in of_head:
                _refuse_other(names, field, [getattr(config, field, None) for config in configs])


def _no_curve(before: PreTrainedConfig, loaded: Loaded) -> str:
    """Why a model `loaded` from one with the configuration `before` is not that model; "" where it is."""
    new, config = _weights(loaded.new), loaded.model.config
    if not new:
        return ""
    heads = {name.split(".")[0] for name in new}
    why = f"the model before fine-tuning has no {', '.join(sorted(heads))}, or another one"
    if before.id2label != config.id2label and heads & {name.split(".")[0] for name in loaded.held}:
        answers = [len(each.id2label or {}) for each in (before, config)]
        why = f"the answers of the model before fine-tuning ({answers[0]}) are not those after it ({answers[1]})"
    return f"no curve: {why}, so that weight 0 is not the model before fine-tuning"


def _weights(names: Collection[str]) -> list[str]:
    """Tensors without those that count positions, and without the token that only masked pre-training has."""
    return sorted(name for name in names if not name.endswith((*COUNTING, ".mask_token")))


def _refuse_other_colours(names: Sequence[str | Path], processors: Sequence[Any]) -> None:
    before, after = names
    for name in ("image_mean", "image_std"):
        values = [[*getattr(each.image_processor, name)] for each in processors]
        if len({tuple(value * (3 // len(value))) for value in values}) > 1:
            raise ConfigError(
                f"{after} has {name} {values[1]} and {before} has {values[0]}: one model cannot read both kinds of "
                "images; give the model that fine-tuning started from"
            )


def _has_new_heads(folder: Path) -> bool:
    """Whether the run that trained the model in a folder started all heads at random."""
    options = run_settings(folder).get("model")
    return isinstance(options, dict) and bool(options.get("new_heads"))


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


def old_samples(config: RunConfig) -> Samples | str:
    """The test data of the run that a run starts from, or why there is none: for a model without a run, and a run of
    another task or without test data."""
    start = config.model.init
    assert start is not None
    settings = run_settings(start)
    why = ""
    if not settings:
        why = "is not the model of a run"
    elif settings["task"]["name"] != config.task["name"]:
        why = f"is of another task ({settings['task']['name']})"
    else:
        before = RunConfig.build({**settings, "output": start}, start)
        if (samples := read_split(before.data, "test", task_class(before).reads)) is not None:
            return samples
        why = "has no test data"
    return f"no curve: model.init={start} {why}"


def _test_samples(config: RunConfig) -> Samples:
    split: Split = "test" if config.data.test is not None else "val"
    samples = read_split(config.data, split, task_class(config).reads)
    if samples is None:
        raise ConfigError(f"{config.output} has no test data to score on")
    return samples
