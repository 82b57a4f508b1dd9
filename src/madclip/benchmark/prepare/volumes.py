"""Slices of NIfTI volumes, one volume in memory at a time."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.nifti import check_volume
from madclip.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

MOST_BYTES = 2**35


def open_volume(path: Path) -> Any:
    """A NIfTI image whose values are read later.

    Raises:
        DataError: It cannot be read, or is no volume as `check_volume` asks for.
        MissingExtraError: nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise MissingExtraError.of("NIfTI volumes need nibabel", "dicom") from error
    try:
        image: Any = nibabel.load(path)
    except Exception as error:  # whatever nibabel makes of a damaged file
        raise DataError(f"{path}: not a NIfTI volume ({' '.join(str(error).split())[:120]})") from error
    if len(check_volume(path, image, MOST_BYTES)) != len(image.shape):
        raise DataError(f"{path}: a volume of shape {image.shape} has not three axes")
    return image


@lru_cache(maxsize=2)
def _values(path: Path) -> npt.NDArray[np.float32]:
    image = open_volume(path)
    try:
        return np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:  # cut off or damaged
        raise DataError(f"{path}: cannot be read to its end ({' '.join(str(error).split())[:120]})") from error


def read_slice(path: Path, index: int) -> npt.NDArray[np.float32]:
    """One slice along the third axis, rows and columns as they are stored."""
    return _values(path)[:, :, index]


def slices_with(path: Path, where: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    """Which slices hold any voxel that `where` picks."""
    return np.asarray(where(_values(path)).any((0, 1)))


def same_shape(first: Path, second: Path) -> None:
    """Refuse two volumes of other shapes.

    Raises:
        DataError: They differ.
    """
    shapes = open_volume(first).shape, open_volume(second).shape
    if shapes[0] != shapes[1]:
        raise DataError(f"{second}: of shape {shapes[1]}, but {first.name} is of {shapes[0]}")


def to_grey(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Values scaled from their own smallest and largest to 0..255; all 0 where they are equal."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all() or high <= low:
        return np.zeros(values.shape, np.uint8)
    return ((values - low) / (high - low) * 255).round().astype(np.uint8)
