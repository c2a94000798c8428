"""What a checkpoint holds, and bringing whole tensors in and out of a model that may be sharded over processes.

    model.safetensors      weights and persistent buffers, whole
    ema.safetensors        the averaged weights, when the run keeps them
    optimizer.safetensors  the optimizer's moments, whole, and its parameter groups as JSON (no pickle anywhere)
    state.json             position (epoch, batch), step, best score, counters
    SHA256SUMS             a checksum of each file, which `sha256sum -c` reads too

Tensors are stored whole, so a run may resume with another number of processes, and `best` opens without the engine.
"""

import contextlib
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from evle.distributed import is_main
from evle.engine.experts import as_part
from evle.errors import CheckpointError
from evle.files import checksum, parse_json, read_json

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
Count = Annotated[int, Field(ge=0)]
SUMS = "SHA256SUMS"


@dataclass
class Position:
    """Where a run is: all that is needed beside the tensors to resume it bit for bit.

    `step` counts finished optimizer steps; `epoch` and `batch` are where the loader resumes. Random numbers need no
    state: each step derives them from (seed, step).
    """

    step: Count = 0
    epoch: Count = 0
    batch: Count = 0
    num_batches: Count = 0
    best_score: float | None = None
    best_step: Count | None = None
    bad_evaluations: Count = 0
    samples: Count = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    recent: list[float] = field(default_factory=list)

    def to_json(self) -> str:
        """What state.json holds."""
        return json.dumps(asdict(self))

    def write(self, folder: Path) -> None:
        """Write state.json."""
        (folder / "state.json").write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read state.json. Raises CheckpointError when it is missing, damaged, or not of this version."""
        file = folder / "state.json"
        values = read_json(file, kind=dict, error=CheckpointError)
        values.setdefault("recent", [])  # a checkpoint of 0.1.0 has none
        if set(values) != {known.name for known in fields(cls)}:
            raise CheckpointError(f"{file}: written by another version of evle; start a new run")
        try:
            read = TypeAdapter(cls).validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CheckpointError(f"{file}: damaged ({where}: {first['msg']}; it is {first['input']!r:.60})") from None
        if read.num_batches and read.batch >= read.num_batches:
            raise CheckpointError(f"{file}: damaged (batch {read.batch} of an epoch of {read.num_batches} batches)")
        return read


def write_sums(folder: Path) -> None:
    """Write the checksums of the files in `folder`."""
    lines = [f"{checksum(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def verify(folder: Path, cure: str) -> None:
    """Compare the files in `folder` with their checksums; an older checkpoint may have none.

    Raises:
        CheckpointError: a file is missing or differs; the message ends with `cure`.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        logger.warning("%s has no %s: damage of its files cannot be detected", folder, SUMS)
        return
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / SUMS}: cannot be read ({error}); {cure}") from None
    for line in lines:
        expected, _, name = line.partition("  ")
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing from the checkpoint; {cure}")
        if checksum(file) != expected:
            raise CheckpointError(f"{file}: damaged (it does not match its checksum in {SUMS}); {cure}")


def model_state(model: nn.Module, scalars: Collection[str] = ()) -> State:
    """Whole weights and persistent buffers, tied ones once. Every process must call it; the main one gets them.

    `scalars` are the names that `widen_scalars` gave: as scalars they are stored, whether sharded or not.
    """
    state = _whole_in_main(own_tensors(model).items())
    return {name: tensor.reshape(()) if name in scalars else tensor for name, tensor in state.items()}


def own_tensors(model: nn.Module) -> State:
    """Weights and persistent buffers, tied ones once, in the memory of the model: parts where they are divided."""
    parameters = dict(model.named_parameters())
    once = parameters.keys() | {name for name, _ in model.named_buffers()}
    held = {name: tensor.detach() for name, tensor in model.state_dict().items() if name in once}
    return {name: as_part(tensor, parameters.get(name, tensor)) for name, tensor in held.items()}


