import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from madclip.calibration import calibration as c
from madclip.calibration.familiarity import Familiarity
from madclip.calibration.probability import fit_platt
from madclip.calibration.thresholds import choose_pixel_threshold, choose_threshold, parse_operating_point
from madclip.errors import CheckpointError, DataError, RecipeError
from madclip.metrics.scored import Scored


def binormal(seed, zeros, ones, shift=1.5):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [zeros, ones])
    return labels, 1 / (1 + np.exp(-(rng.normal(size=zeros + ones) + shift * labels)))


@pytest.mark.parametrize(
    ("text", "parsed"), [("youden", ("youden", 0.0)), ("sens=0.95", ("sens", 0.95)), ("spec=.9", ("spec", 0.9))]
)
def test_operating_points_as_typed(text, parsed):
    assert parse_operating_point(text) == parsed


@pytest.mark.parametrize("text", ["", "sens", "sens=", "sens=1", "sens=95", "f1", "spec=0", "sens=0.9.1", "youden=1"])
def test_other_operating_points_are_refused(text):
    with pytest.raises(RecipeError, match="operating point"):
        parse_operating_point(text)


def test_youden_is_the_best_and_sits_in_the_widest_gap():
    assert choose_threshold(Scored.of([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.3, 0.7, 0.8, 0.9])).value == pytest.approx(0.5)
    labels, scores = binormal(0, 30, 20)
    chosen = choose_threshold(Scored.of(labels, scores)).value

    def index(cut):
        return np.mean(scores[labels == 1] >= cut) - np.mean(scores[labels == 0] >= cut)

    assert index(chosen) == pytest.approx(max(index(cut) for cut in scores))


@pytest.mark.parametrize(("count", "target"), [(40, 0.95), (19, 0.95), (10, 0.8), (99, 0.9)])
def test_a_target_is_met_on_average_over_draws(count, target):
    rng = np.random.default_rng(1)
    for kind in ("sens", "spec"):
        reached = []
        for _ in range(400):
            scores = rng.normal(size=count)
            label = int(kind == "sens")
            found = choose_threshold(Scored.of([label] * count, scores), f"{kind}={target}")
            new = rng.normal(size=200)
            reached.append(np.mean(new >= found.value) if label else np.mean(new < found.value))
        assert found.promise >= target
        assert not found.note
        assert np.mean(reached) == pytest.approx(found.promise, abs=0.012)


@pytest.mark.parametrize(("count", "promise"), [(4, 0.8), (8, 8 / 9), (16, 16 / 17)])
def test_few_shots_say_what_they_cannot_promise(count, promise):
    labels, scores = binormal(2, count, count)
    found = choose_threshold(Scored.of(labels, scores), "sens=0.95")
    assert found.value == scores[labels == 1].min()
    assert found.promise == pytest.approx(promise)
    assert f"{count} images cannot promise a sensitivity of 0.95" in found.note
    assert "19 are needed" in found.note


