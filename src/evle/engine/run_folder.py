"""A run's folder, which explains itself: what was asked, where and when it ran, how it went, and what came out.

config.yaml        the resolved configuration
environment.json   versions, command line, seed, hash of the data, device, threads; one entry more for each resume
status.json        running, finished, failed, diverged or interrupted; the step; one sentence
log.jsonl          one object a line: {"event": "train", ...} and {"event": "eval", ...}
checkpoints/       last (to resume from) and best (on validation)
model/             what `from_pretrained` reads
"""

import contextlib
import datetime
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import torch

from evle.config import dump_yaml, load_yaml
from evle.distributed import barrier, is_main, world_size
from evle.engine.lock import LOCK, hold, release
from evle.errors import CheckpointError, ConfigError
from evle.files import flush_file, flush_folder, parse_json, read_json, write_whole
from evle.storage import mirror_of

logger = logging.getLogger(__name__)

Curves = dict[str, list[tuple[float, float]]]
Complete = Callable[[Mapping[str, Any]], Mapping[str, Any]]

MAY_CHANGE = frozenset(
    {
        "output",
        "title",
        "needs",
        "train.num_workers",
        "train.log_every",
        "train.save_every",
        "train.eval_every",
        "train.trackers",
        "train.shard_checkpoints",
        "train.expert_parallel",
    }
)
"""What a resumed run may change: nothing of it moves the weights."""


REPLACED = "replaced"
"""The state of a run that is to be made again: what its folder holds is no longer a result."""

DIVERGED = "diverged"
"""The state of a run that stopped at a loss or gradient that is not finite, as it would again."""


