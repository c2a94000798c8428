"""eve-tiny end to end: steps of the quickstart's pre-training as `evle train` runs them, data and log included.

Beside them, forward and backward alone on the same batches: the ratio is the share of the time that is spent inside the
model. The same where the batches are ready, as with a data worker on another core, and there with AdamW alone.
"""

import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.case import OURS, Case, Setting

from evle.data.loader import Loader
from evle.engine.optim import OptimConfig
from evle.engine.run_folder import Run
from evle.engine.trainer import fit
from evle.run.config import read_stages
from evle.run.prepare import prepare

DTYPES = ("bf16",)
NOTE = """
Of a step of 378 ms forward and backward take 247, Muon 76, reading (drawing scenes, encoding texts, masking) 47, and
all the rest 8: the norm of the gradients 2.3, AdamW 1.1, log and progress below 1, the model folder at the end. Muon
orthogonalises all matrices of one shape together; its products, 11.5 Gflop for 3.7 million parameters whatever the
batch, run at 180 to 197 Gflop/s of about 200, so only fewer of them would help. Not tried: Newton and Schulz on Gram
matrices (a third fewer operations, other rounding). Reading is many small calls, none above 15 % of it.
"""
"""What limits this row, from a profile, and what was tried."""
WORKERS = 0
"""Data workers. They would share the one core of the measurement, where their work is counted all the same."""


class ReadBefore(Loader):
    """A loader whose batches are ready."""

    def __init__(self, loader: Loader):
        vars(self).update(vars(loader))
        self.ready = list(loader.batches(0))

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        return iter(self.ready[start:])


def build(setting: Setting) -> Case:
    steps, rows = (2, 8) if setting.quick else (40, 64)
    count = steps * rows
    changes = [f"stages.pretrain.train.steps={steps}", f"stages.pretrain.data.train.count={count}"]
    changes += [
        f"train.batch_size={rows}",
        f"train.num_workers={WORKERS}",
        "train.save_every=0",
        "train.precision=bf16",
    ]
    config = read_stages("quickstart", changes).stages[0].config
    config = config.model_copy(update={"data": config.data.model_copy(update={"test": None})})
    ready = prepare(config)
    model = ready.loaded.model.train()
    loader = ReadBefore(ready.loader)
    batches = [ready.task.on_device(each, model.device) for each in islice(loader.batches(0), steps)]
    scratch = tempfile.TemporaryDirectory(prefix="evle-benchmark-")

    def training(loader: Loader, optim: OptimConfig) -> Callable[[], None]:
        def run_steps() -> None:
            run = Run.start(
                Path(scratch.name) / "run", config.plain(), seed=0, data_hash=ready.data_hash, overwrite=True
            )
            fit(model, ready.task, loader, train=ready.train, optim=optim, run=run, seed=0)

        return run_steps

    def model_alone() -> None:
        for batch in batches:
            setting.step(model, lambda batch=batch: model(**batch).loss)()

    adamw = config.optim.model_copy(update={"muon": ()})
    trainings = {
        OURS: training(ready.loader, config.optim),
        "ours, batches ready": training(loader, config.optim),
        "ours, batches ready, AdamW alone": training(loader, adamw),
    }
    ways: dict[str, Callable[[], None]] = {}
    base: dict[str, str] = {}
    for name, run_steps in trainings.items():
        alone = f"forward and backward alone{name.removeprefix(OURS)}"
        ways |= {name: run_steps, alone: model_alone}
        base |= dict.fromkeys((name, alone), name)
    return Case(ways=ways, base=base, unit="samples", units=dict.fromkeys(ways, float(count)))