def test_images_of_one_patient_are_said_to_promise_less():
    """As they do: 40 alike of each of three patients, of which the threshold promises 0.95."""
    generator, kept = np.random.default_rng(0), []
    for _ in range(100):
        own = generator.normal(size=(3, 1)) * 0.9 + generator.normal(size=(3, 40)) * 0.45
        found = c.Calibration.fit([0] * 120, own.ravel(), "spec=0.95")
        kept.append((generator.normal(size=1000) < found.threshold).mean())
    assert np.mean(kept) < 0.9
    assert found.promise == pytest.approx(0.95, abs=0.01)
    assert found.note == ""
    assert "its 120 images are of 3 patients" in found.of_patients([i // 40 for i in range(120)]).note
    assert found.of_patients([None] * 120) == found


def test_a_specificity_of_all_normals_leaves_them_below():
    labels, scores = binormal(2, 8, 8)
    found = choose_threshold(Scored.of(labels, scores), "spec=0.95")
    assert not np.any(scores[labels == 0] >= found.value)
    assert found.value - scores[labels == 0].max() < 1e-9


def test_missing_classes_and_numbers_are_said():
    with pytest.raises(DataError, match="needs abnormal"):
        c.Calibration.fit([0, 0], [0.1, 0.2], "sens=0.9")
    with pytest.raises(DataError, match="youden"):
        c.Calibration.fit([0, 0], [0.1, 0.2])
    with pytest.raises(DataError, match="calibration image 1: the score is nan"):
        c.Calibration.fit([0, 1], [0.1, float("nan")])
    with pytest.raises(DataError, match="a probability needs"):
        fit_platt(Scored.of([1, 1], [0.1, 0.2]))


@given(st.integers(0, 500), st.integers(1, 30), st.integers(1, 30), st.floats(-2, 6))
@settings(deadline=None)
def test_platt_never_falls_and_is_never_certain(seed, zeros, ones, shift):
    labels, scores = binormal(seed, zeros, ones, shift)
    assert fit_platt(Scored.of(labels, scores))[0] >= 0
    probability = c.Calibration.fit(labels, scores).probability(np.linspace(0, 1, 50))
    assert np.all(np.diff(probability) >= 0)
    assert np.all(np.isfinite(probability))


@pytest.mark.parametrize("seed", range(12))
def test_platt_equals_logistic_regression_on_smoothed_targets(seed):
    rng = np.random.default_rng(seed)
    zeros, ones = rng.integers(1, 80, 2)
    labels, scores = binormal(seed, zeros, ones, shift=rng.uniform(0.5, 5))
    scores = scores * 10.0 ** rng.integers(-3, 3) + rng.normal()
    slope, offset = fit_platt(Scored.of(labels, scores))
    # A target between 0 and 1 is the image twice, as abnormal and as normal, with weights that add up to 1.
    target = np.where(labels == 1, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    unit = (scores - scores.mean()) / scores.std()
    oracle = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(
        np.tile(unit, 2)[:, None], np.repeat([1, 0], len(unit)), sample_weight=np.append(target, 1 - target)
    )
    if oracle.coef_[0, 0] <= 0 or scores[labels == 1].mean() <= scores[labels == 0].mean():
        assert slope == 0
        return
    expected = oracle.predict_proba(unit[:, None])[:, 1]
    assert slope == pytest.approx(oracle.coef_[0, 0] / scores.std(), rel=1e-6)
    assert 1 / (1 + np.exp(-(slope * scores + offset))) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 0.0), (1e-6, 0.5), (1e6, -3e6)])
def test_platt_does_not_depend_on_the_unit_of_scores(factor, shift):
    labels, scores = binormal(5, 25, 15)
    plain = c.Calibration.fit(labels, scores).probability(scores)
    moved = scores * factor + shift
    assert c.Calibration.fit(labels, moved).probability(moved) == pytest.approx(plain, abs=1e-6)


def test_scores_that_rank_backwards_give_a_flat_probability():
    labels, scores = binormal(3, 20, 20, shift=-2)
    assert fit_platt(Scored.of(labels, scores)) == (0.0, pytest.approx(0.0))


def test_isotonic_equals_scikit_learn_inside_its_margin():
    labels, scores = binormal(4, 300, 250)
    found = c.Calibration.fit(labels, scores)
    assert found.method == "isotonic"
    oracle = IsotonicRegression(y_min=1 / 552, y_max=551 / 552, out_of_bounds="clip").fit(scores, labels)
    grid = np.linspace(0, 1, 101)
    assert found.probability(grid) == pytest.approx(oracle.predict(grid), abs=1e-9)
    assert c.Calibration.fit(labels[60:], scores[60:]).method == "isotonic"
    assert c.Calibration.fit(labels[120:], scores[120:]).method == "platt"


def test_probabilities_are_calibrated_and_better_than_raw_scores():
    labels, scores = binormal(6, 16, 16)
    found = c.Calibration.fit(labels, scores * 0.01 + 0.5)
    truth, new = binormal(7, 5000, 5000)
    probability = found.probability(new * 0.01 + 0.5)
    assert log_loss(truth, probability) < 0.55 < log_loss(truth, new * 0.01 + 0.5)
    rare = found.probability(new * 0.01 + 0.5, prevalence=0.01)
    assert rare.mean() < 0.1 < probability.mean()
    assert found.probability(0.507, prevalence=0.5) == pytest.approx(found.probability(0.507))


def test_p_values_by_hand():
    found = c.Calibration.fit([0, 0, 0, 0, 1, 1], [0.1, 0.2, 0.2, 0.4, 0.5, 0.9])
    assert found.p_value([0.05, 0.2, 0.3, 0.4, 0.6]) == pytest.approx([1.0, 0.8, 0.4, 0.4, 0.2])
    assert found.abnormal_p_value([0.1, 0.5, 0.7, 1.0]) == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1.0])
    assert c.resolution(16) == pytest.approx(0.0588, abs=1e-4)
    assert found.levels_kept == (0.2, pytest.approx(1 / 3))