class Run:
    """The folder of one run. Every process may hold one; only the main process writes."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.log_file = self.folder / "log.jsonl"
        self.checkpoints = self.folder / "checkpoints"
        self.model_folder = self.folder / "model"
        self.resumes = False
        """Whether this session resumes an earlier one; `check` decides."""
        self._failing: set[str] = set()

    @classmethod
    def start(
        cls,
        folder: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        seed: int,
        data_hash: str = "",
        overwrite: bool = False,
        complete: Complete = dict,
    ) -> Self:
        """Open `folder` for a run of `config` (resolved, plain values) and record what is asked and where it runs.

        An unfinished run of the same configuration is resumed (`resumes` is then true); `overwrite` starts again. The
        folder is locked until `close`, which `fit` calls at its end: no other process can start in it.

        Raises:
            ConfigError: as `check`, another process trains in the folder, or the data of an unfinished run changed.
        """
        run = cls(folder)
        if is_main():
            hold(run.folder)
        run.check(config, overwrite=overwrite, complete=complete)
        if run.resumes and run.environment().get("data_hash", data_hash) != data_hash:
            raise ConfigError(
                f"{run.folder}: the data changed since the run began; start again with --overwrite, or choose another "
                "output with -o"
            )
        barrier()  # every process has looked before one writes

        if is_main():
            run._prepare(config, seed, data_hash)
        barrier()
        return run

    def close(self) -> None:
        """Let other processes use the folder, unless the caller of `start` had locked it."""
        if is_main():
            release(self.folder)

    def check(self, config: Mapping[str, Any], *, overwrite: bool = False, complete: Complete = dict) -> None:
        """Decide whether a run of `config` in this folder resumes the run that is there, and set `resumes`.

        `complete` fills in the defaults of settings that a configuration of an earlier version lacks.

        Raises:
            ConfigError: the folder holds other files, or, without `overwrite`, a run that is finished or has another
                configuration.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is a file: choose another output")
        status = self.status()
        self.resumes = bool(status) and not overwrite and status.get("state") != REPLACED
        if not status and self.folder.is_dir() and any(each.name != LOCK for each in self.folder.iterdir()):
            raise ConfigError(f"{self.folder} is not empty and holds no run: choose another output")
        if not self.resumes:
            return
        changed = changed_settings(complete(self.config()), config)
        kind = "a finished run" if self.is_finished() else f"an unfinished run ({status.get('state')})"
        if changed:
            raise ConfigError(
                f"{self.folder} holds {kind} of another configuration ({in_short(changed)}); choose another output "
                "with -o, set it back, or replace the run with --overwrite"
            )
        if self.is_finished():
            raise ConfigError(
                f"{self.folder} holds a finished run of this configuration ({status.get('step', 0)} steps); score it "
                "with `evle evaluate`, choose another output with -o, or replace it with --overwrite"
            )

    def is_finished(self) -> bool:
        """Whether the run trained to its end and its report was written."""
        return self.status().get("state") == "finished" and (self.folder / "report.json").is_file()

    def replace(self) -> None:
        """Let the run that is here, if there is one, count as not made, until another starts in its place."""
        if self.status():
            self.set_status(REPLACED, 0, "its recipe makes it again")

    def is_replaced(self) -> bool:
        """Whether `replace` was called and no other run has started since."""
        return self.status().get("state") == REPLACED

    def has_diverged(self) -> bool:
        """Whether the run stopped at a number that is not finite."""
        return self.status().get("state") == DIVERGED

    def status(self) -> dict[str, Any]:
        """`state` (running, finished, failed, diverged, interrupted, replaced), `step`, `message`, `time`; empty
        without a run.

        Where status.json is lost or damaged, the run counts as interrupted at the step of its last checkpoint.
        """
        file = self.folder / "status.json"
        if not file.exists() and not (self.folder / "config.yaml").exists():
            return {}
        try:
            status = read_json(file, kind=dict, error=CheckpointError)
            if isinstance(status.get("step"), int) and isinstance(status.get("state"), str):
                return status
            problem = f"{file}: holds no state and step"
        except CheckpointError as error:
            problem = str(error)
        logger.warning("%s; the run counts as interrupted after its last checkpoint", problem)
        return {"state": "interrupted", "step": self._saved_step(), "message": "status.json was lost", "time": ""}

    def _saved_step(self) -> int:
        last = standing(self.checkpoints / "last")
        try:
            step = read_json(last / "state.json", kind=dict, error=CheckpointError).get("step") if last else 0
        except CheckpointError:  # resuming will say what is wrong with the checkpoint
            step = 0
        return step if isinstance(step, int) else 0

    def set_status(self, state: str, step: int, message: str = "") -> None:
        """Write the run's state to its status file. A full disk is reported once and does not stop the run."""
        if is_main():
            status = {"state": state, "step": step, "message": message, "time": _now()}
            self._write_or_say("status.json", lambda: self._write_json("status.json", status))

    def upload(self) -> None:
        """Upload the folder in the background, where it stands for a URL. Call it when its files are whole."""
        if is_main() and (mirror := mirror_of(self.folder)) is not None:
            mirror.push()

    def environment(self) -> dict[str, Any]:
        """What environment.json holds; `resumed` lists the later sessions. Empty where it is lost or damaged."""
        file = self.folder / "environment.json"
        if not file.exists():
            return {}
        try:
            return read_json(file, kind=dict, error=CheckpointError)
        except CheckpointError as error:
            logger.warning("%s; versions, seed and data hash of the run are unknown", error)
            return {}

    def config(self) -> dict[str, Any]:
        """The resolved configuration that the run was started with."""
        return load_yaml(self.folder / "config.yaml")

    def log(self, event: str, values: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl. A full disk is reported once and does not stop the run."""
        if is_main():
            self._write_or_say("log.jsonl", lambda: self._append(json.dumps({"event": event, **values})))

    def rewind_log(self, step: int) -> None:
        """Drop what was logged after optimizer step `step`, from which the run goes on."""
        if not is_main() or not self.log_file.exists():
            return
        kept = [json.dumps(event) for event in read_events(self) if event.get("step", 0) <= step]
        write_whole(self.log_file, "".join(line + "\n" for line in kept))

    def _prepare(self, config: Mapping[str, Any], seed: int, data_hash: str) -> None:
        session = {"command": sys.argv, "time": _now(), "processes": world_size(), **_machine()}
        environment = self.environment()
        if self.resumes:
            resumed = environment.get("resumed")
            environment["resumed"] = [*(resumed if isinstance(resumed, list) else []), session]
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            _empty(self.folder)
            environment = {**_versions(), "seed": seed, "data_hash": data_hash, **session}
            write_whole(self.folder / "config.yaml", dump_yaml(json.loads(json.dumps(dict(config)))))
        self._write_json("environment.json", environment)
        self.set_status("running", self.status()["step"] if self.resumes else 0)

    def _append(self, line: str) -> None:
        rest = (line + "\n").encode()
        with open(self.log_file, "ab", buffering=0) as file:
            end = file.tell()
            try:
                while rest:  # a disk that fills up takes a part of them
                    rest = rest[file.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)  # else the next line would go on behind half of this one
                raise

    def _write_or_say(self, name: str, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if name not in self._failing:
                logger.warning("%s cannot be written (%s); the run continues", self.folder / name, error.strerror)
            self._failing.add(name)

    def _write_json(self, name: str, value: Any) -> None:
        write_whole(self.folder / name, json.dumps(value, indent=2) + "\n")


def read_events(run: Run | str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The events of a run's log in order. A last line that a crash cut short is left out; any other damaged line too,
    with a warning that names it."""
    path = run.log_file if isinstance(run, Run) else Run(run).log_file
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                event = parse_json(line, f"{path}, line {number}", kind=dict, error=CheckpointError)
                if not isinstance(event.get("step"), int) or not isinstance(event.get("event"), str):
                    raise CheckpointError(f"{path}, line {number}: no event of a run")
                yield event
            except CheckpointError as error:
                if line.endswith("\n"):
                    logger.warning("%s; the line is left out", error)


def read_log(run: Run | str | os.PathLike[str]) -> Curves:
    """The curves of a run, name -> [(step, value), ...]: "loss", "loss/itc", "lr", "grad_norm", "eval/<metric>" ..."""
    curves: Curves = {}
    for event in read_events(run):
        step = event["step"]
        if event["event"] == "eval":
            values = {f"eval/{name}": value for name, value in _named(event, "scores").items()}
        else:
            values = {name: event[name] for name in ("loss", "lr", "grad_norm", "samples_per_second") if name in event}
            values |= {f"loss/{name}": value for name, value in _named(event, "losses").items()}
        for name, value in values.items():
            if isinstance(value, int | float):
                curves.setdefault(name, []).append((step, value))
    return curves


def _named(event: dict[str, Any], key: str) -> dict[str, Any]:
    values = event.get(key)
    return values if isinstance(values, dict) else {}


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Replace folder `target` by what `write` puts into a fresh one; the old one is deleted once the new one is whole.

    If the machine stops in between, `standing(target)` finds whichever is whole.
    """
    new = target.with_name(target.name + ".new")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        write(new)
        for file in new.rglob("*"):
            if file.is_file():
                flush_file(file)
        flush_folder(new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    replace_folder(target, new)


def replace_folder(target: Path, new: Path) -> None:
    """Put the whole folder `new` in the place of `target`, which is deleted afterwards."""
    old = target.with_name(target.name + ".old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    new.rename(target)
    flush_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def standing(target: Path) -> Path | None:
    """The whole folder that `write_folder` left: `target`, or the former one when it was cut off, or None."""
    for folder in (target, target.with_name(target.name + ".old")):
        if folder.is_dir():
            return folder
    return None


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that differ between two resolved configurations, as dotted key: (before, now), without those that
    a resumed run may change (`MAY_CHANGE`)."""
    old, new = _flatten(before), _flatten(json.loads(json.dumps(dict(now))))
    keys = sorted((old.keys() | new.keys()) - MAY_CHANGE)
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def in_short(changed: Mapping[str, tuple[Any, Any]], most: int = 5) -> str:
    """Changed settings for a message, `most` of them."""
    listed = [f"{key}: {before!r} -> {now!r}" for key, (before, now) in changed.items()]
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _empty(folder: Path) -> None:
    """Delete what is in `folder`, but the lock that this process holds on it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def make_output(folder: Path) -> Path:
    """`folder`, made now, so that work of hours does not end in a place that takes no report. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{folder} is a file, or below one: choose another output") from None
    except PermissionError:
        raise ConfigError(f"{folder} may not be made: choose another output, or change the permissions") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} may not be written to: choose another output, or change its permissions")
    return folder


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {"platform": platform.platform(), "device": gpu or "cpu", "threads": torch.get_num_threads()}


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in ("evle", "torch", "transformers", "accelerate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | {"git": _git_commit()}


def _git_commit() -> str:
    """The commit that evle's sources stand at, "-dirty" when changed; empty when installed without a checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
