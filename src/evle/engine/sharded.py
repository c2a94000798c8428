"""Checkpoints in parts: each process writes what it holds (torch.distributed.checkpoint), any number of them reads it.

    shard-*.safetensors    parts of model.NAME, ema.NAME and optimizer.INDEX.MOMENT; no pickle
    groups.json            the optimizer's parameter groups
    state.json, SHA256SUMS as in a checkpoint of whole tensors (`evle.engine.checkpoint`)

Reading cuts the tensors again for the processes that read, so a run moves between one process, DDP and FSDP2.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.optim import Optimizer

from evle.distributed import barrier, gather_objects, is_main, world_size
from evle.engine.checkpoint import Average, State, as_held, own_moments, own_tensors, parameters_of, write_sums
from evle.engine.experts import as_part
from evle.engine.run_folder import replace_folder
from evle.errors import CheckpointError, in_one_line
from evle.files import flush_file, flush_folder, read_json

GROUPS = "groups.json"


def is_sharded(folder: Path) -> bool:
    """Whether a checkpoint is in parts."""
    return (folder / GROUPS).is_file()


def save(folder: Path, model: nn.Module, optimizer: Optimizer, average: Average | None, position: str) -> str:
    """Write a checkpoint in parts, whole or not at all; the problem in words, or an empty string, in every process.

    Every process must call it; all must see `folder`. `position` is the text of state.json.
    """
    new, problem = folder.with_name(folder.name + ".new"), ""
    if is_main():
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
    barrier()
    tensors = _own_tensors(model, average) | _moments(optimizer)
    try:
        with _quiet():
            writer = HuggingFaceStorageWriter(str(new), save_distributed=True)
            save_parts(tensors, storage_writer=writer, no_dist=world_size() == 1)
        if is_main():
            (new / GROUPS).write_text(json.dumps(optimizer.state_dict()["param_groups"]), encoding="utf-8")
            (new / "state.json").write_text(position, encoding="utf-8")
            write_sums(new)
            for file in new.iterdir():
                flush_file(file)
            flush_folder(new)
    except (OSError, CheckpointException, SafetensorError) as error:
        problem = in_one_line(error)
    problem = next(filter(None, gather_objects([problem])), "")
    if is_main() and problem:
        shutil.rmtree(new, ignore_errors=True)
    elif is_main():
        replace_folder(folder, new)
    barrier()
    return problem


def load(folder: Path, model: nn.Module, optimizer: Optimizer, average: Average | None) -> None:
    """Fill model, optimizer and averages from a checkpoint in parts, as they are sharded here.

    Every process must call it. Raises CheckpointError when it is damaged or of another model.
    """
    groups = read_json(folder / GROUPS, kind=list, error=CheckpointError)
    try:
        with _quiet():
            reader = HuggingFaceStorageReader(str(folder))
            stored = reader.read_metadata().state_dict_metadata
            own = _own_tensors(model, average)
            kept = {name: each for name, each in stored.items() if not name.startswith("optimizer.")}
            _refuse_other_model(folder, own, kept)
            held = parameters_of(optimizer)
            parameters = [as_part(parameter.detach(), parameter) for parameter in held]
            moments = {name: _like(stored[name], name, parameters) for name in stored if name.startswith("optimizer.")}
            load_parts(own | moments, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=world_size() == 1)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in moments.items():
            _, index, moment = name.split(".")
            shape = () if moment == "step" else parameters[int(index)].shape
            value = value.reshape(shape) if value.numel() == 1 else value
            state.setdefault(int(index), {})[moment] = as_held(value, held[int(index)])
        ours = [{"fused": group["fused"]} if "fused" in group else {} for group in optimizer.param_groups]
        groups = [{**group, **each} for group, each in zip(groups, ours, strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except CheckpointError:
        raise
    except (OSError, CheckpointException, SafetensorError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({in_one_line(error)})") from None


def _own_tensors(model: nn.Module, average: Average | None) -> State:
    """Weights, persistent buffers and averages, each in its place: reading fills them."""
    state = {f"model.{name}": tensor for name, tensor in own_tensors(model).items()}
    state |= {f"ema.{name}": value for name, value in (average.own_tensors().items() if average is not None else ())}
    return {name: _with_dimension(value) for name, value in state.items()}


def _with_dimension(tensor: Tensor) -> Tensor:
    """A single number as one of a vector, as FSDP holds it: sharded or not, it has one shape in a checkpoint."""
    return tensor.reshape(1) if tensor.dim() == 0 else tensor


def _moments(optimizer: Optimizer) -> State:
    return {
        f"optimizer.{index}.{name}": _with_dimension(value)
        for index, entry in own_moments(optimizer).items()
        for name, value in entry.items()
    }


def _like(stored: Any, name: str, parameters: list[Tensor]) -> Tensor:
    """An empty tensor for a stored moment: sharded as its parameter is where it has its shape."""
    _, index, moment = name.split(".")
    parameter = parameters[int(index)]
    if moment != "step" and stored.size == _with_dimension(parameter).shape:
        return _with_dimension(torch.zeros_like(parameter, dtype=stored.properties.dtype).detach())
    return torch.zeros(stored.size, dtype=stored.properties.dtype)


def _refuse_other_model(folder: Path, wanted: Mapping[str, Tensor], stored: Mapping[str, Any]) -> None:
    if wrong := sorted(wanted.keys() ^ stored.keys()):
        raise CheckpointError(f"{folder}: of another model ({len(wrong)} names differ, such as {wrong[0]!r})")
    for name, tensor in wanted.items():
        if tensor.shape != stored[name].size:
            raise CheckpointError(
                f"{folder}: {name!r} has shape {tuple(stored[name].size)}, the model's {tuple(tensor.shape)}; it is of "
                "another model"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's hints for its developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loud = logging.getLogger("torch.distributed.checkpoint")
        level = loud.level
        loud.setLevel(logging.ERROR)
        try:
            yield
        finally:
            loud.setLevel(level)
