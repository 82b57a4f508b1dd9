"""Whether an exported model says what the detector says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from madclip.errors import CheckpointError

if TYPE_CHECKING:
    import numpy.typing as npt

TOLERANCE = 1e-4
"""Largest difference of scores and maps in fp32."""
DECISIONS = 0.01
"""Largest share of decisions that bf16 and int8 may change."""


@dataclass(frozen=True)
class Agreement:
    """Exported model against detector, on the same images.

    Attributes:
        images: How many.
        shots: Whether they are the detector's shots; otherwise they are other images.
        rule: What a decision is: `threshold`, whether a score reaches the calibrated one; `order`, which of two images
            scores higher, for all pairs, where there is no calibration.
        changed: Share of decisions that differ, 0..1.
        score: Largest difference of image scores.
        map: Largest difference of anomaly maps.
    """

    images: int
    shots: bool
    rule: Literal["threshold", "order"]
    changed: float
    score: float
    map: float


def agreement(
    expected: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    found: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    *,
    threshold: float | None,
    shots: bool,
) -> Agreement:
    """Compare scores [N] and maps [N, S, S]; a difference that is not a number counts as infinite."""
    (scores, maps), (other, other_maps) = expected, found
    if threshold is not None:
        differ = (scores >= threshold) != (other >= threshold)
    else:
        one, two = np.triu_indices(len(scores), 1)
        differ = (scores[one] > scores[two]) != (other[one] > other[two])
    return Agreement(
        images=len(scores),
        shots=shots,
        rule="order" if threshold is None else "threshold",
        changed=float(differ.mean()) if differ.size else 0.0,
        score=_largest(scores - other),
        map=_largest(maps - other_maps),
    )


def require(found: Agreement, precision: str) -> None:
    """Refuse a model that disagrees.

    Raises:
        CheckpointError: fp32 differs by more than `TOLERANCE`, another precision changes more than `DECISIONS`.
    """
    largest = max(found.score, found.map)
    exact = precision == "fp32"
    if largest <= TOLERANCE if exact else (found.changed <= DECISIONS and np.isfinite(largest)):
        return
    limit = f"at most {TOLERANCE:g} is allowed" if exact else f"at most {DECISIONS:.0%} may change"
    advice = "please report this" if exact else "choose another precision"
    raise CheckpointError(
        f"the {precision} model disagrees with the detector and was not written: on {found.images} images scores "
        f"differ by up to {found.score:.2g}, maps by up to {found.map:.2g}, and {found.changed:.1%} of decisions "
        f"change ({found.rule}); {limit}: {advice}"
    )


def _largest(difference: npt.NDArray[np.float32]) -> float:
    return float(np.nan_to_num(np.abs(difference), nan=np.inf).max(initial=0))
