"""The command `python -m benchmarks.peers`: tuning and training of all contenders, run by run; see the package."""

import argparse
import importlib.util
import itertools
import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims import with_sections
from benchmarks.peers import questions, retrieval
from benchmarks.peers.contest import Contest
from benchmarks.peers.page import Results, added, page
from evle.files import write_whole

CONTENDERS = (*retrieval.ABOUT, *questions.ABOUT)


def kept(file: Path, work: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The result in `file`, from `work()` where it is missing. Ends the program where it was made with other
    settings."""
    if not file.is_file():
        print(f"{file.stem} ...", flush=True)
        write_whole(file, json.dumps(work(), indent=1) + "\n")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    before = found.get("settings", {})  # results of an earlier version have none
    for name in sorted(before.keys() & settings.keys()):
        if before[name] != settings[name]:
            sys.exit(
                f"{file}: was made with other {name}, {before[name]} and not {settings[name]}; choose another folder "
                "with -o, or set it back"
            )
    return found


def longest_trials(home: Path, name: str, rates: Sequence[float], minutes: float) -> float:
    """The minutes of a contender's longest trials that are all finished, or `minutes` if there are none longer."""
    found: dict[float, set[float]] = {}
    for file in home.glob(f"{name}-trial-*.json"):
        trial = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(trial["minutes"], set()).add(trial["rate"])
    return max([minutes, *(each for each, tried in found.items() if tried >= set(rates))])


def compare(contest: Contest, names: Sequence[str], options: argparse.Namespace) -> tuple[Results, Results]:
    """Tune and train every contender; the closest pair gets more seeds. The results of the trials and of the runs."""
    home = options.output / "results"
    home.mkdir(parents=True, exist_ok=True)

    def result(name: str, kind: str, rate: float, seed: int, minutes: float) -> dict[str, Any]:
        file = home / f"{name}-{kind}-{minutes:g}min-rate-{rate:g}-seed-{seed}.json"
        return kept(file, lambda: contest.run(name, rate, seed, minutes, kind == "trial"), contest.settings_of(name))

    trials, best = [], {}
    for name in names:
        if name in options.rates:
            best[name] = options.rates[name]
            continue
        minutes = longest_trials(home, name, contest.rates[name], options.trial_minutes)
        own = [result(name, "trial", rate, 0, minutes) for rate in contest.rates[name]]
        best[name] = max(own, key=lambda trial: trial["tuning"][contest.chosen_by])["rate"]
        trials += own
    results = [result(n, "run", best[n], seed, options.minutes) for seed in range(options.seeds) for n in names]
    if len(names) > 1 and options.more:
        split = next(iter(contest.tests))
        means = {
            name: statistics.fmean(each["tests"][split][contest.chosen_by] for each in results if each["peer"] == name)
            for name in names
        }
        pair = min(itertools.combinations(names, 2), key=lambda each: abs(means[each[0]] - means[each[1]]))
        for seed, name in itertools.product(range(options.seeds, options.seeds + options.more), pair):
            results.append(result(name, "run", best[name], seed, options.minutes))
    return trials, sorted(results, key=lambda each: names.index(each["peer"]))


def _shown(argument: str, folder: Path) -> str:
    """An argument as the report shows it, without paths of this machine."""
    if argument == str(folder):
        return "FOLDER"
    return Path(argument).name if Path(argument).is_absolute() else argument


def _rate(argument: str) -> tuple[str, float]:
    name, _, rate = argument.partition("=")
    if name not in CONTENDERS:
        raise argparse.ArgumentTypeError(f"no contender {name!r}; give one of {', '.join(CONTENDERS)}")
    return name, float(rate)


def _options(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Compare peers at equal compute.")
    parser.add_argument("folder", type=Path, help="images and captions.jsonl")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/peers"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=10, help="processor time of each run (default: 10)")
    parser.add_argument("--trial-minutes", type=float, default=2, help="processor time of each trial (default: 2)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each contender (default: 2)")
    parser.add_argument("--more", type=int, default=2, help="more runs of the closest pair (default: 2)")
    parser.add_argument("--peers", nargs="+", choices=CONTENDERS, help="default: all that can run here")
    parser.add_argument(
        "--rates", nargs="+", type=_rate, default=[], metavar="PEER=RATE", help="learning rates, in place of trials"
    )
    parser.add_argument("--towers", nargs=2, default=(), metavar=("VISION", "TEXT"), help="folders of trained towers")
    parser.add_argument("--train", nargs="+", default=["train"], help="splits to train on (default: train)")
    parser.add_argument("--tests", nargs="+", default=["test_style", "val"], help="splits to test on")
    parser.add_argument("--gallery", type=int, default=300, help="images of each test (default: 300)")
    parser.add_argument("--report", type=Path, help="also write the report to this file")
    parser.add_argument("--add", metavar="TITLE", help="add the report to that file as a section of this title")
    parser.add_argument("--note", default="", help="a paragraph below that title")
    options = parser.parse_args(given)
    options.rates = dict(options.rates)
    if (options.add or options.note) and not (options.add and options.report):
        parser.error("--add TITLE needs --report FILE, and --note needs both")
    if options.peers is None:
        has_open_clip = importlib.util.find_spec("open_clip_train") is not None
        missing = {*(() if has_open_clip else ("open-clip",)), *(() if options.towers else retrieval.TOWERS)}
        options.peers = [name for name in CONTENDERS if name not in missing]
    if not options.towers and (without := [name for name in options.peers if name in retrieval.TOWERS]):
        parser.error(f"{', '.join(without)} needs --towers VISION TEXT")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    given = arguments if arguments is not None else sys.argv[1:]
    options = _options(given)
    torch.set_num_threads(1)
    found = []
    for about, contest in (
        (retrieval.ABOUT, lambda: retrieval.contest(options)),
        (questions.ABOUT, lambda: questions.contest(options.gallery)),
    ):
        names = [name for name in about if name in options.peers]
        if names:
            made = contest()
            found.append((made, *compare(made, names, options)))
    shown = [_shown(each, options.folder) for each in given if each not in ("--note", options.note)]
    command = f"python -m benchmarks.peers {shlex.join(shown)}"
    text = page(found, options.minutes, command)
    (options.output / "report.md").write_text(text, encoding="utf-8")
    if options.add and options.report.is_file():
        whole = options.report.read_text(encoding="utf-8")
        text = with_sections(whole, [added(options.add, options.note, found, command)])
    if options.report is not None:
        options.report.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
