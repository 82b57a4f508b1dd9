"""The patch scores against their equation."""

import pytest
import torch
import torch.nn.functional as F

from madclip.head import scoring


@pytest.mark.parametrize("branches", [1, 2])
def test_gradient_of_patch_scores(branches):
    generator = torch.Generator().manual_seed(branches)
    features = torch.randn(branches, 3, 5, 7, dtype=torch.float64, generator=generator).requires_grad_()
    towards = torch.randn(2, 7, dtype=torch.float64, generator=generator).requires_grad_()
    upstream = torch.randn(3, 5, 2, dtype=torch.float64, generator=generator)
    expected = torch.stack([F.normalize(features[b % branches], dim=-1) @ towards[b] for b in (0, 1)], -1)
    found = scoring.patch_scores(features, towards)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(scoring.patch_scores(features, towards), found)
    for one, other in zip(
        torch.autograd.grad(found, (features, towards), upstream),
        torch.autograd.grad(expected, (features, towards), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_features_of_length_zero_score_nothing():
    features = torch.zeros(2, 1, 4, requires_grad=True)
    scores = scoring.patch_scores(features, torch.ones(2, 4))
    assert scores.tolist() == [[0, 0]]
