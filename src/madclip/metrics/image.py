"""Image-level metrics: pure functions of labels (0 normal, 1 anomalous) and raw scores, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

ONE_CLASS = "needs normal and anomalous images, and only one kind is here"


@dataclass(frozen=True)
class Estimate:
    """A value with what is known about its error.

    Attributes:
        value: None where the metric has no meaning on this data; `reason` then says why.
        low: Lower end of the interval, where there is one.
        high: Upper end.
        bound: Largest possible numerical error of `value` (streaming metrics); 0 where it is exact.
        method: How the interval was made.
        reason: Why the value or its interval is missing.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    bound: float = 0.0
    method: str = ""
    reason: str = ""


def check_scores(
    labels: ArrayLike, scores: ArrayLike, names: Sequence[str] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels as bool [N] and scores as float64 [N].

    Raises:
        DataError: The lengths differ, a label is neither 0 nor 1, or a score is not a finite number.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape or (names is not None and len(names) != len(labels)):
        raise DataError(f"labels {labels.shape} and scores {scores.shape} must be two lists of one length")
    bad = ~np.isfinite(scores)
    if bad.any():
        index = int(np.argmax(bad))
        raise DataError(f"{_called(index, names)}: the score is {scores[index]}, not a finite number")
    odd = (labels != 0) & (labels != 1)
    if odd.any():
        index = int(np.argmax(odd))
        raise DataError(f"{_called(index, names)}: the label is {labels[index]}, neither 0 (normal) nor 1 (anomalous)")
    return labels.astype(np.bool_), scores


def _called(index: int, names: Sequence[str] | None) -> str:
    return str(names[index]) if names is not None else f"image {index}"


def auroc(labels: ArrayLike, scores: ArrayLike, names: Sequence[str] | None = None) -> float | None:
    """Area under the ROC curve: the chance that an anomalous image scores above a normal one, ties counting half.

    Returns:
        None where only one class is present.

    Raises:
        DataError: See `check_scores`.
    """
    positive, values = check_scores(labels, scores, names)
    return mann_whitney(values[positive], values[~positive])


def mann_whitney(above: NDArray[np.floating], below: NDArray[np.floating]) -> float | None:
    """P(above > below) + P(above = below) / 2, exactly, by ranks; None where either is empty."""
    if not above.size or not below.size:
        return None
    below = np.sort(below)
    # Twice the U statistic is an integer, so nothing is lost in the sum however many pixels there are.
    twice = int(np.searchsorted(below, above, "left").sum()) + int(np.searchsorted(below, above, "right").sum())
    return twice / (2 * above.size * below.size)


def curve_counts(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Thresholds from high to low, and how many anomalous and normal images score at or above each."""
    positive, values = check_scores(labels, scores)
    order = np.argsort(-values, kind="stable")
    last = np.flatnonzero(np.append(np.diff(values[order]) != 0, True)) if len(values) else np.zeros(0, int)
    hits = np.cumsum(positive[order])[last].astype(np.float64)
    return values[order][last], hits, last + 1.0 - hits


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Average precision, sum of (R_k - R_(k-1)) P_k over thresholds, as scikit-learn defines it.

    A detector without skill has an average precision of the prevalence: say it beside the value.

    Returns:
        None where no image is anomalous.
    """
    _, hits, false = curve_counts(labels, scores)
    if not hits.size or hits[-1] == 0:
        return None
    return float(np.sum(np.diff(hits, prepend=0.0) * hits / (hits + false)) / hits[-1])


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats] | None:
    """False-positive and true-positive rates from (0, 0) to (1, 1); None where only one class is present."""
    _, hits, false = curve_counts(labels, scores)
    if not hits.size or hits[-1] == 0 or false[-1] == 0:
        return None
    return np.append(0.0, false / false[-1]), np.append(0.0, hits / hits[-1])


def precision_recall_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats] | None:
    """Recall and precision from the highest threshold to the lowest; None where no image is anomalous."""
    _, hits, false = curve_counts(labels, scores)
    if not hits.size or hits[-1] == 0:
        return None
    return hits / hits[-1], hits / (hits + false)


@dataclass(frozen=True)
class Confusion:
    """Counts at a threshold; an image is called anomalous when its score is at or above it."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def sensitivity(self) -> float | None:
        """Found among the anomalous; None where there are none."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float | None:
        """Left alone among the normal; None where there are none."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def precision(self) -> float | None:
        """Anomalous among those called so (depends on the prevalence); None where nothing was called."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of sensitivity and precision; None where no image is anomalous."""
        if self.true_positive + self.false_negative == 0:
            return None
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def confusion(labels: ArrayLike, scores: ArrayLike, threshold: float) -> Confusion:
    """Counts at a threshold that was fixed before these labels were seen."""
    positive, values = check_scores(labels, scores)
    called = values >= threshold
    return Confusion(
        int((called & positive).sum()),
        int((called & ~positive).sum()),
        int((~called & ~positive).sum()),
        int((~called & positive).sum()),
    )


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Mean squared distance of the probability from the truth; None without images."""
    positive, values = check_scores(labels, probabilities)
    return float(np.mean((values - positive) ** 2)) if values.size else None


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> tuple[Floats, Floats, Floats]:
    """For each of `bins` bins of equal width in [0, 1] that holds images: mean probability, frequency, count."""
    positive, values = check_scores(labels, probabilities)
    index = np.clip((values * bins).astype(int), 0, bins - 1)
    count = np.bincount(index, minlength=bins).astype(np.float64)
    held = count > 0
    mean = np.bincount(index, values, bins)[held] / count[held]
    frequency = np.bincount(index, positive, bins)[held] / count[held]
    return mean, frequency, count[held]


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> float | None:
    """Mean over images of |mean probability - frequency| of the bin of equal width (Naeini et al., AAAI 2015)."""
    mean, frequency, count = reliability(labels, probabilities, bins)
    return float(np.sum(np.abs(mean - frequency) * count) / count.sum()) if count.size else None
