"""Measure one row in this process; `python -m benchmarks` calls it."""

import argparse
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.case import DTYPES, Setting
from benchmarks.measuring import run_row
from evle.machine import settle


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row")
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    settle()
    torch.set_num_threads(options.threads)
    row = import_module(f"benchmarks.rows.{options.row}")
    run_row(row.build, Setting(options.dtype, options.quick), options.rounds, options.file)


if __name__ == "__main__":
    main()
