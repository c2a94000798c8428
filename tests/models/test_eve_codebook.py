"""Codes from features: the nearest direction, and directions that are learned."""

import pytest
import torch
from torch.nn import functional as F

import references
from evle.errors import DataError
from evle.models.eve.codebook import fit_codebook, nearest_codes


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clusters(spread=0.05):
    """60 vectors of any length around three directions that are at right angles; and the cluster of each."""
    directions = torch.eye(4)[:3]
    labels = torch.arange(60) % 3
    noise = torch.randn(60, 4, generator=generator(1)) * spread
    lengths = torch.rand(60, 1, generator=generator(2)) * 5 + 0.5
    return (directions[labels] + noise) * lengths, labels


def test_the_nearest_code_is_that_of_the_naive_loop_whatever_the_length():
    features = torch.randn(2, 7, 5, generator=generator())
    codebook = F.normalize(torch.randn(6, 5, generator=generator(1)), dim=1)
    codes, centres = nearest_codes(features, codebook), codebook.tolist()
    assert codes.tolist() == [[references.nearest(each, centres) for each in row] for row in features.tolist()]
    assert torch.equal(codes, nearest_codes(features * 9, codebook))
    assert nearest_codes(features[:0], codebook).shape == (0, 7)


def test_each_cluster_gets_a_code_of_its_own():
    features, labels = clusters()
    codebook = fit_codebook(features, 3, generator())
    torch.testing.assert_close(codebook.norm(dim=1), torch.ones(3))
    codes = nearest_codes(features, codebook)
    assert len({(int(code), int(label)) for code, label in zip(codes, labels)}) == 3
    for code in range(3):  # a centre is the direction of the mean of its cluster's directions
        own = F.normalize(features, dim=1)[codes == code].mean(dim=0)
        torch.testing.assert_close(codebook[code], F.normalize(own, dim=0))


def test_rare_patches_have_codes_beside_many_equal_ones():
    """As in drawn images: nearly all patches are background."""
    features = torch.cat([torch.tensor([[1.0, 0.0, 0.0]]).expand(500, 3), torch.eye(3)[1:]])
    codes = nearest_codes(features, fit_codebook(features, 3, generator()))
    assert len({int(codes[0]), int(codes[-1]), int(codes[-2])}) == 3


def test_the_same_features_and_generator_give_the_same_codes():
    features = torch.randn(100, 6, generator=generator(4))
    assert torch.equal(fit_codebook(features, 8, generator()), fit_codebook(features, 8, generator()))
    assert not torch.equal(fit_codebook(features, 8, generator()), fit_codebook(features, 8, generator(1)))


def test_more_codes_than_kinds_of_patches_are_refused():
    features = torch.eye(3).repeat(10, 1) * torch.arange(1, 31)[:, None]
    with pytest.raises(DataError, match=r"only 3 kinds .* 4 codes .*; set task\.mim_codes to at most 3"):
        fit_codebook(features, 4, generator())
