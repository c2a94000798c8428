"""Write the graphs of a trained model with a free batch and text length, each compared with the model itself."""

import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from evle.errors import CheckpointError, ConfigError, in_one_line, nearest
from evle.export.facts import check_texts, facts_of
from evle.export.heads import Graph, Sizes, example, free_axes, may_be_free, read_graphs, sizes_to_check
from evle.export.int8 import quantise
from evle.exported.folder import FACTS, TOKENIZER, checksum_of_facts, open_graph
from evle.files import checksum, write_whole
from evle.models.exporting import AsModule
from evle.models.folders import model_folder
from evle.report import Table
from evle.share.card import save_card
from evle.share.facts import run_facts, write_run_facts

logger = logging.getLogger(__name__)

Format = Literal["onnx", "torch"]
SUFFIXES: Mapping[str, str] = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4
OPSETS = range(18, 23)
"""The versions of ONNX's operators that graphs are written in; torch writes none older. From 23 on, attention is
an operator of its own, in which onnxruntime takes no mask that is the same for all rows of a query."""
OPSET = 20
TASK_STATE = "task.json"
"""What a task learned beside its weights; evaluation reads it."""
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
"""Where transformers keeps how images are prepared, which the pipelines with torch read."""
ALONE = ("image", "text", "match")
"""Functions whose files have their name; a model's only other graph is the file `model`."""


@dataclass(frozen=True)
class _Written:
    """A graph that was written and agrees with the model."""

    graph: Graph
    file: Path
    free: bool
    difference: float
    speed: float
    megabytes: float
    difference_int8: float | None = None


def export(
    source: str | Path, output: Path, form: Format = "onnx", *, opset: int | None = None, int8: bool = False
) -> Table:
    """Write the graphs of a trained model into `output`, with its config.json, tokenizer, processor and card.

    The table has a row for each graph: the largest difference from the model over all sizes of inputs, in float32, how
    many times as fast as torch it is, its megabytes, and whether the image size is free.

    Args:
        source: a run's folder, a model folder or a hub name.
        output: a folder that does not exist or is empty.
        form: "onnx", or "torch" for programs of torch.export.
        opset: the version of ONNX's operators.
        int8: keep the weights of matrix products in 8 bits; the table shows how far the outputs move.

    Raises:
        ConfigError: impossible options, an output that is not empty, a missing library.
        CheckpointError: no model, a head that is not exported, a graph that torch cannot export, or that differs by
            more than TOLERANCE.
    """
    _check_options(output, form, opset, int8)
    folder = model_folder(source)
    graphs, heads = read_graphs(folder)
    facts, pipeline = facts_of(folder, graphs, heads)
    output.mkdir(parents=True, exist_ok=True)
    graphs[0].config.save_pretrained(output)
    pipeline.processor.save_pretrained(output)
    check_texts(output, facts, pipeline)
    written = []
    for graph in graphs:
        stem = graph.function if graph.function in ALONE or len(graphs) > 1 else "model"
        written.append(_write_checked(graph, output / f"{stem}{SUFFIXES[form]}", form, opset or OPSET, int8))
    write_run_facts(output, run_facts(folder))
    if (folder / TASK_STATE).is_file():
        shutil.copy(folder / TASK_STATE, output)
    runs = {
        each.graph.function: {"file": each.file.name, "inputs": list(each.graph.inputs), "output": each.graph.output}
        for each in written
    }
    own = {"format": form, "int8": int8, "graphs": [each.file.name for each in written], "runs": runs}
    if int8:
        facts["fingerprint"] += "-int8"
    free = all(each.free for each in written if "pixel_values" in each.graph.inputs)
    facts["image"]["free"] = free
    checked = [*(each.file.name for each in written), TOKENIZER, *PROCESSORS]
    checksums = {name: checksum(output / name) for name in checked if (output / name).is_file()}
    facts = {**own, **facts}
    facts["checksums"] = {**checksums, FACTS: checksum_of_facts(facts)}
    write_whole(output / FACTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    save_card(output)
    return _table(written, int8)


def _table(written: list[_Written], int8: bool) -> Table:
    columns = ["graph", "largest difference", "times as fast as torch", "MB", "image size"]
    rows: list[list[Any]] = []
    for each in written:
        size = "-" if "pixel_values" not in each.graph.inputs else "free" if each.free else "fixed"
        row = [each.file.stem, each.difference, each.speed, each.megabytes, size]
        rows.append([*row, each.difference_int8] if int8 else row)
    note = f"float32, at most {TOLERANCE:g} is accepted; batch and text length are free"
    if int8:
        columns.append("largest difference in int8")
        note += "; speed and size are those of int8"
    return Table("Export", columns, rows, note)


def _check_options(output: Path, form: str, opset: int | None, int8: bool) -> None:
    if form not in SUFFIXES:
        raise ConfigError(f"--format {form}: cannot be written; {nearest(form, SUFFIXES)}")
    if form != "onnx" and (int8 or opset is not None):
        raise ConfigError(f"{'--int8' if int8 else '--opset'} is for ONNX files; leave out --format {form}")
    if opset is not None and opset not in OPSETS:
        trouble = "too old" if opset < OPSETS.start else "not known"
        raise ConfigError(f"--opset {opset}: {trouble}; choose one from {OPSETS.start} to {OPSETS.stop - 1}")
    if form == "onnx":
        try:
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"{error.name} is missing; install it with pip install 'evle[export]'") from None
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output}: is not empty; choose another output")


