import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from madclip.metrics import image as m
from madclip.metrics.scored import Scored


@st.composite
def labelled(draw, both=True):
    """Labels and scores with many ties; both classes present unless told otherwise."""
    n = draw(st.integers(2, 40))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    if both:
        labels[:2] = [0, 1]
    scores = draw(st.lists(st.integers(0, 12), min_size=n, max_size=n))
    return np.array(labels), np.array(scores) / 12


@given(labelled())
def test_auroc_and_ap_equal_scikit_learn(data):
    labels, scores = data
    assert m.auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert m.average_precision(labels, scores) == pytest.approx(average_precision_score(labels, scores), abs=1e-9)


@given(labelled())
def test_a_monotone_map_of_the_scores_changes_nothing(data):
    labels, scores = data
    moved = np.exp(3 * scores) - 7
    assert m.auroc(labels, moved) == m.auroc(labels, scores)
    assert m.average_precision(labels, moved) == m.average_precision(labels, scores)


@given(labelled(), st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(data, random):
    labels, scores = data
    order = random.sample(range(len(labels)), len(labels))
    assert m.auroc(labels[order], scores[order]) == m.auroc(labels, scores)
    assert m.average_precision(labels[order], scores[order]) == pytest.approx(
        m.average_precision(labels, scores), abs=1e-12
    )
    assert m.confusion(Scored.of(labels[order], scores[order]), 0.5) == m.confusion(Scored.of(labels, scores), 0.5)


@given(labelled())
def test_swapping_the_classes_mirrors_the_area(data):
    labels, scores = data
    assert m.auroc(1 - labels, scores) == pytest.approx(1 - m.auroc(labels, scores), abs=1e-12)


@given(labelled())
def test_the_area_under_the_curve_is_the_area(data):
    false, true = m.roc_curve(Scored.of(*data))
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true, false) == pytest.approx(m.auroc(*data), abs=1e-9)


@given(labelled(), st.floats(0, 1))
def test_counts_at_a_threshold(data, threshold):
    labels, scores = data
    counts = m.confusion(Scored.of(labels, scores), threshold)
    called = scores >= threshold
    assert counts.f1 == pytest.approx(f1_score(labels, called, zero_division=0), abs=1e-12)
    assert counts.sensitivity == pytest.approx(called[labels == 1].mean())
    assert counts.specificity == pytest.approx(1 - called[labels == 0].mean())
    assert m.brier(labels, scores) == pytest.approx(brier_score_loss(labels, scores), abs=1e-12)


def test_ties_everywhere_are_chance():
    assert m.auroc([0, 1, 0, 1], [0.3] * 4) == 0.5
    assert m.average_precision([0, 1, 0, 1], [0.3] * 4) == 0.5


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []])
def test_one_class_only_is_none_and_not_nan(labels):
    scores = np.linspace(0.1, 0.9, len(labels))
    assert m.auroc(labels, scores) is None
    assert m.roc_curve(Scored.of(labels, scores)) is None
    counts = m.confusion(Scored.of(labels, scores), 0.5)
    assert (counts.sensitivity is None) == (1 not in labels)
    assert (counts.specificity is None) == (0 not in labels)
    assert (m.average_precision(labels, scores) is None) == (1 not in labels)
    assert (m.brier(labels, scores) is None) == (not labels)


def test_calibration_error_by_hand():
    # Bin [0.2, 0.3): mean 0.25, one of two; bin [0.9, 1]: mean 0.95, two of two.
    labels, probabilities = [0, 1, 1, 1], [0.2, 0.3 - 1e-12, 0.9, 1.0]
    assert m.expected_calibration_error(labels, probabilities) == pytest.approx((2 * 0.25 + 2 * 0.05) / 4, abs=1e-9)
    assert m.expected_calibration_error([], []) is None
