"""Intervals of image-level metrics: DeLong and Obuchowski, Wilson, and a bootstrap that resamples patients."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from madclip.errors import DataError
from madclip.metrics.image import ONE_CLASS, Estimate, check_scores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


FEW_UNITS = "needs two patients or images of each kind for an interval"
NO_SPREAD = "every bootstrap replicate is equal, which says nothing about the error"


def placements(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Share of normal images below each anomalous one, and of anomalous images above each normal one; ties half.

    Their means are both the AUROC; they are DeLong's structural components V10 and V01 (Biometrics 1988;44:837).
    """
    positive, values = check_scores(labels, scores)
    above, below = np.sort(values[positive]), np.sort(values[~positive])
    v10 = np.searchsorted(below, values[positive], "left") + np.searchsorted(below, values[positive], "right")
    v01 = np.searchsorted(above, values[~positive], "left") + np.searchsorted(above, values[~positive], "right")
    return v10 / (2 * max(len(below), 1)), 1 - v01 / (2 * max(len(above), 1))


def delong_variance(labels: ArrayLike, scores: ArrayLike, patients: Sequence[Any] | None = None) -> float:
    """Variance of the AUROC; NaN where a class has fewer than two patients.

    Images are independent where `patients` is None (DeLong); else sums over a patient's images take the place of
    images (Obuchowski, Biometrics 1997;53:567), which is DeLong's value when every patient has one image.
    """
    positive, _ = check_scores(labels, scores)
    v10, v01 = placements(labels, scores)
    one, zero = int(positive.sum()), int((~positive).sum())
    clusters = patient_index(patients, len(positive))
    count = int(clusters.max(initial=-1)) + 1
    ones, zeros = len(np.unique(clusters[positive])), len(np.unique(clusters[~positive]))
    if ones < 2 or zeros < 2:
        return math.nan
    sum10 = np.bincount(clusters[positive], v10 - v10.mean(), count)
    sum01 = np.bincount(clusters[~positive], v01 - v01.mean(), count)
    own = ones / (ones - 1) * float(sum10 @ sum10) / one**2 + zeros / (zeros - 1) * float(sum01 @ sum01) / zero**2
    return max(0.0, own + 2 * count / (count - 1) * float(sum10 @ sum01) / (one * zero))


def delong_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    level: float = 0.95,
    *,
    patients: Sequence[Any] | None = None,
    logit: bool = True,
) -> Estimate:
    """AUROC with DeLong's interval, on the logit scale unless told otherwise.

    The plain interval covers too little near 1 (docs/evaluation.md has both, measured). Where the variance is zero,
    as with perfect separation, the interval is Newcombe's (Statistics in Medicine 2006;25:559, method 5), which does
    not shrink to a point.

    Args:
        labels: [N], 0 or 1.
        scores: [N].
        level: Coverage aimed at.
        patients: [N], whose image it is; None treats images as independent.
        logit: Whether the interval is symmetric in logit(AUROC) rather than in AUROC.

    Raises:
        DataError: See `check_scores`.
    """
    positive, _ = check_scores(labels, scores)
    v10, v01 = placements(labels, scores)
    if not len(v10) or not len(v01):
        return Estimate(None, reason=ONE_CLASS)
    value = float(v10.mean())
    name = "DeLong" if patients is None else "DeLong over patients (Obuchowski)"
    variance = delong_variance(labels, scores, patients)
    if math.isnan(variance):
        return Estimate(value, reason=FEW_UNITS)
    if variance < 1e-24 or value in (0.0, 1.0):
        clusters = patient_index(patients, len(positive))
        low, high = newcombe(value, len(set(clusters[positive])), len(set(clusters[~positive])), level)
        return Estimate(value, low, high, method="Newcombe, method 5 (no variance between images)")
    half = normal_quantile(level) * math.sqrt(variance)
    if not logit:
        return Estimate(value, max(0.0, value - half), min(1.0, value + half), method=name)
    low, high = logit_interval(value, half)
    return Estimate(value, low, high, method=f"{name}, logit scale")


