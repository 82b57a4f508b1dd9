"""CFLOW-AD and BGAD: the likelihood against the Jacobian and known densities, boundaries by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from madclip.errors import DataError, MissingExtraError
from madclip.methods import load_baseline
from madclip.methods.bgad import boundaries, boundary_loss, focal_weight
from madclip.methods.cflow import likelihood_loss
from madclip.methods.flow import Flow, improbable, position_code, warm_cosine
from madclip.methods.learning import Adam, Learning, optimise
from madclip.methods.tokens import Standard, abnormal_patches
from madclip.training.shots import Shot


def moved(flow, seed=0):
    """A flow whose weights are far from where they began: a new one does next to nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return flow


class TestFlow:
    def test_likelihood_is_that_of_the_change_of_variables(self):
        flow = moved(Flow(6, 4, seed=1)).double()
        generator = torch.Generator().manual_seed(0)
        values, where = torch.randn(5, 6, generator=generator).double(), torch.randn(5, 4, generator=generator).double()
        found = flow.log_likelihood(values, where)
        for value, condition, likelihood in zip(values, where, found, strict=True):

            def latent(x, condition=condition):
                return flow.couplings(x[None], [condition[None]], jac=False)[0][0]

            jacobian = torch.autograd.functional.jacobian(latent, value)
            expected = norm.logpdf(latent(value).detach().numpy()).sum() + np.linalg.slogdet(jacobian.numpy())[1]
            assert float(likelihood.detach()) == pytest.approx(expected, abs=1e-9)
        assert found.std() > 0.1

    def test_it_finds_a_density_that_is_known(self):
        """A bent band whose place depends on the condition: the exact density is a product of two normals."""
        generator = torch.Generator().manual_seed(0)

        def draw(count):
            condition = torch.randn(count, 8, generator=generator)
            noise = torch.randn(count, 2, generator=generator)
            first = condition[:, 0] + noise[:, 0]
            return torch.stack([first, 0.5 * first**2 + 0.5 * noise[:, 1]], 1), condition

        def density(values, condition):
            first, second = values.double().numpy().T
            where = condition[:, 0].double().numpy()
            return norm.logpdf(first, where) + norm.logpdf(second, 0.5 * first**2, 0.5)

        flow = Flow(2, 8, seed=0)
        values, condition = draw(4000)
        optimise(
            flow.parameters(),
            len(values),
            lambda rows: -flow.log_likelihood(values[rows], condition[rows]).mean(),
            Adam(12, 1e-2, (0.9, 0.999), batch=200, clip=1.0, schedule=warm_cosine),
            Learning(0),
        )
        values, condition = draw(1000)
        with torch.no_grad():
            found = flow.log_likelihood(values, condition).numpy()
        expected = density(values, condition)
        # The divergence from the truth, and how far single densities are off.
        assert 0 <= (expected - found).mean() < 0.15
        assert np.corrcoef(expected, found)[0, 1] > 0.9
        # One normal with the moments of the data, as a floor, is far worse.
        plain = multivariate_normal(values.mean(0), np.cov(values.T)).logpdf(values)
        assert (expected - plain).mean() > 0.8

    def test_the_seed_determines_it_and_nothing_else_is_touched(self):
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        expected, drawn = torch.rand(3), np.random.random(3)  # noqa: NPY002
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        one, same, other = Flow(6, 4, seed=1), Flow(6, 4, seed=1), Flow(6, 4, seed=2)
        assert torch.equal(torch.rand(3), expected)
        assert (np.random.random(3) == drawn).all()  # noqa: NPY002
        weights = [torch.cat([p.flatten() for p in flow.parameters()]) for flow in (one, same, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "FrEIA", None)
        with pytest.raises(MissingExtraError, match=r"pip install '\.\[bench\]'"):
            Flow(2, 2)


def test_positions_by_hand():
    code = position_code((2, 3), 8)
    assert code.shape == (6, 8)
    # Patch 5 is row 1, column 2; frequencies 1 and 1/100.
    expected = [f(angle) for where in (1, 2) for f in (math.sin, math.cos) for angle in (where, where / 100)]
    assert code[5].tolist() == pytest.approx(expected)
    assert len({tuple(row) for row in code.tolist()}) == 6


def test_schedule():
    assert [warm_cosine(share) for share in (0, 0.05, 0.1, 0.55, 1)] == pytest.approx([0.1, 0.55, 1, 0.5, 0])


def test_improbability_by_hand():
    likelihoods = torch.tensor([[[0.0, -1.0]], [[2.0, 0.0]]])
    peak = torch.tensor([0.0, 1.0])
    # Patch 0: at the peak, and above it, which counts as at it. Patch 1: exp(-1) twice.
    assert improbable(likelihoods, peak)[0].tolist() == pytest.approx([0, 1 - math.exp(-1)])


def test_standard_tokens():
    tokens = torch.randn(3, 2, 50, 6, generator=torch.Generator().manual_seed(0)) * 7 + 3
    plain = Standard.of(tokens)(tokens)
    assert plain.mean((0, 2)).abs().max() < 1e-5
    assert (plain.std((0, 2)) - 1).abs().max() < 0.01
    fewer = Standard.of(tokens, 4, torch.Generator().manual_seed(1))
    assert fewer(tokens).shape == (3, 2, 50, 4)
    torch.testing.assert_close(fewer.basis.T @ fewer.basis, torch.eye(4), atol=1e-6, rtol=0)
    assert Standard.of(tokens, 6).basis is None


def test_patches_that_a_mask_marks():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4, :4] = True
    mask[0, 4] = True
    small = torch.zeros(8, 8, dtype=torch.bool)
    small[5, 6] = True
    shots = [Shot(torch.zeros(3, 8, 8), int(m is not None), m, "") for m in (None, mask, small)]
    # A sixteenth of the patch on the right is too little where another is full, and enough where there is no other.
    assert abnormal_patches(shots, (2, 2)).tolist() == [[False] * 4, [True, False, False, False], [False] * 3 + [True]]


