"""Volumes of any format: slices, shown as a radiologist sees them whatever the order of their axes on disk.

Axial slices have the front of the patient at the top, coronal and sagittal ones the head; the patient's right is at the
left of axial and coronal slices, the front at the left of sagittal ones. Slices are numbered from 0, from the feet to
the head, from the back to the front, and from the patient's left to the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.protocol import Stored, check_size, depth_name, full_range
from madclip.data.ref import ImageRef
from madclip.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from madclip.grey_range import Limits

PLANES = ("sagittal", "coronal", "axial")
"""Across which axis of (right, anterior, superior) slices of each name lie."""
_SIDES = ("APHF", "RLHF", "RLAP")
"""What lies to the left, right, top and bottom of slices of each."""
MAX_BYTES = 2**30
"""Larger volumes are refused from their header, before anything is inflated."""
USUAL = (0.5, 99.5)
"""Percentiles of the volume that become black and white where a file names no range of grey values."""
ASSUMED = "The file names no range of grey values: black and white are the 0.5th and 99.5th percentiles of the volume."


class VolumeReader:
    """What the readers of volumes share; each opens its own format."""

    name: str
    suffixes: tuple[str, ...]

    def open(self, path: Path) -> Volume:
        """A volume, as it was opened last where the file has not changed since.

        Raises:
            DataError: It is damaged, too large, has other than three axes, or does not say how it lies.
            MissingExtraError: The library of the format is not installed.
        """
        raise NotImplementedError

    def frames(self, path: Path, axis: str) -> tuple[ImageRef, ...]:
        """All slices across an axis; a volume of one slice has one name all the same."""
        plane = self.plane(path, axis)
        count = self.open(path).shape[PLANES.index(plane)]
        return tuple(ImageRef(path, number, "" if plane == "axial" else plane) for number in range(count))

    def plane(self, path: Path, axis: str) -> str:
        """The plane that is meant by `axial`, `coronal`, `sagittal`, or by the number of an axis on disk."""
        return axis if axis in PLANES else PLANES[self.open(path).order[int(axis)]]

    def read(self, image: ImageRef, *, mask: bool) -> Stored:
        """One slice, in the values that the file means, with a range taken from the whole volume."""
        volume = self.open(image.path)
        along = PLANES.index(image.axis or "axial")
        count = volume.shape[along]
        if image.frame is None:
            raise DataError(f"{image}: a volume of {count} slices; name one as {image.path.name}#{count // 2}")
        if not 0 <= image.frame < count:
            raise DataError(f"{image}: there is no such slice; they are numbered 0 to {count - 1}")
        values, spacing = volume.shown(along, image.frame)
        check_size(image.path, values.shape[1], values.shape[0])
        if mask:
            white = full_range(values.dtype) if values.dtype == np.uint8 else None
            return Stored(values, white, depth_name(values.dtype))
        full = full_range(values.dtype) if values.dtype.kind in "iu" and volume.plain else None
        if values.ndim == 3 or (full is not None and values.dtype.itemsize == 1):
            return Stored(
                values,
                full,
                depth_name(values.dtype),
                named=volume.named if values.ndim == 2 else None,
                spacing=spacing,
                percentiles=volume.percentiles if values.ndim == 2 else None,
                note=volume.note,
                sides=_SIDES[along],
            )
        return Stored(
            values,
            full,
            depth_name(values.dtype),
            named=volume.limits,
            spacing=spacing,
            percentiles=volume.percentiles,
            note=volume.note,
            assumed="" if volume.named else ASSUMED,
            sides=_SIDES[along],
        )


@dataclass(frozen=True, eq=False)
class Volume:
    """One opened volume.

    Attributes:
        voxels: As on disk, [I, J, K] or [I, J, K, 3], before slope and intercept.
        slope: What voxels are multiplied by.
        intercept: What is added then.
        affine: [4, 4], from indices on disk to millimetres to the right, to the front and to the head.
        named: The range of grey values that the header names.
        note: What was assumed, in a sentence.
    """

    voxels: npt.NDArray[Any]
    slope: float
    intercept: float
    affine: npt.NDArray[np.float64]
    named: Limits | None
    note: str

    @cached_property
    def _orientation(self) -> npt.NDArray[Any]:
        try:
            from nibabel.orientations import io_orientation
        except ImportError:
            raise MissingExtraError.of("Volumes", "dicom") from None
        return np.asarray(io_orientation(self.affine))  # type: ignore[no-untyped-call]  # nibabel has no types here

    @property
    def order(self) -> tuple[int, ...]:
        """For each axis on disk, the axis of (right, anterior, superior) that it is closest to."""
        return tuple(int(axis) for axis in self._orientation[:, 0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels to the right, to the front and to the head."""
        return tuple(self.voxels.shape[self.order.index(axis)] for axis in range(3))

    @property
    def plain(self) -> bool:
        """Whether voxels mean what they are."""
        return (self.slope, self.intercept) == (1, 0)

    @cached_property
    def upright_affine(self) -> npt.NDArray[np.float64]:
        """[4, 4], from indices to the right, front and head to millimetres, whatever the order on disk."""
        from nibabel.orientations import inv_ornt_aff

        turned: Any = inv_ornt_aff(self._orientation, self.voxels.shape[:3])  # type: ignore[no-untyped-call]
        return np.asarray(self.affine @ turned)

    def shown(self, along: int, index: int) -> tuple[npt.NDArray[Any], tuple[float, float]]:
        """A slice as it is shown, [H, W] or [H, W, 3], and the millimetres between its rows and columns."""
        disk = self.order.index(along)
        place = self.voxels.shape[disk] - 1 - index if self._flipped(along) else index
        taken = np.take(self.voxels, place, axis=disk)
        columns, rows = (axis for axis in range(3) if axis != along)
        if self.order.index(columns) < self.order.index(rows):
            taken = taken.swapaxes(0, 1)
        # Rows go down from the front or the head, columns from the patient's right or from the front.
        if not self._flipped(rows):
            taken = taken[::-1]
        if not self._flipped(columns):
            taken = taken[:, ::-1]
        size = np.linalg.norm(self.affine[:3, :3], axis=0)
        spacing = float(size[self.order.index(rows)]), float(size[self.order.index(columns)])
        return np.ascontiguousarray(self._meant(taken)), spacing

    def restored(self, along: int, maps: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """All slices as they are shown, [N, H, W], in the order of the voxels on disk [I, J, K]."""
        columns, rows = (axis for axis in range(3) if axis != along)
        # As shown, rows go down from the front or the head and columns from the right or the front.
        upright = np.moveaxis(maps[:, ::-1, ::-1], (0, 1, 2), (along, rows, columns))
        turned = upright[tuple(slice(None, None, -1) if self._flipped(axis) else slice(None) for axis in range(3))]
        return turned.transpose(self.order)

    def _flipped(self, axis: int) -> bool:
        """Whether an axis of (right, anterior, superior) runs the other way on disk."""
        return bool(self._orientation[self.order.index(axis), 1] < 0)

    @cached_property
    def limits(self) -> Limits:
        """What becomes black and white where nobody names a range: what the header says, else usual percentiles."""
        return self.named or self.percentiles(*USUAL)

    @lru_cache(maxsize=8)  # noqa: B019  (few volumes live, and each with its own)
    def percentiles(self, low: float, high: float) -> Limits:
        """The values at two percentiles of the finite voxels."""
        values = np.asarray(self.voxels)  # as stored: scaled to float64 they would take up to eight times the memory
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if not finite.size:
            raise DataError("no voxel has a finite value")
        wanted = (low, high) if self.slope > 0 else (100 - low, 100 - high)
        ends = self._meant(np.percentile(finite, wanted))
        return float(ends[0]), float(ends[1])

    def _meant(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return voxels if self.plain else np.multiply(voxels, self.slope, dtype=np.float64) + self.intercept


def check_geometry(
    path: Path, shape: Sequence[int], dtype: np.dtype[Any], affine: npt.NDArray[np.float64], most: int = MAX_BYTES
) -> tuple[int, ...]:
    """The three sides of a volume, where it is one that can be read and shown.

    Args:
        path: Its file.
        shape: As its header has it; axes of length 1 at the end are dropped.
        dtype: Type of its voxels.
        affine: [4, 4], from indices to millimetres.
        most: The greatest size in bytes.

    Raises:
        DataError: It has other than three axes, other than real values or colours, no orientation, or is too large.
    """
    sides = tuple(int(side) for side in shape)
    while len(sides) > 3 and sides[-1] == 1:
        sides = sides[:-1]
    if len(sides) > 3:
        raise DataError(
            f"{path}: a series of volumes of shape {' x '.join(map(str, sides))}; save the one that is meant as a file "
            "of its own, as with nibabel.four_to_three"
        )
    if len(sides) < 3 or min(sides) < 1:
        raise DataError(f"{path}: no volume, its shape is {' x '.join(map(str, sides)) or 'empty'}")
    if np.prod(sides, dtype=object) * dtype.itemsize > most:
        raise DataError(f"{path}: a volume of more than {most // 2**20} MB is not read; crop it")
    if dtype.kind not in "iuf" and dtype.names != ("R", "G", "B"):
        raise DataError(f"{path}: voxels of type {dtype} are not read; save their magnitude as float32")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"{path}: its orientation in the header is no orientation (NaN or a flat matrix)")
    return sides
