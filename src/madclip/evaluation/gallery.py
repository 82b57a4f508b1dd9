"""Images of a test set to look at: which ones, and small copies of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.evaluation.result import GalleryItem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from madclip.evaluation.result import ImageRow
    from madclip.metrics.scored import Scored

SIDE = 224
"""Longer side of a small copy, pixels."""


def choose_gallery(data: Scored, threshold: float | None, count: int) -> dict[int, tuple[str, ...]]:
    """Which images to look at: `best` and `worst` ranked of each class, half of each, and `nearest` to the threshold.

    Args:
        data: Labels and scores.
        threshold: The score that `nearest` are nearest to; None leaves that group out.
        count: Images of each group.

    Returns:
        The groups of each chosen image, by its index.
    """
    ones = np.flatnonzero(data.labels)[np.argsort(-data.abnormal, kind="stable")].tolist()
    zeros = np.flatnonzero(~data.labels)[np.argsort(data.normal, kind="stable")].tolist()
    half = max(1, count // 2)
    groups = {"best": ones[:half] + zeros[:half], "worst": ones[::-1][:half] + zeros[::-1][:half]}
    if threshold is not None:
        groups["nearest"] = np.argsort(np.abs(data.scores - threshold), kind="stable")[:count].tolist()
    chosen: dict[int, tuple[str, ...]] = {}
    for group, members in groups.items():
        for index in members if count else []:
            chosen[index] = (*chosen.get(index, ()), group)
    return chosen


def shrink(array: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[Any]:
    """A small copy of an image [H, W, 3] uint8, a map [H, W] float32 or a mask [H, W] bool, of the same kind.

    Args:
        array: What is scaled.
        size: Width and height of the copy; None makes the longer side `SIDE` pixels at most.
    """
    from PIL import Image

    height, width = array.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = size or (max(1, round(width * scale)), max(1, round(height * scale)))
    if array.dtype == np.bool_:
        whole = Image.fromarray(array.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        return np.asarray(whole).astype(np.bool_)
    how = Image.Resampling.LANCZOS if array.ndim == 3 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(array).resize(size, how))


def gallery_items(
    rows: Sequence[ImageRow],
    chosen: Mapping[int, tuple[str, ...]],
    maps: Mapping[int, tuple[NDArray[np.float32], NDArray[np.bool_] | None]],
    image_of: Callable[[int], NDArray[np.uint8]] | None,
) -> list[GalleryItem]:
    """The images to look at, each as large as the small copy of its map.

    Args:
        rows: What is known of all images.
        chosen: The groups of each image that is shown, by its index; see `choose_gallery`.
        maps: Small copies of the maps and masks of these images, where there are any.
        image_of: Reads image i as uint8 [H, W, 3]; None shows no images.
    """
    items = []
    for index, groups in chosen.items():
        scores, mask = maps.get(index, (None, None))
        image = None if image_of is None else image_of(index)
        if image is not None:
            image = shrink(image, None if scores is None else (scores.shape[1], scores.shape[0]))
        items.append(GalleryItem(rows[index], groups, image, scores, mask))
    return items
