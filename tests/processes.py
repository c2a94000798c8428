"""What the distributed tests run in their processes; a process of its own can import only a file with a plain name."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from evle.distributed import all_gather, barrier, gather_objects, is_main, rank, world_size


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


PRELOADED = ["evle.run.stages", "evle.search"]
"""Imported once by the process that the others start from: importing them takes longer than most tests."""


def start_code(code: str, *arguments: Any) -> multiprocessing.process.BaseProcess:
    """`python -c code arguments` in a process that is started and that has imported evle."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    given = (code, [str(each) for each in arguments])
    process = multiprocessing.get_context("forkserver").Process(target=run_code, args=given)
    process.start()
    return process


def run_code(code: str, arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    exec(code, {"__name__": "__main__"})


def run_on_two(function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(process, *arguments)` in two new processes joined by gloo; what fails there fails here."""
    run_on(2, function, *arguments)


def run_on(number: int, function: Callable[..., None], *arguments: Any) -> None:
    """As `run_on_two`, in any number of processes."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    given = (free_port(), number, dict(os.environ), function, arguments)
    mp.start_processes(join_and_call, args=given, nprocs=number, start_method="forkserver")


def join_and_call(
    process: int,
    port: int,
    number: int,
    environment: dict[str, str],
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(environment)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(process), LOCAL_RANK=str(process))
    os.environ.update(WORLD_SIZE=str(number), LOCAL_WORLD_SIZE=str(number))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=process, world_size=number)
    function(process, *arguments)
    dist.barrier()
    # Not through the interpreter's exit: gloo's threads now and then abort there when the other process is gone first.
    os._exit(0)


def check_gathering(process: int) -> None:
    assert (rank(), world_size(), is_main()) == (process, 2, process == 0)

    # 2 rows on process 0, 3 rows on process 1: rows 0..4 of one matrix known to both.
    whole = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    own = (whole[:2] if process == 0 else whole[2:]).clone().requires_grad_()
    gathered = all_gather(own)
    assert torch.equal(gathered, whole)

    # Each process weighs the rows by its own numbers: a row's gradient is the sum of what both processes say of it.
    weights = [torch.arange(20.0).view(5, 4), torch.full((5, 4), 100.0)]
    (gathered * weights[process]).sum().backward()
    expected = weights[0] + weights[1]
    assert torch.equal(own.grad, expected[:2] if process == 0 else expected[2:])

    ids = torch.arange(3) + 10 * process
    assert all_gather(ids[: 2 + process]).tolist() == [0, 1, 10, 11, 12]
    assert all_gather(torch.tensor([True] * process, dtype=torch.bool)).tolist() == [True]
    assert all_gather(torch.full((1,), process, dtype=torch.bfloat16)).tolist() == [0, 1]
    assert gather_objects([{"key": process}] * (process + 1)) == [{"key": 0}, {"key": 1}, {"key": 1}]
    barrier()
    check_gradient_under_ddp(process, whole)


def contrastive(features: torch.Tensor) -> torch.Tensor:
    """A loss in which every row meets every other one."""
    return torch.nn.functional.cross_entropy(features @ features.T, torch.arange(len(features)))


def check_gradient_under_ddp(process: int, whole: torch.Tensor) -> None:
    torch.manual_seed(1)
    single = torch.nn.Linear(4, 3)
    shared = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 3))
    shared.module.load_state_dict(single.state_dict())

    contrastive(single(whole)).backward()
    contrastive(all_gather(shared(whole[:2] if process == 0 else whole[2:]))).backward()
    torch.testing.assert_close(shared.module.weight.grad, single.weight.grad)
