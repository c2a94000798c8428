"""Batches: padded at the end, stacked, and numbered the same in every process."""

import numpy as np
import torch

from evle.transforms.collate import number_ids, pad_rows, pad_text, stack


def test_rows_are_filled_at_their_end_to_the_longest():
    ids, mask = pad_text([[2, 7, 8, 3], [2, 3]], pad_id=0)
    assert ids.tolist() == [[2, 7, 8, 3], [2, 3, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64


def test_a_given_length_is_kept_by_filling_and_cutting():
    assert pad_rows([[5, 6, 7], [8]], -100, length=2).tolist() == [[5, 6], [8, -100]]
    assert pad_text([[5]], 1, length=3)[0].tolist() == [[5, 1, 1]]
    assert pad_text([[5]], 1, length=3)[1].tolist() == [[1, 0, 0]]


def test_a_pad_id_inside_a_text_is_a_real_token():
    assert pad_text([[2, 0, 3]], pad_id=0)[1].tolist() == [[1, 1, 1]]


def test_no_rows_and_empty_rows_are_fine():
    assert pad_rows([], 0).shape == (0, 0)
    assert pad_rows([[], [1]], 9).tolist() == [[9], [1]]


def test_arrays_and_tensors_are_stacked():
    assert stack([np.array([True, False]), np.array([False, False])]).tolist() == [[True, False], [False, False]]
    assert stack([torch.zeros(3, 2, 2, dtype=torch.uint8)] * 4).shape == (4, 3, 2, 2)


def test_names_have_the_same_number_in_every_process():
    numbers = number_ids(["dog", "cat", "dog", "犬", ""])
    assert numbers[0] == numbers[2]
    assert len(set(numbers.tolist())) == 4
    assert numbers.dtype == torch.int64
    assert (numbers >= 0).all()
    assert numbers[0] == 2072328596179865167  # Python's own hash differs from process to process
    assert number_ids([None, "dog"]).tolist() == [-100, 2072328596179865167]


def test_a_file_name_that_is_not_utf8_has_a_number():
    assert len(set(number_ids(["caf\udce9.jpg", "caf\udcea.jpg"]).tolist())) == 2
