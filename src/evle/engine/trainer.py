"""Training, in full view: batches, losses, steps.

One optimizer step minimises the mean over all its samples, whatever the number of micro-batches and processes: each
micro-batch's loss weighs as many rows as it holds. So 1 x 32 equals 4 x 8, also in the short last step of an epoch, as
far as a loss is a mean over rows. Two kinds are not, and see the micro-batch only: a mean over masked tokens, whose
number differs by row (each micro-batch's mean then counts by rows, not by tokens), and a contrastive loss, which
compares the rows of one micro-batch (over all processes).
"""

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from evle.config import Config
from evle.data.loader import Loader
from evle.distributed import gather_objects, host_sum, is_main, rank, world_size
from evle.engine import checkpoint
from evle.engine.checkpoint import Average, Position
from evle.engine.devices import build_accelerator, checkpoint_activations
from evle.engine.failures import Diverged, Interrupted, report_failures
from evle.engine.optim import OptimConfig, build_optimizer, build_schedule, skip_update_unless_finite
from evle.engine.readings import SPIKE_WINDOW, Readings, not_finite, spike_above
from evle.engine.run_folder import Run, standing
from evle.engine.saving import FolderWriter, try_to_write
from evle.engine.stop import StopSignal
from evle.errors import CheckpointError, ConfigError, EvleError, nearest
from evle.models.loading import without_bars
from evle.precision import Precision
from evle.tasks.task import Batch, Task
from evle.terminal import ProgressLine

logger = logging.getLogger(__name__)

Every = int | Literal["epoch"]
Evaluate = Callable[[PreTrainedModel], dict[str, float]]
WriteModel = Callable[[PreTrainedModel, Mapping[str, Tensor], Path], None]


class TrainConfig(Config):
    """How long and how to train. Steps are optimizer steps throughout."""

    steps: int | None = Field(None, ge=1)
    """Optimizer steps. Give either steps or epochs."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the data. Give either steps or epochs."""
    minutes: float | None = Field(None, gt=0)
    """Stop after this many minutes of training, evaluations not counted, if steps or epochs take longer. The learning
    rate follows steps or epochs: for comparisons at equal time, use optim.schedule=constant."""
    batch_size: int = Field(32, ge=1)
    """Samples per optimizer step, over all processes and micro-batches."""
    accumulation: int = Field(1, ge=1)
    """Micro-batches per optimizer step. More of them need less memory."""
    precision: Precision = "no"
    """Autocast type. fp16 needs a GPU; auto is bf16 where the hardware has it, else fp16 on a GPU and no on a CPU."""
    gradient_checkpointing: bool = False
    """Compute activations twice to hold fewer of them in memory."""
    compile: bool = False
    """Compile the model with torch.compile: slow to start, then faster."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of averaged weights, which are then evaluated and kept; 0 disables averaging."""
    eval_every: Every = "epoch"
    """Steps between validations, or epoch; 0 validates at the end only."""
    save_every: Every = 500
    """Steps between checkpoints, or epoch; 0 saves at the end only."""
    log_every: int = Field(10, ge=1)
    """Steps between log lines. Shorter runs log more often, for at least 20 points."""
    num_workers: int = Field(0, ge=0)
    """Processes that prepare data, for each training process."""
    choose_from: float = Field(0.0, ge=0, le=1)
    """Fraction of training during which validation does not select the best checkpoint, because the learning rate is
    still high."""
    patience: int = Field(0, ge=0)
    """Stop after this many validations without a better score; 0 never stops early."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the run's model."""
    find_unused_parameters: bool = True
    """Several processes: look in each step for parameters without a gradient. False saves that search and a
    synchronisation where every parameter takes part in every step; elsewhere the run stops with an error."""
    trackers: tuple[str, ...] = ()
    """Also log to these trackers of accelerate: tensorboard, trackio, wandb, ..."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, and not both")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size={self.batch_size} is no multiple of accumulation={self.accumulation}")
        for name in ("eval_every", "save_every"):
            value = getattr(self, name)
            if value != "epoch" and value < 0:
                raise ValueError(f"{name}={value}: must be 0 or more, or epoch")
        return self

    def micro_batch_size(self, num_processes: int) -> int:
        """Rows that one process takes at once: the loader's batch_size.

        Raises:
            ConfigError: the total batch cannot be split evenly.
        """
        parts = self.accumulation * num_processes
        if self.batch_size % parts:
            raise ConfigError(
                f"train.batch_size={self.batch_size} cannot be split over {num_processes} processes x "
                f"{self.accumulation} micro-batches; make it a multiple of {parts}"
            )
        return self.batch_size // parts

    def steps_between_logs(self, num_steps: int) -> int:
        """`log_every`, or less in a short run: a curve has at least 20 points, or one for each step."""
        return min(self.log_every, max(1, num_steps // 20))

    def num_steps(self, num_batches: int) -> int:
        """Optimizer steps of the whole training, for epochs of `num_batches` micro-batches."""
        return self.steps or max(1, round((self.epochs or 0) * math.ceil(num_batches / self.accumulation)))


@dataclass(frozen=True)
class FitResult:
    """What a training did. `history` holds a record a validation (step, epoch, scores); `seconds` leave those out."""

    steps: int
    best_score: float | None
    best_step: int | None
    last_losses: dict[str, float]
    history: list[dict[str, Any]]
    seconds: float
    samples_per_second: float
    skipped: list[str]


def write_whole_model(model: PreTrainedModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a model folder of `weights`, as transformers reads it."""
    model.save_pretrained(folder, state_dict=dict(weights))


