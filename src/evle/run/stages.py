"""Train a recipe of one or several stages: pre-train once, fine-tune from it, compare. Each stage has a folder in the
recipe's output; a recipe of one run has its folder at the output itself."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evle.data.samples import Samples, Split
from evle.distributed import barrier, is_main, world_size
from evle.engine.devices import join_processes
from evle.engine.failures import Diverged
from evle.engine.run_folder import Run, changed_settings, in_short
from evle.errors import ConfigError
from evle.files import read_json
from evle.report import Report
from evle.run.claims import SPEED
from evle.run.comparison import compare, diverged_runs, has_report, in_words
from evle.run.config import JointStage, RunConfig, Stage, Stages, read_stages
from evle.run.jobs import SKIPPED, train_at_once
from evle.run.splits import require_paths
from evle.run.training import in_full, train_run
from evle.run.vcr import judge_vcr
from evle.storage import is_training_state, is_url, open_mirror, session, shown
from evle.tasks.task import Task


def train(
    recipe: Stages | RunConfig | str | Path,
    overrides: Sequence[str] = (),
    *,
    task: type[Task] | None = None,
    samples: Mapping[Split, Samples] | None = None,
    overwrite: bool = False,
    jobs: int = 1,
    on_stage: Callable[[str], None] | None = None,
) -> Report:
    """Train a recipe: pre-training or fine-tuning, of one or several stages, and return its report.

    Finished stages of the same configuration are kept, an unfinished one is resumed, the rest run. A stage whose
    weights come from a stage that ran now runs again. A recipe of one run that is finished is refused, and so is a run
    of another configuration. A run of several that diverges does not end the others; it is neither resumed nor
    replaced before its configuration changes, and the stages that start from it are skipped.

    Args:
        recipe: a recipe's name or file, a configuration, or what `read_stages` returned.
        overrides: `key=value` settings that replace the recipe's.
        task: a class that stands in for the task that a recipe of one stage names.
        samples: sequences of samples by split that stand in for the data of a recipe of one stage.
        overwrite: delete earlier runs in the output and start again.
        jobs: how many runs of the recipe (stages, seeds) train at once, each in a process of its own
            (`evle.run.jobs`).
        on_stage: called with one line about each stage before it runs.

    Raises:
        Diverged: at the end, with the report written, where runs of several diverged.
        EvleError: whatever a user can cause; the message says what to do.
    """
    if isinstance(recipe, Stages):
        if overrides:
            raise ConfigError("overrides need a recipe's name or file; pass them to read_stages, which reads it")
        stages = recipe
    else:
        stages = read_stages(recipe, overrides)
    if (task is not None or samples is not None) and len({stage.group for stage in stages.stages}) > 1:
        raise ConfigError("task and samples stand in for those of one stage, but the recipe has several")
    join_processes()
    if jobs != 1:
        _refuse_jobs(stages, jobs, stand_ins=task is not None or samples is not None)
    with _uploaded(stages, overwrite):
        if len(stages.every) == 1:
            return train_run(stages.stages[0].config, task=task, samples=samples, overwrite=overwrite)
        return _train_stages(stages, task, samples, overwrite, jobs, on_stage or (lambda line: None))


def _refuse_jobs(recipe: Stages, jobs: int, stand_ins: bool) -> None:
    """Raise ConfigError where runs cannot train at once."""
    if jobs < 1:
        raise ConfigError(f"jobs={jobs} must be at least 1")
    if len(recipe.stages) == 1:
        raise ConfigError(
            f"jobs={jobs}: the recipe has a single run; give it seeds, such as seeds=[0,1,2], or leave jobs out"
        )
    if world_size() > 1 or "LOCAL_RANK" in os.environ:
        raise ConfigError(
            f"jobs={jobs}: started by a launcher, whose processes share each run; start it without, or leave jobs out"
        )
    if is_url(shown(recipe.folder)):
        raise ConfigError(f"jobs={jobs}: {shown(recipe.folder)} is a URL; choose a folder with -o, and upload that")
    if stand_ins:
        raise ConfigError(f"jobs={jobs}: processes of their own do not see task and samples; name them in the recipe")


@contextmanager
def _uploaded(recipe: Stages, overwrite: bool) -> Iterator[None]:
    """Where the output is a URL: first bring what is there to this machine, upload each checkpoint while training
    continues, and everything at the end. The main process uploads; the others only download."""

    def is_unneeded(name: str) -> bool:
        return overwrite and is_training_state(name)

    with session():
        if is_main():
            open_mirror(recipe.folder, skip=is_unneeded)
        barrier()
        if not is_main():
            open_mirror(recipe.folder, writes=False, skip=is_unneeded)
        barrier()
        yield


def _train_stages(
    recipe: Stages,
    task: type[Task] | None,
    samples: Mapping[Split, Samples] | None,
    overwrite: bool,
    jobs: int,
    on_stage: Callable[[str], None],
) -> Report:
    try:
        _run_stages(recipe, task, samples, overwrite, jobs, on_stage)
    finally:  # what is finished is reported, also where a stage was interrupted or failed
        if is_main() and (any(map(has_report, recipe.every)) or diverged_runs(recipe)):
            compare(recipe).write(recipe.folder)
    if diverged := diverged_runs(recipe):
        raise Diverged(
            f"{recipe.folder}: {in_words(diverged)}; the report has what the other runs reached; lower optim.lr or "
            "lengthen optim.warmup of these stages, or delete a run's folder to train it again as it is"
        )
    return compare(recipe)


def _run_stages(
    recipe: Stages,
    task: type[Task] | None,
    samples: Mapping[Split, Samples] | None,
    overwrite: bool,
    jobs: int,
    on_stage: Callable[[str], None],
) -> None:
    for stage in recipe.every:  # what a later stage lacks is better known before the hours of the first one
        if isinstance(stage, Stage) and samples is None and (overwrite or not _is_finished(stage)):
            require_paths(stage.config.data, stage.group)
    replaced = _to_run(recipe, overwrite)
    numbers = {stage.name: number for number, stage in enumerate(recipe.every, 1)}

    def say(stage: Stage | JointStage, state: str = "") -> None:
        if is_main():
            on_stage(f"[{numbers[stage.name]}/{len(numbers)}] {stage.name}: {state or shown(stage.output)}")

    kept = [stage for stage in recipe.every if stage.name not in replaced]
    lost = {stage.name for stage in kept if isinstance(stage, Stage) and Run(stage.output).has_diverged()}
    for stage in recipe.every:
        if stage.name in lost:
            say(stage, "diverged before, kept")
        elif stage.name not in replaced:
            say(stage, "finished before, kept")
        elif replaced[stage.name]:  # marked now: were this stopped halfway, an old run would pass for a new one
            _mark_replaced(stage)
    waiting = [stage for stage in recipe.every if stage.name in replaced]
    if jobs > 1:
        at_once = [stage for stage in waiting if isinstance(stage, Stage)]
        again = [stage.name for stage in at_once if replaced[stage.name]]
        lost |= train_at_once(at_once, jobs, replaced=again, lost=lost, alone=_timed(recipe), say=say)
        waiting = [stage for stage in waiting if isinstance(stage, JointStage)]
    for stage in waiting:
        if stage.reads & lost:
            lost.add(stage.name)
            say(stage, SKIPPED)
            continue
        say(stage)
        try:
            if isinstance(stage, Stage):
                train_run(stage.config, task=task, samples=samples, overwrite=replaced[stage.name])
            else:
                judge_vcr(stage.q2a.output, stage.qa2r.output, output=stage.output, title=stage.name)
        except Diverged as error:
            lost.add(stage.name)
            say(stage, f"diverged: {error}")
        barrier()  # the main process writes the report, or the status, that all processes read


def _mark_replaced(stage: Stage | JointStage) -> None:
    if isinstance(stage, Stage):
        Run(stage.output).replace()
    elif is_main():
        (stage.output / "report.json").unlink(missing_ok=True)


def _timed(recipe: Stages) -> set[str]:
    """The runs whose result depends on what else the machine does: trained for a time, or compared by their speed."""
    compared = {name for each in recipe.claims if each.score == SPEED for name in (each.of, each.than)}
    return {stage.name for stage in recipe.stages if stage.config.train.minutes or stage.group in compared}


def _to_run(recipe: Stages, overwrite: bool) -> dict[str, bool]:
    """The stages that are not finished, or read one that is not, and whether an earlier run of each is replaced. One
    that diverged is not among them, unless its configuration changed."""
    found: dict[str, bool] = {}
    for stage in recipe.every:
        again = overwrite or bool(found.keys() & stage.reads)
        if isinstance(stage, Stage) and not again and Run(stage.output).has_diverged():
            if _changed(stage):
                found[stage.name] = True
        elif again or not _is_finished(stage):
            found[stage.name] = again or isinstance(stage, JointStage)
    return found


def _is_finished(stage: Stage | JointStage) -> bool:
    """Whether a stage is finished with this configuration. Raises ConfigError if it finished with another."""
    if isinstance(stage, JointStage):
        return _is_judged(stage)
    if not Run(stage.output).is_finished():
        return False
    if changed := _changed(stage):
        raise ConfigError(
            f"{stage.output} holds a finished run of another configuration ({in_short(changed)}); choose another "
            "output with -o, set it back, or replace all stages with --overwrite"
        )
    return True


def _is_judged(stage: JointStage) -> bool:
    """Whether the report of a pair of stages is there, and of this pair: a recipe may name another one by now."""
    file = stage.output / "report.json"
    provenance = read_json(file, kind=dict).get("provenance") if file.is_file() else None
    models = provenance.get("models") if isinstance(provenance, dict) else None
    if not isinstance(models, dict):
        return False
    names = {"q2a": stage.q2a.name, "qa2r": stage.qa2r.name}  # the recipe's folder may have moved
    return all(f"/{models.get(key)}".endswith(f"/{name}") for key, name in names.items())


def _changed(stage: Stage) -> dict[str, tuple[Any, Any]]:
    """The settings that move the weights of a stage and were others when the run in its folder began."""
    run = Run(stage.output)
    changed = changed_settings(in_full(run.folder, run.config()), stage.config.plain())
    return {key: values for key, values in changed.items() if not key.startswith("evaluate.")}
