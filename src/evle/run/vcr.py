"""VCR as a whole, Q to AR: one model answers, another gives the reason (Zellers et al., 2019).

A question counts where both are right: the answer among four, and the reason among four for the right answer. The
leaderboard wants the reasons for each of the answers, so all sixteen are scored, for an image that is encoded once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from evle.config import apply_overrides
from evle.data.samples import Samples, Split, describe
from evle.distributed import is_main
from evle.engine.devices import join_processes
from evle.engine.run_folder import make_output
from evle.errors import ConfigError
from evle.models.folders import model_folder
from evle.report import Report
from evle.run.config import RunConfig
from evle.run.evaluation import load_trained
from evle.run.reporting import score_rows, skipped_table, write_report
from evle.run.scoring import read_run, refuse_training_settings
from evle.run.splits import read_split
from evle.storage import fetch, join, open_mirror, session, shown
from evle.tasks.task import Task
from evle.tasks.trained import family_text_options
from evle.tasks.vcr import VCRQ2ATask
from evle.tasks.vcr_q2ar import CHANCE, LEADERBOARD, ReasonsForEachAnswer, judge


@session()
def judge_vcr(
    q2a: str | Path,
    qa2r: str | Path,
    overrides: Sequence[str] = (),
    *,
    output: str | Path | None = None,
    title: str = "VCR, question to answer and reason",
    samples: Samples | None = None,
) -> Report:
    """Score a model that answers and one that gives reasons together, and write a report and the leaderboard's file.

    Args:
        q2a: a run's folder, or a model folder, of the task vcr-q2a; its data.test is scored (data.val without one).
        qa2r: one of the task vcr-qa2r.
        overrides: `key=value` settings for both, such as data.test.split=val.
        output: where the report goes; by default `joint` in the folder of `qa2r`.
        title: of the report.
        samples: what to score instead of what the configuration names.

    Raises:
        EvleError: folders, settings or data that cannot be used.
    """
    device = join_processes()
    q2a, qa2r = fetch(q2a), fetch(qa2r)
    configs = [_read(q2a, "vcr-q2a", overrides), _read(qa2r, "vcr-qa2r", overrides)]
    split: Split = "test" if configs[0].data.test is not None else "val"
    samples = samples if samples is not None else read_split(configs[0].data, split, "vcr")
    if samples is None:
        raise ConfigError("no data to evaluate on: name it with data.test.source=... data.test.split=...")
    loaded: list[tuple[PreTrainedModel, Task]] = []
    task_types: tuple[type[Task], type[Task]] = (VCRQ2ATask, ReasonsForEachAnswer)
    for config, folder, task_type in zip(configs, (q2a, qa2r), task_types, strict=True):
        model, task = load_trained(config, folder, task_type)
        torch.nn.Module.to(model, device)
        loaded.append((model, task))
    target = make_output(open_mirror(output or join(shown(qa2r), "joint"), writes=is_main()))
    found = judge(*loaded[0], *loaded[1], samples, configs[0].evaluate.settings(quick=False))
    said = [f"{name} on {split}: {found.scores[name]:.2f} (chance {CHANCE[name]:.2f})" for name in found.scores]
    report = Report(
        title=title,
        summary=[*said, f"to submit: {LEADERBOARD}"],
        provenance={
            "models": {"q2a": shown(q2a), "qa2r": shown(qa2r)},
            "data": {split: describe(samples)},
            "config": {"q2a": configs[0].plain(), "qa2r": configs[1].plain()},
        },
        tables=skipped_table(found.skipped),
        galleries=found.galleries,
        scores=score_rows(split, found),
    )
    write_report(report, found, target)
    return report


def _read(folder: str | Path, name: str, overrides: Sequence[str]) -> RunConfig:
    """The configuration of a run; of a model folder alone, such as a released one, its family's way to read."""
    refuse_training_settings(overrides)
    if (Path(folder) / "config.yaml").is_file():
        config = read_run(folder, overrides)
    else:
        model_folder(folder)
        text = family_text_options("vle").model_copy(update={"max_length": 80}).model_dump()
        bare: dict[str, Any] = {"task": {"name": name}, "text": text, "train": {"steps": 1}, "output": str(folder)}
        config = RunConfig.build(apply_overrides(bare, overrides), str(folder))
    if config.task["name"] != name:
        raise ConfigError(f"{folder} is a run of the task {config.task['name']}; give one of {name} in its place")
    return config
