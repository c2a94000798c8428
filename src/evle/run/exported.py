"""The cost of a number format: the scores of a model and of its export on the same samples."""

from pathlib import Path
from typing import Any

from evle.config import merge
from evle.data.samples import Split
from evle.errors import ConfigError
from evle.exported.folder import is_exported
from evle.models.folders import model_folder
from evle.report import Table
from evle.run.config import RunConfig, task_class
from evle.run.evaluation import load_trained
from evle.run.reporting import split_read
from evle.run.scoring import read_to_score
from evle.run.splits import read_split
from evle.run.weights import read_config
from evle.tasks import TASKS
from evle.tasks.trained import run_settings


def change_of_scores(
    source: str | Path, exported: Path, *, data: Path | None = None, split: str | None = None
) -> Table | None:
    """The scores of the model in `source` and of the folder `exported`, on the same samples.

    `data` is a folder or table as users have them, `split` one of its splits; without it the run's own test data are
    read. None where there are neither. Raises DataError for data that cannot be read, and ConfigError for a model whose
    task has no scores.
    """
    config = _to_score(source, data, split, exported)
    if config is None:
        return None
    task_type = task_class(config)
    part: Split = "test" if config.data.test is not None else "val"
    samples = read_split(config.data, part, task_type.reads)
    if samples is None:
        return None
    scores = []
    for folder in (source, exported):
        model, task = load_trained(config, folder, task_type)
        scores.append(task.evaluate(model, samples, config.evaluate.settings(quick=False)).scores)
    before, after = scores
    rows = [[name, value, after[name], after[name] - value] for name, value in before.items()]
    where = split_read(config.data, part)
    return Table(
        f"Scores on {where}", ["score", "model", "exported", "change"], rows, f"{len(samples):,} samples of {where}"
    )


def _to_score(source: str | Path, data: Path | None, split: str | None, exported: Path) -> RunConfig | None:
    """The configuration to evaluate by, or None where no data are known."""
    assert is_exported(exported)
    run = Path(source)
    if data is None and (run / "config.yaml").is_file():
        return read_to_score(run, [] if split is None else [f"data.test.split={split}"])
    if data is None:
        return None
    settings = run_settings(source)
    tree: dict[str, Any] = {name: value for name, value in settings.items() if name not in ("data", "output")}
    if not tree:  # of a model of no run; what is required of training is not read
        tree = {"task": {"name": _task_of(source)}, "train": {"steps": 1, "batch_size": 1}}
    test: dict[str, Any] = {"source": "folder", "path": str(data), **({} if split is None else {"split": split})}
    tree = merge(tree, {"data": {"test": test}, "output": str(exported)})
    return RunConfig.build(tree, f"--data {data}")


def _task_of(source: str | Path) -> str:
    """The task whose head a model without a run has. Raises ConfigError where none scores it."""
    heads = read_config(model_folder(source)).architectures or ["none"]
    for name, task in TASKS.items():
        if heads[0] in (each.__name__ for each in task.models.values()):
            return name
    raise ConfigError(f"{source}: {heads[0]} has no task that scores it; leave out --data")
