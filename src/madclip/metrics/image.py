"""Image-level metrics in float64: single numbers of labels and scores, and curves and counts of a `Scored`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from madclip.metrics.scored import Scored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

ONE_CLASS = "needs normal and abnormal images, and only one kind is here"


@dataclass(frozen=True)
class Estimate:
    """A value with what is known about its error.

    Attributes:
        value: None where the metric has no meaning on this data; `reason` then says why.
        low: Lower end of the interval; None where there is none.
        high: Upper end of the interval; None where there is none.
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


def auroc(labels: ArrayLike, scores: ArrayLike, names: Sequence[str] | None = None) -> float | None:
    """Area under the ROC curve: the chance that an abnormal image scores above a normal one, ties counting half.

    Args:
        labels: [N], 0 normal and 1 abnormal.
        scores: [N].
        names: [N], by which an error names an image.

    Returns:
        None where only one class is present.

    Raises:
        DataError: The lengths differ, a label is neither 0 nor 1, or a score is not a finite number.
    """
    data = Scored.of(labels, scores, names=names)
    return mann_whitney(data.abnormal, data.normal)


def mann_whitney(above: NDArray[np.floating], below: NDArray[np.floating]) -> float | None:
    """P(above > below) + P(above = below) / 2, exactly, by ranks; None where either is empty."""
    if not above.size or not below.size:
        return None
    below = np.sort(below)
    # Twice the U statistic is an integer, so nothing is lost in the sum however many pixels there are.
    twice = int(np.searchsorted(below, above, "left").sum()) + int(np.searchsorted(below, above, "right").sum())
    return twice / (2 * above.size * below.size)


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Average precision, the sum over thresholds of (R_k - R_(k-1)) P_k, as scikit-learn defines it.

    A detector without skill has an average precision of the prevalence: say it beside the value. Arguments and errors
    are those of `auroc`.

    Returns:
        None where no image is abnormal.
    """
    _, hits, false = curve_counts(Scored.of(labels, scores))
    if not hits.size or hits[-1] == 0:
        return None
    return float(np.sum(np.diff(hits, prepend=0.0) * hits / (hits + false)) / hits[-1])


def curve_counts(data: Scored) -> tuple[Floats, Floats, Floats]:
    """Thresholds from high to low, and how many abnormal and how many normal images score at or above each."""
    order = np.argsort(-data.scores, kind="stable")
    values = data.scores[order]
    last = np.flatnonzero(np.append(np.diff(values) != 0, True)) if len(data) else np.zeros(0, int)
    hits = np.cumsum(data.labels[order])[last].astype(np.float64)
    return values[last], hits, last + 1.0 - hits


def roc_curve(data: Scored) -> tuple[Floats, Floats] | None:
    """False-positive and true-positive rates from (0, 0) to (1, 1); None where only one class is present."""
    _, hits, false = curve_counts(data)
    if not hits.size or hits[-1] == 0 or false[-1] == 0:
        return None
    return np.append(0.0, false / false[-1]), np.append(0.0, hits / hits[-1])


def precision_recall_curve(data: Scored) -> tuple[Floats, Floats] | None:
    """Recall and precision from the highest threshold to the lowest; None where no image is abnormal."""
    _, hits, false = curve_counts(data)
    if not hits.size or hits[-1] == 0:
        return None
    return hits / hits[-1], hits / (hits + false)


@dataclass(frozen=True)
class Confusion:
    """How many images lie on which side of a threshold; one is called anomalous when its score is at or above it.

    Attributes:
        true_positive: Abnormal images that are called anomalous.
        false_positive: Normal images that are called anomalous.
        true_negative: Normal images that are not.
        false_negative: Abnormal images that are not.
    """

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def sensitivity(self) -> float | None:
        """Share of the abnormal images that are called anomalous; None where no image is abnormal."""
        return _ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float | None:
        """Share of the normal images that are not called anomalous; None where no image is normal."""
        return _ratio(self.true_negative, self.true_negative + self.false_positive)

    @property
    def precision(self) -> float | None:
        """Share of the images called anomalous that are abnormal, which depends on the prevalence; None without any."""
        return _ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of sensitivity and precision; None where no image is abnormal."""
        if self.true_positive + self.false_negative == 0:
            return None
        return _ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def confusion(data: Scored, threshold: float) -> Confusion:
    """Counts at a threshold that was fixed before these labels were seen."""
    called = data.scores >= threshold
    return Confusion(
        int((called & data.labels).sum()),
        int((called & ~data.labels).sum()),
        int((~called & ~data.labels).sum()),
        int((~called & data.labels).sum()),
    )


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float | None:
    """Mean squared distance of the probability from the truth; None without images. Errors are those of `auroc`."""
    data = Scored.of(labels, probabilities)
    return float(np.mean((data.scores - data.labels) ** 2)) if len(data) else None


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> float | None:
    """Mean over images of |mean probability - frequency| of the bin of equal width (Naeini et al., AAAI 2015).

    Args:
        labels: [N], 0 normal and 1 abnormal.
        probabilities: [N], of being abnormal.
        bins: How many bins divide [0, 1].

    Returns:
        None without images.

    Raises:
        DataError: As for `auroc`.
    """
    mean, frequency, count = reliability(Scored.of(labels, probabilities), bins)
    return float(np.sum(np.abs(mean - frequency) * count) / count.sum()) if count.size else None


def reliability(data: Scored, bins: int = 10) -> tuple[Floats, Floats, Floats]:
    """How probabilities, the scores of `data`, compare with what happened, in bins of equal width in [0, 1].

    Returns:
        Mean probability, frequency of abnormal images, and count, of each bin that holds an image.
    """
    index = np.clip((data.scores * bins).astype(int), 0, bins - 1)
    count = np.bincount(index, minlength=bins).astype(np.float64)
    held = count > 0
    mean = np.bincount(index, data.scores, bins)[held] / count[held]
    frequency = np.bincount(index, data.labels, bins)[held] / count[held]
    return mean, frequency, count[held]
