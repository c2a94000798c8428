"""How evenly would a trained router load many processes that divide its experts? Simulated, from its own choices.

    python -m benchmarks.dispatch models/scenes-vqa
    python -m benchmarks.dispatch runs/mine --processes 64 --rows 32 --samples 1000

The model reads samples of the run's test data once, and the experts that its last soft-routed block chooses for every
token are kept. A step then draws `--rows` of these samples for each of `--processes`. For each number of parts
(`train.expert_parallel`) that divides experts and processes, the table gives the load of the busiest process, in rows
of experts, as a ratio to the mean: the median and the 95th percentile over the steps. Time in experts grows by it.
Without divided experts this ratio is 1. Beside it: the share of assignments that a capacity factor would drop, counted
over the tokens of one process as `capacity_factor` does.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evle.data.loader import Loader
from evle.models.eve.routing import SoftRouter
from evle.report import Table, text_table
from evle.run.config import task_class
from evle.run.evaluation import load_trained
from evle.run.scoring import read_run
from evle.run.splits import read_split

CAPACITIES = (1.0, 1.25, 1.5, 2.0)
SMALLEST_CAPACITY = 4


def assignments(folder: Path, num_samples: int) -> tuple[np.ndarray, int]:
    """The assignments (samples, E) of each sample's tokens, image and text together, to the experts of the last
    soft-routed block, and the number of experts per token."""
    config = read_run(folder)
    task_type = task_class(config)
    model, task = load_trained(config, folder, task_type)
    routers = [module for module in model.modules() if isinstance(module, SoftRouter)]
    if not routers:
        raise SystemExit(f"{folder}: the model has no soft-routed block")
    samples: Any = read_split(config.data, "test", task_type.reads)
    count = min(num_samples, len(samples))
    loader = Loader(samples, partial(task.features, train=False), task.collate, batch_size=32, seed=0, shuffle=False)
    found: list[np.ndarray] = []
    for batch in islice(loader.batches(0), -(-count // 32)):
        found += _of_rows(model, routers[-1], batch)
    return np.stack(found[:count]), routers[-1].config.num_experts_per_tok


def _of_rows(model: Any, router: SoftRouter, batch: dict[str, torch.Tensor]) -> Iterator[np.ndarray]:
    """Of each row of a batch: the number of assignments to each expert."""
    chosen: list[torch.Tensor] = []
    choose = router.choose

    def choose_and_keep(logits: torch.Tensor) -> torch.Tensor:
        chosen.append(choose(logits))
        return chosen[-1]

    router.choose = choose_and_keep  # type: ignore[method-assign]
    mask = batch["attention_mask"]
    try:
        with torch.no_grad():
            hidden = model.base_model(batch["pixel_values"], batch["input_ids"], mask).image_hidden
    finally:
        router.choose = choose  # type: ignore[method-assign]
    tokens = hidden.shape[1] + mask.sum(dim=1)  # padding is not routed
    for rows in torch.cat(chosen).split(tokens.tolist()):
        yield torch.bincount(rows.flatten(), minlength=router.config.num_experts).numpy()


def simulate(loads: np.ndarray, processes: int, rows: int, steps: int, top_k: int) -> tuple[Table, Table]:
    """Draw `steps` steps; tables of the busiest process by the number of parts, and of drops by capacity factor."""
    rng = np.random.default_rng(0)
    num_experts = loads.shape[1]
    drawn = loads[rng.integers(len(loads), size=(steps, processes, rows))].sum(axis=2)  # (steps, processes, E)
    parts = [each for each in range(2, num_experts + 1) if num_experts % each == 0 and processes % each == 0]
    busy = []
    for each in parts:
        groups = drawn.reshape(steps, processes // each, each, each, num_experts // each).sum(axis=(2, 4))
        ratios = groups.max(axis=(1, 2)) / groups.mean(axis=(1, 2))  # (steps, groups, parts)
        busy.append(
            [str(each), str(processes // each), *(f"{np.quantile(ratios, share):.2f}" for share in (0.5, 0.95))]
        )
    dropped = []
    tokens = drawn.sum(axis=2, keepdims=True) / top_k
    for factor in CAPACITIES:
        limit = np.maximum(SMALLEST_CAPACITY, np.ceil(factor * top_k * tokens / num_experts))
        over = np.maximum(0, drawn - limit).sum(axis=(1, 2)) / drawn.sum(axis=(1, 2))
        dropped.append([f"{factor:g}", f"{over.mean():.1%}"])
    heads = ["expert_parallel", "groups", "busiest / mean (median)", "(95 %)"], ["capacity factor", "dropped"]
    return Table("busiest process", heads[0], busy), Table("dropped", heads[1], dropped)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder or a model folder")
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--rows", type=int, default=32, help="samples of a process in one step (default: 32)")
    parser.add_argument("--samples", type=int, default=512, help="samples that the model reads (default: 512)")
    parser.add_argument("--steps", type=int, default=200, help="steps that are simulated (default: 200)")
    options = parser.parse_args(arguments)
    loads, top_k = assignments(options.run, options.samples)
    shares = loads.sum(axis=0) / loads.sum()
    print(f"{len(loads)} samples, {loads.sum() / len(loads):.0f} assignments each")
    print("load of the experts: " + ", ".join(f"{share:.1%}" for share in shares) + "\n")
    for table in simulate(loads, options.processes, options.rows, options.steps, top_k):
        print(text_table(table) + "\n")


if __name__ == "__main__":
    main()
