"""Expert parallelism: the experts of a model divided over processes while it is trained (`train.expert_parallel`).

With P parts, W processes form W / P groups of P neighbours. In a group each process holds a P-th of the experts, their
gradients and moments, and computes them for the tokens of the whole group (`evle.models.dispatch`). All other
parameters are whole in every process, and DistributedDataParallel averages their gradients over all of them. The
gradients of an expert hold the tokens of a group already; they are summed over the groups and divided by W, so all
parameters follow the same mean over processes.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PreTrainedModel

from evle.distributed import world_size
from evle.errors import ConfigError
from evle.models.dispatch import PARTS, REPLICAS, Experts

KEY = "train.expert_parallel"


class DividedExperts:
    """The experts of one model, from the moment they are divided until they are `join`ed."""

    def __init__(self, model: PreTrainedModel, num_parts: int, device: str):
        """Keep a part of the experts of `model`, in place: the parameters stay the same objects. `device` is a type.

        Raises ConfigError where the model has no experts, or experts or processes cannot be divided evenly.
        """
        self._modules = {name: module for name, module in model.named_modules() if isinstance(module, Experts)}
        if not self._modules:
            raise ConfigError(f"{KEY}={num_parts}: {type(model).__name__} has no experts to divide; set it to 1")
        _refuse_uneven(num_parts, world_size(), "processes")
        for module in self._modules.values():
            _refuse_uneven(num_parts, module.num_experts, "experts per block")
        self.mesh = init_device_mesh(device, (world_size() // num_parts, num_parts), mesh_dim_names=(REPLICAS, PARTS))
        self.parameters = {
            f"{name}.{own}": parameter
            for name, module in self._modules.items()
            for own, parameter in module.named_parameters(recurse=False)
        }
        for module in self._modules.values():
            module.num_experts //= num_parts
        self._divide()

    @torch.no_grad()
    def _divide(self) -> None:
        part = self.mesh.get_local_rank(PARTS)
        for module in self._modules.values():
            module.mesh = self.mesh
            for parameter in module.parameters(recurse=False):
                rows = slice(part * module.num_experts, (part + 1) * module.num_experts)
                parameter.data = parameter.data[rows].clone()
                parameter.parts = self.mesh  # type: ignore[attr-defined]  # read by `as_part`

    @torch.no_grad()
    def agree(self) -> None:
        """Let all groups start from the experts of the first one, as DistributedDataParallel does for the rest."""
        group = self.mesh.get_group(REPLICAS)
        for parameter in self.parameters.values():
            dist.broadcast(parameter.data, dist.get_global_rank(group, 0), group=group)

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Make the gradients those of the mean over processes of their losses, after the last backward pass."""
        group = self.mesh.get_group(REPLICAS)
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad, group=group)
                parameter.grad /= world_size()

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
        """Scale the gradients of all `parameters`, of which experts are some, to a norm of at most `limit` over the
        whole model; the norm before, the same in every process."""
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        ours = {id(parameter) for parameter in self.parameters.values()}
        shared, divided = (
            get_total_norm([each.grad for each in trained if each.grad is not None and (id(each) in ours) is inside])
            for inside in (False, True)
        )
        squares = divided.float().square().to(shared.device)
        dist.all_reduce(squares, group=self.mesh.get_group(PARTS))
        norm = (shared.float().square() + squares).sqrt()
        clip_grads_with_norm_(trained, limit, norm)
        return norm

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """All experts in every process meanwhile: validation, where processes may call the model as they want."""
        parts = {name: parameter.data for name, parameter in self.parameters.items()}
        self.join()
        try:
            yield
        finally:
            for module in self._modules.values():
                module.mesh = self.mesh
                module.num_experts //= self.mesh[PARTS].size()
            for name, parameter in self.parameters.items():
                parameter.data = parts[name]
                parameter.parts = self.mesh  # type: ignore[attr-defined]

    @torch.no_grad()
    def join(self) -> None:
        """Hold all experts in every process from now on. Every process must call it."""
        for parameter in self.parameters.values():
            whole = as_part(parameter.detach(), parameter)
            assert isinstance(whole, DTensor)
            parameter.data = whole.full_tensor()
            del parameter.parts  # type: ignore[attr-defined]
        for module in self._modules.values():
            module.mesh = None
            module.num_experts *= self.mesh[PARTS].size()


def as_part(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`tensor`, shaped as `parameter` is, in the same memory, as the part of a whole if `parameter` is divided."""
    mesh = getattr(parameter, "parts", None)
    return tensor if mesh is None else DTensor.from_local(tensor, mesh, [Replicate(), Shard(0)], run_check=False)


def _refuse_uneven(num_parts: int, number: int, what: str) -> None:
    if number % num_parts:
        choices = ", ".join(str(each) for each in range(1, number + 1) if number % each == 0)
        raise ConfigError(f"{KEY}={num_parts} does not divide the number of {what} ({number}); choose one of {choices}")
