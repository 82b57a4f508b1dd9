"""Intervals of pixel metrics: what a bootstrap over patients needs to remember of each map, and the bootstrap."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from madclip.metrics.intervals import FEW_UNITS, NO_SPREAD, expit, resamples
from madclip.metrics.pixel import FPR_LIMIT, area_to, region_weights
from madclip.metrics.scored import patient_index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from madclip.metrics.image import Estimate
    from madclip.metrics.pixel import PixelHistogram

    Floats = NDArray[np.float64]


NORMAL, LESION, REGION = range(3)
"""What a weight counts: normal pixels, abnormal pixels, or the share of a region that an abnormal pixel is."""


class PixelQuantiles:
    """Up to 64 quantiles of normal pixels, abnormal pixels and region overlap of each map: under 2 KB a map.

    The pixels of one image, and of one patient, are not independent, so an interval of a pixel metric must resample
    patients, and a histogram of all maps cannot. From the quantiles every metric can be computed for any resampling;
    they set the width of the interval, while its centre is the streaming value.

    Args:
        points: Quantiles of each kind that are kept of a map.
    """

    def __init__(self, points: int = 64) -> None:
        self.points = points
        self.has_lesion: list[bool] = []
        self._parts: list[_Part] = []

    def update(self, scores: NDArray[np.floating], mask: NDArray[np.bool_] | None = None) -> None:
        """Remember one map [H, W] with its mask [H, W]; None for a normal image."""
        scores = np.asarray(scores, dtype=np.float32)
        image, lesion = len(self.has_lesion), np.zeros(scores.shape, np.bool_) if mask is None else mask
        self._keep(image, NORMAL, scores[~lesion], None)
        if lesion.any():
            self._keep(image, LESION, scores[lesion], None)
            self._keep(image, REGION, scores[lesion], region_weights(lesion))
        self.has_lesion.append(bool(lesion.any()))

    def _keep(self, image: int, kind: int, values: NDArray[np.floating], weights: Floats | None) -> None:
        kept, each = self._thin(values, weights)
        self._parts.append(_Part(image, kind, kept, np.asarray(each, np.float32)))

    def _falling(self) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.int32], NDArray[np.intp]]:
        """All that is kept from high values to low: weights [P], their kinds and images, and the ends of ties."""
        sizes = [len(part.values) for part in self._parts]
        values = np.concatenate([part.values for part in self._parts])
        order = np.argsort(-values, kind="stable")
        last = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
        weights = np.concatenate([np.broadcast_to(part.weights, part.values.shape) for part in self._parts])
        kinds = np.repeat(np.array([part.kind for part in self._parts], np.int8), sizes)
        images = np.repeat(np.array([part.image for part in self._parts], np.int32), sizes)
        return weights[order], kinds[order], images[order], last

    def _thin(
        self, values: NDArray[np.floating], weights: Floats | None
    ) -> tuple[NDArray[np.floating], float | Floats]:
        """Values at the middle of equal shares of the weight, and the weight of each."""
        if len(values) <= self.points:
            return values, (1.0 if weights is None else weights)
        middle = (np.arange(self.points) + 0.5) / self.points
        if weights is None:
            return np.sort(values)[(middle * len(values)).astype(int)], len(values) / self.points
        order = np.argsort(values)
        total = np.cumsum(weights[order])
        return values[order][np.searchsorted(total, middle * total[-1])], float(total[-1]) / self.points

    def intervals(
        self,
        histogram: PixelHistogram,
        level: float = 0.95,
        *,
        patients: Sequence[Any] | None = None,
        repetitions: int = 200,
        seed: int = 0,
    ) -> tuple[Estimate, Estimate, Estimate]:
        """AUROC, average precision and AUPRO of the same maps, with bootstrap intervals over patients.

        Args:
            histogram: The histogram of the same maps, from which the values and their bounds come.
            level: Coverage aimed at.
            patients: The patient of each map; None resamples images.
            repetitions: Number of replicates.
            seed: Determines the draws.
        """
        found = histogram.auroc(), histogram.average_precision(), histogram.aupro()
        if any(estimate.value is None for estimate in found):
            return found
        clusters = patient_index(patients, len(self.has_lesion))
        lesions = len(set(clusters[np.array(self.has_lesion)]))
        if lesions < 2:
            first, second, third = (replace(estimate, reason=FEW_UNITS) for estimate in found)
            return first, second, third
        weights, kinds, images, last = self._falling()
        drawn = np.array(
            [
                _metrics(weights * row.astype(np.float32)[images], kinds, last)
                for rows in resamples(self.has_lesion, patients, repetitions, seed)
                for row in rows
            ]
        )
        unit = "images" if patients is None else "patients"
        method = f"bootstrap over {unit}, {repetitions:,} replicates, Student's t on the logit scale"
        first, second, third = (
            replace(estimate, low=low, high=high, method=method) if high > low else replace(estimate, reason=NO_SPREAD)
            for estimate, column in zip(found, drawn.T, strict=True)
            for low, high in [student_interval(estimate.value or 0.0, column, lesions, level)]
        )
        return first, second, third


class _Part(NamedTuple):
    """What is kept of one kind of pixel of one map: values [P] with a weight for each, or one for all."""

    image: int
    kind: int
    values: NDArray[np.floating]
    weights: NDArray[np.float32]


def student_interval(value: float, drawn: Floats, units: int, level: float) -> tuple[float, float]:
    """Interval of a proportion from bootstrap replicates: their spread on the logit scale times Student's t.

    The percentiles of a bootstrap cover too little where units are few (docs/evaluation.md); here the spread is that
    of an unbiased variance, and t has the degrees of freedom that it was estimated with.

    Args:
        value: The proportion, in 0..1.
        drawn: [R], its replicates.
        units: Patients or images of the rarer kind.
        level: Coverage aimed at.
    """
    from scipy.special import stdtrit  # scipy.stats takes a second and a half to import

    share, shares = np.clip(value, 1e-9, 1 - 1e-9), np.clip(drawn, 1e-9, 1 - 1e-9)
    spread = float(np.std(np.log(shares / (1 - shares)), ddof=1)) * math.sqrt(units / (units - 1))
    if spread < 1e-12:
        return value, value
    half = float(stdtrit(units - 1, (1 + level) / 2)) * spread
    centre = math.log(share / (1 - share))
    return expit(centre - half), expit(centre + half)


def _metrics(weights: NDArray[np.float32], kinds: NDArray[np.int8], last: NDArray[np.intp]) -> Floats:
    """AUROC, average precision and AUPRO of weighted pixels from high to low; `last` ends each run of ties."""
    false, hits, overlap = (
        np.cumsum(np.where(kinds == kind, weights, np.float32(0)), dtype=np.float64)[last]
        for kind in (NORMAL, LESION, REGION)
    )
    rate, recall = np.append(0.0, false / false[-1]), np.append(0.0, hits / hits[-1])
    precision = hits / np.maximum(hits + false, 1e-12)
    return np.array(
        [
            np.trapezoid(recall, rate),
            np.sum(np.diff(recall) * precision),
            area_to(rate, np.append(0.0, overlap / overlap[-1]), FPR_LIMIT),
        ]
    )
