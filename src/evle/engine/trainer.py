"""Training, in full view: batches, losses, steps.

One optimizer step minimises the mean over all its samples, whatever the number of micro-batches and processes: each
micro-batch's loss weighs as many rows as it holds. So 1 x 32 equals 4 x 8, also in the short last step of an epoch, as
far as a loss is a mean over rows. A contrastive loss compares all rows of the step as well: `cached_contrast` first
records the embeddings of all micro-batches, which costs one more forward pass. Two losses see the micro-batch only: a
mean over masked tokens, whose number differs by row (each micro-batch's mean then counts by rows, not by tokens), and
matching, whose hard negatives are drawn from the rows of one micro-batch (over all processes).
"""

import contextlib
import itertools
import math
import time
from collections.abc import Collection, Iterator, Mapping

from transformers import PreTrainedModel

from evle.data.loader import Loader
from evle.distributed import is_main
from evle.engine.failures import Interrupted, report_failures
from evle.engine.optim import OptimConfig
from evle.engine.run_folder import Run
from evle.engine.steps import Evaluate, FitResult, Training, WriteModel, write_whole_model
from evle.engine.stop import StopSignal
from evle.engine.train_config import Every, TrainConfig
from evle.errors import EvleError
from evle.tasks.task import Batch, Task
from evle.terminal import ProgressLine


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
    with contextlib.closing(run), report_failures(run) as reported:
        training = Training(model, task, loader, train, optim, run, seed, new_parameters)
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
                progress.total = steps_in_time(train.minutes, at.step, at.seconds, num_steps)
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


def steps_in_time(minutes: float | None, done: int, seconds: float, num_steps: int) -> int:
    """The steps that a training of at most `minutes` takes, as far as the `done` steps so far show.

    >>> steps_in_time(4.0, 10, 60.0, 100_000), steps_in_time(None, 10, 60.0, 100)
    (40, 100)
    """
    if minutes is None or seconds <= 0:
        return num_steps
    return min(num_steps, max(done, math.ceil(done * 60 * minutes / seconds)))


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


def _in_words(losses: Mapping[str, float], rate: float) -> str:
    return "  ".join([f"{rate:.0f} samples/s", *(f"{name} {value:.3f}" for name, value in losses.items())])
