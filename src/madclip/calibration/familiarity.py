"""The out-of-distribution check: whether an image looks like anything in the shots at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from madclip.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

FORMAT = 1
MOST_PAIRS = 0.95
"""Share of the pairs of shots whose distance is familiar, whatever the bound says."""


class Likeness(NamedTuple):
    """Whether an image looks like anything in the shots, and which modality a joint detector takes it for."""

    familiar: bool
    modality: str | None = None


@dataclass(frozen=True)
class Familiarity:
    """The out-of-distribution check: cosine distance of an image's pooled tokens to those of the nearest shot.

    Attributes:
        features: [n, d], the pooled tokens of each shot at unit length.
        limit: Largest distance at which an image counts as familiar.
    """

    features: tuple[tuple[float, ...], ...]
    limit: float

    @staticmethod
    def possible(groups: Sequence[Any]) -> bool:
        """Whether `fit` can learn from shots: there are at least three, and not all of one patient.

        Args:
            groups: The patient or volume of each shot; a shot without one, None, is a group of its own.
        """
        alone = len(set(groups) - {None}) + list(groups).count(None) < 2
        return len(groups) >= 3 and not alone

    @classmethod
    def fit(cls, features: ArrayLike, groups: Sequence[Any] | None = None, level: float = 0.01) -> Familiarity:
        """Learn the limit from each shot's distance to the nearest shot of another patient.

        The limit is the upper prediction bound, Student's t on the logarithm, that one image in 1 / level of the same
        kind would pass; and never less than what separates most pairs of shots, for a draw of few that happen to lie
        close says little about what the next may look like.

        Args:
            features: [n, d], the pooled tokens of every shot of both classes.
            groups: [n], the patient or volume of each shot; None, as a whole or for a shot, is a group of its own.
            level: Share of familiar images that may be warned about.

        Raises:
            DataError: There are too few shots (see `possible`), or a feature is not finite.
        """
        from scipy.special import stdtrit  # scipy.stats takes a second and a half to import

        rows = _unit(features)
        distance = 1 - rows @ rows.T
        known = list(groups) if groups is not None else [None] * len(rows)
        if not cls.possible(known):
            raise DataError("familiarity needs at least three shots of different patients")
        for row, group in enumerate(known):
            distance[row, [i == row or (group is not None and other == group) for i, other in enumerate(known)]] = (
                np.inf
            )
        apart = distance[np.isfinite(distance)]
        nearest = np.log(np.maximum(distance.min(1), 1e-6))
        reach = float(stdtrit(len(nearest) - 1, 1 - level)) * math.sqrt(1 + 1 / len(nearest))
        limit = math.exp(float(nearest.mean()) + reach * float(nearest.std(ddof=1)))
        limit = max(limit, float(np.quantile(apart, MOST_PAIRS)))
        return cls(tuple(tuple(row) for row in rows.tolist()), min(limit, 2.0))

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values, with the version of their format."""
        return {"format": FORMAT, "features": [list(row) for row in self.features], "limit": self.limit}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Familiarity:
        """The check whose fields `to_dict` wrote.

        Raises:
            CheckpointError: The format is of another version, or a field is missing or makes no sense.
        """
        if values.get("format") != FORMAT:
            raise CheckpointError(f"the familiarity has format {values.get('format')!r}; this madclip reads {FORMAT}")
        try:
            rows = np.array(values["features"], dtype=np.float64)
            limit = float(values["limit"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the familiarity cannot be read ({error}); save the detector again") from error
        if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all() or not math.isfinite(limit):
            raise CheckpointError("the familiarity has values that make no sense; save the detector again")
        return cls(tuple(tuple(row) for row in rows.tolist()), limit)

    def distance(self, features: ArrayLike) -> Floats:
        """Cosine distance of each image to its nearest shot, from 0 to 2: pooled tokens [m, d] -> [m]."""
        return np.asarray(1 - (_unit(features) @ np.asarray(self.features).T).max(1))

    def familiar(self, features: ArrayLike) -> NDArray[np.bool_]:
        """Whether each image is within the limit of a shot: pooled tokens [m, d] -> [m]."""
        return np.asarray(self.distance(features) <= self.limit)


def _unit(features: ArrayLike) -> Floats:
    rows = np.atleast_2d(np.asarray(features, dtype=np.float64))
    if not np.isfinite(rows).all():
        raise DataError("a pooled feature is not a finite number")
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