def load_model_state(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Fill `model` with whole tensors, in place. Raises CheckpointError when they are of another model."""
    own = own_tensors(model)
    expected = list(own)  # in one order: sharded ones are filled by all processes together
    if wrong := sorted(set(expected) ^ state.keys()):
        raise CheckpointError(f"{where}: weights of another model ({len(wrong)} names differ, such as {wrong[0]!r})")
    for name in expected:
        if own[name].shape != state[name].shape and not own[name].numel() == state[name].numel() == 1:
            shapes = f"{tuple(state[name].shape)}, the model's {tuple(own[name].shape)}"
            raise CheckpointError(f"{where}: {name!r} has shape {shapes}; it is of another model")
        fill(own[name], state[name])


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state with whole tensors. Every process must call it; the main one gets it."""
    state = optimizer.state_dict()
    moments = {index: _whole_in_main(entry.items()) for index, entry in own_moments(optimizer).items()}
    return {"state": moments, "param_groups": state["param_groups"]}


def own_moments(optimizer: Optimizer) -> dict[int, State]:
    """The moments of each parameter, by its index, in the memory of the optimizer: parts where it is divided."""
    parameters = parameters_of(optimizer)
    return {
        index: {
            name: as_part(torch.as_tensor(value), parameters[index]) if name != "step" else torch.as_tensor(value)
            for name, value in entry.items()
        }
        for index, entry in optimizer.state_dict()["state"].items()
    }


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of an optimizer in the order of their indices."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any], where: str) -> None:
    """Give `optimizer` what `optimizer_state` took. Raises CheckpointError when it is of another model."""
    parameters = [as_part(parameter.detach(), parameter) for parameter in parameters_of(optimizer)]
    _check_moments(state, parameters, where)
    own = parameters_of(optimizer)
    moments = {
        index: {
            name: value if name == "step" else as_held(_as(value, parameters[index]), own[index])  # a counter
            for name, value in entry.items()
        }
        for index, entry in state["state"].items()
        if index < len(parameters)
    }
    # How the update is computed is this machine's business: a run may resume on another one.
    ours = [{"fused": group["fused"]} if "fused" in group else {} for group in optimizer.param_groups]
    ours += [{}] * (len(state["param_groups"]) - len(ours))
    groups = [{**group, **own} for group, own in zip(state["param_groups"], ours, strict=False)]
    try:
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}: the optimizer's state is of another model ({error})") from None


def _check_moments(state: dict[str, Any], parameters: list[Tensor], where: str) -> None:
    """Every parameter of a group has the same moments, each of the parameter's shape or a single number."""
    for group in state["param_groups"]:
        kinds: set[frozenset[str]] = set()
        for index in group["params"]:
            moments = state["state"].get(index, {})
            kinds |= {frozenset(moments)} - {frozenset()}
            shape = parameters[index].shape if index < len(parameters) else None
            for name, value in moments.items():
                if value.numel() != 1 and shape is not None and value.shape != shape:
                    raise CheckpointError(
                        f"{where}: {name} of parameter {index} has shape {tuple(value.shape)}, the model's parameter "
                        f"{tuple(shape)}; it is damaged or of another model"
                    )
        if len(kinds) > 1:
            raise CheckpointError(f"{where}: damaged (some parameters lack {', '.join(sorted(_differing(kinds)))})")


