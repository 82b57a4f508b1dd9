"""Is one detector better than another: on the same images, or over several sets and seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from madclip.errors import DataError
from madclip.metrics.image import ONE_CLASS, Estimate
from madclip.metrics.intervals import (
    WeightedStatistic,
    normal_quantile,
    placements,
    resamples,
    weighted_auroc,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from madclip.metrics.scored import Scored


@dataclass(frozen=True)
class Difference:
    """How much larger a quantity is for the first of two detectors than for the second.

    Attributes:
        value: First minus second; None where it has no meaning, and `reason` says why.
        low: Lower end of the interval; None where there is none.
        high: Upper end of the interval; None where there is none.
        p: Two-sided p-value of no difference; None where there is none.
        method: How interval and p-value were made.
        reason: Why something is missing.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    method: str = ""
    reason: str = ""


def check_pair(first: Scored, second: Scored) -> None:
    """Two detectors can be compared image by image.

    Raises:
        DataError: They were not scored on the same images in the same order.
    """
    if len(first) != len(second) or not np.array_equal(first.labels, second.labels):
        raise DataError("the two were not scored on the same images in the same order: their labels differ")
    if first.names is not None and second.names is not None and first.names != second.names:
        raise DataError("the two were not scored on the same images in the same order: their names differ")
    if not np.array_equal(first.clusters, second.clusters):
        raise DataError("the two were not scored on the same images in the same order: their patients differ")


def paired_delong(first: Scored, second: Scored, level: float = 0.95) -> Difference:
    """Difference of two AUROCs on the same images, with DeLong's test for correlated curves (Biometrics 1988;44:837).

    Images count as independent; with several per patient use `paired_bootstrap`.

    Args:
        first: The images with the scores of the first detector.
        second: The same images with those of the second, as `first.rescored(scores)`.
        level: Coverage aimed at.

    Raises:
        DataError: They are not the same images.
    """
    check_pair(first, second)
    if first.one_class:
        return Difference(None, reason=ONE_CLASS)
    a10, a01 = placements(first)
    b10, b01 = placements(second)
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
    first: Scored,
    second: Scored,
    level: float = 0.95,
    *,
    statistic: WeightedStatistic = weighted_auroc,
    repetitions: int = 2000,
    seed: int = 0,
) -> Difference:
    """Difference of a metric on the same images, drawing patients, or images where unknown, for both at once.

    The p-value is twice the smaller share of replicates on either side of zero, one added to both counts.

    Args:
        first: The images with the scores of the first detector.
        second: The same images with those of the second, as `first.rescored(scores)`.
        level: Coverage aimed at.
        statistic: The metric.
        repetitions: Number of replicates.
        seed: Determines the draws.

    Raises:
        DataError: They are not the same images.
    """
    check_pair(first, second)
    if first.one_class:
        return Difference(None, reason=ONE_CLASS)
    every = np.ones((1, len(first)))
    value = float(statistic(first, every)[0] - statistic(second, every)[0])
    drawn = np.concatenate(
        [
            statistic(first, weights) - statistic(second, weights)
            for weights in resamples(first.labels, first.patients, repetitions, seed)
        ]
    )
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(1.0, 2 * (tail + 1) / (repetitions + 1))
    unit = "images" if first.patients is None else "patients"
    return Difference(value, float(low), float(high), p, f"paired bootstrap over {unit}, {repetitions} replicates")


def wilcoxon(first: ArrayLike, second: ArrayLike) -> Difference:
    """Mean difference over sets or seeds with Wilcoxon's signed-rank p-value (exact where there are no ties).

    The smallest p-value that n pairs can give is 2 / 2^n: five sets cannot reach 0.05.

    Args:
        first: [n], a value of the first detector for each set or seed.
        second: [n], the values of the second in the same order.

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


def mean_interval(values: ArrayLike, level: float = 0.95, *, bounds: tuple[float, float] | None = None) -> Estimate:
    """Mean over runs (seeds of shots) with Student's interval: where the mean of many more runs would lie.

    Args:
        values: [R], one of each run.
        level: Coverage aimed at.
        bounds: Smallest and largest value that the quantity can have, beyond which its interval does not reach; None
            where there are none.

    Raises:
        DataError: A value is not a finite number.
    """
    from scipy.special import stdtrit  # scipy.stats takes a second and a half to import

    runs = np.asarray(values, dtype=np.float64)
    if not np.isfinite(runs).all():
        raise DataError("a run has a value that is not a finite number")
    if not runs.size:
        return Estimate(None, reason="there are no runs")
    least, most = (-math.inf, math.inf) if bounds is None else bounds
    mean = float(runs.mean())
    if runs.size == 1:
        return Estimate(mean, reason="one run says nothing about the spread between runs")
    half = float(stdtrit(runs.size - 1, (1 + level) / 2) * runs.std(ddof=1) / math.sqrt(runs.size))
    return Estimate(mean, max(mean - half, least), min(mean + half, most), method=f"Student's t over {runs.size} runs")
