"""One run from its configuration: data, task and engine on one road, and a report at its end.

RunConfig -> samples -> tokenizer -> task -> model -> loader -> fit -> evaluation -> Report
"""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from evle.data.loader import Loader
from evle.data.samples import Samples, Split, describe, left_out_by
from evle.distributed import is_main, num_machines
from evle.engine.devices import join_processes
from evle.engine.lock import locked
from evle.engine.run_folder import Run
from evle.engine.steps import FitResult
from evle.engine.tower_states import TowerStates
from evle.engine.trainer import fit
from evle.errors import ConfigError
from evle.models.folders import read_tensors
from evle.report import Report, plain, write_whole
from evle.run.by_label import score
from evle.run.config import RunConfig
from evle.run.interpolating import Between, before_training, retention
from evle.run.prepare import Prepared, make_loader, prepare
from evle.run.reporting import (
    curves,
    data_read,
    file_lines,
    interval_table,
    log_table,
    score_lines,
    score_rows,
    skipped_lines,
    skipped_table,
    split_read,
    weights_scored,
    write_report,
)
from evle.share.card import save_card
from evle.storage import is_url, local, shown
from evle.tasks.task import Evaluation, Task


def train_run(
    config: RunConfig,
    *,
    task: type[Task] | None = None,
    samples: Mapping[Split, Samples] | None = None,
    overwrite: bool = False,
) -> Report:
    """Train on the configuration's task, choose the best weights on val, score them on test, and write the run's
    folder. `evle.train` is its door.

    An unfinished run of the same configuration in config.output is resumed.

    Args:
        config: the run; its `seeds` are not read here.
        task: a class that stands in for the task that the configuration names.
        samples: sequences of samples by split that stand in for the configuration's data.
        overwrite: delete the run in config.output first.

    Raises:
        EvleError: whatever a user can cause; the message says what to do.
    """
    join_processes()
    _refuse_scattered_parts(config)
    asked, folder = config.plain(), local(config.output)
    complete = partial(in_full, folder)
    with locked(folder) if is_main() else nullcontext():
        Run(folder).check(asked, overwrite=overwrite, complete=complete)  # before anything takes time
        ready = prepare(config, task, samples)
        blends = config.model.interpolate < 1
        old = before_training(config, ready.loaded, ready.task.processor) if blends else None
        run = Run.start(
            folder,
            asked,
            seed=config.seed,
            data_hash=ready.data_hash,
            overwrite=overwrite,
            complete=complete,
        )
        if ready.train.cache_towers:
            ready.loader = _cached(config, ready)
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
            evaluate=None if val is None else lambda model: score(ready.task, model, val, quick).scores,
            metric=ready.task.metric,
            write_model=ready.loaded.write,
        )
        between = _keep_between(config, ready, run.model_folder) if blends else None
        write_state(ready.task, run.model_folder)
        return _report_run(config, ready, run, result, between, old)


def _refuse_scattered_parts(config: RunConfig) -> None:
    """Raise ConfigError where parts of a checkpoint would stay on the machines that wrote them."""
    scattered = num_machines() > 1 and config.train.shard_checkpoints
    if scattered and is_url(shown(config.output)):
        raise ConfigError(
            f"output={shown(config.output)}: with train.shard_checkpoints on several machines an upload would hold the "
            "parts of one machine only; choose a folder that all machines share, or set train.shard_checkpoints=false"
        )


def _cached(config: RunConfig, ready: Prepared) -> Loader:
    """The batches of a training whose towers are frozen, with their states in place of images."""
    model: Any = ready.loaded.model
    model.to(join_processes())
    states = TowerStates(model, ready.task, ready.training, ready.train, config.seed)
    return make_loader(config, ready.task, ready.training, states.features, num_workers=0)


def _keep_between(config: RunConfig, ready: Prepared, folder: Path) -> Between:
    """Put the weights that `model.interpolate` asks for into the trained model and its folder."""
    model = ready.loaded.model
    between = Between(str(config.model.init), model, read_tensors(folder), new_heads=config.model.new_heads)
    between.go_to(config.model.interpolate)
    if is_main():
        ready.loaded.write(model, between.at(config.model.interpolate), folder)
    return between


def in_full(folder: str | Path, tree: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration `tree` of the run in a folder, with the defaults of settings that one of an earlier version
    lacks."""
    return RunConfig.build(tree, str(Path(folder) / "config.yaml")).plain()


def _report_run(
    config: RunConfig,
    ready: Prepared,
    run: Run,
    result: FitResult,
    between: Between | None = None,
    old: Samples | str | None = None,
) -> Report:
    """Score the finished model on test (on val where there is none) and write the run's report, with the curve of
    `between` where it can be scored on the `old` data; a string in their place is the reason why it cannot."""
    task, model = ready.task, ready.loaded.model
    split: Split = "test" if "test" in ready.samples else "val"
    measured = ready.samples.get(split)
    where, data = split_read(config.data, split), data_read(config.data, split)
    found = Evaluation({})
    if measured is not None:
        found = score(task, model, measured, config.evaluate.settings(quick=False))
    tables, drawn = [], curves(run, task)
    without = old if isinstance(old, str) else ""
    if between is not None and measured is None:
        without = "no curve: this run has no data to score on"
    if between is not None and measured is not None and old is not None and not isinstance(old, str):
        settings = config.evaluate.settings(quick=True)
        table, curve = retention(between, task, old, measured, settings, config.model.interpolate)
        tables, drawn = [table], [*drawn, curve]
    left_out, num_left = left_out_by(ready.samples)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    weights = weights_scored(config.train.keep, result, task)
    summary = [
        *score_lines(task, found, where, data),
        *filter(None, (task.ranking(), weights, without)),
        *file_lines(found),
        f"{result.steps} steps of {ready.train.batch_size} samples in {result.seconds:.0f} s "
        f"({result.samples_per_second:.0f} samples/s), {parameters / 1e6:.1f} M parameters",
        *ready.notes,
    ]
    unreadable = list(dict.fromkeys([*result.skipped, *found.skipped]))
    skipped, num_skipped = [*left_out, *unreadable], num_left + len(unreadable)
    summary += skipped_lines(skipped, num_skipped)
    report = Report(
        title=config.title or local(config.output).name,
        summary=summary,
        provenance={
            **run.environment(),
            "data": {split: describe(samples) for split, samples in ready.samples.items()},
            "config": config.plain(),
            "training": {
                "steps": result.steps,
                "seconds": round(result.seconds, 1),
                "samples_per_second": round(result.samples_per_second, 2),
                "weights": weights,
            },
            "ranking": task.ranking(),
        },
        tables=[*tables, *interval_table(found), *found.tables, *skipped_table(skipped, num_skipped), *log_table(run)],
        curves=drawn,
        galleries=found.galleries,
        scores=score_rows(where, found),
    )
    write_report(report, found, run.folder)
    if is_main():
        save_card(run.model_folder)
    return report


def write_state(task: Task, folder: Path) -> None:
    """Save beside a model what its task learned from the training samples; the main process writes."""
    if is_main() and task.state():
        write_whole(folder / "task.json", json.dumps(plain(task.state()), ensure_ascii=False, indent=1) + "\n")
