"""From the scores and maps of a few shots to a threshold, and what that threshold can promise."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from madclip.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from madclip.metrics.scored import Scored

    Floats = NDArray[np.float64]

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


def choose_threshold(data: Scored, operating_point: str = "youden") -> Threshold:
    """The threshold of image scores that an operating point asks for.

    `sens=T` takes the k-th lowest score of the n abnormal images, k the largest number with (n + 1 - k) / (n + 1)
    at or above T: that quotient is the sensitivity on new images, averaged over draws of the shots. Where even k = 1
    falls short (n < T / (1 - T)), the lowest score is taken and what it promises is said. `spec=T` is its mirror.
    `youden` takes the largest sensitivity + specificity, in the middle of the widest gap between scores that has it.

    Raises:
        DataError: The images that the operating point needs are missing.
        RecipeError: The operating point makes no sense.
    """
    kind, target = parse_operating_point(operating_point)
    zeros, ones = np.sort(data.normal), np.sort(data.abnormal)
    if kind == "youden":
        return Threshold(_youden(zeros, ones), None)
    # Specificity mirrors sensitivity: negated scores of the normal images, and a threshold just above the score.
    own = ones if kind == "sens" else np.sort(-zeros)
    if not own.size:
        word = "abnormal" if kind == "sens" else "normal"
        raise DataError(f"operating point {operating_point!r} needs {word} calibration images, and there are none")
    count = len(own)
    rank = max(1, math.floor((count + 1) * (1 - target) + 1e-9))
    value = float(own[rank - 1]) if kind == "sens" else float(np.nextafter(-own[rank - 1], np.inf))
    promise = (count + 1 - rank) / (count + 1)
    if promise >= target - 1e-9:
        return Threshold(value, promise)
    word = "sensitivity" if kind == "sens" else "specificity"
    note = (
        f"{count} images cannot promise a {word} of {target:g}: {promise:.2f} on average; "
        f"{images_needed(target)} are needed"
    )
    return Threshold(value, promise, note)


def images_needed(target: float) -> int:
    """How many images of a class a sensitivity or specificity needs before a threshold can promise it."""
    return math.ceil(target / (1 - target) - 1e-9)


def _youden(zeros: Floats, ones: Floats) -> float:
    """The middle of the widest gap among those with the largest sensitivity + specificity; both sorted."""
    if not zeros.size or not ones.size:
        raise DataError("operating point 'youden' needs normal and abnormal calibration images")
    values = np.unique(np.concatenate([zeros, ones]))
    if len(values) == 1:
        return float(values[0])
    cuts = (values[1:] + values[:-1]) / 2
    index = np.searchsorted(zeros, cuts) / len(zeros) - np.searchsorted(ones, cuts) / len(ones)
    best = np.flatnonzero(index >= index.max() - 1e-12)
    return float(cuts[best[np.argmax(np.diff(values)[best])]])


def choose_pixel_threshold(maps: Sequence[NDArray[np.floating]], masks: Sequence[NDArray[np.bool_]]) -> float | None:
    """The threshold of anomaly maps with the largest Dice over all pixels of the shots; None without a lesion.

    Args:
        maps: An out-of-fold map [H, W] of each shot.
        masks: The mask [H, W] of each, True where abnormal; all False for a normal image.
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
