"""From the scores of a few shots to a threshold, a probability, a p-value and a verdict.

The scores must be cross-fitted: each shot scored by a head that did not learn from it or from its patient. They then
behave about as those of new images, though the final head, which learns from all shots, is a little better.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from madclip.errors import CheckpointError, DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

FORMAT = 1
ISOTONIC_FROM = 200
"""Images of each class from which isotonic regression takes the place of Platt's sigmoid (docs/evaluation.md)."""

ALPHA = 0.1
"""Error rate of a verdict, where there are enough images for it; otherwise the resolution 1 / (n + 1)."""

Verdict = Literal["normal", "anomalous", "uncertain"]
Kind = Literal["youden", "sens", "spec"]


def parse_operating_point(text: str) -> tuple[Kind, float]:
    """`youden`, `sens=0.95` or `spec=0.9` as its kind and target (0 for Youden's).

    Raises:
        RecipeError: It is none of these, or the target is not between 0 and 1.
    """
    if text == "youden":
        return "youden", 0.0
    match = re.fullmatch(r"(sens|spec)=(\d*\.?\d+)", text)
    if match and 0 < float(match[2]) < 1:
        return ("sens" if match[1] == "sens" else "spec"), float(match[2])
    raise RecipeError(f"operating point {text!r}: give youden, sens=TARGET or spec=TARGET, with a target like 0.95")


def resolution(count: int) -> float:
    """Smallest p-value that this many calibration images can give."""
    return 1.0 / (count + 1)


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it can promise.

    Attributes:
        value: An image is called anomalous when its score is at or above it.
        promise: Mean sensitivity (`sens`) or specificity (`spec`) over draws of the shots, exact for exchangeable
            scores without ties; None for Youden's, which promises nothing.
        note: What a reader must know, in one sentence; empty when the target is met.
    """

    value: float
    promise: float | None
    note: str = ""


def choose_threshold(labels: ArrayLike, scores: ArrayLike, operating_point: str = "youden") -> Threshold:
    """The threshold for an operating point.

    `sens=T` takes the k-th lowest score of the n anomalous images, k the largest number with (n + 1 - k) / (n + 1)
    at or above T: that quotient is the sensitivity on new images, averaged over draws of the shots. Where even k = 1
    falls short (n < T / (1 - T)), the lowest score is taken and what it promises is said. `spec=T` is its mirror.
    `youden` takes the largest sensitivity + specificity, in the middle of the widest gap between scores that has it.

    Raises:
        DataError: A score is not finite, or the images that the operating point needs are missing.
        RecipeError: The operating point makes no sense.
    """
    kind, target = parse_operating_point(operating_point)
    zeros, ones = _split(labels, scores)
    if kind == "youden":
        return Threshold(_youden(zeros, ones), None)
    # Specificity mirrors sensitivity: negated scores of the normal images, and a threshold just above the score.
    own = ones if kind == "sens" else np.sort(-zeros)
    if not own.size:
        word = "anomalous" if kind == "sens" else "normal"
        raise DataError(f"operating point {operating_point!r} needs {word} calibration images, and there are none")
    count = len(own)
    rank = max(1, math.floor((count + 1) * (1 - target) + 1e-9))
    value = float(own[rank - 1]) if kind == "sens" else float(np.nextafter(-own[rank - 1], np.inf))
    promise = (count + 1 - rank) / (count + 1)
    if promise >= target - 1e-9:
        return Threshold(value, promise)
    word = "sensitivity" if kind == "sens" else "specificity"
    need = math.ceil(target / (1 - target) - 1e-9)
    note = f"{count} images cannot promise a {word} of {target:g}: {promise:.2f} on average; {need} are needed"
    return Threshold(value, promise, note)


def _youden(zeros: Floats, ones: Floats) -> float:
    if not zeros.size or not ones.size:
        raise DataError("operating point 'youden' needs normal and anomalous calibration images")
    values = np.unique(np.concatenate([zeros, ones]))
    if len(values) == 1:
        return float(values[0])
    cuts = (values[1:] + values[:-1]) / 2
    index = np.searchsorted(zeros, cuts) / len(zeros) - np.searchsorted(ones, cuts) / len(ones)
    best = np.flatnonzero(index >= index.max() - 1e-12)
    return float(cuts[best[np.argmax(np.diff(values)[best])]])


def _split(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Sorted scores of normal and of anomalous images."""
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise DataError(f"labels {truth.shape} and scores {values.shape} must be two lists of one length")
    if not np.isfinite(values).all():
        raise DataError(f"calibration image {int(np.argmin(np.isfinite(values)))}: its score is not a finite number")
    return np.sort(values[truth == 0]), np.sort(values[truth == 1])


