"""Methods of comparison: their equations by hand, and what every one of them must keep."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from madclip import MadCLIP
from madclip.data.load import load_dataset
from madclip.errors import DataError, MissingExtraError, RecipeError
from madclip.evaluation.protocol import evaluate
from madclip.head.memory import greedy_coreset, local_features, smooth
from madclip.methods import BASELINES, load_baseline
from madclip.methods.base import squash
from madclip.methods.floors import class_means, fit_logistic, nearest_mean_score
from madclip.methods.patchcore import reweighted_score


@pytest.fixture(scope="module", params=list(BASELINES))
def fitted(request, small_backbone, small_data):
    return load_baseline(request.param)(small_backbone, objective="Brain").fit(small_data, shots=4, seed=1)


@pytest.fixture(scope="module")
def test_images(small_data):
    return [sample.image for sample in load_dataset(small_data).test_pool]


def same(first, second):
    return all(
        a.score == b.score and np.array_equal(a.anomaly_map, b.anomaly_map) for a, b in zip(first, second, strict=True)
    )


class TestEveryBaseline:
    def test_same_seed_same_bytes(self, fitted, small_backbone, small_data, test_images):
        again = type(fitted)(small_backbone, objective="Brain").fit(small_data, shots=4, seed=1)
        assert same(list(fitted.predict_iter(test_images)), list(again.predict_iter(test_images)))

    def test_learns_from_the_shots_of_madclip(self, fitted, small_backbone, small_recipe, small_data):
        detector = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain")
        detector.fit(small_data, shots=2, seed=3, folds=0)
        other = type(fitted)(small_backbone, objective="Brain").fit(small_data, shots=2, seed=3)
        for name in ("seed", "normal", "abnormal", "masks", "shots", "groups", "salt"):
            assert getattr(other.provenance, name) == getattr(detector.provenance, name)
        assert other.provenance.method == fitted.name

    def test_scores_and_maps(self, fitted, test_images):
        results = list(fitted.predict_iter(test_images, native=False))
        maps = np.stack([result.anomaly_map for result in results])
        assert maps.shape == (len(test_images), 64, 64)
        assert maps.dtype == np.float32
        assert maps.min() >= 0
        assert maps.max() <= 1
        assert all(0 <= result.score <= 1 for result in results)
        assert len({result.score for result in results}) > 1
        assert maps.std((1, 2)).min() > 0

    def test_batches_do_not_matter(self, fitted, test_images):
        whole = list(fitted.predict_iter(test_images))
        for batch in (1, 5):
            for one, other in zip(whole, fitted.predict_iter(test_images, batch_size=batch), strict=True):
                assert one.score == pytest.approx(other.score, abs=1e-4)
                np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-4)

    def test_the_protocol_takes_it(self, fitted, small_data):
        result = evaluate(fitted, small_data)
        assert 0 <= result.metrics["image_auroc"].value <= 1

    def test_a_bad_file_does_not_stop_the_rest(self, fitted, test_images, tmp_path):
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"not an image")
        first, error, last = fitted.predict_iter([test_images[0], bad, test_images[1]], batch_size=2)
        assert isinstance(error, DataError)
        assert "bad.png" in str(error)
        plain = list(fitted.predict_iter(test_images[:2]))
        assert (first.score, last.score) == pytest.approx([one.score for one in plain], abs=1e-4)

    def test_not_fitted(self, fitted, small_backbone, test_images):
        with pytest.raises(RecipeError, match="call fit"):
            type(fitted)(small_backbone, objective="Brain").predict_iter(test_images)

    def test_a_class_it_needs_is_missing(self, fitted, small_backbone, small_data):
        abnormal = [sample for sample in load_dataset(small_data).shot_pool if sample.label]
        new = type(fitted)(small_backbone, objective="Brain")
        if fitted.learns_from == "nothing":
            assert new.fit(abnormal).provenance.normal == 0
        else:
            with pytest.raises(DataError, match="0 normal and 4 abnormal"):
                new.fit(abnormal)

    def test_its_name(self, fitted):
        assert load_baseline(fitted.name) is type(fitted)


def test_unknown_method():
    with pytest.raises(RecipeError, match=r"'nothing-such'.*patchcore"):
        load_baseline("nothing-such")


def test_methods_of_normal_images_never_see_abnormal_ones(small_backbone, small_data, test_images):
    samples = load_dataset(small_data).shot_pool
    normal = [sample for sample in samples if not sample.label]
    one, other = (load_baseline("patchcore")(small_backbone, objective="Brain").fit(s) for s in (samples, normal))
    assert same(one.predict_iter(test_images), other.predict_iter(test_images))


# PatchCore


def test_greedy_coreset_takes_the_farthest_each_time():
    points = torch.tensor([[0.0], [1.0], [10.0], [4.0]])
    # From 0 the farthest is 10; then 4, at distance 4 of 0; then 1.
    assert greedy_coreset(points, 4, start=0) == [0, 2, 3, 1]
    # From 4: 10 at 6; then 0 at 4.
    assert greedy_coreset(points, 3, start=3) == [3, 2, 0]


def test_neighbourhood_means():
    tokens = torch.arange(9.0).view(1, 1, 9, 1)
    means = local_features(tokens, (3, 3))[0, :, 0]
    assert means[4] == 4
    assert means[0] == (0 + 1 + 3 + 4) / 4
    assert means[1] == (0 + 1 + 2 + 3 + 4 + 5) / 6
    two_taps = local_features(torch.cat([tokens, 10 * tokens], 1), (3, 3))
    torch.testing.assert_close(two_taps[0, :, 1], 10 * means)


def test_image_score_is_reweighted():
    memory = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, -3.0]])
    patches = torch.tensor([[0.0, 0.5], [0.0, 1.5]])
    score = reweighted_score(patches, torch.tensor([0.5, 1.5]), torch.tensor([0, 0]), memory)
    # The second patch: 1.5 to m* = (0, 0), 2.5 to (2, 0), 4.5 to (0, -3).
    weight = 1 - math.exp(1.5) / (math.exp(1.5) + math.exp(2.5) + math.exp(4.5))
    assert float(score) == pytest.approx(1.5 * weight)


def test_reweighting_looks_at_nine_neighbours_of_the_memory():
    memory = torch.arange(12.0)[:, None]
    score = reweighted_score(torch.tensor([[-1.0]]), torch.tensor([1.0]), torch.tensor([0]), memory)
    weight = 1 - math.exp(1) / sum(math.exp(1 + i) for i in range(9))
    assert float(score) == pytest.approx(weight)


def test_a_memory_of_one_keeps_the_distance():
    score = reweighted_score(torch.tensor([[2.0]]), torch.tensor([2.0]), torch.tensor([0]), torch.zeros(1, 1))
    assert float(score) == 2


def test_smoothing_against_scipy():
    maps = torch.rand(2, 48, 48, generator=torch.Generator().manual_seed(0))
    expected = [gaussian_filter(one.double().numpy(), 4, mode="nearest", truncate=4) for one in maps]
    np.testing.assert_allclose(smooth(maps, 4.0).numpy(), expected, atol=1e-5)


def test_squash_keeps_order():
    assert squash(torch.tensor([0.0, 1.0, 3.0])).tolist() == [0, 0.5, 0.75]


# Floors


def test_nearest_mean_by_hand():
    pooled = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    means = class_means(pooled, torch.tensor([0, 0, 1, 1]))
    assert means.tolist() == [[3, 0], [0, 2]]
    # Cosines of (3, 4): 0.6 to normal, 0.8 to abnormal.
    scores = nearest_mean_score(torch.tensor([[3.0, 4.0], [5.0, 0.0], [0.0, 5.0]]), means)
    assert scores.tolist() == pytest.approx([(2 + 0.2) / 4, 0.25, 0.75])


@pytest.mark.parametrize(("rows", "columns", "ridge"), [(40, 5, 1.0), (12, 60, 1.0), (12, 60, 0.1)])
def test_logistic_is_the_minimum(rows, columns, ridge):
    """The loss is convex: its gradient vanishes at the minimum and nowhere else."""
    generator = np.random.default_rng(0)
    labels = np.arange(rows) % 2
    features = generator.normal(size=(rows, columns)) + 0.5 * labels[:, None]
    weights, intercept = fit_logistic(torch.from_numpy(features), torch.from_numpy(labels), ridge=ridge)
    wrong = 1 / (1 + np.exp(-(features @ weights.numpy() + float(intercept)))) - labels
    np.testing.assert_allclose(features.T @ wrong + ridge * weights.numpy(), 0, atol=1e-4)
    assert wrong.sum() == pytest.approx(0, abs=1e-4)


def test_logistic_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[bench\]'"):
        fit_logistic(torch.zeros(2, 2), torch.arange(2))
