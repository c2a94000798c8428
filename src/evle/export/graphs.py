"""The graphs of a trained model, with a dynamic batch and text length, each held against the model itself.

A retrieval model gives `image`, `text` (its embeddings) and `match` (its joint pass); other heads give `model`. B rows
of a batch, T text tokens, S side of the images.
"""

import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from evle.errors import CheckpointError, ConfigError, in_one_line, nearest
from evle.files import write_whole
from evle.models.folders import model_folder, read_fields
from evle.models.loading import load_model
from evle.report import Table
from evle.share.card import save_card
from evle.share.facts import run_facts, write_run_facts
from evle.tasks import TASKS
from evle.tasks.retrieval import learns_matching

Format = Literal["onnx", "torch"]
SUFFIXES: Mapping[str, str] = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4
PIXELS, IDS, MASK = "pixel_values", "input_ids", "attention_mask"
SHAPES = ((2, 7), (1, 4), (5, 11))
"""Rows and tokens that a graph is exported with (the first) and checked with (all)."""
HEADS = ("retrieval", "vqa", "nlvr2")
"""The tasks whose models are exported."""


@dataclass(frozen=True)
class Graph:
    """One function of a model: its name, the names of its inputs in order, and the name of its output."""

    name: str
    inputs: tuple[str, ...]
    output: str
    run: Callable[..., Tensor]


def graphs_of(model: Any, task: str) -> list[Graph]:
    """The graphs of a model with the head of `task`."""
    if task != "retrieval":
        return [Graph("model", (PIXELS, IDS, MASK), "logits", lambda **inputs: model(**inputs).logits)]
    graphs = [
        Graph("image", (PIXELS,), "features", model.get_image_features),
        Graph("text", (IDS, MASK), "features", model.get_text_features),
    ]
    if learns_matching(model.config):
        graphs.append(Graph("match", (PIXELS, IDS, MASK), "logits", model.itm_logits))
    return graphs


def export(source: str | Path, output: Path, form: Format = "onnx") -> Table:
    """Write the graphs of a trained model into `output`, with its config.json, tokenizer, processor and card.

    The table has a row for each graph: the largest difference from the model over all shapes, and how many times as
    fast as torch it is.

    Raises:
        ConfigError: an unknown format, a model of another task, an output that is not empty, a missing library.
        CheckpointError: no model, a graph that torch cannot export, or that differs by more than TOLERANCE.
    """
    if form not in SUFFIXES:
        raise ConfigError(f"--format {form}: cannot be written; {nearest(form, SUFFIXES)}")
    if form == "onnx":
        _need_onnx()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output}: is not empty; choose another output")
    folder = model_folder(source)
    model, processor, task = _load(folder)
    output.mkdir(parents=True, exist_ok=True)
    rows: list[list[Any]] = []
    for graph in graphs_of(model, task):
        file = output / f"{graph.name}{SUFFIXES[form]}"
        _write(model, graph, file, form, paired=task == "nlvr2")
        rows.append([graph.name, *_compare(model, graph, file, form, paired=task == "nlvr2")])
    model.config.save_pretrained(output)
    processor.save_pretrained(output)
    facts = run_facts(folder)
    write_run_facts(output, facts)
    save_card(output)
    names = [f"{row[0]}{SUFFIXES[form]}" for row in rows]
    write_whole(output / "export.json", json.dumps({"format": form, "task": task, "graphs": names}, indent=1) + "\n")
    note = f"float32; checked with rows x tokens of {', '.join(f'{b} x {t}' for b, t in SHAPES)}"
    return Table("Export", ["graph", "largest difference", "times as fast as torch"], rows, note)