def choose_pixel_threshold(maps: Sequence[NDArray[np.floating]], masks: Sequence[NDArray[np.bool_]]) -> float | None:
    """The threshold of anomaly maps with the largest Dice over all pixels of the shots; None without a lesion.

    Args:
        maps: each [H, W], cross-fitted.
        masks: each [H, W], of normal images all False.
    """
    scores = np.concatenate([np.zeros(0), *(np.ravel(scores) for scores in maps)])
    truth = np.concatenate([np.zeros(0, np.bool_), *(np.ravel(mask) for mask in masks)]).astype(np.bool_)
    if not truth.any():
        return None
    order = np.argsort(-scores, kind="stable")
    hits, called = np.cumsum(truth[order]), np.arange(1, len(order) + 1)
    overlap = np.where(np.append(np.diff(scores[order]) != 0, True), 2 * hits / (called + truth.sum()), 0.0)
    best = int(np.argmax(overlap))
    below = scores[order[min(best + 1, len(order) - 1)]]
    return float((scores[order[best]] + below) / 2)


def fit_platt(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
    """Slope >= 0 and offset of probability = 1 / (1 + exp(-(slope x score + offset))).

    Platt's smoothed targets, (n1 + 1) / (n1 + 2) and 1 / (n0 + 2), keep few or separable shots from certainty; the
    log-loss is minimised by Newton steps with backtracking (Lin, Lin and Weng, Machine Learning 2007;68:267). A slope
    that would fall is set to 0: the probability never ranks images against their scores.
    """
    zeros, ones = _split(labels, scores)
    if not zeros.size or not ones.size:
        raise DataError("a probability needs normal and anomalous calibration images")
    raw = np.concatenate([zeros, ones])
    target = np.repeat([1 / (len(zeros) + 2), (len(ones) + 1) / (len(ones) + 2)], [len(zeros), len(ones)])
    centre, scale = float(raw.mean()), float(raw.std())
    flat = math.log(target.mean() / (1 - target.mean()))
    if scale < 1e-12 or ones.mean() <= zeros.mean():
        return 0.0, flat
    design = np.stack([(raw - centre) / scale, np.ones_like(raw)], 1)
    weights = np.array([0.0, flat])

    def loss(candidate: Floats) -> float:
        logits = design @ candidate
        return float(np.sum(np.logaddexp(0, logits) - target * logits))

    for _ in range(100):
        probability = 0.5 * (1 + np.tanh(design @ weights / 2))
        gradient = design.T @ (probability - target)
        curvature = (design * (probability * (1 - probability))[:, None]).T @ design + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while size > 1e-10 and loss(weights - size * step) > loss(weights) - 1e-4 * size * float(gradient @ step):
            size /= 2
        weights = weights - size * step
        if float(np.abs(gradient).max()) < 1e-10:
            break
    slope = max(0.0, float(weights[0]) / scale)
    return slope, float(weights[1]) - slope * centre


def fit_isotonic(labels: ArrayLike, scores: ArrayLike) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scores and non-decreasing probabilities between which is interpolated, by pool-adjacent-violators.

    Probabilities are kept from 0 and 1 by 1 / (n + 2): no finite number of images shows certainty.
    """
    from scipy.optimize import isotonic_regression

    zeros, ones = _split(labels, scores)
    raw, truth = np.concatenate([zeros, ones]), np.repeat([0.0, 1.0], [len(zeros), len(ones)])
    values, index, counts = np.unique(raw, return_inverse=True, return_counts=True)
    fitted = isotonic_regression(np.bincount(index, truth) / counts, weights=counts).x
    margin = 1 / (len(raw) + 2)
    fitted = np.clip(fitted, margin, 1 - margin)
    ends = np.flatnonzero(np.append(True, np.diff(fitted) != 0) | np.append(np.diff(fitted) != 0, True))
    return tuple(values[ends].tolist()), tuple(fitted[ends].tolist())


@dataclass(frozen=True)
class Calibration:
    """What the shots say about scores. Saved with the detector as JSON.

    Attributes:
        operating_point: As typed.
        threshold: Of the image score.
        promise: See `Threshold`.
        note: See `Threshold`.
        normal_scores: Sorted cross-fitted scores of the normal images.
        abnormal_scores: Of the anomalous ones.
        method: `platt`, `isotonic`, or `none` where one class is missing and there is no probability.
        slope: Platt's.
        offset: Platt's.
        knots: Scores of the isotonic fit.
        levels: Its probabilities.
        pixel_threshold: Of anomaly maps; None where no shot has a mask.
        alpha: Error rate asked of verdicts.
    """

    operating_point: str
    threshold: float
    promise: float | None
    note: str
    normal_scores: tuple[float, ...]
    abnormal_scores: tuple[float, ...]
    method: Literal["platt", "isotonic", "none"]
    slope: float = 0.0
    offset: float = 0.0
    knots: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()
    pixel_threshold: float | None = None
    alpha: float = ALPHA

    @classmethod
    def fit(
        cls,
        labels: ArrayLike,
        scores: ArrayLike,
        operating_point: str = "youden",
        *,
        pixel_threshold: float | None = None,
        alpha: float = ALPHA,
    ) -> Calibration:
        """Calibrate on cross-fitted scores.

        Platt's sigmoid below `ISOTONIC_FROM` images of either class, isotonic regression from there on.

        Raises:
            DataError: A score is not finite, or a class that the operating point needs is missing.
            RecipeError: The operating point makes no sense, or alpha is not between 0 and 1.
        """
        if not 0 < alpha < 1:
            raise RecipeError(f"the error rate of a verdict lies between 0 and 1, not {alpha}")
        threshold = choose_threshold(labels, scores, operating_point)
        zeros, ones = (tuple(part.tolist()) for part in _split(labels, scores))
        found = (operating_point, threshold.value, threshold.promise, threshold.note, zeros, ones)
        if not zeros or not ones:
            return cls(*found, method="none", pixel_threshold=pixel_threshold, alpha=alpha)
        if min(len(zeros), len(ones)) >= ISOTONIC_FROM:
            knots, levels = fit_isotonic(labels, scores)
            return cls(
                *found, method="isotonic", knots=knots, levels=levels, pixel_threshold=pixel_threshold, alpha=alpha
            )
        slope, offset = fit_platt(labels, scores)
        return cls(*found, method="platt", slope=slope, offset=offset, pixel_threshold=pixel_threshold, alpha=alpha)

    @property
    def prevalence(self) -> float:
        """Share of anomalous images among those calibrated on: probabilities hold for this share."""
        return len(self.abnormal_scores) / (len(self.normal_scores) + len(self.abnormal_scores))

    def probability(self, scores: ArrayLike, prevalence: float | None = None) -> Floats | None:
        """Probability of being anomalous, never falling with the score; None where one class was missing.

        Args:
            scores: any shape.
            prevalence: Share of anomalous images where the detector is used; None keeps that of the shots.
        """
        raw = np.asarray(scores, dtype=np.float64)
        if self.method == "none":
            return None
        if self.method == "isotonic":
            found = np.interp(raw, self.knots, self.levels)
        else:
            found = 0.5 * (1 + np.tanh((self.slope * raw + self.offset) / 2))
        if prevalence is None:
            return np.asarray(found)
        odds = prevalence / (1 - prevalence) * (1 - self.prevalence) / self.prevalence
        return np.asarray(found * odds / (found * odds + 1 - found))

    def p_value(self, scores: ArrayLike) -> Floats:
        """Conformal p-value against the normals: (1 + normals at or above the score) / (n + 1).

        For a new normal image it is at or below any level a with a chance of at most a, averaged over draws of the
        normals (Vovk et al., 2005). It is never below `resolution(n)`; without normals it is 1.
        """
        below = np.searchsorted(self.normal_scores, np.asarray(scores, dtype=np.float64), "left")
        return np.asarray((1 + len(self.normal_scores) - below) / (len(self.normal_scores) + 1))

    def abnormal_p_value(self, scores: ArrayLike) -> Floats:
        """The mirror against the anomalous images: (1 + anomalous at or below the score) / (n + 1)."""
        upto = np.searchsorted(self.abnormal_scores, np.asarray(scores, dtype=np.float64), "right")
        return np.asarray((1 + upto) / (len(self.abnormal_scores) + 1))

    @property
    def levels_kept(self) -> tuple[float, float]:
        """Chance at most of calling a normal image anomalous, and an anomalous one like the normals."""
        return (
            max(self.alpha, resolution(len(self.normal_scores))),
            max(self.alpha, resolution(len(self.abnormal_scores))),
        )

    def verdict(self, score: float, *, familiar: bool = True) -> Verdict:
        """What may be said of an image at the error rates `levels_kept`.

        Anomalous where the p-value against the normals is at or below its level and the one against the anomalous is
        not; normal the other way round; uncertain where it fits both or neither, or is unlike all shots.
        Where a class was not calibrated on, only the other one decides.
        """
        normal_level, abnormal_level = (level + 1e-12 for level in self.levels_kept)
        fits_normal = bool(self.p_value(score) > normal_level)
        fits_abnormal = bool(self.abnormal_p_value(score) > abnormal_level)
        if not self.normal_scores or not self.abnormal_scores:
            fits_normal = fits_normal if self.normal_scores else not fits_abnormal
            fits_abnormal = not fits_normal
        if not familiar or fits_normal == fits_abnormal:
            return "uncertain"
        return "normal" if fits_normal else "anomalous"

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the version of their format."""
        return {"format": FORMAT} | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """What `to_dict` wrote.

        Raises:
            CheckpointError: The format is of another version, or a field is missing or unknown.
        """
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if fields.pop("format", None) != FORMAT:
            raise CheckpointError(f"the calibration has format {values.get('format')!r}; this madclip reads {FORMAT}")
        try:
            return cls(**fields)
        except TypeError as error:
            raise CheckpointError(f"the calibration cannot be read ({error}); save the detector again") from error
