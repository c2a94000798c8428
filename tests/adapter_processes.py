"""A run of adapters, for the tests' own process and for two; a spawned process can import only a plain file."""

from pathlib import Path
from typing import Any

from evle import train
from evle.run.config import RunConfig
from micro import SAMPLES, micro_run


def adapted(folder: Path, base: Path, family: str, task: str = "vqa", **lora: Any) -> RunConfig:
    """The configuration of a run that adapts the model of the run `base`."""
    changes = {"model": {"preset": None, "init": str(base), "overrides": {}, "lora": {"rank": 2, **lora}}}
    return micro_run(folder, task, {**changes, "train": {"steps": 4}}, family)


def train_adapters(process: int, base: str, folder: str) -> None:
    train(adapted(Path(folder), Path(base), "eve"), samples={"train": SAMPLES["vqa"]()})
