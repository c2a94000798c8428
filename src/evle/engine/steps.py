"""One training in progress: the prepared model, its optimizer and its position, and what the loop does with them."""

import contextlib
import json
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from evle.data.loader import Loader
from evle.distributed import gather_objects, host_sum, is_main, rank, world_size
from evle.engine import checkpoint, sharded
from evle.engine.cached_contrast import CachedContrast
from evle.engine.checkpoint import Average, Position
from evle.engine.contrast_memory import ContrastMemory
from evle.engine.devices import IGNORED, build_accelerator, checkpoint_activations, divide_experts
from evle.engine.failures import Diverged
from evle.engine.optim import OptimConfig, build_optimizer, build_schedule, skip_update_unless_finite
from evle.engine.readings import SPIKE_WINDOW, Readings, not_finite, spike_above
from evle.engine.run_folder import Run, standing
from evle.engine.saving import FolderWriter, try_to_write
from evle.engine.train_config import TrainConfig
from evle.errors import CheckpointError, ConfigError, nearest
from evle.files import read_json
from evle.models.loading import without_bars
from evle.models.vocabulary import tokens_noted
from evle.tasks.task import Batch, Task

logger = logging.getLogger(__name__)
BEST = "best.json"
"""Step and score of the best weights, in their folder."""

Evaluate = Callable[[PreTrainedModel], dict[str, float]]
WriteModel = Callable[[PreTrainedModel, Mapping[str, Tensor], Path], None]


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


