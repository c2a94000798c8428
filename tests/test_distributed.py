"""Gathering over two real processes (gloo, CPU)."""

import pytest
import torch

from evle.distributed import all_gather, barrier, gather_objects, is_main, rank, world_size
from processes import check_gathering, run_on_two


def test_one_process_gathers_only_itself():
    tensor = torch.randn(3, 2, requires_grad=True)
    assert (rank(), world_size(), is_main()) == (0, 1, True)
    assert all_gather(tensor) is tensor
    assert gather_objects(["a", "b"]) == ["a", "b"]
    barrier()


def test_two_processes_gather_uneven_rows_with_exact_gradients():
    run_on_two(check_gathering)


def test_a_scalar_cannot_be_gathered():
    with pytest.raises(AssertionError, match="at least one dimension"):
        all_gather(torch.tensor(1.0))
