"""The simulated load of processes that divide experts, against numbers worked out by hand."""

from pathlib import Path

import numpy as np
from benchmarks.dispatch import assignments, simulate

ROOT = Path(__file__).parents[2]


def cells(loads, processes=4, rows=2, top_k=1):
    busiest, dropped = simulate(np.array(loads), processes, rows, 3, top_k)
    return [row[2] for row in busiest.rows], [row[1] for row in dropped.rows]


def test_an_even_router_loads_all_processes_alike():
    assert cells([[5, 5, 5, 5]]) == (["1.00", "1.00"], ["0.0%"] * 4)


def test_a_collapsed_router_sends_all_tokens_to_one_process_of_each_group():
    # Capacity 1 keeps a quarter of the tokens with 4 experts; 1.25, 1.5 and 2 keep as much more.
    assert cells([[20, 0, 0, 0]]) == (["2.00", "4.00"], ["75.0%", "67.5%", "62.5%", "50.0%"])


def test_only_numbers_of_parts_that_divide_experts_and_processes_are_tried():
    assert len(cells([[1] * 6], processes=4)[0]) == 1  # 2, but not 3 and 6


def test_the_choices_are_those_of_a_trained_model_for_real_tokens():
    folder = ROOT / "models" / "scenes-vqa"
    loads, top_k = assignments(folder, 3)
    assert loads.shape == (3, 4)
    assert top_k == 2
    assert (loads.sum(axis=1) % top_k == 0).all()
    assert (loads.sum(axis=1) >= top_k * (9 + 1 + 3)).all()  # nine patches, [CLS], and at least three tokens of text
