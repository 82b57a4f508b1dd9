"""The scores of a tap whose gradients are written by hand, against the plain modules that autograd differentiates."""

import itertools

import pytest
import torch

from madclip.head import scoring
from madclip.head.adapters import Adapters
from madclip.head.fused_taps import learned_scores
from madclip.head.tower_adapters import TowerAdapters


def plain_scores(adapters, tokens, towards):
    return torch.stack([scoring.patch_scores(f, towards) for f in adapters(tokens)]).movedim(1, 0)


@pytest.mark.parametrize("widths", [None, (5, 3)])
@pytest.mark.parametrize(
    ("dual", "separate", "activation", "norm"),
    list(itertools.product((True, False), (True, False), ("relu", "leaky_relu"), ("none", "layer_norm"))),
)
def test_scores_and_gradients_are_those_of_the_modules(dual, separate, activation, norm, widths, monkeypatch):
    monkeypatch.setattr("madclip.head.fused_taps._BLOCK", 7)  # 3 images of 5 patches: two blocks and a rest
    generator = torch.Generator().manual_seed(0)
    options = {"dual_branch": dual, "separate_heads": separate, "activation": activation, "norm": norm}
    adapters = TowerAdapters(2, widths, 6, (1, 2), **options) if widths else Adapters(2, 8, 6, **options)
    adapters.double()
    tokens = torch.randn(3, 2, 5, 8, generator=generator, dtype=torch.float64).unbind(1)
    towards = torch.randn(2, 6, generator=generator, dtype=torch.float64).requires_grad_()
    learned = [*adapters.parameters(), towards]
    found, expected = learned_scores(adapters, tokens, towards), plain_scores(adapters, tokens, towards)
    assert found.shape == (1 + separate, 2, 3, 5, 2)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for ours, autograd in zip(
        torch.autograd.grad(found, learned, upstream), torch.autograd.grad(expected, learned, upstream), strict=True
    ):
        torch.testing.assert_close(ours, autograd, atol=1e-10, rtol=1e-10)


def test_in_bfloat16_gradients_are_those_of_float32_rounded():
    """Sums over many blocks are kept in float32."""
    generator = torch.Generator().manual_seed(0)
    adapters = Adapters(1, 16, 8, generator=generator)
    tokens = torch.randn(1, 1, 20_000, 16, generator=generator)
    towards = torch.randn(2, 8, generator=generator)
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        scores = learned_scores(adapters, tokens.to(dtype).unbind(1), towards)
        assert scores.dtype == torch.float32
        gradients.append(torch.autograd.grad(scores.sum(), list(adapters.parameters())))
    for half, whole in zip(*gradients, strict=True):
        assert half.dtype == torch.float32
        assert (half - whole).norm() < 0.02 * whole.norm()


def test_features_of_length_zero_score_nothing():
    adapters = Adapters(1, 4, 4)
    scores = learned_scores(adapters, [torch.zeros(1, 3, 4)], torch.ones(2, 4))
    scores.sum().backward()
    assert scores.abs().sum() == 0
    assert all(p.grad.isfinite().all() for p in adapters.parameters())
