"""Experts that are divided over processes: each process holds some of them, and tokens travel to their experts and back
(Lepikhin et al. 2020, arXiv 2006.16668).

No token is lost on the way: an expert computes all rows that it is sent, however many, so outputs and gradients are
those of a process that holds all experts. The engine divides experts, joins them and adds up their gradients
(`evle.engine.experts`).

N tokens, K experts per token, D width, E experts, R processes that hold E / R experts each, M rows.
"""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from evle.distributed import exchange_rows

PARTS, REPLICAS = "parts", "replicas"
"""Names of a mesh's dimensions: processes that hold different experts, and processes that hold the same ones."""


class Experts(nn.Module):
    """`num_experts` experts, whose parameters are stacks with one row per expert, called with `hidden` (N, D), `index`
    (N, K) and `weights` (N, K).

    With a `mesh` of the dimensions `replicas` and `parts`, they are one part of all experts: in a process that is
    number r of `parts`, those from r * `num_experts` on.
    """

    num_experts: int
    mesh: DeviceMesh | None = None


def dispatched(experts: Experts, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """`experts(hidden, index, weights)` (N, D), wherever the experts are.

    If they are divided, every process of `parts` must call it, with tokens of its own, and use the result in its loss.
    The number of rows for each process is read, which on a GPU waits for the router.
    """
    if experts.mesh is None:
        output: Tensor = experts(hidden, index, weights)
        return output
    group = experts.mesh.get_group(PARTS)
    num_parts = experts.mesh[PARTS].size()
    num_tokens, top_k = index.shape
    order = index.flatten().argsort(stable=True)  # (N K,) assignments, expert by expert, and so process by process
    asked = torch.bincount(index.flatten(), minlength=num_parts * experts.num_experts)  # (E,) rows for each expert
    even = [experts.num_experts] * num_parts
    received = exchange_rows(asked, even, even, group)  # (E,) rows for each of our experts, sender by sender
    sent, got = torch.stack([each.view(num_parts, -1).sum(dim=1) for each in (asked, received)]).tolist()

    device = hidden.device.type
    short = hidden.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else hidden
    rows = exchange_rows(short[order // top_k], sent, got, group)  # (M, D)
    own = torch.arange(experts.num_experts, device=hidden.device).repeat(num_parts).repeat_interleave(received)
    results = exchange_rows(experts(rows, own[:, None], rows.new_ones(len(rows), 1)), got, sent, group)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    output = results[place].view(num_tokens, top_k, -1)
    return (output * weights[..., None]).sum(dim=1).to(hidden.dtype)
