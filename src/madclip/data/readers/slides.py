"""Whole slides: levels of a pyramid, regions of one, and the whole made small; never a whole level at once."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from madclip.data.readers.dicom import DICOM, unreadable
from madclip.data.readers.protocol import MAX_PIXELS, UNREADABLE
from madclip.data.walk import Walk
from madclip.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

SUFFIXES = frozenset({".svs", ".tif", ".tiff", ".btf", ".ndpi", ".scn", ".bif", ".qptiff", ".svslide"})
"""Files that are taken for slides where a folder is searched; a folder that holds DICOM files is a slide itself."""
OVERVIEW = 1024
"""Longest side of what a whole slide is made to, pixels."""


@dataclass(frozen=True)
class Level:
    """One level of a pyramid.

    Attributes:
        height: Pixels.
        width: Pixels.
        mpp: Microns between rows and between columns; None where the slide does not say.
    """

    height: int
    width: int
    mpp: tuple[float, float] | None


class _Regions(Protocol):
    """How the library of a format gives a region: [h, w, C] of uint8, which lies within its level."""

    def __call__(self, level: int, top: int, left: int, height: int, width: int) -> npt.NDArray[Any]: ...


class Slide:
    """An open slide.

    Args:
        path: Its file, or the folder of its DICOM files.
        levels: Its levels, the finest first.
        read: Gives regions.
    """

    def __init__(self, path: Path, levels: Sequence[Level], read: _Regions) -> None:
        self.path, self.levels, self._read = path, tuple(levels), read

    def region(self, level: int, top: int, left: int, height: int, width: int) -> npt.NDArray[np.uint8]:
        """Colours [height, width, 3] of a region in a level's own pixels, white where it reaches over the edge.

        Raises:
            DataError: It cannot be read.
        """
        whole = self.levels[level]
        height_in, width_in = min(height, whole.height - top), min(width, whole.width - left)
        try:
            found = self._read(level, top, left, height_in, width_in)
        except _unreadable() as error:
            raise DataError(f"{self.path}: a part of the slide cannot be read ({type(error).__name__})") from None
        if found.shape[:2] != (height_in, width_in) or found.shape[2:] not in ((3,), (4,)) or found.dtype != np.uint8:
            raise DataError(f"{self.path}: {found.dtype} of shape {found.shape}; slides in 8-bit RGB are read")
        made = np.full((height, width, 3), 255, np.uint8)
        made[:height_in, :width_in] = found[..., :3]
        return made

    def overview(self) -> tuple[npt.NDArray[np.uint8], tuple[float, float] | None]:
        """The whole slide [H, W, 3], at most `OVERVIEW` pixels long, and the millimetres between rows and columns.

        It is averaged block by block from the coarsest level that is large enough.

        Raises:
            DataError: It cannot be read.
        """
        sizes = [max(level.height, level.width) for level in self.levels]
        number = max((n for n, size in enumerate(sizes) if size >= OVERVIEW), default=0)
        level = self.levels[number]
        factor = -(-sizes[number] // OVERVIEW)
        rows, columns = -(-level.height // factor), -(-level.width // factor)
        made = np.empty((rows, columns, 3), np.uint8)
        step = max(1, OVERVIEW // factor)
        for row in range(0, rows, step):
            for column in range(0, columns, step):
                part = made[row : row + step, column : column + step]
                height, width = part.shape[0] * factor, part.shape[1] * factor
                block = self.region(number, row * factor, column * factor, height, width)
                part[:] = block.reshape(part.shape[0], factor, part.shape[1], factor, 3).mean((1, 3)).round()
        return made, None if level.mpp is None else (level.mpp[0] * factor / 1000, level.mpp[1] * factor / 1000)


def find_slides(inputs: Sequence[str | Path]) -> list[Path]:
    """The slides that are named: files, folders of DICOM files that are one slide, and what folders hold of both.

    Raises:
        DataError: There is none in an input.
    """
    from pathlib import Path

    found: dict[Path, None] = {}
    for entry in map(Path, inputs):
        if entry.is_file():
            within = [entry]
        elif entry.is_dir():
            files = Walk().files(entry)
            within = sorted({p if p.suffix.lower() in SUFFIXES else p.parent for p in files if _may_be_slide(p)})
        else:
            raise DataError(f"{entry}: no such file or folder")
        if not within:
            raise DataError(f"{entry}: no slides (TIFF, SVS, NDPI, ..., DICOM) in this folder")
        found |= dict.fromkeys(within)
    return list(found)


def _may_be_slide(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or _is_dicom(path)


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return DICOM().recognises(file.read(1024), path)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror or error})") from error


@contextmanager
def open_slide(path: Path) -> Iterator[Slide]:
    """A slide, open as long as the block that it is used in.

    Raises:
        DataError: It is none, damaged, or of a kind that is not read.
        MissingExtraError: The library of its format is not installed.
    """
    open_one = _open_dicom if path.is_dir() or _is_dicom(path) else _open_tiff
    try:
        opened, levels, read = open_one(path)
    except _unreadable() as error:
        raise DataError(f"{path}: not a slide that is read, or a damaged one ({type(error).__name__})") from None
    with opened:
        yield Slide(path, levels, read)


def _unreadable() -> tuple[type[BaseException], ...]:
    """What libraries raise on damaged slides; their words may quote a header."""
    try:
        from wsidicom import errors
    except ImportError:
        return UNREADABLE
    own = (one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception))
    return (*unreadable(), *own)


def _open_tiff(path: Path) -> tuple[Any, list[Level], _Regions]:
    try:
        import tiffslide
    except ImportError:
        raise MissingExtraError.of("Whole slides", "slides") from None

    class Opened(tiffslide.TiffSlide):  # type: ignore[misc]
        """Takes locations in the pixels of the level, which leave nothing to round."""

        def _read_region_loc_transform(self, location: tuple[int, int], level: int) -> tuple[int, int]:  # noqa: ARG002
            return location

    opened = Opened(path)
    try:
        _check_parts(path, opened)
    except BaseException:
        opened.close()
        raise
    stated = [opened.properties[f"tiffslide.mpp-{axis}"] for axis in "yx"]
    sizes = [(height, width) for width, height in opened.level_dimensions]

    def read(level: int, top: int, left: int, height: int, width: int) -> npt.NDArray[Any]:
        return np.asarray(opened.read_region((left, top), level, (width, height), as_array=True))

    return opened, [_level(size, sizes[0], stated) for size in sizes], read


def _check_parts(path: Path, opened: Any) -> None:
    """Refuses slides of which a single tile or strip would be too large to read, or that end before.

    Raises:
        DataError: They are.
    """
    for level in opened.ts_tifffile.series[opened.properties["tiffslide.series-index"]].levels:
        page = level.keyframe
        part = page.tilewidth * page.tilelength if page.is_tiled else page.imagewidth * page.rowsperstrip
        if part > MAX_PIXELS:
            raise DataError(f"{path}: holds a level in parts of {part / 2**20:.0f} megapixels; save it in tiles")
        parts = -(-page.imagelength // page.tilelength) * -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1
        if min(len(page.dataoffsets), len(page.databytecounts)) < parts:
            raise DataError(f"{path}: damaged, it has {len(page.dataoffsets)} of {parts} tiles")


def _open_dicom(path: Path) -> tuple[Any, list[Level], _Regions]:
    try:
        from wsidicom import WsiDicom
    except ImportError:
        raise MissingExtraError.of("DICOM slides", "slides") from None
    opened: Any = WsiDicom.open(path)
    found = opened.pyramid.levels

    def read(level: int, top: int, left: int, height: int, width: int) -> npt.NDArray[Any]:
        return np.asarray(opened.read_region((left, top), found[level].level, (width, height), as_array=True))

    levels = [Level(one.size.height, one.size.width, (one.mpp.height, one.mpp.width)) for one in found]
    return opened, levels, read


def _level(size: tuple[int, int], finest: tuple[int, int], stated: Sequence[Any]) -> Level:
    """A level whose microns per pixel follow from those of the finest one."""
    known = all(one is not None and 0 < float(one) < 1000 for one in stated)
    mpp = [float(one) * whole / part for one, whole, part in zip(stated, finest, size, strict=True)] if known else None
    return Level(*size, (mpp[0], mpp[1]) if mpp else None)
