"""The facts of the run that trained a model, in one file of the model's folder, so that the folder can be moved.

`run.json` holds how the run read texts and images, what it was trained on, and the scores of its test. It names no
folders of the machine.
"""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from evle.config import load_yaml
from evle.errors import CheckpointError, ConfigError
from evle.files import read_json, write_whole
from evle.share.licences import UNKNOWN, licences_of
from evle.tasks.trained import RUN_FACTS

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
VERSIONS = ("python", "evle", "torch", "transformers", "device")


def run_facts(folder: Path) -> dict[str, Any]:
    """The facts of the run that trained the model in `folder`, an empty dictionary for a model of no run.

    They are read from the run's folder where the model is still in it, else from run.json. Raises CheckpointError for
    files that are damaged.
    """
    run = folder.absolute().parent
    if folder.absolute().name == "model" and (run / "config.yaml").is_file():
        return _from_run(run)
    return read_run_facts(folder)


def read_run_facts(folder: Path) -> dict[str, Any]:
    """The facts in run.json of a model folder, an empty dictionary without one. Raises CheckpointError for a file in
    which something has another form than evle writes."""
    file = folder / RUN_FACTS
    if not file.is_file():
        return {}
    facts: dict[str, Any] = read_json(file, kind=dict, error=CheckpointError)
    results, records = facts.get("results") or {}, facts.get("data") or []
    wrong = [name for name in ("config", "versions", "results") if not isinstance(facts.get(name) or {}, dict)]
    if "results" not in wrong and results:
        parts = (results.get("scores") or {}, results.get("chance") or {})
        good = isinstance(results.get("split"), str) and all(isinstance(part, dict) for part in parts)
        wrong += [] if good else ["results"]
    if not isinstance(records, list) or not all(_is_record(record) for record in records):
        wrong.append("data")
    if wrong:
        raise CheckpointError(
            f"{file}: {', '.join(wrong)} is not in the form that evle writes; restore the file, or delete it and "
            "write the card again"
        )
    return facts


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("split"), str)
        and isinstance(record.get("dataset"), str)
        and isinstance(record.get("licences"), dict)
    )


def write_run_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write run.json into a model folder, or nothing where there are no facts."""
    if facts:
        write_whole(folder / RUN_FACTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def scores_in(report: Path) -> dict[str, Any]:
    """The scores of a report as `results` of the facts: the split that was read, its scores, and chance.

    Raises ConfigError for a folder without a report, and one that holds no scores.
    """
    file = report / "report.json" if report.is_dir() else report
    if not file.is_file():
        raise ConfigError(f"{report}: no report; give the folder of a run or of `evle evaluate`")
    found = read_json(file, kind=dict, error=ConfigError)
    scores = found.get("scores")
    split = next((name for name in scores if name != "chance"), None) if isinstance(scores, dict) else None
    if split is None or not isinstance(scores[split], dict) or not scores[split]:
        raise ConfigError(f"{file}: holds no scores; score the model with `evle evaluate`")
    for name, value in scores[split].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(
                f"{file}: the score {name} is {value!r}, not a number; score the model with `evle evaluate`"
            )
    provenance = found.get("provenance")
    config = provenance.get("config") if isinstance(provenance, dict) else None
    data = config.get("data") if isinstance(config, dict) else None
    data = data if isinstance(data, dict) else {}
    return {
        "split": split,
        "dataset": _dataset(data, "test" if _sources(data, "test") else "val"),
        "how": _how(provenance),
        "scores": scores[split],
        "chance": scores["chance"] if isinstance(scores.get("chance"), dict) else {},
    }


def _weights(provenance: Any) -> str:
    """Which of a training's weights a report scored; empty where it does not hold that."""
    training = provenance.get("training") if isinstance(provenance, dict) else None
    weights = training.get("weights") if isinstance(training, dict) else None
    return weights if isinstance(weights, str) else ""


def _how(provenance: Any) -> list[str]:
    """Which weights a report scored and how it ranked, as far as it holds them."""
    ranking = provenance.get("ranking") if isinstance(provenance, dict) else None
    return [line for line in (_weights(provenance), ranking) if isinstance(line, str) and line]


def _from_run(run: Path) -> dict[str, Any]:
    config = load_yaml(run / "config.yaml")
    file = run / "environment.json"
    environment = read_json(file, kind=dict, error=CheckpointError) if file.is_file() else {}
    file = run / "report.json"
    report = read_json(file, kind=dict, error=CheckpointError) if file.is_file() else {}
    described = (report.get("provenance") or {}).get("data") or {}
    facts: dict[str, Any] = {
        "config": config,
        "versions": {name: environment[name] for name in VERSIONS if environment.get(name)},
        "data": _data(config.get("data") or {}, described),
        "weights": _weights(report.get("provenance")),
        "summary": [str(line) for line in report.get("summary") or []],
    }
    if report.get("scores"):
        try:
            facts["results"] = scores_in(run)
        except ConfigError as error:
            logger.warning("%s; the card shows no scores", error)
    return without_folders(facts)


def _data(config: Mapping[str, Any], described: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record for each split: its name, the data's name, the number of samples, and their licences."""
    records = []
    for split in SPLITS:
        licences: dict[str, int] = {}
        for source in _sources(config, split):
            path = source.get("path") or config.get("path")
            for licence, count in licences_of(str(source.get("source", "")), path).items():
                licences[licence] = licences.get(licence, 0) + count
        facts = described.get(split) or {}
        if licences or facts:
            records.append(
                {
                    "split": split,
                    "dataset": _dataset(config, split),
                    "samples": facts.get("samples"),
                    "licences": licences or {UNKNOWN: 0},
                }
            )
    return records


def _sources(config: Mapping[str, Any], split: str) -> list[dict[str, Any]]:
    sources = config.get(split)
    return sources if isinstance(sources, list) else [sources] if isinstance(sources, dict) else []


def _dataset(config: Mapping[str, Any], split: str) -> str:
    """The name of the data of a split: the last part of its path, else its source."""
    names = []
    for source in _sources(config, split):
        path = source.get("path") or config.get("path")
        names.append(PurePath(path).name if isinstance(path, str) else str(source.get("source", "")))
    return "+".join(dict.fromkeys(filter(None, names)))


def without_folders(tree: Any) -> Any:
    """`tree` with the last part alone of each absolute path, which is nobody's business elsewhere."""
    if isinstance(tree, Mapping):
        return {key: without_folders(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_folders(value) for value in tree]
    if isinstance(tree, str) and "\n" not in tree:
        for kind in (PurePath, PureWindowsPath):
            if kind(tree).is_absolute() or tree.startswith(("~/", "../")):
                return kind(tree).name
    return tree
