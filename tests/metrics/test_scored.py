"""What a metric is computed from is checked in one place: every way into the metrics refuses the same, by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madclip.calibration.calibration import Calibration
from madclip.errors import DataError
from madclip.metrics import image as m
from madclip.metrics.scored import Scored, patient_index

DOORS = [
    Scored.of,
    m.auroc,
    m.average_precision,
    m.brier,
    m.expected_calibration_error,
    Calibration.fit,
]


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_the_same(door):
    for labels, scores, words in (
        ([0, 1], [0.1, float("nan")], "image 1: the score is nan, not a finite number"),
        ([0, 1], [float("inf"), 0.2], "image 0: the score is inf"),
        ([2, 1], [0.1, 0.2], r"image 0: the label is 2, neither 0 \(normal\) nor 1 \(abnormal\)"),
        ([0, float("nan")], [0.1, 0.2], "image 1: the label is nan"),
        ([0, 1], [0.1], "one length"),
        ([[0, 1]], [[0.1, 0.2]], "one length"),
    ):
        with pytest.raises(DataError, match=words):
            door(labels, scores)


def test_an_image_is_called_by_its_name():
    with pytest.raises(DataError, match=r"^b\.png: the score is nan"):
        Scored.of([0, 1], [0.2, float("nan")], names=["a.png", "b.png"])
    with pytest.raises(DataError, match=r"^a\.png: the label is 2"):
        m.auroc([2, 1], [0.1, 0.2], ["a.png", "b.png"])
    with pytest.raises(DataError, match="one length"):
        Scored.of([0, 1], [0.1, 0.2], names=["a.png"])
    with pytest.raises(DataError, match="1 patients for 2 images"):
        Scored.of([0, 1], [0.1, 0.2], patients=["p"])
    data = Scored.of([0, 1], [0.1, 0.2], names=["a.png", "b.png"])
    with pytest.raises(DataError, match=r"^a\.png: the score is inf"):
        data.rescored([np.inf, 0.2])
    with pytest.raises(DataError, match="one length"):
        data.rescored([0.1])


@given(st.lists(st.tuples(st.booleans(), st.floats(-9, 9)), max_size=30))
def test_both_classes_are_told_apart(images):
    labels, scores = [label for label, _ in images], [score for _, score in images]
    data = Scored.of(labels, scores)
    assert data.normal.tolist() == [score for label, score in images if not label]
    assert data.abnormal.tolist() == [score for label, score in images if label]
    assert data.one_class == (len(set(labels)) < 2)
    assert data.labels.dtype == bool
    assert data.scores.dtype == np.float64


@given(st.lists(st.sampled_from(["a", "b", 1, 2, None]), max_size=20))
def test_patients_are_numbered_and_nobody_is_alone(patients):
    index = patient_index(patients, len(patients))
    for i, one in enumerate(patients):
        for j, other in enumerate(patients):
            assert (index[i] == index[j]) == (i == j or (one is not None and one == other))
    assert set(index.tolist()) == set(range(len(set(index.tolist()))))
    data = Scored.of([0] * len(patients), [0.0] * len(patients), patients=patients)
    known = [patient for patient in patients if patient is not None]
    assert data.clustered == (len(set(known)) < len(known))
    assert not Scored.of([0, 1], [0.1, 0.2]).clustered
