"""A run from its configuration: data, task and engine on one road, and a report at its end.

    RunConfig -> samples -> tokenizer -> task -> model -> loader -> fit -> evaluation -> Report

From Python, objects may stand in for what a configuration names: `finetune(config, task=MyTask, samples={"train":
my_samples})`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from evle.data.samples import Samples, Split, describe, left_out_by
from evle.distributed import is_main
from evle.engine.devices import join_processes
from evle.engine.run_folder import Run
from evle.engine.trainer import FitResult, fit
from evle.errors import ConfigError
from evle.report import Report, plain, write_whole
from evle.run.config import RunConfig
from evle.run.prepare import Prepared, prepare
from evle.run.reporting import curves, file_lines, score_lines, score_rows, skipped_lines, skipped_table, write_report
from evle.tasks.task import Evaluation, Task


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


def _write_state(task: Task, folder: Path) -> None:
    if is_main() and task.state():
        write_whole(folder / "task.json", json.dumps(plain(task.state()), ensure_ascii=False, indent=1) + "\n")
