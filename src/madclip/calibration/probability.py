"""From the scores of a few shots to the probability that an image is abnormal: Platt's sigmoid, isotonic regression."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from madclip.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from madclip.metrics.scored import Scored

    Floats = NDArray[np.float64]

ISOTONIC_FROM = 200
"""Images of each class from which isotonic regression takes the place of Platt's sigmoid (docs/evaluation.md)."""


def fit_platt(data: Scored) -> tuple[float, float]:
    """Slope >= 0 and offset of probability = 1 / (1 + exp(-(slope x score + offset))).

    Platt's smoothed targets, (n1 + 1) / (n1 + 2) and 1 / (n0 + 2), keep few or separable shots from certainty (Platt
    1999; Lin, Lin and Weng, Machine Learning 2007;68:267). A slope that would fall is set to 0: the probability never
    ranks images against their scores.

    Raises:
        DataError: One class is missing.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    if data.one_class:
        raise DataError("a probability needs normal and abnormal calibration images")
    zeros, ones = np.sort(data.normal), np.sort(data.abnormal)
    raw = np.concatenate([zeros, ones])
    target = np.repeat([1 / (len(zeros) + 2), (len(ones) + 1) / (len(ones) + 2)], [len(zeros), len(ones)])
    centre, scale = float(raw.mean()), float(raw.std())
    flat = math.log(target.mean() / (1 - target.mean()))
    if scale < 1e-12 or ones.mean() <= zeros.mean():
        return 0.0, flat
    design = np.stack([(raw - centre) / scale, np.ones_like(raw)], 1)

    def loss(weights: Floats) -> float:
        logits = design @ weights
        return float(np.sum(np.logaddexp(0, logits) - target * logits))

    def gradient(weights: Floats) -> Floats:
        return np.asarray(design.T @ (expit(design @ weights) - target))

    def curvature(weights: Floats) -> Floats:
        probability = expit(design @ weights)
        return np.asarray((design * (probability * (1 - probability))[:, None]).T @ design)

    found = minimize(loss, [0.0, flat], jac=gradient, hess=curvature, method="trust-exact", options={"gtol": 1e-10}).x
    slope = max(0.0, float(found[0]) / scale)
    return slope, float(found[1]) - slope * centre


def fit_isotonic(data: Scored) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Isotonic regression by pool-adjacent-violators: scores, and the probabilities at them, which never fall.

    Between two scores the probability is interpolated. Probabilities are kept from 0 and 1 by 1 / (n + 2): no finite
    number of images shows certainty.
    """
    from scipy.optimize import isotonic_regression

    values, index, counts = np.unique(data.scores, return_inverse=True, return_counts=True)
    fitted = isotonic_regression(np.bincount(index, data.labels) / counts, weights=counts).x
    margin = 1 / (len(data) + 2)
    fitted = np.clip(fitted, margin, 1 - margin)
    ends = np.flatnonzero(np.append(True, np.diff(fitted) != 0) | np.append(np.diff(fitted) != 0, True))
    return tuple(values[ends].tolist()), tuple(fitted[ends].tolist())
