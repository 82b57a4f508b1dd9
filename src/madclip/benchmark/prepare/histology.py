"""HIS from Camelyon16: patches of slides (`normal_NNN.tif`, `tumor_NNN.tif`, `test_NNN.tif`) where BMAD cut them."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from madclip.benchmark.prepare.layout import Original, published_splits
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

RULE = (
    "BMAD's places: patches of 256 x 256 pixels at full resolution; train from training slides, valid and test from "
    "test slides. Slides that are not there are left out."
)
SIDE = 256
_SPLITS = {
    "train_good": ("train", 0),
    "valid_good": ("valid", 0),
    "valid_bad": ("valid", 1),
    "test_good": ("test", 0),
    "test_bad": ("test", 1),
}


def read_originals(source: Path, seed: int) -> list[Original]:  # noqa: ARG001 -- nothing is drawn
    """Places in the slides that are there.

    Raises:
        DataError: There is none of the slides.
    """
    slides = {path.stem.lower(): path for path in sorted(source.rglob("*.tif*"))}
    found = []
    for name, (split, label) in _SPLITS.items():
        for slide, places in published_splits()["histology"][name].items():
            path = slides.get(slide)
            if path:
                found += [
                    Original(path, label, slide, split, f"{slide}_{x}_{y}.png", partial(read_patch, path, x, y))
                    for x, y in places
                ]
    if not found:
        raise DataError(f"{source}: none of the slides of Camelyon16 is there (test_001.tif, normal_001.tif, ...)")
    return found


@lru_cache(maxsize=1)
def _page(path: Path) -> tuple[Any, Any]:
    try:
        file = tifffile.TiffFile(path)
        page = file.pages.first
    except Exception as error:  # whatever tifffile makes of a damaged file
        raise DataError(f"{path}: not a slide ({' '.join(str(error).split())[:120]})") from error
    if not page.is_tiled or page.samplesperpixel != 3 or page.dtype != np.uint8:
        raise DataError(f"{path}: not a slide: its first page is no tiled 8-bit RGB image")
    return file, page


def read_patch(path: Path, x: int, y: int, side: int = SIDE) -> npt.NDArray[np.uint8]:
    """Pixels [side, side, 3] of the full resolution whose upper left corner is at column x and row y.

    Only the tiles that it touches are decoded.

    Raises:
        DataError: The slide cannot be read, or ends before.
    """
    file, page = _page(path)
    if not (0 <= x <= page.imagewidth - side and 0 <= y <= page.imagelength - side):
        raise DataError(f"{path}: no patch at {x}, {y}: the slide has {page.imagewidth} x {page.imagelength} pixels")
    tile = page.tilelength, page.tilewidth
    across = -(-page.imagewidth // tile[1])
    first, last = (y // tile[0], x // tile[1]), ((y + side - 1) // tile[0], (x + side - 1) // tile[1])
    columns = range(first[1], last[1] + 1)
    rows = [
        np.concatenate([_tile(file, page, path, row * across + column, tile) for column in columns], axis=1)
        for row in range(first[0], last[0] + 1)
    ]
    top, left = y - first[0] * tile[0], x - first[1] * tile[1]
    patch: npt.NDArray[np.uint8] = np.concatenate(rows)[top : top + side, left : left + side]
    return patch


def _tile(file: Any, page: Any, path: Path, index: int, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    try:
        file.filehandle.seek(page.dataoffsets[index])
        data = file.filehandle.read(page.databytecounts[index])
        decoded = page.decode(data, index, jpegtables=page.jpegtables)[0]
    except Exception as error:  # cut off or damaged
        raise DataError(f"{path}: tile {index} cannot be read ({' '.join(str(error).split())[:120]})") from error
    # Tiles that were never written are white, as around tissue; those at the rim are filled up.
    whole = np.full((*shape, 3), 255, np.uint8)
    if decoded is not None:
        found = decoded.reshape(decoded.shape[-3:])
        whole[: found.shape[0], : found.shape[1]] = found
    return whole
