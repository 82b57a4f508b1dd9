"""Pixel-level metrics: exact functions, and a histogram that holds any number of maps in constant memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from madclip.errors import DataError
from madclip.evaluation.metrics import mann_whitney

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


def check_map(scores: NDArray[np.floating], mask: NDArray[np.bool_] | None, name: str = "map") -> NDArray[np.float32]:
    """The map as float32 [H, W].

    Raises:
        DataError: The map has a value that is not a number in [0, 1], or another size than its mask.
    """
    if mask is not None and mask.shape != scores.shape:
        raise DataError(f"{name}: the anomaly map is {scores.shape} and the mask {mask.shape}; sizes must be the same")
    # Adding zero turns -0.0, whose bits would sort last, into 0.0.
    scores = np.asarray(scores, dtype=np.float32) + np.float32(0)
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):
        raise DataError(f"{name}: the anomaly map has values that are not numbers between 0 and 1")
    return scores


def pixel_auroc(maps: Iterable[NDArray[np.floating]], masks: Iterable[NDArray[np.bool_]]) -> float | None:
    """AUROC over all pixels of all maps, exactly, by ranks. Sorts every pixel in memory: see `PixelHistogram`.

    Args:
        maps: each [H, W] in 0..1; sizes may differ.
        masks: each [H, W], True where anomalous.

    Returns:
        None where one kind of pixel is missing.

    Raises:
        DataError: See `check_map`.
    """
    inside: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    outside: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
    for index, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        lesion = np.asarray(mask, dtype=np.bool_)
        checked = check_map(np.asarray(scores), lesion, f"map {index}")
        inside.append(checked[lesion])
        outside.append(checked[~lesion])
    return mann_whitney(np.concatenate(inside), np.concatenate(outside))
