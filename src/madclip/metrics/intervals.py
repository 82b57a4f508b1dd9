"""Intervals of image-level metrics: DeLong and Obuchowski, Wilson, and a bootstrap that resamples patients."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from madclip.errors import DataError
from madclip.metrics.image import ONE_CLASS, Estimate
from madclip.metrics.scored import Scored, patient_index

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


FEW_UNITS = "needs two patients or images of each kind for an interval"
NO_SPREAD = "every bootstrap replicate is equal, which says nothing about the error"


def placements(data: Scored) -> tuple[Floats, Floats]:
    """DeLong's structural components V10 and V01 (Biometrics 1988;44:837), whose means are both the AUROC.

    Returns:
        For each abnormal image the share of normal images below it, and for each normal image the share of abnormal
        images above it; ties count half.
    """
    above, below = np.sort(data.abnormal), np.sort(data.normal)
    v10 = np.searchsorted(below, data.abnormal, "left") + np.searchsorted(below, data.abnormal, "right")
    v01 = np.searchsorted(above, data.normal, "left") + np.searchsorted(above, data.normal, "right")
    return v10 / (2 * max(len(below), 1)), 1 - v01 / (2 * max(len(above), 1))


def delong_variance(data: Scored) -> float:
    """Variance of the AUROC; NaN where a class has fewer than two patients.

    Images are independent where patients are not known (DeLong); else sums over a patient's images take the place of
    images (Obuchowski, Biometrics 1997;53:567), which is DeLong's value when every patient has one image.
    """
    v10, v01 = placements(data)
    positive, clusters = data.labels, data.clusters
    one, zero = int(positive.sum()), int((~positive).sum())
    count = int(clusters.max(initial=-1)) + 1
    ones, zeros = len(np.unique(clusters[positive])), len(np.unique(clusters[~positive]))
    if ones < 2 or zeros < 2:
        return math.nan
    sum10 = np.bincount(clusters[positive], v10 - v10.mean(), count)
    sum01 = np.bincount(clusters[~positive], v01 - v01.mean(), count)
    own = ones / (ones - 1) * float(sum10 @ sum10) / one**2 + zeros / (zeros - 1) * float(sum01 @ sum01) / zero**2
    return max(0.0, own + 2 * count / (count - 1) * float(sum10 @ sum01) / (one * zero))


def delong_interval(data: Scored, level: float = 0.95, *, logit: bool = True) -> Estimate:
    """AUROC with DeLong's interval, on the logit scale unless told otherwise.

    The plain interval covers too little near 1 (docs/evaluation.md has both, measured). Where the variance is zero,
    as with perfect separation, the interval is Newcombe's (Statistics in Medicine 2006;25:559, method 5), which does
    not shrink to a point.

    Args:
        data: Labels, scores and, where they are known, patients.
        level: Coverage aimed at.
        logit: Whether the interval is symmetric in logit(AUROC) rather than in AUROC.
    """
    if data.one_class:
        return Estimate(None, reason=ONE_CLASS)
    value = float(placements(data)[0].mean())
    name = "DeLong" if data.patients is None else "DeLong over patients (Obuchowski)"
    variance = delong_variance(data)
    if math.isnan(variance):
        return Estimate(value, reason=FEW_UNITS)
    if variance < 1e-24 or value in (0.0, 1.0):
        ones, zeros = (len(set(data.clusters[part])) for part in (data.labels, ~data.labels))
        low, high = newcombe(value, ones, zeros, level)
        return Estimate(value, low, high, method="Newcombe, method 5 (no variance between images)")
    half = normal_quantile(level) * math.sqrt(variance)
    if not logit:
        return Estimate(value, max(0.0, value - half), min(1.0, value + half), method=name)
    low, high = logit_interval(value, half)
    return Estimate(value, low, high, method=f"{name}, logit scale")


def logit_interval(value: float, half_width: float) -> tuple[float, float]:
    """Ends of the interval of a proportion in (0, 1), symmetric on the logit scale.

    Args:
        value: The proportion.
        half_width: Half the width of its plain interval, from which that on the logit scale follows (delta method).
    """
    centre, half = math.log(value / (1 - value)), half_width / (value * (1 - value))
    return expit(centre - half), expit(centre + half)


def expit(x: float) -> float:
    """Inverse of the logit, without overflow."""
    return 0.5 * (1 + math.tanh(x / 2))


def newcombe(value: float, ones: int, zeros: int, level: float = 0.95) -> tuple[float, float]:
    """Newcombe's method 5: the areas whose Hanley-McNeil variance leaves `value` within z standard errors.

    Args:
        value: The AUROC that was found.
        ones: Abnormal images, or their patients.
        zeros: Normal images, or their patients.
        level: Coverage aimed at.
    """
    z = normal_quantile(level)
    half = (ones + zeros) / 2 - 1

    def far(area: float) -> bool:
        spread = 1 + half * ((1 - area) / (2 - area) + area / (1 + area))
        return (value - area) ** 2 > z * z * area * (1 - area) * spread / (ones * zeros)

    def end(outside: float) -> float:
        inside = value
        for _ in range(60):
            middle = (outside + inside) / 2
            inside, outside = (inside, middle) if far(middle) else (middle, outside)
        return inside

    return (end(0.0) if value > 0 else 0.0), (end(1.0) if value < 1 else 1.0)


def normal_quantile(level: float) -> float:
    """How many standard errors an interval of this coverage reaches to either side.

    Raises:
        DataError: The level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise DataError(f"the level of an interval lies between 0 and 1, not {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson_interval(successes: float, trials: float, level: float = 0.95) -> Estimate:
    """Proportion of independent trials that succeeded, with Wilson's score interval (JASA 1927;22:209)."""
    if trials == 0:
        return Estimate(None, reason="there is nothing to count")
    z2 = normal_quantile(level) ** 2
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    low = 0.0 if successes == 0 else centre - half
    return Estimate(share, low, 1.0 if successes == trials else centre + half, method="Wilson")


def share_interval(success: ArrayLike, level: float = 0.95, *, patients: Sequence[Any] | None = None) -> Estimate:
    """Proportion with a Wilson interval at the effective sample size (n / design effect) if images cluster by patient.

    The design effect follows from the variance between patients (Kish 1965). Where all images or none have the
    property nothing is known of that variance, and the effective sample size is the number of patients.

    Args:
        success: [N] bool, which images have the property.
        level: Coverage aimed at.
        patients: [N], whose image each is; None treats images as independent.
    """
    had = np.asarray(success, dtype=np.bool_)
    clusters = patient_index(patients, len(had))
    count = len(np.unique(clusters))
    if count == len(had):
        return wilson_interval(int(had.sum()), len(had), level)
    share = float(had.mean())
    sums = np.bincount(clusters, had - share)
    variance = count / max(count - 1, 1) * float(sums @ sums) / len(had) ** 2
    worth = min(len(had), share * (1 - share) / variance) if variance > 0 else count
    return replace(wilson_interval(share * worth, worth, level), method="Wilson, patients as units")


def resamples(
    labels: ArrayLike, patients: Sequence[Any] | None, repetitions: int, seed: int, rows: int = 64
) -> Iterator[Floats]:
    """How often each image is drawn in each bootstrap replicate, a few replicates [<= rows, N] at a time.

    Whole patients are drawn, with replacement, among those with only normal, only abnormal, or both kinds of images,
    so every replicate has both classes when the data has.

    Args:
        labels: [N], 0 normal and 1 abnormal.
        patients: [N], whose image each is; None draws images.
        repetitions: Number of replicates.
        seed: Determines the draws.
        rows: Replicates that are given at a time.
    """
    positive = np.asarray(labels).astype(np.bool_)
    clusters = patient_index(patients, len(positive))
    count = int(clusters.max(initial=-1)) + 1
    kind = (np.bincount(clusters, positive, count) > 0) + 2 * (np.bincount(clusters, ~positive, count) > 0)
    generator = np.random.default_rng(seed)
    for start in range(0, repetitions, rows):
        drawn = np.zeros((min(rows, repetitions - start), count))
        for stratum in np.unique(kind):
            members = np.flatnonzero(kind == stratum)
            # Indices counted row by row: many times faster than multinomial() for the same distribution.
            picks = generator.integers(len(members), size=(len(drawn), len(members)))
            picks += len(members) * np.arange(len(drawn))[:, None]
            drawn[:, members] = np.bincount(picks.ravel(), minlength=picks.size).reshape(picks.shape)
        yield drawn[:, clusters]


class WeightedStatistic(Protocol):
    """A metric of weighted images, for many weightings at once."""

    def __call__(self, data: Scored, weights: Floats) -> Floats:
        """The metric [R] of N scored images under each row of weights [R, N]."""


def weighted_counts(data: Scored, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of abnormal and of normal images at or above each threshold, from high to low: [R, thresholds] twice."""
    order = np.argsort(-data.scores, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(data.scores[order]) != 0))
    ones = np.where(data.labels[order], weights[:, order], 0.0)
    zeros = np.where(data.labels[order], 0.0, weights[:, order])
    return np.cumsum(np.add.reduceat(ones, first, 1), 1), np.cumsum(np.add.reduceat(zeros, first, 1), 1)


def weighted_auroc(data: Scored, weights: Floats) -> Floats:
    """AUROC of each weighting, [R]."""
    hits, false = weighted_counts(data, weights)
    hits, false = np.pad(hits, ((0, 0), (1, 0))), np.pad(false, ((0, 0), (1, 0)))
    area = np.sum(np.diff(false, axis=1) * (hits[:, 1:] + hits[:, :-1]), 1) / 2
    return np.asarray(area / (hits[:, -1] * false[:, -1]))


def weighted_average_precision(data: Scored, weights: Floats) -> Floats:
    """Average precision of each weighting, [R]."""
    hits, false = weighted_counts(data, weights)
    precision = hits / np.maximum(hits + false, np.finfo(np.float64).tiny)
    return np.asarray(np.sum(np.diff(hits, axis=1, prepend=0.0) * precision, 1) / hits[:, -1])


def weighted_mean(data: Scored, weights: Floats) -> Floats:
    """Mean score under each weighting, [R]; labels only say among which images a bootstrap draws."""
    return np.asarray(weights @ data.scores / weights.sum(1), dtype=np.float64)


def weighted_f1(data: Scored, weights: Floats) -> Floats:
    """F1 of each weighting, [R], where a score is 1 for an image that was called anomalous and 0 for another."""
    return np.asarray(2 * (weights @ (data.scores * data.labels)) / (weights @ (data.scores + data.labels)))


def weighted_calibration_error(data: Scored, weights: Floats, bins: int = 10) -> Floats:
    """Expected calibration error of each weighting, [R], where scores are probabilities."""
    member = np.clip((data.scores * bins).astype(int), 0, bins - 1)[:, None] == np.arange(bins)
    return np.asarray(np.abs((weights * (data.scores - data.labels)) @ member).sum(1) / weights.sum(1))


def bootstrap_interval(
    data: Scored,
    level: float = 0.95,
    *,
    statistic: WeightedStatistic = weighted_auroc,
    repetitions: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A metric with the percentile interval of a stratified bootstrap over patients, or over images where unknown.

    Args:
        data: Labels, what the metric is computed from, and, where they are known, patients.
        level: Coverage aimed at.
        statistic: The metric.
        repetitions: Number of replicates.
        seed: Determines the draws.
    """
    if not len(data):
        return Estimate(None, reason="there are no images")
    if statistic in (weighted_auroc, weighted_average_precision) and data.one_class:
        return Estimate(None, reason=ONE_CLASS)
    if statistic is weighted_f1 and not data.labels.any():
        return Estimate(None, reason="no image is abnormal")
    value = float(statistic(data, np.ones((1, len(data))))[0])
    if min(len(set(data.clusters[part])) for part in (data.labels, ~data.labels) if part.any()) < 2:
        return Estimate(value, reason=FEW_UNITS)
    drawn = [statistic(data, weights) for weights in resamples(data.labels, data.patients, repetitions, seed)]
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    if high - low < 1e-12:
        return Estimate(value, reason=NO_SPREAD)
    unit = "images" if data.patients is None else "patients"
    return Estimate(value, float(low), float(high), method=f"bootstrap over {unit}, {repetitions:,} replicates")


def curve_bands(
    data: Scored, grid: Floats, level: float = 0.95, *, repetitions: int = 500, seed: int = 0
) -> tuple[Floats, Floats]:
    """Pointwise bootstrap bands of the ROC and the precision-recall curve.

    Args:
        data: Labels, scores and, where they are known, patients.
        grid: [G] in 0..1, where the bands are wanted.
        level: Coverage aimed at.
        repetitions: Number of replicates.
        seed: Determines the draws.

    Returns:
        Lower and upper ends, [2, G] each: of the sensitivity at each false-positive rate of `grid`, and of the
        precision at each recall of `grid`.
    """
    roc, pr = [], []
    for weights in resamples(data.labels, data.patients, repetitions, seed):
        for hits, false in zip(*weighted_counts(data, weights), strict=True):
            roc.append(np.interp(grid, np.append(0.0, false / false[-1]), np.append(0.0, hits / hits[-1])))
            first = np.minimum(np.searchsorted(hits / hits[-1], np.maximum(grid, 1e-9)), len(hits) - 1)
            pr.append(hits[first] / np.maximum(hits[first] + false[first], 1e-12))
    ends = [(1 - level) / 2, (1 + level) / 2]
    return np.quantile(roc, ends, axis=0), np.quantile(pr, ends, axis=0)
