"""Where in a whole slide there is tissue, and which of its tiles are seen."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Picture

from madclip.data.readers.slides import open_slide
from madclip.data.tiles import Corner, corners, map_size
from madclip.errors import DataError, RecipeError
from madclip.files import new_folder
from madclip.recipe import View

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from madclip.data.readers.slides import Slide

    _Places = npt.NDArray[np.int64]

LEAST_TISSUE = 0.1
"""A tile is seen where at least this share of it is tissue."""
PALE = 12
"""Saturation, of 255, up to which nothing counts as tissue: glass is never quite white."""
NO_TISSUE = "no tissue found, that is, nothing coloured; slides without colour are not read"
MAX_MAP = 2**24
"""A map has at most so many pixels, however large the slide is."""


@dataclass(frozen=True)
class Magnification:
    """At which magnification slides are read: one of the two is given.

    Attributes:
        level: A level of the pyramid, 0 is the finest.
        mpp: Microns per pixel.
    """

    level: int | None = None
    mpp: float | None = None

    def __post_init__(self) -> None:
        if (self.level is None) == (self.mpp is None):
            raise RecipeError("name one of --level and --mpp")


@dataclass(frozen=True)
class Cut:
    """How a slide is cut into tiles.

    Attributes:
        level: The level that is read.
        size: Its height and width, pixels.
        view: Tiles of `view.tile` pixels of the level, whose maps are `view.size` pixels in the map of the slide.
        mpp: Microns per pixel, rows and columns, as asked for; None where the slide does not say.
    """

    level: int
    size: tuple[int, int]
    view: View
    mpp: tuple[float, float] | None

    @classmethod
    def of(cls, slide: Slide, view: View, at: Magnification) -> Cut:
        """How a detector with this view sees a slide: in its tiles, else in squares of the backbone's own size.

        `at.mpp` takes the coarsest level that is fine enough, and more or fewer of its pixels for a tile.

        Raises:
            DataError: There is no such level, none that is fine enough, or the slide does not say its resolution.
        """
        number, scale = _level(slide, at)
        level = slide.levels[number]
        size = (level.height, level.width)
        tile = max(1, round((view.tile or view.size) * scale))
        side = min(view.size, max(1, math.floor(tile * math.sqrt(MAX_MAP / (size[0] * size[1])))))
        mpp = None if level.mpp is None else (level.mpp[0] * scale, level.mpp[1] * scale)
        return cls(number, size, replace(view, size=side, tile=tile, aspect="stretch"), mpp)

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the map, which covers the whole slide."""
        return map_size(self.size, self.view)

    def corners(self, tissue: npt.NDArray[np.bool_]) -> tuple[list[Corner], int]:
        """Tops and lefts of the tiles with tissue, in pixels of the level, and the number of all tiles.

        Args:
            tissue: [h, w], over the whole slide.
        """
        places = corners(self.size, self.view)
        total = np.pad(tissue.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        (rows, bottoms), (columns, rights) = (
            _ends(np.array([place[axis] for place in places]), self.view.tile, tissue.shape[axis] / self.size[axis])
            for axis in (0, 1)
        )
        bottoms, rights = bottoms.clip(max=tissue.shape[0]), rights.clip(max=tissue.shape[1])
        found = total[bottoms, rights] - total[rows, rights] - total[bottoms, columns] + total[rows, columns]
        share = found / ((bottoms - rows) * (rights - columns))
        return [place for place, one in zip(places, share, strict=True) if one >= LEAST_TISSUE], len(places)


def _ends(starts: _Places, side: int, scale: float) -> tuple[_Places, _Places]:
    """First and last of the pixels, at another scale, that tiles with these starts touch."""
    return np.floor(starts * scale).astype(int), np.ceil((starts + side) * scale).astype(int)


def _level(slide: Slide, at: Magnification) -> tuple[int, float]:
    """The level to read, and how many of its pixels a pixel at the magnification takes."""
    if at.level is not None:
        if not 0 <= at.level < len(slide.levels):
            raise DataError(
                f"{slide.path}: there is no level {at.level}; they are numbered 0 to {len(slide.levels) - 1}"
            )
        return at.level, 1.0
    stated = [level.mpp for level in slide.levels]
    if at.mpp is None or None in stated:
        raise DataError(f"{slide.path}: does not say how many microns a pixel has; name a level (--level 0)")
    sizes = [math.sqrt(one[0] * one[1]) for one in stated if one]
    if at.mpp < 0.95 * sizes[0]:
        raise DataError(f"{slide.path}: its finest level has {sizes[0]:.3g} microns a pixel, coarser than {at.mpp:g}")
    number = max(n for n, size in enumerate(sizes) if n == 0 or size <= 1.05 * at.mpp)
    return number, at.mpp / sizes[number]


def tissue_of(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where a slide made small [h, w, 3] shows tissue: what is more coloured than Otsu's threshold, and than `PALE`.

    The colour of a pixel is the greatest of its three values less the least: grey, white and black have none.
    """
    colour = picture.max(-1) - picture.min(-1)
    found: npt.NDArray[np.bool_] = colour > max(PALE, _otsu(colour))
    return found


def _otsu(values: npt.NDArray[np.uint8]) -> int:
    """The value of 0 to 255 that parts values into two classes that differ most."""
    counts = np.bincount(values.ravel(), minlength=256).astype(float)
    below, weighted = counts.cumsum(), (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = weighted / below - (weighted[-1] - weighted) / above
        between = np.nan_to_num(below * above * apart**2)
    return int(between.argmax())


def write_tiles(slides: Sequence[Path], folder: Path, at: Magnification, side: int, count: int) -> int:
    """Writes tiles with tissue as PNG files to sort and to learn from: `SLIDE/TILE.png`, both numbered from 0.

    `tiles.csv` says where each lies: slide, level, and the top and left pixel there.

    Args:
        slides: Their files or folders.
        folder: New or empty.
        at: The magnification at which they are read.
        side: Height and width of a tile, pixels at that magnification.
        count: Tiles of each slide, at even distances; fewer where it has fewer.

    Returns:
        The number of tiles.

    Raises:
        DataError: A slide cannot be read, or shows no tissue; or there is something in the folder.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"{folder}: is there already; name a new folder for the tiles")
    rows = []
    with new_folder(folder) as partial:
        for number, path in enumerate(slides):
            (partial / f"{number:03d}").mkdir()
            with open_slide(path) as slide:
                cut = Cut.of(slide, View(side, tile=side), at)
                places, _ = cut.corners(tissue_of(slide.overview()[0]))
                chosen = np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int))
                if not chosen.size:
                    raise DataError(f"{path}: {NO_TISSUE}")
                for place, (top, left) in enumerate(places[one] for one in chosen):
                    region = slide.region(cut.level, top, left, cut.view.tile, cut.view.tile)
                    name = f"{number:03d}/{place:05d}.png"
                    Picture.fromarray(region).resize((side, side), Picture.Resampling.BICUBIC).save(partial / name)
                    rows.append((name, path, cut.level, top, left))
        with (partial / "tiles.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("image", "slide", "level", "top", "left"), *rows])
    return len(rows)
