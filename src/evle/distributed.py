"""Talking between the processes of one run: who am I, gather tensors (with gradient) and objects, wait.

In one process all of it is the identity. Only torch.distributed stands underneath; the engine starts the process group.
Legend: W processes, B_r rows of process r.
"""

import socket
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

T = TypeVar("T")


def rank() -> int:
    """This process's number, 0 to W - 1; 0 outside of a distributed run."""
    return dist.get_rank() if _is_distributed() else 0


def world_size() -> int:
    """The number of processes W; 1 outside of a distributed run."""
    return dist.get_world_size() if _is_distributed() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and speaks to the person."""
    return rank() == 0


def num_machines() -> int:
    """The number of machines that the processes run on, by their host names. Every process must call it."""
    return len(set(gather_objects([socket.gethostname()])))


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.barrier()


def all_gather(tensor: Tensor) -> Tensor:
    """The rows of all processes in the order of ranks: (B_r, ...) -> (sum of B_r, ...). B_r may differ, and may be 0.

    The gradient is exact: a row receives the sum over processes of what their losses say of it. DistributedDataParallel
    and FSDP then average parameter gradients, so what is minimised is the mean over processes of their losses:

    - a loss that every process computes over all gathered rows keeps its value and its gradient, whatever W;
    - a loss over a process's own rows against all gathered ones gives the whole batch's mean when the B_r are equal
      (else a mean of means, in which the rows of a smaller part weigh more).

    So nothing is to be multiplied by W. Every process must call this and use the result in its loss, else the others
    wait for ever in the backward pass. Types without gradient (ids, masks) are gathered as they are.
    """
    assert tensor.dim() > 0, "all_gather joins rows: give it at least one dimension"
    if world_size() == 1:
        return tensor
    if tensor.is_floating_point():
        return _AllGather.apply(tensor)
    return torch.cat(_gather_parts(tensor))


def gather_objects(objects: list[T]) -> list[T]:
    """The lists of all processes, joined in the order of ranks, for every process. Objects must be picklable."""
    if world_size() == 1:
        return list(objects)
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, objects)
    return [item for part in parts for item in part]


def host_sum(numbers: Sequence[int]) -> list[int]:
    """The sums over processes of a few whole numbers, exchanged between hosts: no GPU has to finish its work first."""
    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(sums, group=_host_group())
    return sums.tolist()


_HOST_GROUPS: dict[Any, Any] = {}
"""By the group of all processes: the same processes over gloo, where the first one is not a CPU's."""


def _host_group() -> Any:
    whole = dist.group.WORLD
    if "gloo" in dist.get_backend():
        return whole
    if whole not in _HOST_GROUPS:
        _HOST_GROUPS.clear()
        _HOST_GROUPS[whole] = dist.new_group(backend="gloo")
    return _HOST_GROUPS[whole]


def exchange_rows(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Send the first `sent[0]` of `rows` (sum of sent, ...) to process 0 of `group`, and so on; what all processes send
    here, in the order of ranks: (sum of received, ...), with gradient.

    Every process of the group must call it, and go back through it in the same order.
    """
    return cast(Tensor, _ExchangeRows.apply(rows, list(sent), list(received), group))


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _gather_parts(tensor: Tensor) -> list[Tensor]:
    """Every process's rows. Backends gather equal shapes only: shorter parts travel padded and are cut on arrival."""
    own = torch.tensor([tensor.shape[0]], device=tensor.device)
    sizes_found = [torch.zeros_like(own) for _ in range(world_size())]
    dist.all_gather(sizes_found, own)
    sizes = torch.cat(sizes_found).tolist()

    padded = tensor.detach().new_zeros((max(sizes), *tensor.shape[1:]))
    padded[: tensor.shape[0]] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


class _AllGather(torch.autograd.Function):
    """Gather going forward; going back, sum over processes the gradients of the whole and take the own rows."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:
        parts = _gather_parts(tensor)
        before = sum(part.shape[0] for part in parts[: rank()])
        ctx.own_rows = slice(before, before + tensor.shape[0])  # type: ignore[attr-defined]
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.own_rows]  # type: ignore[attr-defined]


class _ExchangeRows(torch.autograd.Function):
    """All to all going forward; going back, the gradients of the rows take the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.way = (sent, received, group)
        return _exchanged(rows, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        sent, received, group = ctx.way
        return _exchanged(grad, received, sent, group), None, None, None


def _exchanged(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    output = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(output, rows.contiguous(), received, sent, group=group)
    return output