def fit(
    model: PreTrainedModel,
    task: Task,
    loader: Loader,
    *,
    train: TrainConfig,
    optim: OptimConfig,
    run: Run,
    seed: int,
    new_parameters: Collection[str] = frozenset(),
    evaluate: Evaluate | None = None,
    metric: str = "",
    write_model: WriteModel = write_whole_model,
) -> FitResult:
    """Train `model` on `loader`; leave the result in `model` and, with the task's processor, in `run.model_folder`.

    `loader.batches(epoch, start)` yields micro-batches: dicts of tensors named as the model's arguments. The model
    returns `loss`, which is minimised, and `losses`, named scalars that are logged (the same names in every process).
    `evaluate(model)` returns scores on validation; the weights with the best `metric` (by default the task's) go to
    checkpoints/best. `write_model(model, weights, folder)` writes the model folder. Where `run` resumes, training
    continues from checkpoints/last as if it had never stopped.

    Raises:
        Diverged: a loss or the gradient is not finite.
        Interrupted: SIGINT or SIGTERM came; checkpoints/last holds the state.
        CheckpointError: the checkpoint to resume from is damaged, or of another model or data.
        ConfigError: precision, trackers, gradient checkpointing or the metric are not to be had here.
    """
    with report_failures(run) as reported:
        training = _Training(model, loader, train, optim, run, seed, new_parameters)
        at = reported.at = training.at
        num_steps, metric = training.num_steps, metric or task.metric
        log_every = train.steps_between_logs(num_steps)

        def is_due(every: Every) -> bool:
            at_epoch_end = every == "epoch" and at.batch == 0
            return at.step == num_steps or at_epoch_end or (every not in ("epoch", 0) and at.step % int(every) == 0)

        def is_patient() -> bool:
            return train.patience == 0 or at.bad_evaluations < train.patience

        line = ProgressLine(num_steps, "steps", done=at.step, visible=is_main())
        with StopSignal() as stop, line as progress, training:
            groups = _groups(loader, at.epoch, at.batch, train.accumulation, stop)
            while at.step < num_steps and is_patient():
                started = time.perf_counter()
                group, after = next(groups)
                is_late = train.minutes is not None and at.seconds >= 60 * train.minutes
                num_samples, stopping, is_over = training.agree(group, stop.came, is_late)
                if stopping:
                    training.save()
                    done = f"stopped after step {at.step} of {num_steps}, {training.saved()}"
                    raise Interrupted(f"{done}; repeat the command to resume")
                if is_over:
                    break
                training.step(group, num_samples)

                at.step += 1
                at.epoch, at.batch = after
                at.samples += num_samples
                at.seconds += time.perf_counter() - started
                progress.update(at.step, _in_words(at.losses, at.samples / at.seconds))
                if at.step % log_every == 0 or at.step == num_steps:
                    training.log()
                if evaluate is not None and is_due(train.eval_every):
                    progress.say(training.validate(evaluate, metric, task.higher_is_better))
                if is_due(train.save_every) or not is_patient():
                    training.save()
            if at.step < num_steps and is_patient():  # the time is over
                if at.step % log_every:
                    training.log()
                if evaluate is not None and at.step not in [record["step"] for record in at.history]:
                    progress.say(training.validate(evaluate, metric, task.higher_is_better))
                training.save()
            training.keep(task, write_model)

    run.set_status("finished", at.step)
    return training.result()


