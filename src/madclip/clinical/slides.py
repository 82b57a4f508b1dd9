"""Whole slides through a detector: tiles with tissue, one after the other, and one map of all of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from madclip.data.readers.slides import open_slide
from madclip.data.ref import ImageRef
from madclip.data.slides import NO_TISSUE, Cut, tissue_of
from madclip.data.tiles import Joined, resized
from madclip.errors import DataError, RecipeError
from madclip.grey_range import parse_grey_range
from madclip.prediction import Prediction, judged, raised
from madclip.progress import Progress, silent

if TYPE_CHECKING:
    from pathlib import Path

    from madclip.data.slides import Magnification
    from madclip.detector import MadCLIP


def predict_slide(detector: MadCLIP, path: Path, at: Magnification, progress: Progress = silent) -> Prediction:
    """What a detector says of a slide, in memory that does not grow with the slide.

    The score is that of the highest tile, as of large images; glass is not scored, and its map is 0. The map covers
    the whole slide at a size of its own, which the note says. There is no threshold: one for an image is passed by
    chance somewhere among many tiles.

    Args:
        detector: A fitted detector.
        path: The slide.
        at: The magnification at which it is read.
        progress: Told of the stage `tiles`.

    Raises:
        DataError: The slide cannot be read, or shows no tissue.
        RecipeError: The detector's grey range is taken from each image, which a tile is not.
        MissingExtraError: The library of its format is not installed.
    """
    if parse_grey_range(detector.recipe.grey_range).kind in ("data", "percentiles"):
        raise RecipeError(f"grey range {detector.recipe.grey_range}: would be another one for each tile of a slide")
    # A tile is seen whole; what was learned, and what computes, is the same.
    recipe = detector.recipe.replace(tile=0, aspect="stretch")
    by_tile = type(detector)(recipe, backbone=detector.backbone, objective=detector.objective)
    by_tile.fitted, by_tile.engine = detector.fitted, detector.engine
    with open_slide(path) as slide:
        cut = Cut.of(slide, detector.recipe.view, at)
        places, total = cut.corners(tissue_of(slide.overview()[0]))
        if not places:
            raise DataError(f"{path}: {NO_TISSUE}")
        height, width = (min(cut.view.tile, side) for side in cut.size)
        tiles = (slide.region(cut.level, top, left, height, width) for top, left in places)
        joined, scores, known = Joined(cut.size, cut.view), [0.0], 0
        for number, (place, one) in enumerate(zip(places, by_tile.predict_iter(tiles, native=False), strict=True)):
            found = raised(one)
            joined.add([place], resized(torch.from_numpy(found.anomaly_map), (cut.view.size, cut.view.size))[None])
            scores.append(found.score)
            known += found.familiar
            progress("tiles", number + 1, len(places))
    plain = Prediction(
        max(scores),
        joined.map().numpy(),
        cut.map_size,
        ImageRef(path),
        familiar=2 * known >= len(places),
        note=_said(cut, len(places), total),
        grey_range=detector.recipe.grey_range,
    )
    return judged(plain, None, "There is no threshold for whole slides.")


def _said(cut: Cut, seen: int, total: int) -> str:
    """What a reader must know of how a slide was read."""
    scale = cut.size[0] / cut.map_size[0]
    level = cut.level
    at = f"level {level}" if cut.mpp is None else f"{cut.mpp[0]:.3g} microns a pixel (level {level})"
    return (
        f"Read at {at}, {cut.size[1]} x {cut.size[0]} pixels, in tiles of {cut.view.tile}; {seen} of {total} hold "
        f"tissue. A pixel of the map is {scale:.3g} of the level's."
    )
