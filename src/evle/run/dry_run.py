"""Try a run without writing anything (`--dry-run`): is everything there, does it fit, how long will it take?

Two batches run forward and backward (`evle.run.measuring`). Where a whole micro-batch is too much, its memory and time
are extrapolated. A model that is too large for this machine is built without weights.
"""

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from evle.config import dump_yaml
from evle.data.samples import SPLITS, Samples, Split
from evle.distributed import num_machines, world_size
from evle.engine.checkpoint import model_state
from evle.engine.devices import join_processes
from evle.engine.train_config import TrainConfig
from evle.errors import CheckpointError, EvleError
from evle.machine import usable_cpus
from evle.models.folders import is_hub_name, model_folder
from evle.models.loading import without_bars
from evle.run.config import STAGE, RunConfig, Stage, Stages, task_class
from evle.run.interpolating import before_training
from evle.run.measuring import (
    FIXED_BYTES,
    GIB,
    HELD_BYTES,
    USABLE,
    Tried,
    activation_bytes,
    free_bytes,
    micro_batch_seconds,
    process_bytes,
    step_seconds,
    try_batches,
)
from evle.run.prepare import Prepared, prepare
from evle.run.splits import DataConfig, as_list, read_split
from evle.run.tokenizer import refuse_no_folder
from evle.run.training import write_state
from evle.run.weights import starting_config


@dataclass
class Rehearsal:
    """The output of a dry run, and what is missing before the run can start, with cures; one line per entry."""

    lines: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def as_lines(self) -> list[str]:
        """Output and missing parts, for a terminal."""
        return [*self.lines, *(["missing:", *(f"  {line}" for line in self.missing)] if self.missing else [])]


def rehearse_stages(recipe: Stages) -> Rehearsal:
    """Rehearse every stage of a recipe. Of a stage with several seeds, only the first run is tried.

    A stage that starts from an earlier one is tried with the untrained model of that stage, saved in a temporary
    folder, unless that stage is finished. Raises EvleError as `rehearse`, naming the stage.
    """
    if len(recipe.every) == 1:
        return rehearse(recipe.stages[0].config)
    result = Rehearsal()
    firsts = {stage.group: stage for stage in reversed(recipe.stages)}
    with tempfile.TemporaryDirectory(prefix="evle-dry-run-") as scratch:
        for stage in reversed(firsts.values()):
            number = sum(each.group == stage.group for each in recipe.stages)
            runs = f" ({number} seeds, the first is tried)" if number > 1 else ""
            result.lines.append(f"{stage.group}{runs}:")
            one = _rehearse_stage(stage, Path(scratch))
            result.lines += [f"  {line}" for line in one.lines]
            result.missing += [f"{stage.group}: {line}" for line in one.missing]
    for pair in recipe.joint:
        result.lines += [
            f"{pair.name}:",
            f"  scores {pair.q2a.name} and {pair.qa2r.name} together, when they are trained",
        ]
    return result


def _rehearse_stage(stage: Stage, scratch: Path) -> Rehearsal:
    config = stage.config
    untrained: dict[str, str] = {}
    reads: list[tuple[str, Any, Callable[[RunConfig, str], RunConfig]]] = [
        (stage.after, config.model.init, RunConfig.with_init),
        (stage.teacher, config.task.get("mim_teacher"), RunConfig.with_teacher),
    ]
    for name, trained, using in reads:
        if not name or (Path(str(trained)) / "model" / "config.json").is_file():
            continue
        folder = scratch / name.replace("/", "_")
        if not folder.is_dir():
            return Rehearsal([f"not tried: it reads {name}, and this machine cannot build a model of that stage"])
        config, untrained[str(folder)] = using(config, str(folder)), name
    try:
        result = rehearse(config, keep=scratch / stage.name.replace("/", "_"))
    except EvleError as error:
        message = f"stage {stage.name}: {error}"
        for path, name in untrained.items():
            message = message.replace(path, name)
        raise type(error)(message) from None
    for path, name in untrained.items():
        result.lines = [line.replace(path, f"{STAGE}{name} (untrained here)") for line in result.lines]
    return result


