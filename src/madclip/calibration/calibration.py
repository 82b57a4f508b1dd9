"""What out-of-fold scores say of a new image: a threshold, a probability, a p-value and a verdict.

Each shot must be scored by a head that did not learn from it or from its patient. Such scores behave about as those of
new images, though the final head, which learns from all shots, is a little better.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import chain
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from madclip.calibration.probability import ISOTONIC_FROM, fit_isotonic, fit_platt
from madclip.calibration.thresholds import choose_threshold, parse_operating_point
from madclip.errors import CheckpointError, RecipeError
from madclip.metrics.scored import Scored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

FORMAT = 1
ALPHA = 0.1
"""Error rate of a verdict, where there are enough images for it; otherwise the resolution 1 / (n + 1)."""

Verdict = Literal["normal", "anomalous", "uncertain"]


def resolution(count: int) -> float:
    """Smallest p-value that this many calibration images can give."""
    return 1.0 / (count + 1)


@dataclass(frozen=True)
class Calibration:
    """What the shots say about scores; it is saved with the detector as JSON.

    Attributes:
        operating_point: How the threshold was chosen: `youden`, `sens=0.95`, `spec=0.95`; `given` where it was not
            chosen here.
        threshold: An image is called anomalous when its score is at or above it.
        promise: Mean sensitivity or specificity of the threshold on new images; None where nothing is promised.
        note: What a reader must know of the threshold, in one sentence; empty when its target is met and no two images
            are of one patient.
        normal_scores: Sorted out-of-fold scores of the normal images.
        abnormal_scores: Sorted out-of-fold scores of the abnormal images.
        method: How scores become probabilities: `platt`, `isotonic`, or `none` where one class is missing.
        slope: Slope of Platt's sigmoid.
        offset: Offset of Platt's sigmoid.
        knots: Scores between which the isotonic fit is interpolated.
        levels: Probabilities of the isotonic fit at `knots`.
        pixel_threshold: A pixel is called anomalous when its map is at or above it; None where no shot has a mask.
        alpha: Error rate that is asked of verdicts.
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
        """Calibrate on out-of-fold scores.

        Probabilities come from Platt's sigmoid below `ISOTONIC_FROM` images of either class, and from isotonic
        regression from there on.

        Args:
            labels: [N], 0 normal and 1 abnormal.
            scores: [N].
            operating_point: How the threshold is chosen: `youden`, `sens=0.95`, `spec=0.95`.
            pixel_threshold: Threshold of anomaly maps, where there is one.
            alpha: Error rate that is asked of verdicts.

        Raises:
            DataError: A label or a score cannot be used, or a class that the operating point needs is missing.
            RecipeError: The operating point makes no sense, or alpha is not between 0 and 1.
        """
        if not 0 < alpha < 1:
            raise RecipeError(f"the error rate of a verdict lies between 0 and 1, not {alpha}")
        data = Scored.of(labels, scores, names=[f"calibration image {i}" for i in range(np.size(labels))])
        threshold = choose_threshold(data, operating_point)
        zeros, ones = (tuple(np.sort(part).tolist()) for part in (data.normal, data.abnormal))
        found = (operating_point, threshold.value, threshold.promise, threshold.note, zeros, ones)
        if not zeros or not ones:
            return cls(*found, method="none", pixel_threshold=pixel_threshold, alpha=alpha)
        if min(len(zeros), len(ones)) >= ISOTONIC_FROM:
            knots, levels = fit_isotonic(data)
            return cls(
                *found, method="isotonic", knots=knots, levels=levels, pixel_threshold=pixel_threshold, alpha=alpha
            )
        slope, offset = fit_platt(data)
        return cls(*found, method="platt", slope=slope, offset=offset, pixel_threshold=pixel_threshold, alpha=alpha)

    def of_patients(self, groups: Sequence[str | None]) -> Calibration:
        """This calibration, with a note where several of its images are of one patient or volume.

        Args:
            groups: The patient or volume of each image; None is one of its own.
        """
        count = len(set(groups) - {None}) + list(groups).count(None)
        if count == len(groups):
            return self
        said = (
            f"its {len(groups)} images are of {count} patients or volumes, and what is promised counts images as "
            "independent: it is less where those of one are alike"
        )
        return replace(self, note="; ".join(filter(None, (self.note, said))))

    @classmethod
    def of_normals(cls, scores: ArrayLike, operating_point: str) -> Calibration:
        """Calibrate on held-out scores [N] of normal images alone: one rate for the threshold and for verdicts.

        Raises:
            DataError: The operating point needs abnormal images.
            RecipeError: It makes no sense.
        """
        rate = 1 - parse_operating_point(operating_point)[1]
        return cls.fit(np.zeros(np.size(scores), np.int64), scores, operating_point, alpha=rate)

    def rests(self, units: str = "images") -> str:
        """What a reader must know of verdicts that rest on one class alone, in one sentence; else empty.

        Args:
            units: What was scored: `images`, or whole `series`.
        """
        if self.normal_scores and self.abnormal_scores:
            return ""
        count = len(self.normal_scores) or len(self.abnormal_scores)
        known, other = ("normal", "abnormal") if self.normal_scores else ("abnormal", "normal")
        rate = self.levels_kept[0 if self.normal_scores else 1]
        return (
            f"The calibration rests on {count} {known} {units} alone: at most {rate:.0%} of {known} {units} are "
            f"misjudged, on average over draws of them; of {other} ones it is not known how many are."
        )

    @property
    def prevalence(self) -> float:
        """Share of abnormal images among those calibrated on, for which the probabilities hold."""
        return len(self.abnormal_scores) / (len(self.normal_scores) + len(self.abnormal_scores))

    def probability(self, scores: ArrayLike, prevalence: float | None = None) -> Floats | None:
        """Probability that an image is abnormal, which never falls with the score; None where one class was missing.

        Args:
            scores: Any shape, which the result has too.
            prevalence: Share of abnormal images where the detector is used; None keeps that of the shots.
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
        """Conformal p-value against the abnormal images: (1 + abnormal at or below the score) / (n + 1)."""
        upto = np.searchsorted(self.abnormal_scores, np.asarray(scores, dtype=np.float64), "right")
        return np.asarray((1 + upto) / (len(self.abnormal_scores) + 1))

    @property
    def levels_kept(self) -> tuple[float, float]:
        """Largest chance of calling a normal image anomalous, and of calling an abnormal one normal."""
        return (
            max(self.alpha, resolution(len(self.normal_scores))),
            max(self.alpha, resolution(len(self.abnormal_scores))),
        )

    def verdict(self, score: float, *, familiar: bool = True) -> Verdict:
        """What may be said of an image at the error rates `levels_kept`.

        Anomalous where the p-value against the normals is at or below its level and the one against the abnormal is
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
        """All fields as JSON values, with the version of their format."""
        return {"format": FORMAT} | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """The calibration whose fields `to_dict` wrote.

        Raises:
            CheckpointError: The format is of another version, or a field is missing, unknown or makes no sense.
        """
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        if fields.pop("format", None) != FORMAT:
            raise CheckpointError(f"the calibration has format {values.get('format')!r}; this madclip reads {FORMAT}")
        try:
            found = cls(**fields)
        except TypeError as error:
            raise CheckpointError(f"the calibration cannot be read ({error}); save the detector again") from error
        if not found._makes_sense():
            raise CheckpointError("the calibration has values that make no sense; save the detector again")
        return found

    def _makes_sense(self) -> bool:
        """Whether fields that came from a file are numbers where they must be, and sorted where they must be."""
        rising = (self.normal_scores, self.abnormal_scores, self.knots, self.levels)
        if not all(isinstance(values, tuple) for values in rising) or len(self.knots) != len(self.levels):
            return False
        maybe = [value for value in (self.promise, self.pixel_threshold) if value is not None]
        numbers = (self.threshold, self.slope, self.offset, self.alpha, *maybe, *chain(*rising))
        if not all(isinstance(value, (int, float)) and isfinite(value) for value in numbers):
            return False
        classes = bool(self.normal_scores) and bool(self.abnormal_scores)
        fitted = {"none": True, "platt": classes and self.slope >= 0, "isotonic": classes and bool(self.knots)}
        return fitted.get(self.method, False) and all(list(values) == sorted(values) for values in rising)
