"""What image-level metrics are computed from: labels, scores and patients as one value, checked where it is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scored:
    """Images with their labels and scores. `Scored.of` checks them once, so what takes a Scored need not check again.

    Attributes:
        labels: [N], True where the image is abnormal.
        scores: [N], finite.
        names: [N], what an error calls each image; None where images have no names.
        patients: [N], whose image each is, None for an image whose patient is not known; None as a whole treats all
            images as independent.
    """

    labels: Bools
    scores: Floats
    names: tuple[str, ...] | None = None
    patients: tuple[Any, ...] | None = None

    @classmethod
    def of(
        cls,
        labels: ArrayLike,
        scores: ArrayLike,
        *,
        names: Sequence[str] | None = None,
        patients: Sequence[Any] | None = None,
    ) -> Self:
        """Check labels and scores, and keep them as one value.

        Args:
            labels: [N], 0 normal and 1 abnormal.
            scores: [N].
            names: [N], by which an error names an image; None numbers them.
            patients: [N], anything that can be a key; None treats images as independent.

        Raises:
            DataError: The lengths differ, a label is neither 0 nor 1, or a score is not a finite number.
        """
        truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
        if truth.ndim != 1 or truth.shape != values.shape or (names is not None and len(names) != len(truth)):
            raise DataError(f"labels {truth.shape} and scores {values.shape} must be two lists of one length")
        called = None if names is None else tuple(str(name) for name in names)
        _check_finite(values, called)
        odd = (truth != 0) & (truth != 1)
        if odd.any():
            index = int(np.argmax(odd))
            raise DataError(f"{_name(index, called)}: the label is {truth[index]}, neither 0 (normal) nor 1 (abnormal)")
        if patients is not None and len(patients) != len(truth):
            raise DataError(f"{len(patients)} patients for {len(truth)} images: give one for each, or none at all")
        return cls(truth.astype(np.bool_), values, called, None if patients is None else tuple(patients))

    def rescored(self, scores: ArrayLike) -> Self:
        """The same images with other scores, such as those of another detector.

        Raises:
            DataError: There are more or fewer scores than images, or one is not a finite number.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.shape != self.scores.shape:
            raise DataError(f"labels {self.labels.shape} and scores {values.shape} must be two lists of one length")
        _check_finite(values, self.names)
        return replace(self, scores=values)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def normal(self) -> Floats:
        """Scores of the normal images."""
        return self.scores[~self.labels]

    @property
    def abnormal(self) -> Floats:
        """Scores of the abnormal images."""
        return self.scores[self.labels]

    @property
    def one_class(self) -> bool:
        """Whether normal or abnormal images are missing."""
        return bool(self.labels.all() or not self.labels.any())

    @cached_property
    def clusters(self) -> NDArray[np.intp]:
        """[N], the number from 0 of each image's patient; an image without a patient is a patient of its own."""
        return patient_index(self.patients, len(self))

    @property
    def clustered(self) -> bool:
        """Whether some patient is known to have several images."""
        return len(np.unique(self.clusters)) < len(self)


def patient_index(patients: Sequence[Any] | None, count: int) -> NDArray[np.intp]:
    """The number from 0 of each image's patient, [N]; an image whose patient is None is a patient of its own.

    Raises:
        DataError: There is not one patient for each image.
    """
    if patients is None:
        return np.arange(count)
    if len(patients) != count:
        raise DataError(f"{len(patients)} patients for {count} images: give one for each, or none at all")
    seen: dict[Any, int] = {}
    keys = [("image", i) if patient is None else ("patient", patient) for i, patient in enumerate(patients)]
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.intp)


def _check_finite(scores: Floats, names: tuple[str, ...] | None) -> None:
    bad = ~np.isfinite(scores)
    if bad.any():
        index = int(np.argmax(bad))
        raise DataError(f"{_name(index, names)}: the score is {scores[index]}, not a finite number")


def _name(index: int, names: tuple[str, ...] | None) -> str:
    return f"image {index}" if names is None else names[index]
