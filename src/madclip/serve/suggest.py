"""What to label next, and why: from what images are like to the backbone and what the detector says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

TYPICAL = "the most typical image"
UNLIKE = "unlike anything labelled"
UNCERTAIN = "most uncertain"
DISAGREES = (
    "looks like those labelled normal, but scores anomalous",
    "looks like those labelled abnormal, but not so by score",
)
_TURNS = ("uncertain", "unlike", "uncertain", "disagrees")
"""Once there is a detector, the reasons take turns."""
_NEAREST = 3
"""Labelled images that say what an image looks like."""


class Suggestion(NamedTuple):
    """An image to label, by its place among those given, and the reason in words."""

    place: int
    reason: str


def what_next(
    pooled: npt.NDArray[np.floating], labels: npt.NDArray[np.int8], probability: Floats, count: int
) -> list[Suggestion]:
    """The images to label next, the most useful first.

    Without a detector each is the one farthest from all that are labelled or suggested before it. With one, the
    reasons take turns: most uncertain, unlike anything labelled, and where the detector disagrees with the labels of
    the images that look most alike. Whatever the reason, an image near one that is suggested already counts less, so
    that slices of one patient do not fill the list.

    Args:
        pooled: [N, d], pooled tokens of each image.
        labels: [N], 0 normal, 1 abnormal, -1 not labelled.
        probability: [N], probability of an anomaly as the detector has it, NaN where it says nothing.
        count: How many at most.
    """
    rows = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
    open_ = labels < 0
    found: list[Suggestion] = []
    if not open_.any():
        return found
    distance = np.full(len(rows), np.inf)
    known = rows[~open_]
    if len(known):
        distance = 1 - (rows @ known.T).max(1)
    reach = float(np.median(distance[open_])) if len(known) else 0.0
    unsure = np.nan_to_num(1 - 2 * np.abs(probability - 0.5), nan=-1.0)
    vote = _vote(rows, labels)
    against = np.nan_to_num(np.abs(probability - vote), nan=-1.0)
    detector = bool((unsure[open_] >= 0).any())
    for turn in range(min(count, int(open_.sum()))):
        kind = _TURNS[turn % len(_TURNS)] if detector else "unlike"
        apart = np.minimum(distance / reach, 1) if reach > 0 else np.ones(len(rows))
        if not np.isfinite(distance[open_]).any():  # nothing is labelled
            value, reason = rows @ rows[open_].mean(0), TYPICAL
        elif kind == "unlike":
            value, reason = distance, UNLIKE
        elif kind == "uncertain" or not (against[open_] > 0.5).any():
            value, reason = unsure * apart, UNCERTAIN
        else:
            value, reason = against * apart, ""
        index = int(np.where(open_, value, -np.inf).argmax())
        found.append(Suggestion(index, reason or DISAGREES[int(probability[index] < vote[index])]))
        open_[index] = False
        distance = np.minimum(distance, 1 - rows @ rows[index])
        if reach == 0:
            reach = float(np.median(distance[open_])) if open_.any() else 0.0
    return found


def uncertainty(labels: npt.NDArray[np.int8], chance: Floats) -> Floats:
    """How near images are to the border of the classes, [N], at most 1; NaN where no detector tells them apart.

    The border lies half-way between what the detector says of the images labelled normal and of those labelled
    abnormal: at one half where it is calibrated on them, and where it truly is after a refit or without calibration.
    """
    levels = [chance[(labels == kind) & np.isfinite(chance)] for kind in (0, 1)]
    if not all(map(len, levels)):
        return np.full(len(chance), np.nan)
    low, high = (float(np.median(level)) for level in levels)
    return np.asarray(1 - np.abs(chance - (low + high) / 2) / max(high - low, 1e-6), np.float64)


def _vote(rows: npt.NDArray[np.floating], labels: npt.NDArray[np.int8]) -> Floats:
    """The mean label of the labelled images that look most alike, [N]; NaN where both kinds are not there."""
    known = np.flatnonzero(labels >= 0)
    if len(set(labels[known].tolist())) < 2:
        return np.full(len(rows), np.nan)
    nearest = np.argsort(-(rows @ rows[known].T), axis=1)[:, :_NEAREST]
    return np.asarray(labels[known][nearest].mean(1), np.float64)


def most_alike(pooled: npt.NDArray[np.floating], index: int) -> Floats:
    """Cosine similarity of every image to one of them: pooled tokens [N, d] -> [N]."""
    rows = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
    return np.asarray(rows @ rows[index], np.float64)
