"""Try a run without writing anything (`--dry-run`): is everything there, does it fit, how long will it take?

Two small batches run forward and backward. Memory and time of a whole micro-batch are extrapolated from them. No
optimizer is built, because its memory is known. A model that is too large for this machine is built without weights.
"""

import math
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig, PreTrainedModel

from evle.config import dump_yaml
from evle.data.loader import Loader
from evle.data.samples import SPLITS, Samples, Split
from evle.distributed import world_size
from evle.engine.checkpoint import model_state
from evle.engine.devices import checkpoint_activations, join_processes
from evle.engine.train_config import TrainConfig
from evle.errors import CheckpointError, ConfigError, EvleError
from evle.models.folders import is_hub_name
from evle.models.loading import without_bars
from evle.run.config import STAGE, RunConfig, Stage, Stages, task_class
from evle.run.prepare import Prepared, prepare
from evle.run.splits import DataConfig, as_list, read_split
from evle.run.tokenizer import refuse_no_folder
from evle.run.training import write_state
from evle.run.weights import starting_config
from evle.tasks.predict import autocast
from evle.tasks.task import Batch

FIRST_ROWS = 2  # of the first batch; matching needs a second pair for its negatives
PATIENCE = 30.0  # seconds that the second batch may take
FIXED_BYTES = 16  # per parameter in float32: its value, its gradient, AdamW's two moments
HELD_BYTES = 8  # of these, the rehearsal allocates the value and the gradient
USABLE = 0.7  # share of the free memory that the rehearsal may use
SMALLEST_WEIGHT = 2**16  # elements; a smaller tensor is never recognised as a weight by its size
GIB = 2**30


@dataclass
class Rehearsal:
    """The output of a dry run, and what is missing before the run can start, with cures; one line per entry."""

    lines: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def as_lines(self) -> list[str]:
        """Output and missing parts, for a terminal."""
        return [*self.lines, *(["missing:", *(f"  {line}" for line in self.missing)] if self.missing else [])]


@dataclass(frozen=True)
class Tried:
    """One batch: rows, seconds to read and to compute it, peak bytes (those that grow with its rows, and those of
    tensors as large as a weight), tokens per row, and losses."""

    rows: int
    read_seconds: float
    seconds: float
    peak: int
    weight_peak: int
    image_tokens: float
    text_tokens: float
    losses: dict[str, float]


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

    free = _free_bytes(device)
    fits = size is None or size * HELD_BYTES <= USABLE * free
    with nullcontext() if fits else torch.device("meta"):
        ready = prepare(config, samples=samples)
    model = ready.loaded.model
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if keep is not None and fits:
        _save_untrained(ready, config, keep)
    skipped: list[str] = []
    tried = _try(ready, config, torch.nn.Module.to(model, device), skipped) if fits else []
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
        found.lines += _measured(tried, ready.train, num_parameters, steps, micro, device)
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
    for need in (_find_weights, _find_tokenizer):
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


# Two batches


