"""Is one detector better than another: on the same images, or over several sets and seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.errors import DataError
from madclip.metrics.image import ONE_CLASS, Estimate, check_scores
from madclip.metrics.intervals import (
    WeightedStatistic,
    normal_quantile,
    placements,
    resamples,
    weighted_auroc,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Difference:
    """First minus second, its interval, and the two-sided p-value of no difference; None with a reason."""

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    method: str = ""
    reason: str = ""


def paired_delong(labels: ArrayLike, first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Difference:
    """Difference of two AUROCs on the same images, with DeLong's test for correlated curves (Biometrics 1988;44:837).

    Images count as independent; with several per patient use `paired_bootstrap`.

    Raises:
        DataError: See `check_scores`.
    """
    check_scores(labels, first)
    a10, a01 = placements(labels, first)
    b10, b01 = placements(labels, second)
    if not len(a10) or not len(a01):
        return Difference(None, reason=ONE_CLASS)
    value = float(a10.mean() - b10.mean())
    if len(a10) < 2 or len(a01) < 2:
        return Difference(value, reason="needs two images of each kind for an interval")
    # The variance of the difference of means is that of the means of differences.
    variance = float(np.var(a10 - b10, ddof=1) / len(a10) + np.var(a01 - b01, ddof=1) / len(a01))
    error = math.sqrt(variance)
    if error < 1e-12:
        reason = "the two rank every pair alike" if abs(value) < 1e-12 else "no variance between images"
        return Difference(value, value, value, 1.0 if abs(value) < 1e-12 else None, "paired DeLong", reason)
    half = normal_quantile(level) * error
    p = 2 * NormalDist().cdf(-abs(value) / error)
    return Difference(value, value - half, value + half, p, "paired DeLong")


def paired_bootstrap(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    level: float = 0.95,
    *,
    patients: Sequence[Any] | None = None,
    statistic: WeightedStatistic = weighted_auroc,
    repetitions: int = 2000,
    seed: int = 0,
) -> Difference:
    """Difference of a metric on the same images, resampling patients (images where None) for both at once.

    The p-value is twice the smaller share of replicates on either side of zero, one added to both counts.

    Raises:
        DataError: See `check_scores`.
    """
    positive, left = check_scores(labels, first)
    _, right = check_scores(labels, second)
    if positive.all() or not positive.any():
        return Difference(None, reason=ONE_CLASS)
    every = np.ones((1, len(left)))
    value = float(statistic(positive, left, every)[0] - statistic(positive, right, every)[0])
    drawn = np.concatenate(
        [
            statistic(positive, left, weights) - statistic(positive, right, weights)
            for weights in resamples(positive, patients, repetitions, seed)
        ]
    )
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (repetitions + 1))
    unit = "images" if patients is None else "patients"
    return Difference(value, float(low), float(high), p, f"paired bootstrap over {unit}, {repetitions} replicates")


def wilcoxon(first: ArrayLike, second: ArrayLike) -> Difference:
    """Mean difference over sets or seeds with Wilcoxon's signed-rank p-value (exact where there are no ties).

    The smallest p-value that n pairs can give is 2 / 2^n: five sets cannot reach 0.05.

    Raises:
        DataError: The two are not lists of one length, or hold something that is not a finite number.
    """
    from scipy.stats import wilcoxon as signed_rank

    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape or not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise DataError("Wilcoxon's test needs two lists of finite numbers of one length, paired in order")
    if not left.size:
        return Difference(None, reason="there are no pairs")
    value = float(np.mean(left - right))
    if np.all(left == right):
        return Difference(value, p=1.0, method="Wilcoxon signed-rank", reason="every pair is equal")
    return Difference(value, p=float(signed_rank(left, right).pvalue), method="Wilcoxon signed-rank")


def mean_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
    """Mean over runs (seeds of shots) with Student's interval: where the mean of many more runs would lie.

    Raises:
        DataError: A value is not a finite number.
    """
    from scipy.stats import t

    runs = np.asarray(values, dtype=np.float64)
    if not np.isfinite(runs).all():
        raise DataError("a run has a value that is not a finite number")
    if not runs.size:
        return Estimate(None, reason="there are no runs")
    mean = float(runs.mean())
    if runs.size == 1:
        return Estimate(mean, reason="one run says nothing about the spread between runs")
    half = float(t.ppf((1 + level) / 2, runs.size - 1) * runs.std(ddof=1) / math.sqrt(runs.size))
    return Estimate(mean, mean - half, mean + half, method=f"Student's t over {runs.size} runs")