class _Training:
    """What the loop holds (the prepared model, optimizer, schedule, and where it stands: `at`), and its verbs."""

    def __init__(
        self,
        model: PreTrainedModel,
        loader: Loader,
        train: TrainConfig,
        optim: OptimConfig,
        run: Run,
        seed: int,
        new_parameters: Collection[str],
    ):
        self.train, self.optim, self.run, self.seed, self.loader = train, optim, run, seed, loader
        self.num_steps = train.num_steps(loader.num_batches)
        self.accelerator = build_accelerator(
            train.precision,
            train.trackers,
            run.folder / "trackers",
            find_unused_parameters=train.find_unused_parameters,
        )
        # Reading a number is free on a CPU, and stops a GPU: there, a step is read while the next one is queued.
        self.reads_late = self.accelerator.device.type != "cpu"
        self.readings: Readings | None = None
        self.grad_norm = math.nan
        self.writer = FolderWriter()
        self.bare = model
        if train.gradient_checkpointing:
            checkpoint_activations(model, True)
        if train.compile:
            model.compile()  # in place: the names of the weights stay
        model.train()

        folder = standing(run.checkpoints / "last") if run.resumes else None
        if folder:
            checkpoint.verify(folder, "restore it from a copy, or start again with --overwrite")
        self.at = self._read_position(folder)
        optimizer = build_optimizer(model, optim, new_parameters, fused=self.accelerator.device.type == "cuda")
        if folder:
            where = folder / "model.safetensors"
            checkpoint.load_model_state(model, checkpoint.read_tensors(where), str(where))
        self.scalars = checkpoint.widen_scalars(model) if self.accelerator.is_fsdp2 else set()
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        # The bare optimizer: accelerate's own schedule wrapper would step once for each process.
        self.schedule = build_schedule(self.optimizer.optimizer, optim, self.num_steps)
        self.average = Average(self.bare, train.ema) if train.ema else None
        if folder:
            self._resume(folder)

    def _read_position(self, folder: Path | None) -> Position:
        num_batches = self.loader.num_batches
        if folder is None:
            self.run.rewind_log(0)
            return Position(num_batches=num_batches)
        at = Position.read(folder)
        if at.num_batches != num_batches:
            raise CheckpointError(
                f"{folder}: made with {at.num_batches} batches an epoch, but the loader has {num_batches}; resume with "
                "the same data, batch size and number of processes"
            )
        self.run.rewind_log(at.step)
        return at

    def _resume(self, folder: Path) -> None:
        where = folder / "optimizer.safetensors"
        checkpoint.load_optimizer_state(self.optimizer.optimizer, checkpoint.read_optimizer(where), str(where))
        self.schedule.last_epoch = self.at.step
        if self.average is not None:
            where = folder / "ema.safetensors"
            self.average.load(checkpoint.read_tensors(where), str(where))
        if self.accelerator.scaler is not None and self.at.scaler:
            self.accelerator.scaler.load_state_dict(self.at.scaler)

    def agree(self, group: list[Batch], stop: bool, late: bool) -> tuple[int, bool, bool]:
        """The samples of this step over all processes, whether any process was asked to stop, or has no time left."""
        num_samples, stops, lates = host_sum([sum(map(_num_rows, group)), int(stop), int(late)])
        return num_samples, bool(stops), bool(lates)

    def step(self, group: list[Batch], num_samples: int) -> None:
        """One optimizer step on the micro-batches of `group`; its mean losses and gradient's norm become `readings`."""
        accelerator = self.accelerator
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(group):
            torch.manual_seed(_step_seed(self.seed, self.at.step, index, rank()))
            batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            share = _num_rows(batch) * world_size() / num_samples  # DDP and FSDP average over processes
            is_last = index == len(group) - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(self.model):
                outputs = self.model(**batch)
                accelerator.backward(outputs.loss * share)
            for name, value in {"loss": outputs.loss, **outputs.losses}.items():
                value = value.detach().float() * share
                sums[name] = sums[name] + value if name in sums else value

        losses: Any = accelerator.reduce(torch.stack(list(sums.values())), "mean")
        norm: Any = accelerator.clip_grad_norm_(self.model.parameters(), self.optim.clip or math.inf)
        numbers = torch.cat([losses, checkpoint.whole(norm).float().reshape(1)])
        before, self.readings = self.readings, Readings(self.at.step + 1, list(sums), numbers)
        if not self.reads_late:
            self.settle()
        elif before is not None:
            self._take(before)

        if accelerator.scaler is None:
            skip_update_unless_finite(self.optimizer.optimizer, numbers)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.at.step + 1)

    def settle(self) -> None:
        """Read the numbers of the last step, if that is still to be done. Raises Diverged."""
        readings, self.readings = self.readings, None
        if readings is not None:
            self._take(readings)

    def _take(self, readings: Readings) -> None:
        """Losses and norm of a step, for log and progress: refused where not finite, reported where far above usual."""
        at = self.at
        at.losses, self.grad_norm = readings.read()
        # With fp16 the scaler skips a step whose gradient is not finite, and scales less.
        self._refuse_not_finite(readings.step, self.grad_norm if self.accelerator.scaler is None else None)
        loss = at.losses["loss"]
        if (usual := spike_above(at.recent, loss)) is not None:
            self.run.log("spike", {"step": readings.step, "value": loss, "usual": usual})
            if is_main():
                logger.warning("step %d: the loss is %.4g, usual is %.4g", readings.step, loss, usual)
        at.recent = [*at.recent[1 - SPIKE_WINDOW :], loss]

    def _refuse_not_finite(self, step: int, grad_norm: float | None) -> None:
        bad = not_finite(self.at.losses, grad_norm)
        if not bad:
            return
        self.writer.wait()
        last = standing(self.run.checkpoints / "last")
        kept = (
            f"the weights of step {Position.read(last).step} are in {last}" if last else "no checkpoint was saved yet"
        )
        raise Diverged(
            f"step {step}: {', '.join(f'{name} is {value}' for name, value in bad.items())}; stopped before the "
            f"update; {kept}; try a lower optim.lr, a longer optim.warmup, or train.precision=no"
        )

    def log(self) -> None:
        """One line of the log and of the trackers."""
        self.settle()
        at, losses = self.at, self.at.losses
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        numbers = {"lr": lr, "grad_norm": self.grad_norm, "samples_per_second": at.samples / at.seconds}
        parts = {name: value for name, value in losses.items() if name != "loss"}
        record = {"step": at.step, "epoch": self.epoch(), "loss": losses["loss"], "losses": parts, **numbers}
        self.run.log("train", {**record, "seconds": round(at.seconds, 3)})
        named = {f"loss/{name}": value for name, value in parts.items()}
        self._track({"loss": losses["loss"], **named, **numbers})

    def _track(self, values: dict[str, Any]) -> None:
        """Hand values to the trackers. One that fails (a lost connection) is named and left out from now on."""
        for tracker in list(self.accelerator.trackers):
            try:
                tracker.log(values, step=self.at.step)
            except Exception as error:  # whatever its library raises: the run is worth more than its log elsewhere
                self.accelerator.trackers.remove(tracker)
                logger.warning("the tracker %s failed (%s); the run continues without it", tracker.name, error)

    def validate(self, evaluate: Evaluate, metric: str, higher_is_better: bool) -> str:
        """Score the weights (the averaged ones, when kept), keep them if they are the best so far; return a summary.

        Before the share `choose_from` of the steps, they are only scored.
        """
        self.settle()
        self.writer.wait()  # validation forks data workers, which must not meet a thread at work
        at = self.at
        with self._final_weights():
            self.bare.eval()
            with checkpoint.unsharded(self.bare), torch.inference_mode():
                scores = gather_objects([evaluate(self.bare)])[0]  # every process goes by the main one's
            self.bare.train()
            if metric not in scores:
                raise ConfigError(
                    f"validation has no score {metric!r} to choose the best by; {nearest(metric, scores)}"
                )
            score, best = scores[metric], at.best_score
            is_better = best is None or (score > best if higher_is_better else score < best)
            chooses = at.step >= self.train.choose_from * self.num_steps
            if chooses and is_better and math.isfinite(score):
                at.bad_evaluations = 0
                if self._write_best():
                    at.best_score, at.best_step = score, at.step
            elif chooses:
                at.bad_evaluations += 1
        at.history.append({"step": at.step, "epoch": self.epoch(), "scores": scores})
        self.run.log("eval", at.history[-1])
        self._track({f"eval/{name}": value for name, value in scores.items()})
        said = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
        return f"step {at.step}: {said}" + ("  (best)" if at.best_step == at.step else "")

    def save(self) -> None:
        """Write checkpoints/last in the background. Where that fails, training continues and the last good one stays.

        The weights, moments and averages are copied to the host first.
        """
        self.settle()
        at, target, step = self.at, self.run.checkpoints / "last", self.at.step
        at.skipped = self.skipped()
        at.scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        weights = checkpoint.model_state(self.bare, self.scalars)
        moments = checkpoint.optimizer_state(self.optimizer.optimizer)
        averages = self.average.state() if self.average is not None else None
        position = at.to_json()

        def write(folder: Path) -> None:
            checkpoint.write_tensors(weights, folder / "model.safetensors")
            checkpoint.write_optimizer(moments, folder / "optimizer.safetensors")
            if averages is not None:
                checkpoint.write_tensors(averages, folder / "ema.safetensors")
            (folder / "state.json").write_text(position, encoding="utf-8")
            checkpoint.write_sums(folder)

        def finish(problem: str) -> None:
            self.run.set_status("running", step)
            if problem:
                logger.warning("step %d could not be saved (%s); %s", step, problem, _kept(target))

        if is_main():
            self.writer.start(target, write, finish)

    def saved(self) -> str:
        """Wait for the checkpoint that is being written; where it is, or why it is not."""
        target = self.run.checkpoints / "last"
        problem = gather_objects([self.writer.wait()])[0]
        return f"not saved ({problem}); {_kept(target)}" if problem else f"saved in {target}"

    def keep(self, task: Task, write_model: WriteModel) -> None:
        """Put the weights that the run is for into the model and, with the processor, into the run's model folder."""
        self.settle()
        self.saved()
        best = standing(self.run.checkpoints / "best") if self.train.keep == "best" else None
        if best and self.at.best_step is not None:
            checkpoint.verify(best, "restore it from a copy, or set train.keep=last and repeat the command")
            where = best / "model.safetensors"
            weights = checkpoint.read_tensors(where)
            checkpoint.load_model_state(self.bare, weights, str(where))
        else:
            if self.average is not None:
                self.average.swap()
            weights = checkpoint.model_state(self.bare, self.scalars)
        bare, processor = self.bare, task.processor

        def write(folder: Path) -> None:
            with without_bars():
                write_model(bare, weights, folder)
            processor.save_pretrained(folder)

        if problem := self._try_to_write(self.run.model_folder, write):
            raise CheckpointError(
                f"the trained model could not be written to {self.run.model_folder} ({problem}); "
                f"make room and repeat the command: {self.run.checkpoints / 'last'} holds step {self.at.step}"
            )
        checkpoint.unshard(self.bare)
        checkpoint.narrow_scalars(self.bare, self.scalars)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Undo what accelerate and the options did to the model, close trackers: it may be trained or saved again."""
        self.writer.close()
        for tracker in self.accelerator.trackers:
            with contextlib.suppress(Exception):  # it may have lost its connection
                tracker.finish()
        for name in ("forward", "_original_forward", "_is_accelerate_prepared", "_compiled_call_impl"):
            self.bare.__dict__.pop(name, None)
        if self.train.gradient_checkpointing:
            checkpoint_activations(self.bare, False)
        self.bare.eval()

    def epoch(self) -> float:
        """Epochs done, with the part of the running one."""
        return round(self.at.epoch + self.at.batch / self.at.num_batches, 4)

    def skipped(self) -> list[str]:
        """The samples skipped so far in all processes, one line each, with those before an interruption."""
        return list(dict.fromkeys([*self.at.skipped, *gather_objects(self.loader.skipped)]))

    def result(self) -> FitResult:
        """The outcome of the run so far; every process must call it."""
        return FitResult(
            steps=self.at.step,
            best_score=self.at.best_score,
            best_step=self.at.best_step,
            last_losses=self.at.losses,
            history=self.at.history,
            seconds=self.at.seconds,
            samples_per_second=self.at.samples / max(self.at.seconds, 1e-9),
            skipped=self.skipped(),
        )

    @contextlib.contextmanager
    def _final_weights(self) -> Iterator[None]:
        """The averaged weights in the model's place, when the run keeps them."""
        if self.average is not None:
            self.average.swap()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap()

    def _write_best(self) -> bool:
        weights = checkpoint.model_state(self.bare, self.scalars)

        def write(folder: Path) -> None:
            checkpoint.write_tensors(weights, folder / "model.safetensors")
            checkpoint.write_sums(folder)

        problem = self._try_to_write(self.run.checkpoints / "best", write)
        if problem and is_main():
            logger.warning("the best weights (step %d) could not be saved (%s)", self.at.step, problem)
        return not problem

    def _try_to_write(self, target: Path, write: Callable[[Path], None]) -> str:
        """Let the main process write a folder; the problem in words, the same in every process, or an empty string."""
        problem = ""
        if is_main():
            problem = try_to_write(target, write)
        return gather_objects([problem])[0]