def test_verdicts():
    found = c.Calibration.fit(*binormal(8, 16, 16, shift=4))
    lowest, highest = min(found.normal_scores), max(found.abnormal_scores)
    assert found.verdict(highest) == "anomalous"
    assert found.verdict(lowest) == "normal"
    assert found.verdict(lowest, familiar=False) == "uncertain"
    mixed = c.Calibration.fit(*binormal(8, 16, 16, shift=0.1))
    assert mixed.verdict(float(np.median(mixed.normal_scores))) == "uncertain"
    apart = c.Calibration.fit([0] * 9 + [1] * 9, [0.1] * 9 + [0.9] * 9)
    assert apart.verdict(0.5) == "uncertain", "above every normal and below every anomalous image: like neither"
    normals = c.Calibration.fit([0] * 10, np.arange(10) / 20, "spec=0.9")
    assert normals.method == "none"
    assert normals.probability([0.2]) is None
    assert [normals.verdict(s) for s in (0.1, 0.9)] == ["normal", "anomalous"]


@pytest.mark.parametrize("count", [4, 16, 50])
def test_a_verdict_errs_no_more_often_than_it_says(count):
    rng = np.random.default_rng(count)
    wrong = []
    for _ in range(300):
        found = c.Calibration.fit([0] * count + [1] * count, np.append(rng.normal(size=count), rng.normal(2, 1, count)))
        level = found.levels_kept[0]
        wrong.append(np.mean(found.p_value(rng.normal(size=100)) <= level + 1e-12))
        assert level == max(0.1, 1 / (count + 1))
    assert np.mean(wrong) <= level + 0.015


def test_a_calibration_survives_json():
    for size in (10, 210):
        found = c.Calibration.fit(*binormal(9, size, size), "sens=0.9", pixel_threshold=0.4)
        assert c.Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(CheckpointError, match="format 7"):
        c.Calibration.from_dict(found.to_dict() | {"format": 7})
    with pytest.raises(CheckpointError, match="cannot be read"):
        c.Calibration.from_dict({"format": 1, "threshold": 0.5})


