import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from madclip.errors import DataError
from madclip.metrics import compare as c
from madclip.metrics import image as m
from madclip.metrics import intervals as i
from madclip.metrics.image import auroc, average_precision
from madclip.metrics.scored import Scored

CASES = json.loads(Path(__file__).with_name("proc_values.json").read_text())["cases"]


@pytest.fixture
def scores(rng):
    labels = np.repeat([0, 1], [40, 30])
    return labels, rng.normal(size=70) + labels


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_delong_equals_proc(case):
    labels, first, second = case["labels"], case["first"], case["second"]
    for scores, area, variance in zip((first, second), case["auc"], case["variance"], strict=True):
        assert auroc(labels, scores) == pytest.approx(area, abs=1e-12)
        assert i.delong_variance(Scored.of(labels, scores)) == pytest.approx(variance, rel=1e-9)
    one = Scored.of(labels, first)
    plain = i.delong_interval(one, logit=False)
    assert (plain.low, plain.high) == pytest.approx(tuple(case["plain_interval"]), abs=1e-9)
    test = c.paired_delong(one, one.rescored(second))
    assert test.value == pytest.approx(case["auc"][0] - case["auc"][1], abs=1e-12)
    assert test.p == pytest.approx(case["p"], abs=1e-9)


def test_every_image_its_own_patient_is_delong(scores):
    labels, values = scores
    alone = i.delong_interval(Scored.of(labels, values))
    own = i.delong_interval(Scored.of(labels, values, patients=[None] * len(labels)))
    assert (own.low, own.high) == pytest.approx((alone.low, alone.high), abs=1e-12)


def test_repeating_every_image_does_not_make_the_interval_shorter(scores):
    labels, values = scores
    single = i.delong_interval(Scored.of(labels, values))
    patients = list(range(70)) * 4
    repeated = i.delong_interval(Scored.of(np.tile(labels, 4), np.tile(values, 4), patients=patients))
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high), abs=1e-9)
    naive = i.delong_interval(Scored.of(np.tile(labels, 4), np.tile(values, 4)))
    assert naive.high - naive.low < 0.6 * (single.high - single.low)


def test_logit_interval_stays_inside_and_holds_the_value(rng):
    labels = np.repeat([0, 1], 10)
    for shift in (0.0, 1.0, 3.0):
        got = i.delong_interval(Scored.of(labels, rng.normal(size=20) + shift * labels))
        assert 0 < got.low <= got.value <= got.high <= 1


@pytest.mark.parametrize(("values", "area"), [([0.1, 0.2, 0.8, 0.9], 1.0), ([0.8, 0.9, 0.1, 0.2], 0.0)])
def test_perfect_separation_is_no_certainty(values, area):
    got = i.delong_interval(Scored.of([0, 0, 1, 1], values))
    assert got.value == area
    assert got.high - got.low > 0.3


def test_newcombe_is_its_own_equation():
    low, high = i.newcombe(0.8, 30, 50)
    for area in (low, high):
        spread = 1 + 39 * ((1 - area) / (2 - area) + area / (1 + area))
        assert abs(0.8 - area) == pytest.approx(1.959964 * np.sqrt(area * (1 - area) * spread / 1500), rel=1e-5)
    assert i.newcombe(1.0, 30, 50)[1] == 1.0


def test_one_class_has_a_reason_and_ties_have_an_interval():
    assert i.delong_interval(Scored.of([0, 0], [0.1, 0.2])).value is None
    assert "only one kind" in i.delong_interval(Scored.of([1, 1], [0.1, 0.2])).reason
    assert i.bootstrap_interval(Scored.of([1, 1], [0.1, 0.2])).value is None
    assert i.delong_interval(Scored.of([0, 1], [0.1, 0.2])).reason != ""
    ties = i.delong_interval(Scored.of([0, 0, 0, 1, 1, 1], [0.5] * 6))
    assert ties.value == 0.5
    assert ties.low < 0.3 < 0.7 < ties.high


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (3, 5), (5, 5), (812, 1000)])
def test_wilson_equals_scipy(successes, trials):
    got = i.wilson_interval(successes, trials)
    ends = binomtest(successes, trials).proportion_ci(method="wilson")
    assert (got.low, got.high) == pytest.approx((ends.low, ends.high), abs=1e-12)
    assert i.wilson_interval(0, 0).value is None


def test_weights_repeat_images(scores, rng):
    labels, values = scores
    values = np.round(values, 1)
    weights = rng.integers(0, 4, size=(5, 70)).astype(float)
    data = Scored.of(labels, values)
    for got, row in zip(i.weighted_auroc(data, weights), weights.astype(int), strict=True):
        assert got == pytest.approx(auroc(np.repeat(labels, row), np.repeat(values, row)), abs=1e-12)
    for got, row in zip(i.weighted_average_precision(data, weights), weights.astype(int), strict=True):
        assert got == pytest.approx(average_precision(np.repeat(labels, row), np.repeat(values, row)), abs=1e-12)


def test_replicates_draw_whole_patients_and_keep_both_classes():
    labels = np.array([0, 0, 0, 1, 1, 0, 1])
    patients = ["a", "a", "b", "c", "c", "d", "d"]
    (weights,) = i.resamples(labels, patients, 50, seed=1)
    assert np.array_equal(weights[:, 0], weights[:, 1])
    assert np.array_equal(weights[:, 3], weights[:, 4])
    assert np.all(weights[:, 5] == 1), "the only patient with both kinds is drawn once"
    assert np.all(weights[:, 0] + weights[:, 2] == 2)


