"""Codes of MIM from an image encoder that has none of its own: the nearest of K centres of its features.

BEiT v2 (Peng et al. 2022, section 2.2) quantises the features of a frozen teacher by their direction; its codebook is
learned beside a decoder, ours by spherical k-means (Coates and Ng 2012), which needs no training.

M features, F their width, K codes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from evle.errors import DataError

ITERATIONS = 20
"""Rounds of k-means at most; it stops when no feature changes its code."""
ROWS = 8192
"""Features that are compared with the codebook at once."""


def nearest_codes(features: Tensor, codebook: Tensor) -> Tensor:
    """The index (...) int64 of the row of `codebook` (K, F) that points most nearly in the direction of each of
    `features` (..., F). The rows of the codebook have length 1."""
    rows = features.reshape(-1, features.shape[-1]).float()
    with torch.autocast(features.device.type, enabled=False):
        codes = [(part @ codebook.float().T).argmax(dim=1) for part in rows.split(ROWS)]
    return torch.cat(codes or [rows.new_zeros(0, dtype=torch.long)]).reshape(features.shape[:-1])


def fit_codebook(features: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """The directions (K, F) of `size` clusters of `features` (M, F), by spherical k-means from k-means++ starts.

    A cluster that loses all its features starts again at the feature that is farthest from its code. The result depends
    on the features and the generator alone.

    Raises DataError for features of fewer than `size` directions.
    """
    directions = F.normalize(features.float(), dim=-1)
    codebook = _spread_starts(directions, size, generator)
    codes = nearest_codes(directions, codebook)
    for _ in range(ITERATIONS):
        sums = torch.zeros_like(codebook).index_add_(0, codes, directions)
        codebook = F.normalize(sums, dim=-1)
        counts = torch.bincount(codes, minlength=size)
        if (empty := (counts == 0).nonzero().squeeze(1)).numel():
            closeness = (directions * codebook[codes]).sum(dim=1)
            codebook[empty] = directions[closeness.argsort(stable=True)[: len(empty)]]
        before, codes = codes, nearest_codes(directions, codebook)
        if torch.equal(before, codes):
            break
    return codebook


def _spread_starts(directions: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """`size` of the directions (M, F), each drawn by its squared distance to the nearest earlier one (k-means++)."""
    starts = directions.new_empty(size, directions.shape[1])
    weights = torch.ones(len(directions))
    for index in range(size):
        if not weights.any():
            raise DataError(
                f"the sampled images have patches of only {index} kinds for the teacher, and {size} codes are asked "
                f"for; set task.mim_codes to at most {index}, or train on more varied images"
            )
        chosen = int(torch.multinomial(weights, 1, generator=generator))
        starts[index] = directions[chosen]
        distance = (1 - (directions @ starts[index]).cpu()).clamp(min=0)
        distance[distance < 1e-6] = 0.0  # the same direction, but for rounding
        weights = distance if index == 0 else torch.minimum(weights, distance)
    return starts