def _differing(kinds: set[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*kinds) - frozenset.intersection(*kinds)


class Average:
    """An exponential moving average of the weights that are trained, kept in float32, sharded as they are.

    After step t the decay is min(decay, (1 + t) / (10 + t)), so that a short run is not held back by its beginning.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after optimizer step `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(parameter.detach().float(), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the averaged ones; a second call undoes the first, bit for bit."""
        for name, parameter in self.parameters.items():
            weights = parameter.detach().float().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(weights)

    def state(self) -> State:
        """Whole averages. Every process must call it; the main one gets them."""
        return _whole_in_main(self.own_tensors().items())

    def own_tensors(self) -> State:
        """The averages, in their memory: parts where parameters are divided."""
        return {name: as_part(value, self.parameters[name]) for name, value in self.values.items()}

    def load(self, state: Mapping[str, Tensor], where: str) -> None:
        """Take the averages that `state` gave."""
        if state.keys() != self.values.keys():
            raise CheckpointError(f"{where}: averaged weights of another model")
        for name, value in self.own_tensors().items():
            fill(value, state[name])


def write_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that transformers reads too."""
    save_file(dict(state), path, metadata={"format": "pt"})


def read_tensors(path: Path) -> State:
    """Read a safetensors file. Raises CheckpointError when it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def write_optimizer(state: dict[str, Any], path: Path) -> None:
    """Write what `optimizer_state` gave: tensors named "<parameter's index>.<moment>", groups in the metadata."""
    tensors = {f"{index}.{name}": value for index, entry in state["state"].items() for name, value in entry.items()}
    groups = json.dumps(state["param_groups"])
    save_file(tensors, path, metadata={"param_groups": groups, "num_tensors": str(len(tensors))})


def read_optimizer(path: Path) -> dict[str, Any]:
    """Read what `write_optimizer` wrote. Raises CheckpointError when it is missing or damaged."""
    tensors = read_tensors(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    groups = parse_json(metadata.get("param_groups", ""), f"{path}, param_groups", kind=list, error=CheckpointError)
    if metadata.get("num_tensors", str(len(tensors))) != str(len(tensors)):
        raise CheckpointError(f"{path}: damaged ({len(tensors)} tensors of {metadata['num_tensors']})")
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        if not index.isdecimal():
            raise CheckpointError(f"{path}: damaged (a tensor is named {key!r:.60})")
        moments.setdefault(int(index), {})[name] = value
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
        raise CheckpointError(f"{path}: damaged (param_groups hold no parameters)")
    return {"state": moments, "param_groups": groups}


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Write the whole `value` into `tensor`, which may be sharded."""
    tensor.copy_(_as(value, tensor))


def as_held(value: Any, parameter: Tensor) -> Any:
    """A part as `parameter` itself holds it: FSDP2's parameters are parts, those of divided experts are tensors."""
    return value.to_local() if isinstance(value, DTensor) and not isinstance(parameter, DTensor) else value


def widen_scalars(model: nn.Module) -> set[str]:
    """Give scalar parameters (a temperature) the shape (1,), in place, as FSDP shards no scalar; their names."""
    scalars = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() == 0}
    for parameter in scalars.values():
        parameter.data = parameter.data.reshape(1)
    return set(scalars)


def narrow_scalars(model: nn.Module, scalars: Collection[str]) -> None:
    """Undo `widen_scalars`, in a model that is whole again."""
    for name, parameter in model.named_parameters():
        if name in scalars:
            parameter.data = parameter.data.reshape(())


def unshard(model: nn.Module) -> list[FSDPModule]:
    """Hold whole parameters in every process from now on; the parts that were sharded. Every process must call it.

    FSDP2 gathers parameters around `forward` only, and then in all processes at once. After this, any method of `model`
    may be called, any number of times. Nothing happens to models that are not sharded.
    """
    shards: list[FSDPModule] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    return shards


@contextlib.contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """`unshard` meanwhile: validation in the middle of training."""
    shards = unshard(model)
    try:
        yield
    finally:
        for shard in shards:
            shard.set_reshard_after_forward(True, recurse=False)
            shard.reshard()


def _whole_in_main(named: Iterable[tuple[str, Tensor]]) -> State:
    """Copies on the CPU, one tensor after the other: only the main process, which writes them, holds them all."""
    state: State = {}
    for name, tensor in named:
        found = whole(tensor.detach())
        if is_main():
            state[name] = found.to("cpu", copy=True).contiguous()
    return state


def _as(value: Any, like: Tensor) -> Any:
    """`value` sharded as `like` is, where it has its shape; a single number has any shape of one."""
    if isinstance(value, Tensor) and value.numel() == like.numel() == 1:
        value = value.reshape(like.shape)
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value
