"""Measure evle beside a textbook implementation of the same work, and print one table.

Each row is a file of `benchmarks/rows/`, run in a process of its own. What is measured is kept in the output folder
after every round: repeat the command to continue, with more `--rounds` to add some.

    python -m benchmarks                                     # everything, about an hour on one core
    python -m benchmarks --rows eve_forward soft_layer --dtypes fp32 --rounds 5
    python -m benchmarks --quick --out /tmp/quick            # smallest sizes: does every row work?
    python -m benchmarks --table                             # the table of what was measured so far
"""

import argparse
import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.table import lines_of, markdown
from evle.machine import DEFAULT_ALLOCATOR, usable_cpus

ROWS = Path(__file__).parent / "rows"
PRECISIONS = ("fp32", "bf16")


def row_names() -> list[str]:
    return sorted(path.stem for path in ROWS.glob("*.py") if path.stem != "__init__")


def constant(row: str, name: str, default: Any) -> Any:
    """A constant of a row's file, read without importing torch."""
    tree = ast.parse((ROWS / f"{row}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    return default


def precisions_of(row: str) -> tuple[str, ...]:
    """The precisions that a row is measured in: its `DTYPES`, by default both."""
    precisions: tuple[str, ...] = constant(row, "DTYPES", PRECISIONS)
    return precisions


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=row_names(), default=row_names(), help="default: all")
    parser.add_argument("--dtypes", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="default: both")
    parser.add_argument("--rounds", type=int, default=3, help="times that each way runs, after a warm-up (default: 3)")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="default: the CPUs of this process")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, whose figures mean nothing")
    parser.add_argument("--default-allocator", action="store_true", help="do not tune glibc's allocator")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the results")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what the output folder holds")
    return parser


def measure(row: str, precision: str, options: argparse.Namespace) -> str:
    """Measure one row in a process of its own. Returns why it failed, "" if it succeeded."""
    command = [sys.executable, "-m", "benchmarks.one_row", row, precision, str(file_of(row, precision, options.out))]
    command += ["--rounds", str(options.rounds), "--threads", str(options.threads), *["--quick"] * options.quick]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    environment[DEFAULT_ALLOCATOR] = "1" if options.default_allocator else ""
    code = subprocess.run(command, env=environment, check=False).returncode
    if code == -signal.SIGKILL:
        return "stopped by the system, which does that when memory is short; free some, or measure on a larger machine"
    return "its message is above" if code else ""


def file_of(row: str, precision: str, folder: Path) -> Path:
    return folder.resolve() / f"{row}.{precision}.json"


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Everything that was measured, in the order of the rows."""
    files = [file_of(row, precision, folder) for row in row_names() for precision in PRECISIONS]
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()}


def main(arguments: list[str] | None = None) -> int:
    """Measure, write table.md and table.json, and print the table; the number of rows that failed."""
    options = build_parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [(row, precision) for row in options.rows for precision in precisions_of(row) if precision in options.dtypes]
    failed = {} if options.table else {job: why for job in jobs if (why := measure(*job, options))}
    records = read_records(options.out)
    lines = [line for name, record in records.items() for line in lines_of(name.rsplit(".", 1)[0], record)]
    conditions = [record["conditions"] for record in records.values()]
    report = {"conditions": conditions[0] if conditions else {}, "lines": lines, "records": records}
    (options.out / "table.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    measured = dict.fromkeys(name.rsplit(".", 1)[0] for name in records)
    table = markdown(records, {row: note for row in measured if (note := constant(row, "NOTE", ""))})
    (options.out / "table.md").write_text(table, encoding="utf-8")
    print(table)
    for (row, precision), why in failed.items():
        print(f"{row}, {precision}: failed; {why}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