class TestBGAD:
    def test_boundaries_by_hand(self):
        above, below = boundaries(torch.arange(101.0) / 100)
        assert float(above) == pytest.approx(0.05)
        assert float(below) == pytest.approx(-0.05)

    def test_focal_weights_by_hand(self):
        weights = focal_weight(torch.tensor([-0.5, 0.0, 0.25, 4.0]), (11.7, 0.5))
        assert weights.tolist() == pytest.approx([0, 0, 11.7 / 2, 11.7])

    def test_loss_by_hand(self):
        likelihoods, abnormal = torch.tensor([-1.0, -3.0, -0.5, -8.0]), torch.tensor([False, False, True, True])
        # Scaled: normal -0.1 and -0.3, whose 5 % quantile is -0.29; so the boundaries are -0.29 and -0.39.
        normal = [11.7 * (1 - math.exp(v)) ** 0.5 for v in (-0.1, -0.3)]
        marked = 0.53 * math.exp(-0.05) ** 2
        expected = (normal[0] * math.log(1 + math.exp(1)) + normal[1] * math.log(1 + math.exp(3))) / 2
        expected += normal[1] * 0.01 / 2 + marked * (-0.05 + 0.39) / 2
        assert float(boundary_loss(likelihoods, abnormal)) == pytest.approx(expected, rel=1e-5)

    def test_normal_patches_are_pulled_up_and_marked_ones_pushed_down(self):
        likelihoods = torch.tensor([-1.0] * 40 + [-9.0, -0.5, -30.0], requires_grad=True)
        abnormal = torch.tensor([False] * 41 + [True, True])
        boundary_loss(likelihoods, abnormal).backward()
        gradient = likelihoods.grad
        assert (gradient[:41] < 0).all()
        assert gradient[41] > 0
        assert gradient[42] == 0  # far below already

    def test_without_masks(self, small_backbone, make_images, tmp_path):
        data = make_images(tmp_path, {"valid": (2, 2), "test": (2, 2)}, masks=False)
        with pytest.raises(DataError, match="no abnormal shot has a mask"):
            load_baseline("bgad")(small_backbone, objective="Brain").fit(data, shots=2)


def test_likelihood_loss_by_hand():
    assert float(likelihood_loss(torch.tensor([0.0, -2.0]))) == pytest.approx(
        (math.log(2) + math.log(1 + math.exp(2))) / 2
    )
