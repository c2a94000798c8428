"""A folder that `evle export` wrote: its graphs, and how images and texts become their inputs (export.json)."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from evle.errors import CheckpointError, ConfigError, in_one_line, nearest
from evle.files import checksum, read_json

FACTS = "export.json"
"""In an exported folder: `format`, `runs` (graph by function), `heads`, the fields `image`, `text` and `scores`, and
`checksums`, of other files and of these fields."""
TOKENIZER = "tokenizer.json"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_colours(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (1, 3) and all(map(_is_number, value))


FORMS: Mapping[str, Callable[[Any], bool]] = {
    "runs": lambda value: isinstance(value, dict),
    "heads": lambda value: isinstance(value, list),
    "image.side": _is_count,
    "image.framing": lambda value: isinstance(value, str),
    "image.mean": _are_colours,
    "image.std": _are_colours,
    "text.max_length": _is_count,
    "text.clean": lambda value: isinstance(value, bool),
    "text.max_words": lambda value: value is None or _is_count(value),
    "text.pad": _is_count,
    "text.slot": lambda value: value is None or _is_count(value),
    "text.truncation_side": lambda value: value in ("left", "right"),
    "text.padded_to": lambda value: value is None or _is_count(value),
}
"""The fields of export.json that every pipeline reads, and whether a value is one that `evle export` writes."""
RUN_FORMS: Mapping[str, Callable[[Any], bool]] = {
    "file": lambda value: isinstance(value, str),
    "inputs": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "output": lambda value: isinstance(value, str),
}


def is_exported(path: str | Path) -> bool:
    """Whether `path` is a folder that `evle export` wrote."""
    return (Path(path) / FACTS).is_file()


def checksum_of_facts(facts: Mapping[str, Any]) -> str:
    """The SHA-256 of the fields of export.json but `checksums`, however they are laid out."""
    fields = {name: value for name, value in facts.items() if name != "checksums"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


class ExportedModel:
    """The graphs of an exported folder, opened when they are first run; threads may share one.

    Raises CheckpointError for a folder that is damaged, or holds programs of torch instead of ONNX files.
    """

    def __init__(self, path: str | Path, num_threads: int | None = None):
        self.path = Path(path)
        file = self.path / FACTS
        if not file.is_file():
            raise CheckpointError(f"{path}: not an exported model (no {FACTS}); write one with `evle export`")
        self.facts: dict[str, Any] = read_json(file, kind=dict, error=CheckpointError)
        if self.facts.get("format") != "onnx":
            raise CheckpointError(
                f"{path}: holds programs of torch.export, which torch.export.load reads; export with --format onnx to "
                "run it here"
            )
        missing = {"runs", "heads", "image", "text"} - self.facts.keys()
        if missing:
            raise CheckpointError(f"{file}: lacks {', '.join(sorted(missing))}; export the model again")
        for field, fits in FORMS.items():
            self._refuse_odd(field, fits)
        for function in self.facts["runs"]:
            for field, fits in RUN_FORMS.items():
                self._refuse_odd(f"runs.{function}.{field}", fits)
        graphs = {graph["file"] for graph in self.facts["runs"].values()}
        checksums = self.facts.get("checksums")
        for name in sorted(checksums) if isinstance(checksums, dict) else ():
            if name not in graphs:  # those are large, and checked when they are first run
                self._refuse_damaged(name)
        self._num_threads = num_threads
        self._sessions: dict[str, Any] = {}
        self._opening = Lock()

    def fact(self, field: str, kind: type) -> Any:
        """A field of export.json that not every model has. Raises CheckpointError where it is missing or odd."""
        self._refuse_odd(field, lambda value: _is_number(value) if kind is float else isinstance(value, kind))
        return self.facts[field]

    def _refuse_odd(self, field: str, fits: Callable[[Any], bool]) -> None:
        """Raise CheckpointError for a field, such as image.mean, that is missing or has another form."""
        value: Any = self.facts
        for name in field.split("."):
            if not isinstance(value, dict) or name not in value:
                raise CheckpointError(f"{self.path / FACTS}: lacks {field}; export the model again")
            value = value[name]
        if not fits(value):
            raise CheckpointError(
                f"{self.path / FACTS}: {field} is {str(value)[:60]!r}, which no export writes; export the model again"
            )

    def __contains__(self, function: str) -> bool:
        return function in self.facts["runs"]

    def require(self, *functions: str) -> None:
        """Raise CheckpointError unless the folder has graphs of these functions."""
        for function in functions:
            if function not in self:
                runs = self.facts["runs"]
                raise CheckpointError(f"{self.path}: has no graph {function!r}; it has: {', '.join(runs)}")

    def run(self, function: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """What a graph gives for the inputs that it names. Raises CheckpointError for a function that is not there."""
        self.require(function)
        graph = self.facts["runs"][function]
        session = self._session(function)
        if lacking := [name for name in graph["inputs"] if name not in inputs]:
            raise CheckpointError(
                f"{self.path}: the graph {function!r} needs {', '.join(lacking)}, which this pipeline does not give; "
                "export the model again"
            )
        try:
            return np.asarray(session.run([graph["output"]], {name: inputs[name] for name in graph["inputs"]})[0])
        except Exception as error:  # onnxruntime raises a class for each kind of failure
            raise CheckpointError(
                f"{self.path / graph['file']}: onnxruntime cannot run it ({in_one_line(error)}); export the model again"
            ) from error

    def _session(self, function: str) -> Any:
        with self._opening:
            if function not in self._sessions:
                name = str(self.facts["runs"][function]["file"])
                self._refuse_damaged(name)
                session = open_graph(self.path / name, self._num_threads)
                inputs, outputs = (
                    {node.name for node in each} for each in (session.get_inputs(), session.get_outputs())
                )
                self._refuse_odd(f"runs.{function}.inputs", lambda names: set(names) == inputs)
                self._refuse_odd(f"runs.{function}.output", lambda name: name in outputs)
                self._sessions[function] = session
            return self._sessions[function]

    def _refuse_damaged(self, name: str) -> None:
        """Raise CheckpointError where a file has other bytes, or export.json other fields, than `evle export` wrote."""
        checksums = self.facts.get("checksums")
        file = self.path / name
        if isinstance(checksums, dict) and name in checksums and file.is_file():
            found = checksum_of_facts(self.facts) if name == FACTS else checksum(file)
            written = checksums[name]
            if found != written:
                raise CheckpointError(
                    f"{file}: changed or damaged, or not of this export (its checksum is {found}, and was {written!r} "
                    "when written); copy the folder again, or export the model again"
                )


def open_graph(file: Path, num_threads: int | None = None) -> Any:
    """An onnxruntime session of one file, on the CPU.

    Raises ConfigError without onnxruntime, CheckpointError for a file that is missing or damaged.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("an exported model needs onnxruntime; pip install 'evle[export]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; export the model again")
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a class for each kind of damage
        raise CheckpointError(f"{file}: onnxruntime cannot open it ({in_one_line(error)}); export again") from None


def labels_of(path: Path) -> list[str]:
    """The names of a model's answers, in order, from its config.json."""
    file = path / "config.json"
    labels = json.loads(file.read_text(encoding="utf-8")).get("id2label") if file.is_file() else None
    if not isinstance(labels, dict):
        raise CheckpointError(f"{file}: names no answers (id2label); export the model again")
    return [str(label) for _, label in sorted(labels.items(), key=lambda item: int(item[0]))]


def head_for(path: Path, wanted: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """The name of the model class in `wanted` (by family) that an exported folder stands for. Raises CheckpointError
    where it was exported from another head."""
    family = str(facts.get("family"))
    if family not in wanted:
        raise CheckpointError(f"{path}: exported from a model of the family {family!r}; {nearest(family, wanted)}")
    if wanted[family] not in facts["heads"]:
        raise CheckpointError(
            f"{path}: exported from {', '.join(facts['heads'])}, but {wanted[family]} is needed here; export a model "
            "that was fine-tuned for this task"
        )
    return wanted[family]
