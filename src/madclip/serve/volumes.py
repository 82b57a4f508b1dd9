"""Volumes and their masks as NIfTI, in the reading processes: slices as they are shown, and back to voxels."""

from __future__ import annotations

import gzip
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.clinical.geometry import affine_of, even_runs
from madclip.clinical.nifti import write_volume
from madclip.data.inputs import expand_inputs
from madclip.data.readers import read_mask
from madclip.data.readers.formats import is_volume, open_volume, read_stored, reader_of
from madclip.data.readers.nifti import NIfTI, check_volume
from madclip.data.readers.protocol import UNREADABLE
from madclip.data.readers.volume import PLANES
from madclip.data.ref import ImageRef
from madclip.errors import DataError
from madclip.heatmap import png

if TYPE_CHECKING:
    import numpy.typing as npt

    from madclip.serve.wire import Answer

Slice = tuple[str, int | None, str]
"""Path, frame and axis of an image."""
MOST = 2**29
"""Bytes of a label map, inflated."""
APART = 1e-2
"""Millimetres by which a label map may lie beside its volume."""


def refs(images: list[Slice]) -> list[ImageRef]:
    """Images as they came over the pipe."""
    return [ImageRef(Path(path), frame, axis) for path, frame, axis in images]


class Grid:
    """Where the slices of a volume lie among its voxels.

    Args:
        images: Slices of one volume, in order; of a NIfTI volume some may be missing.

    Attributes:
        images: Their names.
        affine: [4, 4], from indices of voxels to millimetres.
        count: Slices of the whole volume.
        index: The place of each of `images` among them.

    Raises:
        DataError: The files do not say it, or the slices are not evenly spaced.
    """

    def __init__(self, images: list[Slice]) -> None:
        self.images = refs(images)
        first = self.images[0]
        self._volume = is_volume(first.path)
        if self._volume:
            volume = open_volume(first.path)
            self.affine, self._along = volume.affine, PLANES.index(first.axis or "axial")
            self.count = volume.shape[self._along]
            self.index = [image.frame or 0 for image in self.images]
            return
        found = expand_inputs(sorted({image.path for image in self.images}))
        series = next((one for one in found.series if set(self.images) <= set(one.images)), None)
        if series is None or series.places is None:
            raise DataError("these slices do not say where they lie, so they make no volume")
        place = dict(zip(series.images, series.places, strict=True))
        places = [place[image] for image in self.images]
        if len(even_runs(places)) > 1:
            raise DataError("these slices are not evenly spaced, so they make no volume")
        self.affine, self.count, self.index = affine_of(places), len(places), list(range(len(places)))

    def empty(self, height: int, width: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """All slices as they are shown, [N, H, W], with nothing on them."""
        return np.zeros((self.count, height, width), dtype)

    def volume(self, shown: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Slices as they are shown, [N, H, W], in the order of the voxels [I, J, K]."""
        if not self._volume:
            return shown.transpose(2, 1, 0)
        return open_volume(self.images[0].path).restored(self._along, shown)

    def shown(self, voxels: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
        """Voxels [I, J, K] as slices, [N, H, W]: the inverse of `volume`."""
        if not self._volume:
            return voxels.transpose(2, 1, 0)
        # A view of writable memory: what is written through it lies where `volume` would have taken it from.
        out = self.empty(height, width, voxels.dtype)
        self.volume(out)[:] = voxels
        return out


def image_volume(images: list[Slice]) -> Answer:
    """A volume as .nii.gz, in the values that its files mean."""
    first = Path(images[0][0])
    if isinstance(reader_of(first), NIfTI):
        content = first.read_bytes()
        return {}, content if content.startswith(b"\x1f\x8b") else gzip.compress(content, 1)
    if is_volume(first):
        volume = open_volume(first)
        return {}, packed(volume.voxels, volume.affine)
    grid = Grid(images)
    values = np.stack([_grey(read_stored(image).values) for image in grid.images])
    return {}, packed(grid.volume(values.astype(np.float32)), grid.affine)  # all slices of a series are there


def _grey(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values if values.ndim == 2 else values.mean(2)


def mask_volume(images: list[Slice], masks: list[str | None], size: list[int]) -> Answer:
    """The masks of a volume's slices as one label map, uint8; `size` is width and height of a slice."""
    grid = Grid(images)
    shown = grid.empty(size[1], size[0], np.uint8)
    for index, path in zip(grid.index, masks, strict=True):
        if path is not None:
            shown[index] = read_mask(Path(path))
    return {}, packed(grid.volume(shown), grid.affine)


def mask_slices(images: list[Slice], body: bytes) -> Answer:
    """A label map of a volume as the masks of its slices: PNG after PNG in the body, their lengths in `lengths`.

    A slice on which nothing is marked has length 0.

    Raises:
        DataError: The label map cannot be read, or lies elsewhere.
    """
    import nibabel

    grid = Grid(images)
    if body.startswith(b"\x1f\x8b"):
        with gzip.open(io.BytesIO(body)) as file:
            body = file.read(MOST + 1)
    if len(body) > MOST:
        raise DataError(f"a label map of more than {MOST // 2**20} MB is not read")
    try:
        volume: Any = nibabel.Nifti1Image
        given = volume.from_bytes(body)
        shape = check_volume(Path("label map"), given)
        voxels = np.asanyarray(given.dataobj).reshape(shape)
    except UNREADABLE as error:
        raise DataError(f"a label map that cannot be read ({type(error).__name__})") from None
    height, width = read_stored(grid.images[0]).values.shape[:2]
    sides = grid.volume(grid.empty(height, width, np.uint8)).shape
    if voxels.shape != sides or np.abs(given.affine - grid.affine).max() > APART:
        raise DataError("the label map does not lie on the volume's grid; save it with the volume's header")
    shown = grid.shown(voxels, height, width) != 0
    parts = [png(shown[index].astype(np.uint8) * 255) if shown[index].any() else b"" for index in grid.index]
    return {"lengths": [len(part) for part in parts]}, b"".join(parts)


def packed(values: npt.NDArray[Any], affine: npt.NDArray[np.float64], shown: tuple[float, float] = (0, 0)) -> bytes:
    """A volume [I, J, K] as the bytes of a .nii.gz file, as `clinical.nifti.write_volume` writes it.

    Raises:
        MissingExtraError: nibabel is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        write_volume(path, values, affine, shown)
        return path.read_bytes()
