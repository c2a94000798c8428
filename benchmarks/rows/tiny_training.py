"""eve-tiny end to end: steps of the quickstart's pre-training as `evle train` runs them, data workers and log included.

Beside them, forward and backward alone on the same batches: the ratio is the share of the wall time that is spent
inside the model.
"""

import tempfile
from itertools import islice
from pathlib import Path

from benchmarks.case import OURS, Case, Setting

from evle.engine.run_folder import Run
from evle.engine.trainer import fit
from evle.run.config import read_stages
from evle.run.prepare import prepare

DTYPES = ("bf16",)
NOTE = """
Measured before AdamW was fused: 14 ms of 383 per step, 3 ms since (3.7 million parameters). The rest of the time
outside of the model (drawing scenes, encoding texts, Muon, log) has not been divided yet; with a data worker on a
second core the first two leave this process.
"""
"""What limits this row, from a profile, and what was tried."""
WORKERS = 0
"""Data workers. They would share the one core of the measurement, where their work is counted all the same."""


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
    batches = [ready.task.on_device(each, model.device) for each in islice(ready.loader.batches(0), steps)]
    scratch = tempfile.TemporaryDirectory(prefix="evle-benchmark-")

    def training() -> None:
        run = Run.start(Path(scratch.name) / "run", config.plain(), seed=0, data_hash=ready.data_hash, overwrite=True)
        fit(model, ready.task, ready.loader, train=ready.train, optim=config.optim, run=run, seed=0)

    def model_alone() -> None:
        for batch in batches:
            setting.step(model, lambda batch=batch: model(**batch).loss)()

    samples = float(count)
    return Case(
        ways={OURS: training, "forward and backward alone": model_alone},
        unit="samples",
        units={OURS: samples, "forward and backward alone": samples},
    )