class Training:
    """What the loop holds (the prepared model, optimizer, schedule, and where it stands: `at`), and its verbs."""

    def __init__(
        self,
        model: PreTrainedModel,
        task: Task,
        loader: Loader,
        train: TrainConfig,
        optim: OptimConfig,
        run: Run,
        seed: int,
        new_parameters: Collection[str],
    ):
        self.train, self.optim, self.run, self.seed = train, optim, run, seed
        self.loader, self.on_device = loader, task.on_device
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
        self.writer, self.problem = FolderWriter(), ""
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
        # On a CPU one kernel takes a sixth of the plain loop's time; sharded tensors keep the loop there.
        device = self.accelerator.device.type
        fused = device == "cuda" or (device == "cpu" and not self.accelerator.is_fsdp2)
        optimizer = build_optimizer(model, optim, new_parameters, fused=fused)
        if folder and not sharded.is_sharded(folder):
            where = folder / "model.safetensors"
            checkpoint.load_model_state(model, checkpoint.read_tensors(where), str(where))
        self.scalars = checkpoint.widen_scalars(model) if self.accelerator.is_fsdp2 else set()
        self.experts = divide_experts(self.accelerator, model, train.expert_parallel)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if self.experts is not None:
            self.experts.agree()
        # The bare optimizer: accelerate's own schedule wrapper would step once for each process.
        self.pace = 0.0
        self.schedule = build_schedule(self.optimizer.optimizer, optim, self.num_steps, lambda: self.pace)
        self.average = Average(self.bare, train.ema) if train.ema else None
        self.memory = ContrastMemory(self.bare, train.contrast_memory) if train.contrast_memory else None
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
        self.schedule.last_epoch = self.at.step
        is_whole = not sharded.is_sharded(folder)
        if is_whole:
            where = folder / "optimizer.safetensors"
            checkpoint.load_optimizer_state(self.optimizer.optimizer, checkpoint.read_optimizer(where), str(where))
        else:
            sharded.load(folder, self.bare, self.optimizer.optimizer, self.average)
        if self.average is not None and is_whole:
            where = folder / "ema.safetensors"
            self.average.load(checkpoint.read_tensors(where), str(where))
        if self.memory is not None:
            where = folder / "memory.safetensors"
            self.memory.load(checkpoint.read_tensors(where), str(where))
        if self.accelerator.scaler is not None and self.at.scaler:
            self.accelerator.scaler.load_state_dict(self.at.scaler)

    def agree(self, group: list[Batch], stop: bool, late: bool) -> tuple[int, bool, bool]:
        """The samples of this step over all processes, whether any process was asked to stop, or has no time left.

        The learning rate follows the time of `train.minutes`, of which all processes have the same mean.
        """
        milliseconds = round(1000 * self.at.seconds)
        numbers = host_sum([sum(map(_num_rows, group)), int(stop), int(late), milliseconds])
        num_samples, stops, lates, milliseconds = numbers
        if self.train.minutes is not None:
            self.pace = milliseconds / (world_size() * 60_000 * self.train.minutes)
        return num_samples, bool(stops), bool(lates)

    def step(self, group: list[Batch], num_samples: int) -> None:
        """One optimizer step on the micro-batches of `group`; its mean losses and gradient's norm become `readings`."""
        accelerator = self.accelerator
        sums: dict[str, Tensor] = {}
        shares = [_num_rows(batch) * world_size() / num_samples for batch in group]  # DDP, FSDP average over processes
        cached = CachedContrast(self.bare, len(group))
        for index, batch in enumerate(group if cached.heads else []):
            with torch.no_grad(), cached.recording():
                self.model(**cached.with_ids(self._ready(batch, index), index))
        for index, (batch, share) in enumerate(zip(group, shares, strict=True)):
            is_last = index == len(group) - 1
            sync = contextlib.nullcontext() if is_last else accelerator.no_sync(self.model)
            remembered = self.memory.comparing() if self.memory is not None else contextlib.nullcontext()
            with sync, remembered, cached.comparing(index, sum(shares) / share):
                outputs = self.model(**cached.with_ids(self._ready(batch, index), index))
                accelerator.backward(outputs.loss * share)
            for name, value in {"loss": outputs.loss, **outputs.losses}.items():
                value = value.detach().float() * share
                sums[name] = sums[name] + value if name in sums else value

        losses: Any = accelerator.reduce(torch.stack(list(sums.values())), "mean")
        norm = self._clip()
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

    def _clip(self) -> Any:
        """Scale the gradients to a norm of at most `optim.clip`, if it is not 0; the norm before."""
        limit = self.optim.clip or math.inf
        if self.experts is None:
            return self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        self.experts.average_gradients()
        return self.experts.clip(self.model.parameters(), limit)

    def _ready(self, batch: Batch, index: int) -> Batch:
        """Micro-batch `index` of the step on the device, before a pass that draws the same numbers each time."""
        torch.manual_seed(_step_seed(self.seed, self.at.step, index, rank()))
        batch = self.on_device(batch, self.accelerator.device)
        return batch if self.memory is None else self.memory.with_ids(batch, self.at.step)

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
            with self._joined(), torch.inference_mode():
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
                if self._write_best(score):
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

        def finish(problem: str) -> None:
            self.run.set_status("running", step)
            self.run.upload()
            if problem:
                logger.warning("step %d could not be saved (%s); %s", step, problem, _kept(target))

        if self.train.shard_checkpoints:
            self.problem = sharded.save(target, self.bare, self.optimizer.optimizer, self.average, at.to_json())
            if is_main():
                finish(self.problem)
            return
        weights = checkpoint.model_state(self.bare, self.scalars)
        moments = checkpoint.optimizer_state(self.optimizer.optimizer)
        averages = self.average.state() if self.average is not None else None
        memory = self.memory.state() if self.memory is not None else None
        position = at.to_json()

        def write(folder: Path) -> None:
            checkpoint.write_tensors(weights, folder / "model.safetensors")
            checkpoint.write_optimizer(moments, folder / "optimizer.safetensors")
            if averages is not None:
                checkpoint.write_tensors(averages, folder / "ema.safetensors")
            if memory is not None:
                checkpoint.write_tensors(memory, folder / "memory.safetensors")
            (folder / "state.json").write_text(position, encoding="utf-8")
            checkpoint.write_sums(folder)

        if is_main():
            self.writer.start(target, write, finish)

    def saved(self) -> str:
        """Wait for the checkpoint that is being written; where it is, or why it is not."""
        target = self.run.checkpoints / "last"
        problem = gather_objects([self.writer.wait() or self.problem])[0]
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
            self._believe(best)
        else:
            if self.average is not None:
                self.average.swap()
            weights = checkpoint.model_state(self.bare, self.scalars)
        bare, processor = self.bare, task.processor

        def write(folder: Path) -> None:
            with without_bars(), tokens_noted(bare, processor.tokenizer):
                write_model(bare, weights, folder)
            processor.save_pretrained(folder)

        if problem := self._try_to_write(self.run.model_folder, write):
            raise CheckpointError(
                f"the trained model could not be written to {self.run.model_folder} ({problem}); "
                f"make room and repeat the command: {self.run.checkpoints / 'last'} holds step {self.at.step}"
            )
        checkpoint.unshard(self.bare)
        if self.experts is not None:
            self.experts.join()
        checkpoint.narrow_scalars(self.bare, self.scalars)

    def _believe(self, best: Path) -> None:
        """Take step and score of the best weights from their folder: an interrupted run may have written better ones
        after its last checkpoint, and not met them again."""
        file = best / BEST
        facts = read_json(file, kind=dict, error=CheckpointError) if is_main() and file.is_file() else {}
        facts = gather_objects([facts])[0]
        if facts and facts["step"] != self.at.best_step:
            logger.warning("the best weights are those of step %d, before the interruption", facts["step"])
            self.at.best_step, self.at.best_score = facts["step"], facts["score"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Undo what accelerate and the options did to the model, close trackers: it may be trained or saved again."""
        self.writer.close()
        for tracker in self.accelerator.trackers:
            with contextlib.suppress(Exception):  # it may have lost its connection
                tracker.finish()
        for name in ("forward", "_original_forward", "_is_accelerate_prepared", "_compiled_call_impl", IGNORED):
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
    def _joined(self) -> Iterator[None]:
        """Whole parameters in every process meanwhile."""
        experts = self.experts.joined() if self.experts is not None else contextlib.nullcontext()
        with checkpoint.unsharded(self.bare), experts:
            yield

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

    def _write_best(self, score: float) -> bool:
        step = self.at.step
        weights = checkpoint.model_state(self.bare, self.scalars)

        def write(folder: Path) -> None:
            checkpoint.write_tensors(weights, folder / "model.safetensors")
            (folder / BEST).write_text(json.dumps({"step": step, "score": score}), encoding="utf-8")
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


def _kept(target: Path) -> str:
    """Which checkpoint is still there after one could not be written."""
    good = standing(target)
    return f"step {Position.read(good).step} stays in {good}" if good else "no earlier checkpoint exists"


def _num_rows(batch: Batch) -> int:
    """The samples of a batch; questions may share an image (`image_rows`)."""
    return len(batch["image_rows"] if "image_rows" in batch else next(iter(batch.values())))


def _step_seed(seed: int, step: int, micro_batch: int, process: int) -> int:
    """The seed of dropout and sampling inside the model: a resumed run needs no state of random generators."""
    return int(np.random.SeedSequence([seed, step, micro_batch, process]).generate_state(1, np.uint64)[0])