def logit_interval(value: float, half_width: float) -> tuple[float, float]:
    """Ends of an interval of a share in (0, 1) whose half-width on the logit scale follows by the delta method."""
    centre, half = math.log(value / (1 - value)), half_width / (value * (1 - value))
    return expit(centre - half), expit(centre + half)


def expit(x: float) -> float:
    """Inverse of the logit, without overflow."""
    return 0.5 * (1 + math.tanh(x / 2))


def newcombe(value: float, ones: int, zeros: int, level: float = 0.95) -> tuple[float, float]:
    """Newcombe's method 5: the areas whose Hanley-McNeil variance leaves `value` within z standard errors."""
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
    """How many standard errors an interval of this coverage reaches to either side."""
    if not 0 < level < 1:
        raise DataError(f"the level of an interval lies between 0 and 1, not {level}")
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson_interval(successes: float, trials: float, level: float = 0.95) -> Estimate:
    """A share with Wilson's score interval (JASA 1927;22:209); trials count as independent."""
    if trials == 0:
        return Estimate(None, reason="there is nothing to count")
    z2 = normal_quantile(level) ** 2
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    low = 0.0 if successes == 0 else centre - half
    return Estimate(share, low, 1.0 if successes == trials else centre + half, method="Wilson")


def share_interval(success: ArrayLike, level: float = 0.95, *, patients: Sequence[Any] | None = None) -> Estimate:
    """Share of images with a property, Wilson's interval at the number of independent images that they are worth.

    That number follows from the variance between patients (design effect; Kish 1965). Where all or none have the
    property nothing is known of it, and it is the number of patients.

    Args:
        success: [N], bool.
        level: Coverage aimed at.
        patients: [N], whose image it is; None treats images as independent.
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


def patient_index(patients: Sequence[Any] | None, count: int) -> NDArray[np.intp]:
    """Number of each image's patient, [N] from 0; an image whose patient is None is a patient of its own."""
    if patients is None:
        return np.arange(count)
    if len(patients) != count:
        raise DataError(f"{len(patients)} patients for {count} images: give one for each, or none at all")
    seen: dict[Any, int] = {}
    keys = [("image", i) if patient is None else ("patient", patient) for i, patient in enumerate(patients)]
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.intp)


def resamples(
    labels: ArrayLike, patients: Sequence[Any] | None, repetitions: int, seed: int, rows: int = 64
) -> Iterator[Floats]:
    """How often each image is drawn in each bootstrap replicate, a few replicates [<= rows, N] at a time.

    Whole patients are drawn, with replacement, among those with only normal, only anomalous, or both kinds of images,
    so every replicate has both classes when the data has.
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

    def __call__(self, labels: ArrayLike, scores: ArrayLike, weights: Floats) -> Floats:
        """Labels [N], scores [N], weights [R, N] -> [R]."""


def weighted_counts(labels: ArrayLike, scores: ArrayLike, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of anomalous and of normal images at or above each threshold, from high to low: [R, thresholds] twice."""
    positive, values = check_scores(labels, scores)
    order = np.argsort(-values, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(values[order]) != 0))
    ones = np.where(positive[order], weights[:, order], 0.0)
    zeros = np.where(positive[order], 0.0, weights[:, order])
    return np.cumsum(np.add.reduceat(ones, first, 1), 1), np.cumsum(np.add.reduceat(zeros, first, 1), 1)


def weighted_auroc(labels: ArrayLike, scores: ArrayLike, weights: Floats) -> Floats:
    """AUROC of each weighting, [R]."""
    hits, false = weighted_counts(labels, scores, weights)
    hits, false = np.pad(hits, ((0, 0), (1, 0))), np.pad(false, ((0, 0), (1, 0)))
    area = np.sum(np.diff(false, axis=1) * (hits[:, 1:] + hits[:, :-1]), 1) / 2
    return np.asarray(area / (hits[:, -1] * false[:, -1]))