def _load(folder: Path) -> tuple[Any, Any, str]:
    """The model with its own head, in float32, its processor, and the name of its task."""
    fields = read_fields(folder, TASKS["retrieval"].models)
    head = str((fields.get("architectures") or [""])[0])
    for task in HEADS:
        model_class = TASKS[task].models.get(fields["model_type"])
        if model_class is not None and model_class.__name__ == head:
            model: Any
            model, processor = load_model(folder, {fields["model_type"]: model_class})
            model = nn.Module.to(model, torch.float32).eval()
            if fields["model_type"] == "eve":
                if model.config.capacity_factor is not None:
                    raise ConfigError(
                        f"{folder}: routes with a capacity, which depends on the batch; export it without "
                        "(config.json: capacity_factor null)"
                    )
                model.set_experts_implementation("batched_mm")  # the others read counts, and fix them in the graph
            return model, processor, task
    raise ConfigError(f"{folder}: holds {head}, which is not exported; export a model of: {', '.join(HEADS)}")


def _need_onnx() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error.name} is missing; install it with pip install 'evle[export]'") from None


class _Call:
    """Example inputs of a graph, and their dynamic dimensions."""

    def __init__(self, model: PreTrainedModel, rows: int, length: int, paired: bool):
        config: Any = model.config
        generator = torch.Generator().manual_seed(rows * 1000 + length)
        side, words = config.image_size, config.vocab_size if hasattr(config, "vocab_size") else None
        words = words or config.text_config.vocab_size
        length = min(length, config.max_position_embeddings)
        mask = torch.ones(rows, length, dtype=torch.long)
        mask[0, max(1, length - 2) :] = 0  # a padded text
        shape = (rows, 2, 3, side, side) if paired else (rows, 3, side, side)
        self.values: dict[str, Tensor] = {
            PIXELS: torch.randn(shape, generator=generator),
            IDS: torch.randint(1, words, (rows, length), generator=generator),
            MASK: mask,
        }

    def of(self, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: self.values[name] for name in names}


def _dynamic(names: Sequence[str]) -> dict[str, dict[int, Any]]:
    free = torch.export.Dim.DYNAMIC
    return {name: {0: free} if name == PIXELS else {0: free, 1: free} for name in names}


def _write(model: PreTrainedModel, graph: Graph, file: Path, form: Format, *, paired: bool) -> None:
    from evle.models.exporting import AsModule  # parameters live under models

    inputs = _Call(model, *SHAPES[0], paired).of(graph.inputs)
    module = AsModule(model, graph.run, graph.inputs)
    noise = StringIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(noise):
            warnings.simplefilter("ignore")
            shapes = tuple(_dynamic(graph.inputs).values())
            program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=(shapes,), strict=False)
            if form == "torch":
                torch.export.save(program, file)
                return
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=list(graph.inputs),
                output_names=[graph.output],
            )
            exported.save(file)
    except Exception as error:  # torch raises a dozen kinds
        raise CheckpointError(f"{file.name}: torch cannot export this graph ({in_one_line(error)})") from error


def _compare(model: PreTrainedModel, graph: Graph, file: Path, form: Format, *, paired: bool) -> tuple[float, float]:
    """The largest difference between a written graph and the model, and its speed as a multiple of torch's."""
    run = _runner(file, form, graph)
    largest = 0.0
    for shape in SHAPES:
        inputs = _Call(model, *shape, paired).of(graph.inputs)
        with torch.no_grad():
            wanted = graph.run(**inputs).numpy()
        largest = max(largest, float(np.abs(run(inputs) - wanted).max()))
    if not largest <= TOLERANCE:
        raise CheckpointError(f"{file}: differs from the model by {largest:.2g}, more than {TOLERANCE}; do not use it")
    inputs = _Call(model, *SHAPES[-1], paired).of(graph.inputs)
    with torch.no_grad():
        return largest, _seconds(lambda: graph.run(**inputs)) / _seconds(lambda: run(inputs))


def _runner(file: Path, form: Format, graph: Graph) -> Callable[[Mapping[str, Tensor]], np.ndarray]:
    if form == "torch":
        program = torch.export.load(file).module()
        return lambda inputs: program(*inputs.values()).detach().numpy()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
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