BROKEN = {
    "a threshold that is text": {"threshold": "0.5"},
    "a threshold that is no number": {"threshold": float("nan")},
    "a score that is text": {"normal_scores": ["a"]},
    "scores that are no list": {"abnormal_scores": 0.5},
    "scores that fall": {"normal_scores": [0.5, 0.1]},
    "a method that nobody knows": {"method": "beta"},
    "isotonic without knots": {"method": "isotonic"},
    "knots without levels": {"method": "isotonic", "knots": [0.1, 0.2], "levels": [0.5]},
    "probabilities that fall": {"method": "isotonic", "knots": [0.1, 0.2], "levels": [0.6, 0.5]},
    "a slope that falls": {"slope": -1.0},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_calibration_that_makes_no_sense_is_not_loaded(change):
    values = c.Calibration.fit(*binormal(9, 10, 10)).to_dict()
    c.Calibration.from_dict(values)
    with pytest.raises(CheckpointError, match="make no sense"):
        c.Calibration.from_dict(values | change)


def test_a_calibration_of_an_earlier_version_loads():
    """As `detector.json` of version 0.1.0 has it, verbatim."""
    saved = json.loads(
        '{"format": 1, "operating_point": "sens=0.95", "threshold": 0.4, "promise": 0.8, "note": "",'
        ' "normal_scores": [0.1, 0.2, 0.3, 0.35], "abnormal_scores": [0.4, 0.6, 0.7, 0.9], "method": "platt",'
        ' "slope": 6.5, "offset": -2.5, "knots": [], "levels": [], "pixel_threshold": null, "alpha": 0.1}'
    )
    found = c.Calibration.from_dict(saved)
    assert found.probability(0.4) == pytest.approx(1 / (1 + np.exp(-0.1)))
    assert found.p_value(0.3) == pytest.approx(3 / 5)
    assert found.to_dict() == saved


def test_the_pixel_threshold_has_the_largest_dice():
    rng = np.random.default_rng(0)
    masks = [rng.random((12, 12)) < p for p in (0.2, 0.0, 0.3)]
    maps = [np.clip(0.3 * mask + rng.normal(0.4, 0.15, mask.shape), 0, 1) for mask in masks]
    chosen = choose_pixel_threshold(maps, masks)

    def overlap(cut):
        called, truth = np.stack(maps) >= cut, np.stack(masks)
        return 2 * np.sum(called & truth) / (np.sum(called) + np.sum(truth))

    assert overlap(chosen) == pytest.approx(max(overlap(cut) for cut in np.stack(maps).ravel()))
    assert choose_pixel_threshold(maps[1:2], masks[1:2]) is None


def test_familiarity_knows_its_kind_and_warns_of_another():
    rng = np.random.default_rng(3)
    kind = rng.normal(size=64)
    other = rng.normal(size=64)
    for count in (4, 8, 32):
        shots = kind + 0.2 * rng.normal(size=(count, 64))
        found = Familiarity.fit(shots)
        assert np.mean(found.familiar(kind + 0.2 * rng.normal(size=(500, 64)))) > 0.95
        assert not np.any(found.familiar(other + 0.2 * rng.normal(size=(500, 64))))
        assert Familiarity.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_copies_of_a_patient_do_not_make_others_unfamiliar():
    rng = np.random.default_rng(4)
    patients = rng.normal(size=(6, 1, 16)) * 0.3 + 1
    shots = (patients + 1e-3 * rng.normal(size=(6, 2, 16))).reshape(12, 16)
    groups = np.repeat(list("abcdef"), 2).tolist()
    nearest = Familiarity.fit(shots[::2]).distance(patients.reshape(6, 16) + 0.3 * rng.normal(size=(6, 16))).min()
    assert Familiarity.fit(shots, groups).limit > nearest > 1e-3
    assert Familiarity.fit(shots, groups, level=0.5).limit == pytest.approx(
        Familiarity.fit(shots[::2], level=0.5).limit, rel=0.1
    )
    with pytest.raises(DataError, match="three shots"):
        Familiarity.fit(shots[:4], ["a"] * 4)
    with pytest.raises(DataError, match="three shots"):
        Familiarity.fit(shots[:2])
    with pytest.raises(DataError, match="not a finite number"):
        Familiarity.fit(np.full((4, 3), np.nan))


def test_shots_that_happen_to_lie_close_do_not_make_the_rest_unfamiliar():
    rng = np.random.default_rng(5)
    kind = rng.normal(size=32)
    pairs = np.repeat(kind + 0.3 * rng.normal(size=(4, 32)), 2, axis=0)  # each with a near double
    found = Familiarity.fit(pairs + 1e-3 * rng.normal(size=pairs.shape))
    assert np.mean(found.familiar(kind + 0.3 * rng.normal(size=(500, 32)))) > 0.9


@given(st.lists(st.sampled_from(["a", "b", None]), max_size=6))
def test_whether_familiarity_is_possible_can_be_asked(groups):
    features = np.random.default_rng(0).normal(size=(len(groups), 8))
    if Familiarity.possible(groups):
        assert Familiarity.fit(features, groups).limit > 0
    else:
        with pytest.raises(DataError, match="three shots"):
            Familiarity.fit(features, groups)


def test_a_familiarity_that_makes_no_sense_is_not_loaded():
    values = Familiarity.fit(np.random.default_rng(0).normal(size=(4, 8))).to_dict()
    Familiarity.from_dict(values)
    for change in (
        {"features": []},
        {"features": [[1.0], [1.0, 2.0]]},
        {"features": [["a"]]},
        {"features": [[float("inf")]]},
        {"limit": None},
        {"limit": float("nan")},
    ):
        with pytest.raises(CheckpointError, match="familiarity"):
            Familiarity.from_dict(values | change)
    with pytest.raises(CheckpointError, match="familiarity"):
        Familiarity.from_dict({"format": 1})


def test_what_is_said_of_a_score_is_never_contradictory_without_a_note():
    """Over all scores: decision, verdict and probability agree, or the note says why not."""
    from madclip.prediction import Prediction, judged

    normal = np.linspace(0.05, 0.3, 16)
    found = c.Calibration.fit([0] * 16 + [1] * 4, [*normal, 0.32, 0.5, 0.7, 0.9])
    noted = 0
    for score in np.linspace(0, 1, 201):
        one = judged(Prediction(float(score), np.zeros((1, 1), np.float32), (1, 1)), found)
        agree = one.decision == one.verdict and (one.probability >= 0.5) == (one.decision == "anomalous")
        assert agree or one.note
        noted += bool(one.note)
    assert 0 < noted < 201
