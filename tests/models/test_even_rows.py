import torch
from torch import nn

from evle.models.even_rows import FEWEST, even_rows, pad_rows


def test_sizes_are_few_and_never_much_larger_than_asked_for():
    sizes = [even_rows(n) for n in range(1, 4097)]
    assert all(n <= size <= max(n + FEWEST - 1, 1.25 * n + 1) for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert max(size / n for n, size in enumerate(sizes, 1) if n > 256) < 1.125
    assert max(size / n for n, size in enumerate(sizes, 1) if n > 1024) < 1.0625
    # 16 to 112 in steps of 16, four from 128 on, eight an octave from 256 on, sixteen from 1024 to 3968, and 4096
    assert len(set(sizes)) == 7 + 4 + 2 * 8 + 2 * 16 + 1


def test_float32_rows_stay_as_they_are():
    rows = torch.randn(3, 4)
    assert pad_rows(rows) is rows


def test_short_formats_get_rows_of_zeros():
    rows = torch.randn(FEWEST + 1, 4, dtype=torch.bfloat16)
    padded = pad_rows(rows)
    assert padded.shape == (2 * FEWEST, 4)
    assert torch.equal(padded[: len(rows)], rows)
    assert not padded[len(rows) :].any()
    assert pad_rows(rows[:FEWEST]).shape == (FEWEST, 4)


def test_no_rows_stay_no_rows():
    assert pad_rows(torch.zeros(0, 4, dtype=torch.bfloat16)).shape == (0, 4)


def test_autocast_counts_as_its_format():
    with torch.autocast("cpu", torch.bfloat16):
        assert pad_rows(torch.randn(3, 4)).shape == (FEWEST, 4)


def test_padding_changes_neither_outputs_nor_gradients():
    torch.manual_seed(0)
    rows = torch.randn(5, 8)
    layer = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 2))
    results = []
    for pad in (pad_rows, lambda rows: rows):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(pad(rows))[:5]
        output.float().square().sum().backward()
        results.append([output, *(parameter.grad.clone() for parameter in layer.parameters())])
    for padded, plain in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain, rtol=2e-2, atol=2e-2)