def _write_checked(graph: Graph, file: Path, form: Format, opset: int, int8: bool) -> _Written:
    """Write a graph with a free image size where the model can, else for its own size, and compare it."""
    for free in (True, False) if may_be_free(graph) else (False,):
        try:
            _write(graph, file, form, opset, free)
            difference = _largest_difference(graph, _runner(file, form, graph), free=free)
            break
        except CheckpointError as error:
            if not free:
                raise
            logger.info("%s: the image size stays fixed (%s)", file.name, error)
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{file}: differs from the model by {difference:.2g}, more than {TOLERANCE:g}; do not use it"
        )
    moved = None
    if int8:
        small = file.with_suffix(".int8")
        quantise(file, small)
        small.replace(file)
        moved = _largest_difference(graph, _runner(file, form, graph), free=False)
    run = _runner(file, form, graph)
    inputs = example(graph, sizes_to_check(graph, free=False)[-1])
    with torch.no_grad():
        speed = _seconds(lambda: graph.run(**inputs)) / _seconds(lambda: run(inputs))
    return _Written(graph, file, free, difference, speed, file.stat().st_size / 1e6, moved)


def _write(graph: Graph, file: Path, form: Format, opset: int, free: bool) -> None:
    inputs = example(graph, sizes_to_check(graph, free=free)[0])
    module = AsModule(graph.model, graph.run, graph.inputs)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            shapes = free_axes(graph, inputs, free=free)
            program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=(shapes,), strict=False)
            if form == "torch":
                torch.export.save(program, file)
                return
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=opset,
                input_names=list(graph.inputs),
                output_names=[graph.output],
            )
            exported.save(file)
    except Exception as error:  # torch raises a dozen kinds
        raise CheckpointError(f"{file.name}: torch cannot export this graph ({in_one_line(error)})") from error
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _largest_difference(graph: Graph, run: Callable[[Mapping[str, Tensor]], np.ndarray], *, free: bool) -> float:
    """The largest difference between a written graph and the model over all sizes of inputs.

    Raises CheckpointError for a size that the graph cannot take.
    """
    largest = 0.0
    for sizes in sizes_to_check(graph, free=free):
        inputs = example(graph, sizes)
        with torch.no_grad():
            wanted = graph.run(**inputs).numpy()
        try:
            given = run(inputs)
        except Exception as error:  # onnxruntime and torch raise what they like
            raise CheckpointError(f"{_named(sizes)}: the graph cannot take it ({in_one_line(error)})") from error
        largest = max(largest, float(np.abs(given - wanted).max()))
    return largest


def _named(sizes: Sizes) -> str:
    return f"{sizes.rows} rows of {sizes.tokens} tokens, {sizes.height} x {sizes.width} pixels"


def _runner(file: Path, form: Format, graph: Graph) -> Callable[[Mapping[str, Tensor]], np.ndarray]:
    if form == "torch":
        program = torch.export.load(file).module()
        return lambda inputs: program(*inputs.values()).detach().numpy()
    session = open_graph(file, torch.get_num_threads())
    return lambda inputs: np.asarray(session.run([graph.output], {k: v.numpy() for k, v in inputs.items()})[0])


def _seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """The shortest of several calls, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
