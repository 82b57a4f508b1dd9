"""What to label next, and why: from what images are like to the backbone and what the detector says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

TYPICAL = "the most typical image"
UNLIKE = "unlike anything labelled"
UNLIKE_THOSE = "unlike those before it"
UNCERTAIN = "most uncertain"
DISAGREES = (
    "looks like those labelled normal, but scores anomalous",
    "looks like those labelled abnormal, but not so by score",
)
_TURNS = ("disagrees", "unlike", "uncertain", "unlike")
"""Once a detector tells the classes apart, the reasons take turns, by the number of images that are labelled."""
_NEAREST = 3
"""Labelled images that say what an image looks like."""
_WITNESSES = 256
"""Unlabelled images, evenly taken, by which it is judged how many others a suggestion stands for."""


class Suggestion(NamedTuple):
    """An image to label, by its place among those given, and the reason in words."""

    place: int
    reason: str


def what_next(
    pooled: npt.NDArray[np.floating], labels: npt.NDArray[np.int8], probability: Floats, count: int
) -> list[Suggestion]:
    """The images to label next, the most useful first.

    Until a detector tells the classes apart, each is the one farthest from all that are labelled or suggested before
    it. Then the reasons take turns: unlike anything labelled (the uncertain one that stands for most others which no
    labelled one stands for), most uncertain, and where the detector disagrees with the labels of the images that look
    most alike. Whatever the reason, an image near one that is suggested already counts less, so that slices of one
    patient do not fill the list.

    Args:
        pooled: [N, d], pooled tokens of each image.
        labels: [N], 0 normal, 1 abnormal, -1 not labelled.
        probability: [N], probability of an anomaly as the detector has it, or its score; NaN where it says nothing.
        count: How many at most.
    """
    rows = _unit(pooled)
    open_ = labels < 0
    found: list[Suggestion] = []
    if not open_.any():
        return found
    known = np.flatnonzero(~open_)
    if np.isnan(leaning := _leaning(labels, probability)).all():
        return _farthest(rows, open_, known, count)
    distance = 1 - (rows @ rows[known].T).max(1)
    reach = float(np.median(distance[open_]))
    unsure = _unsure(leaning)
    rank = _rank(unsure, open_)
    vote = _vote(rows, labels)
    against = np.nan_to_num(np.abs(leaning.clip(0, 1) - vote), nan=-1.0)
    alike, covered = _witnesses(rows, open_, known)
    for turn in range(len(known), len(known) + min(count, int(open_.sum()))):
        kind = _TURNS[turn % len(_TURNS)]
        apart = np.minimum(distance / reach, 1) if reach > 0 else np.ones(len(rows))
        if kind == "uncertain":
            value, reason = np.nan_to_num(unsure).clip(0.01) * apart, UNCERTAIN
        elif kind == "unlike" or not (against[open_] > 0.5).any():
            value, reason = rank * np.maximum(alike - covered, 0).sum(1), UNLIKE
        else:
            value, reason = against * apart, ""
        index = int(np.where(open_, value, -np.inf).argmax())
        found.append(Suggestion(index, reason or DISAGREES[int(leaning[index] < vote[index])]))
        open_[index] = False
        distance = np.minimum(distance, 1 - rows @ rows[index])
        covered = np.maximum(covered, alike[index])
    return found


def uncertainty(labels: npt.NDArray[np.int8], probability: Floats) -> Floats:
    """How near images are to the border of the classes, [N], 1 upon it; NaN where no detector tells them apart.

    The border lies half-way between what the detector says of the images labelled normal and of those labelled
    abnormal. That is known without a calibration, and after a refit, which keeps the one before.
    """
    return _unsure(_leaning(labels, probability))


def _unsure(leaning: Floats) -> Floats:
    return np.asarray(1 - 2 * np.abs(leaning - 0.5), np.float64)


def _leaning(labels: npt.NDArray[np.int8], probability: Floats) -> Floats:
    """Where images stand between those labelled normal, 0, and those labelled abnormal, 1: [N], NaN as above."""
    levels = [probability[(labels == kind) & np.isfinite(probability)] for kind in (0, 1)]
    low, high = (float(np.median(level)) if len(level) else np.nan for level in levels)
    return (probability - low) / (high - low) if high > low else np.full(len(probability), np.nan)


def _farthest(
    rows: npt.NDArray[np.floating], open_: npt.NDArray[np.bool_], known: npt.NDArray[np.intp], count: int
) -> list[Suggestion]:
    """Each the one farthest from all before it; where nothing is labelled the most typical comes first.

    Compared is how images differ from their mean: all share most of what they are, and by that outliers came first.
    """
    found: list[Suggestion] = []
    centred = _unit(rows - rows.mean(0))
    alike = (centred @ centred[known].T).max(1) if len(known) else np.full(len(rows), -np.inf)
    apart = UNLIKE if len(known) else UNLIKE_THOSE
    for _ in range(min(count, int(open_.sum()))):
        first = not np.isfinite(alike).any()
        value = rows @ rows[open_].mean(0) if first else -alike
        index = int(np.where(open_, value, -np.inf).argmax())
        found.append(Suggestion(index, TYPICAL if first else apart))
        open_[index] = False
        alike = np.maximum(alike, centred @ centred[index])
    return found


def _rank(values: Floats, open_: npt.NDArray[np.bool_]) -> Floats:
    """The share of the open images that have no higher value, [N]; 0 where there is none."""
    known = np.sort(np.nan_to_num(values[open_], nan=-np.inf))
    return np.where(np.isnan(values), 0, np.searchsorted(known, values, "right") / len(known))


def _witnesses(
    rows: npt.NDArray[np.floating], open_: npt.NDArray[np.bool_], known: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """How much each image stands for each of some open ones, [N, W] in 0..1, and how much the known ones do, [W]."""
    centred = _unit(rows - rows.mean(0))
    chosen = np.flatnonzero(open_)
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), _WITNESSES)).astype(int)]
    alike = centred @ centred[chosen].T
    usual = float(np.median(alike))
    alike = ((alike - usual) / max(1 - usual, 1e-12)).clip(0, 1)
    return alike, alike[known].max(0)


def _unit(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-12))


def _vote(rows: npt.NDArray[np.floating], labels: npt.NDArray[np.int8]) -> Floats:
    """The mean label of the labelled images that look most alike, [N]; NaN where both kinds are not there."""
    known = np.flatnonzero(labels >= 0)
    if len(set(labels[known].tolist())) < 2:
        return np.full(len(rows), np.nan)
    nearest = np.argsort(-(rows @ rows[known].T), axis=1)[:, :_NEAREST]
    return np.asarray(labels[known][nearest].mean(1), np.float64)


def most_alike(pooled: npt.NDArray[np.floating], index: int) -> Floats:
    """Cosine similarity of every image to one of them: pooled tokens [N, d] -> [N]."""
    rows = _unit(pooled)
    return np.asarray(rows @ rows[index], np.float64)
