"""Whether an exported model says what the detector says."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Literal

import numpy as np

from madclip.errors import CheckpointError

if TYPE_CHECKING:
    import numpy.typing as npt

TOLERANCE = 1e-4
"""Largest difference of scores and maps in fp32."""
DECISIONS = 0.01
"""Share of decisions that bf16 and int8 may change."""
ERROR = 0.05
"""Chance at most of refusing a model that changes no more than that."""


@dataclass(frozen=True)
class Agreement:
    """How an exported model and the detector compare on the same images.

    Attributes:
        images: How many images were compared.
        shots: How many of them are the detector's shots.
        rule: What a decision is: `threshold`, whether a score reaches the calibrated one; `order`, which of two images
            scores higher, for all pairs, where there is no calibration.
        changed: Share of decisions that differ, 0..1.
        upper: What the true share may be at most, at 95 % confidence (Clopper and Pearson, 1934): few images show
            little.
        score: Largest difference of image scores.
        map: Largest difference of anomaly maps.
    """

    images: int
    shots: int
    rule: Literal["threshold", "order"]
    changed: float
    upper: float
    score: float
    map: float

    @property
    def flips(self) -> int:
        """Decisions that differ; pairs of N images count as N decisions, since they say no more than that."""
        return ceil(round(self.changed * self.images, 9))


def agreement(
    expected: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    found: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    *,
    threshold: float | None,
    shots: int,
) -> Agreement:
    """Compare scores [N] and maps [N, S, S]; a difference that is not a number counts as infinite."""
    (scores, maps), (other, other_maps) = expected, found
    if threshold is not None:
        differ = (scores >= threshold) != (other >= threshold)
    else:
        one, two = np.triu_indices(len(scores), 1)
        differ = (scores[one] > scores[two]) != (other[one] > other[two])
    changed = float(differ.mean()) if differ.size else 0.0
    return Agreement(
        images=len(scores),
        shots=shots,
        rule="order" if threshold is None else "threshold",
        changed=changed,
        upper=upper_share(ceil(round(changed * len(scores), 9)), len(scores)),
        score=_largest(scores - other),
        map=_largest(maps - other_maps),
    )


def upper_share(count: int, of: int) -> float:
    """The largest share that `count` of `of` decisions leave possible at 95 % confidence, exactly."""
    from scipy.stats import beta

    return 1.0 if count >= of else float(beta.ppf(1 - ERROR, count + 1, of - count))


def allowed_flips(images: int) -> int:
    """Decisions of so many images that may differ.

    One more would be seen with a chance below `ERROR` in a model that changes `DECISIONS` of all: an exact binomial
    test. That is 1 of 32 images, 2 of 64 and 3 of 100.
    """
    from scipy.stats import binom

    return int(binom.ppf(1 - ERROR, images, DECISIONS))


def require(found: Agreement, precision: str) -> None:
    """Refuse a model that disagrees.

    Raises:
        CheckpointError: fp32 differs by more than `TOLERANCE`; or another precision changes more decisions than
            `allowed_flips`.
    """
    largest = max(found.score, found.map)
    exact = precision == "fp32"
    allowed = allowed_flips(found.images)
    if largest <= TOLERANCE if exact else (found.flips <= allowed and np.isfinite(largest)):
        return
    limit = (
        f"at most {TOLERANCE:g} is allowed"
        if exact
        else f"at most {allowed} of {found.images} may, for a share of {DECISIONS:.0%}"
    )
    advice = "please report this" if exact else "choose another precision; fp32 computes as the detector does"
    raise CheckpointError(
        f"the {precision} model disagrees with the detector and was not written: on {found.images} images scores "
        f"differ by up to {found.score:.2g}, maps by up to {found.map:.2g}, and {found.changed:.1%} of decisions "
        f"change ({found.rule}); {limit}: {advice}"
    )


def _largest(difference: npt.NDArray[np.float32]) -> float:
    return float(np.nan_to_num(np.abs(difference), nan=np.inf).max(initial=0))