def _groups(
    loader: Loader, epoch: int, batch: int, accumulation: int, stop: StopSignal
) -> Iterator[tuple[list[Batch], tuple[int, int]]]:
    """The micro-batches of each optimizer step, and the (epoch, batch) after it; a step never spans two epochs."""
    while True:
        batches = loader.batches(epoch, batch)
        while batch < loader.num_batches:
            try:
                group = list(itertools.islice(batches, accumulation))
            except EvleError:
                if not stop.came:  # Ctrl-C reaches data workers too: that they died is then no error
                    raise
                group = []
            assert group or stop.came, "the loader ended before its last batch"
            batch += len(group)
            yield group, ((epoch + 1, 0) if batch >= loader.num_batches else (epoch, batch))
        epoch, batch = epoch + 1, 0


def _kept(target: Path) -> str:
    """Which checkpoint is still there after one could not be written."""
    good = standing(target)
    return f"step {Position.read(good).step} stays in {good}" if good else "no earlier checkpoint exists"


def _in_words(losses: Mapping[str, float], rate: float) -> str:
    return "  ".join([f"{rate:.0f} samples/s", *(f"{name} {value:.3f}" for name, value in losses.items())])


def _num_rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _step_seed(seed: int, step: int, micro_batch: int, process: int) -> int:
    """The seed of dropout and sampling inside the model: a resumed run needs no state of random generators."""
    return int(np.random.SeedSequence([seed, step, micro_batch, process]).generate_state(1, np.uint64)[0])