def _try(ready: Prepared, config: RunConfig, model: PreTrainedModel, skipped: list[str]) -> list[Tried]:
    """Try a batch of `FIRST_ROWS`, then a whole micro-batch if it is quick and fits, else a batch twice the size."""
    train = ready.train
    micro = train.micro_batch_size(world_size())
    model.train()
    if train.gradient_checkpointing:
        checkpoint_activations(model, True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    first = _try_rows(ready, config, model, min(FIRST_ROWS, micro), skipped)
    whole = micro / first.rows
    quick = whole * (first.seconds + first.read_seconds) <= PATIENCE
    fits = whole * first.peak + first.weight_peak <= USABLE * _free_bytes(model.device)
    return [first, _try_rows(ready, config, model, micro if quick and fits else min(2 * first.rows, micro), skipped)]


def _try_rows(ready: Prepared, config: RunConfig, model: PreTrainedModel, rows: int, skipped: list[str]) -> Tried:
    loader = Loader(
        ready.samples["train"],
        partial(ready.task.features, train=True),
        ready.task.collate,
        batch_size=rows,
        seed=config.seed,
    )
    start = time.perf_counter()
    batch = next(iter(loader.batches(epoch=0)))
    read_seconds = time.perf_counter() - start
    skipped += [line for line in loader.skipped if line not in skipped]
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    start = time.perf_counter()
    with _peak_bytes(model, batch) as peaks:
        with autocast(model, ready.train.precision):
            output = model(**batch)
        output.loss.backward()
        losses = {name: float(loss.detach()) for name, loss in output.losses.items()}
    if not all(math.isfinite(loss) for loss in losses.values()):
        raise ConfigError(f"a loss of the first batches is not finite: {losses}")
    seconds = time.perf_counter() - start
    peak, weight_peak = peaks()
    pixels, text = batch["pixel_values"].shape, batch["attention_mask"]
    images = math.prod(pixels[:-3]) / pixels[0]
    patches = (pixels[-1] // model.config.patch_size) * (pixels[-2] // model.config.patch_size)
    return Tried(
        rows=pixels[0],
        read_seconds=read_seconds,
        seconds=seconds,
        peak=peak,
        weight_peak=weight_peak,
        image_tokens=images * (patches + 1),
        text_tokens=float(text.sum()) / pixels[0],
        losses=losses,
    )


def _measured(
    tried: list[Tried], train: TrainConfig, num_parameters: int, steps: int, micro: int, device: torch.device
) -> list[str]:
    """Tokens, memory, time and losses, extrapolated from the two batches if neither is a whole micro-batch."""
    first, last = tried
    sample_bytes = (last.peak - first.peak) / (last.rows - first.rows) if last.rows > first.rows else 0.0
    activations = last.peak + max(0.0, sample_bytes) * (micro - last.rows) + last.weight_peak
    seconds = last.seconds * micro / last.rows
    read = last.read_seconds / last.rows
    hours = steps * train.accumulation * seconds / 3600
    how = "" if last.rows == micro else f", extrapolated from batches of {first.rows} and {last.rows}"
    tokens = last.image_tokens + last.text_tokens
    total = num_parameters * FIXED_BYTES + activations
    return [
        f"tokens: {last.image_tokens:.0f} of images and {last.text_tokens:.1f} of text per sample, "
        f"{tokens * train.batch_size / 1e6:.3g} M per step",
        f"memory of a device: {_fixed(num_parameters)}, {activations / GIB:.2f} GiB for {micro} rows{how}; "
        f"{total / GIB:.2f} GiB in all",
        f"time: {seconds:.2f} s for {micro} rows on {device.type}{how}; about {hours:.1f} hours in all, without "
        f"evaluations; reading takes {1000 * read:.1f} ms per sample and worker",
        "first losses: " + ", ".join(f"{name} {loss:.3f}" for name, loss in last.losses.items()),
    ]


def _fixed(num_parameters: int) -> str:
    return f"{num_parameters * FIXED_BYTES / GIB:.2f} GiB for weights, gradients and AdamW"


def _length(train: TrainConfig) -> str:
    return f"{train.epochs:g} epochs" if train.epochs is not None else str(train.steps)


def _epochs(train: TrainConfig, num_batches: int) -> str:
    if train.epochs is not None:
        return f" ({train.epochs:g} epochs)"
    return f" ({(train.steps or 0) * train.accumulation / num_batches:.1f} epochs)"


# Memory


def _free_bytes(device: torch.device) -> int:
    """Free memory of the GPU, or available memory of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return 2**63  # unknown on this system: try anyway
    amounts = dict(line.split(":") for line in meminfo.read_text(encoding="utf-8").splitlines())
    return int(amounts["MemAvailable"].split()[0]) * 1024


@contextmanager
def _peak_bytes(model: PreTrainedModel, batch: Batch) -> Iterator[Callable[[], tuple[int, int]]]:
    """Yields a function that returns the peak bytes within the context, without the model, its gradients and the batch.

    It returns two numbers: bytes that grow with the batch, and bytes of tensors as large as a weight. On a GPU they are
    not distinguished, and the first number counts all."""
    if model.device.type == "cuda":
        before = torch.cuda.memory_allocated(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        yield lambda: (torch.cuda.max_memory_allocated(model.device) - before, 0)
        return
    parameters = list(model.parameters())
    gradients = [each.grad for each in parameters if each.grad is not None]
    with TensorBytes([*parameters, *gradients, *model.buffers(), *batch.values()], parameters) as counted:
        yield lambda: (counted.peak, counted.weight_peak)


class TensorBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operators create within it, and the `peak` of those alive at once.

    Tensors with the same number of elements as one of `weights` (their gradients, copies in another precision) are
    counted separately, in `weight_peak`, because they do not grow with the batch. Tensors that share memory count once,
    and those in `known` do not count. Memory that is used only inside an operator is not seen.
    """

    def __init__(self, known: Sequence[torch.Tensor] = (), weights: Iterable[torch.Tensor] = ()):
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.weight_peak = 0
        self._alive = {False: 0, True: 0}
        self._seen: dict[int, tuple[bool, int]] = {}
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        sizes = {size for each in weights for size in (each.numel(), each[0].numel() if each.ndim > 2 else 0)}
        self._weight_sizes = {size for size in sizes if size >= SMALLEST_WEIGHT}

    @property
    def alive(self) -> int:
        """Bytes alive now, without tensors as large as a weight."""
        return self._alive[False]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self._count(each)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._seen or storage.data_ptr() in self._known:
            return
        size, of_weights = storage.nbytes(), tensor.numel() in self._weight_sizes
        self._seen[id(storage)] = (of_weights, size)
        self._alive[of_weights] += size
        self.peak = max(self.peak, self._alive[False])
        self.weight_peak = max(self.weight_peak, self._alive[True])
        weakref.finalize(storage, self._forget, id(storage))

    def _forget(self, identity: int) -> None:
        of_weights, size = self._seen.pop(identity)
        self._alive[of_weights] -= size