def rehearse(config: RunConfig, keep: Path | None = None) -> Rehearsal:
    """Build everything that a run needs and run two batches forward and backward.

    With `keep`, save the untrained model in that folder as the run would save it.

    When something is missing, everything that does not depend on it is still reported. Raises EvleError when nothing is
    missing and the run still could not start: a loss is not finite, or a batch cannot be split over the processes.
    """
    device = join_processes()
    cpus = max(1, usable_cpus() * num_machines() // world_size())  # of one process
    samples, lacking = _read(config)
    found = Rehearsal(missing=[*_missing(config), *lacking])
    size = _size(config)
    if found.missing:
        train = config.train
        found.lines += [f"steps: {_length(train)} of {train.batch_size} samples"]
        if size is not None:
            found.lines += [
                f"model: about {size / 1e6:.1f} M parameters",
                f"memory: {_fixed(size)}, beside activations",
            ]
        return found

    free = free_bytes(device)
    fits = size is None or size * HELD_BYTES <= USABLE * free
    with nullcontext() if fits else torch.device("meta"):
        ready = prepare(config, samples=samples)
    if config.model.interpolate < 1:
        before_training(config, ready.loaded, ready.task.processor)
    model = ready.loaded.model
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if keep is not None and fits:
        _save_untrained(ready, config, keep)
    skipped: list[str] = []
    weights = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
    beside = max(0, process_bytes() - weights) if device.type == "cpu" else 0
    tried = try_batches(ready, config, torch.nn.Module.to(model, device), skipped) if fits else []
    steps = ready.train.num_steps(ready.loader.num_batches)
    micro = ready.train.micro_batch_size(world_size())
    found.lines += [
        *(f"{split}: {len(samples)} samples" for split, samples in ready.samples.items()),
        f"model: {type(model).__name__}, {num_parameters / 1e6:.1f} M parameters, {ready.loaded.origin}",
        *ready.notes[1:],
        f"images: {ready.task.image_size} x {ready.task.image_size}; "
        f"tokenizer: {len(ready.task.processor.tokenizer)} tokens, {_tokenizer_origin(config)}",
        f"steps: {steps} of {ready.train.batch_size} samples{_epochs(ready.train, ready.loader.num_batches)}, each "
        f"{world_size()} processes x {ready.train.accumulation} micro-batches x {micro} rows",
    ]
    if tried:
        found.lines += _measured(tried, ready.train, num_parameters, steps, micro, device, cpus, beside)
        if ready.train.cache_towers:
            found.lines.append("train.cache_towers: the trial batches ran the towers; training runs them once, faster")
    else:
        found.lines += [
            f"memory: {_fixed(num_parameters)}, beside activations",
            f"skipped the two trial batches: weights and gradients need {num_parameters * HELD_BYTES / GIB:.1f} "
            f"GiB, {free / GIB:.1f} GiB are free here; run --dry-run on the training machine",
        ]
    found.lines += [f"skipped: {line}" for line in skipped]
    return found


def _save_untrained(ready: Prepared, config: RunConfig, folder: Path) -> None:
    """Save what a later stage reads from a run: model, processor, the task's state, and the configuration."""
    model = ready.loaded.model
    with without_bars():
        ready.loaded.write(model, model_state(model), folder / "model")
    ready.task.processor.save_pretrained(folder / "model")
    write_state(ready.task, folder / "model")
    (folder / "config.yaml").write_text(dump_yaml(config.plain()), encoding="utf-8")


def _missing(config: RunConfig) -> list[str]:
    """What is missing besides data, one line per entry: files that do not exist, and settings that are required."""
    missing = []
    for need in (_find_weights, _find_tokenizer, _find_teacher):
        try:
            need(config)
        except EvleError as error:
            missing.append(str(error))
    return missing


def _read(config: RunConfig) -> tuple[dict[Split, Samples], list[str]]:
    """The samples of every split, and one line per source that cannot be read.

    All unreadable sources are listed; otherwise a mix of corpora would be reported one per attempt."""
    reads, samples, lacking = task_class(config).reads, dict[Split, Samples](), list[str]()
    if config.data.train is None:
        lacking.append("data.train is missing: name a source, such as data.train.source=folder data.path=FOLDER")
    for split in SPLITS:
        try:
            found = read_split(config.data, split, reads)
        except EvleError as error:
            sources = as_list(getattr(config.data, split))
            alone = [_why_unread(config.data.model_copy(update={split: source}), split, reads) for source in sources]
            lacking += list(filter(None, alone)) or [str(error)]
        else:
            samples |= {split: found} if found is not None else {}
    return samples, list(dict.fromkeys(lacking))


def _why_unread(data: DataConfig, split: Split, reads: str) -> str:
    """Why a split of one source cannot be read; empty if it can."""
    try:
        read_split(data, split, reads)
    except EvleError as error:
        return str(error)
    return ""


def _find_weights(config: RunConfig) -> None:
    start, vision = starting_config(config.model), config.model.vision
    if vision is not None and start.model_type == "eve" and not Path(vision).exists() and not is_hub_name(vision):
        raise CheckpointError(
            f"model.vision={vision}: no such file or folder; put the weights there, or remove it to start at random"
        )


def _find_tokenizer(config: RunConfig) -> None:
    if config.tokenizer.path is not None:
        refuse_no_folder(config.tokenizer.path)


def _find_teacher(config: RunConfig) -> None:
    if (teacher := config.task.get("mim_teacher")) is not None:
        model_folder(teacher)


def _tokenizer_origin(config: RunConfig) -> str:
    if config.tokenizer.path is not None:
        return f"from {config.tokenizer.path}"
    return "that of model.init" if config.model.init is not None else "trained on the training texts"


def _size(config: RunConfig) -> int | None:
    """The approximate number of parameters of the run's model, without creating them; None if unknown."""
    try:
        start = starting_config(config.model)
        return count_parameters(task_class(config).model_class(start.model_type), start)
    except EvleError:  # such as classes of objects that are known once the samples have been read
        return None


def count_parameters(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> int:
    """The number of parameters of a model, counted on tensors without memory."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_class(config).parameters())


# Output


def _measured(
    tried: list[Tried],
    train: TrainConfig,
    num_parameters: int,
    steps: int,
    micro: int,
    device: torch.device,
    cpus: int,
    beside: int,
) -> list[str]:
    """Tokens, memory, time and losses, extrapolated from the two batches if neither is a whole micro-batch.

    `beside` are the bytes of this process that hold neither the model nor a batch, if it computes in the same memory.
    """
    first, last = tried
    activations = activation_bytes(tried, micro)
    seconds = micro_batch_seconds(tried, micro)
    read = last.read_seconds / last.rows
    busy = torch.get_num_threads() if device.type == "cpu" else 1
    step = step_seconds(tried, train, micro, busy, cpus)
    hours = steps * step / 3600
    how = "" if last.rows == micro else f", extrapolated from batches of {first.rows} and {last.rows}"
    tokens = last.image_tokens + last.text_tokens
    total = num_parameters * FIXED_BYTES + activations
    process = f", {(total + beside) / GIB:.2f} with libraries and data" if beside else ""
    return [
        f"tokens: {last.image_tokens:.0f} of images and {last.text_tokens:.1f} of text per sample, "
        f"{tokens * train.batch_size / 1e6:.3g} M per step",
        f"memory of a device: {_fixed(num_parameters)}, {activations / GIB:.2f} GiB for {micro} rows{how}; "
        f"{total / GIB:.2f} GiB in all{process}",
        f"time: {seconds:.3g} s for {micro} rows on {device.type}{how}; {step:.3g} s per step; about "
        f"{in_words(hours)} in all, without evaluations; reading takes {1000 * read:.1f} ms per sample and worker",
        "first losses: " + ", ".join(f"{name} {loss:.3f}" for name, loss in last.losses.items()),
    ]


def in_words(hours: float) -> str:
    """A length of time in minutes or hours."""
    return f"{60 * hours:.1f} minutes" if hours < 1 else f"{hours:.1f} hours"


def _fixed(num_parameters: int) -> str:
    return f"{num_parameters * FIXED_BYTES / GIB:.2f} GiB for weights, gradients and AdamW"


def _length(train: TrainConfig) -> str:
    return f"{train.epochs:g} epochs" if train.epochs is not None else str(train.steps)


def _epochs(train: TrainConfig, num_batches: int) -> str:
    if train.epochs is not None:
        return f" ({train.epochs:g} epochs)"
    return f" ({(train.steps or 0) * train.accumulation / num_batches:.1f} epochs)"