def weighted_average_precision(labels: ArrayLike, scores: ArrayLike, weights: Floats) -> Floats:
    """Average precision of each weighting, [R]."""
    hits, false = weighted_counts(labels, scores, weights)
    precision = hits / np.maximum(hits + false, np.finfo(np.float64).tiny)
    return np.asarray(np.sum(np.diff(hits, axis=1, prepend=0.0) * precision, 1) / hits[:, -1])


def weighted_mean(labels: ArrayLike, scores: ArrayLike, weights: Floats) -> Floats:
    """Mean of `scores` under each weighting, [R]; `labels` only place the strata."""
    _, values = check_scores(labels, scores)
    return np.asarray(weights @ values / weights.sum(1), dtype=np.float64)


def weighted_f1(labels: ArrayLike, scores: ArrayLike, weights: Floats) -> Floats:
    """F1 of each weighting, [R], where `scores` is 1 for images that were called anomalous and 0 for others."""
    positive, called = check_scores(labels, scores)
    return np.asarray(2 * (weights @ (called * positive)) / (weights @ (called + positive)))


def weighted_calibration_error(labels: ArrayLike, scores: ArrayLike, weights: Floats, bins: int = 10) -> Floats:
    """Expected calibration error of each weighting, [R], where `scores` are probabilities."""
    positive, values = check_scores(labels, scores)
    member = np.clip((values * bins).astype(int), 0, bins - 1)[:, None] == np.arange(bins)
    return np.asarray(np.abs((weights * (values - positive)) @ member).sum(1) / weights.sum(1))


def bootstrap_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    level: float = 0.95,
    *,
    patients: Sequence[Any] | None = None,
    statistic: WeightedStatistic = weighted_auroc,
    repetitions: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A metric with the percentile interval of a stratified bootstrap over patients (over images where None).

    Raises:
        DataError: See `check_scores`.
    """
    positive, values = check_scores(labels, scores)
    if not len(values):
        return Estimate(None, reason="there are no images")
    if statistic in (weighted_auroc, weighted_average_precision) and (positive.all() or not positive.any()):
        return Estimate(None, reason=ONE_CLASS)
    if statistic is weighted_f1 and not positive.any():
        return Estimate(None, reason="no image is anomalous")
    clusters = patient_index(patients, len(values))
    value = float(statistic(positive, values, np.ones((1, len(values))))[0])
    if min(len(set(clusters[part])) for part in (positive, ~positive) if part.any()) < 2:
        return Estimate(value, reason=FEW_UNITS)
    drawn = [statistic(positive, values, weights) for weights in resamples(positive, patients, repetitions, seed)]
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    if high - low < 1e-12:
        return Estimate(value, reason=NO_SPREAD)
    unit = "images" if patients is None else "patients"
    return Estimate(value, float(low), float(high), method=f"bootstrap over {unit}, {repetitions:,} replicates")


def curve_bands(
    labels: ArrayLike,
    scores: ArrayLike,
    grid: Floats,
    level: float = 0.95,
    *,
    patients: Sequence[Any] | None = None,
    repetitions: int = 500,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Pointwise bootstrap bands of both curves, lower and upper end: [2, G] each.

    Returns:
        Of sensitivity at each false-positive rate of `grid`, and of precision at each recall of `grid`.
    """
    roc, pr = [], []
    for weights in resamples(labels, patients, repetitions, seed):
        for hits, false in zip(*weighted_counts(labels, scores, weights), strict=True):
            roc.append(np.interp(grid, np.append(0.0, false / false[-1]), np.append(0.0, hits / hits[-1])))
            first = np.minimum(np.searchsorted(hits / hits[-1], np.maximum(grid, 1e-9)), len(hits) - 1)
            pr.append(hits[first] / np.maximum(hits[first] + false[first], 1e-12))
    ends = [(1 - level) / 2, (1 + level) / 2]
    return np.quantile(roc, ends, axis=0), np.quantile(pr, ends, axis=0)