def test_bootstrap_agrees_with_delong_and_repeats_by_seed(scores):
    data = Scored.of(*scores)
    drawn = i.bootstrap_interval(data, seed=3)
    exact = i.delong_interval(data)
    assert drawn.low == pytest.approx(exact.low, abs=0.03)
    assert drawn.high == pytest.approx(exact.high, abs=0.03)
    assert drawn == i.bootstrap_interval(data, seed=3)
    assert drawn != i.bootstrap_interval(data, seed=4)


def test_bands_surround_the_curve(scores):
    labels, values = scores
    grid = np.linspace(0, 1, 21)
    roc, pr = i.curve_bands(Scored.of(labels, values), grid)
    assert np.all(roc[0] <= roc[1])
    assert np.all(pr[0] <= pr[1])
    false = np.mean(values[labels == 0][:, None] >= np.sort(values)[::-1], 0)
    true = np.mean(values[labels == 1][:, None] >= np.sort(values)[::-1], 0)
    middle = np.interp(0.3, false, true)
    assert roc[0, 6] < middle < roc[1, 6]


def test_paired_tests_agree(scores, rng):
    first = Scored.of(*scores)
    second = first.rescored(first.scores + rng.normal(size=70))
    delong, drawn = c.paired_delong(first, second), c.paired_bootstrap(first, second)
    assert drawn.value == pytest.approx(delong.value, abs=1e-12)
    assert drawn.low == pytest.approx(delong.low, abs=0.02)
    assert drawn.high == pytest.approx(delong.high, abs=0.02)
    same = c.paired_delong(first, first.rescored(2 * first.scores))
    assert (same.value, same.p) == (0.0, 1.0)
    one, other = Scored.of([1, 1], [1, 2]), Scored.of([1, 1], [2, 1])
    assert c.paired_delong(one, other).value is None
    assert c.paired_bootstrap(one, other).reason


def test_over_sets_and_seeds():
    assert c.wilcoxon([0.9, 0.8, 0.7, 0.95, 0.85], [0.8, 0.75, 0.69, 0.9, 0.7]).p == pytest.approx(2 / 2**5)
    assert c.wilcoxon([0.5, 0.6], [0.5, 0.6]).p == 1.0
    got = c.mean_interval([0.8, 0.9, 0.85])
    assert got.value == pytest.approx(0.85)
    assert got.high - got.value == pytest.approx(4.302653 * 0.05 / np.sqrt(3), rel=1e-6)
    assert c.mean_interval([0.8]).low is None
    assert c.mean_interval([]).value is None


def test_only_the_same_images_are_paired():
    one = Scored.of([0, 1, 1], [0.1, 0.2, 0.3], names=["a", "b", "c"], patients=["p", "p", "q"])
    for other, word in (
        (Scored.of([0, 1], [0.1, 0.2]), "labels"),
        (Scored.of([1, 0, 1], [0.1, 0.2, 0.3]), "labels"),
        (Scored.of([0, 1, 1], [0.1, 0.2, 0.3], names=["a", "c", "b"], patients=["p", "p", "q"]), "names"),
        (Scored.of([0, 1, 1], [0.1, 0.2, 0.3], names=["a", "b", "c"], patients=["p", "q", "q"]), "patients"),
    ):
        for compare in (c.paired_delong, c.paired_bootstrap):
            with pytest.raises(DataError, match=f"same images in the same order: their {word} differ"):
                compare(one, other)


@pytest.mark.parametrize("bounds", [(0, 1), (0, 100), None])
def test_the_interval_of_a_bounded_mean_stays_within_its_bounds(bounds):
    from scipy.stats import t

    values = [0.2, 0.9, 0.75]
    got = c.mean_interval(values, bounds=bounds)
    low, high = t.interval(0.95, 2, np.mean(values), np.std(values, ddof=1) / np.sqrt(3))
    assert low < 0 < 1 < high
    least, most = bounds or (-np.inf, np.inf)
    assert (got.low, got.high) == pytest.approx((max(low, least), min(high, most)), abs=1e-12)
    assert got.value == pytest.approx(np.mean(values))


def test_no_runs_have_no_mean():
    assert c.mean_interval([]).value is None


def test_shares_of_patients():
    had = np.array([1, 1, 0, 1, 0, 0, 1, 1])
    assert i.share_interval(had) == i.wilson_interval(5, 8)
    assert i.share_interval(had, patients=list("abcdefgh")) == i.wilson_interval(5, 8)
    copied = i.share_interval(np.repeat(had, 10), patients=np.repeat(list("abcdefgh"), 10).tolist())
    assert copied.value == 5 / 8
    assert copied.high - copied.low == pytest.approx(
        i.wilson_interval(5, 8).high - i.wilson_interval(5, 8).low, abs=0.05
    )
    sure = i.share_interval([1] * 40, patients=np.repeat(list("abcd"), 10).tolist())
    assert (sure.low, sure.high) == pytest.approx((i.wilson_interval(4, 4).low, 1.0))
    assert i.share_interval([]).value is None


def test_weighted_f1_and_calibration_error(scores, rng):
    labels, values = scores
    probability = 1 / (1 + np.exp(-values))
    weights = rng.integers(1, 4, size=(3, 70)).astype(float)
    for row, f1, error in zip(
        weights.astype(int),
        i.weighted_f1(Scored.of(labels, values >= 0.5), weights),
        i.weighted_calibration_error(Scored.of(labels, probability), weights),
        strict=True,
    ):
        many, repeated = np.repeat(labels, row), np.repeat(values, row)
        assert f1 == pytest.approx(m.confusion(Scored.of(many, repeated), 0.5).f1, abs=1e-12)
        assert error == pytest.approx(m.expected_calibration_error(many, np.repeat(probability, row)), abs=1e-12)
