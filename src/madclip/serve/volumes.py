"""Volumes and their masks as NIfTI, in the reading processes: slices as they are shown, and back to voxels."""

from __future__ import annotations

import gzip
import io
import tempfile
from dataclasses import dataclass
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
    from collections.abc import Sequence

    import numpy.typing as npt

    from madclip.data.series import Place
    from madclip.serve.wire import Answer, Header

Slice = tuple[str, int | None, str]
"""Path, frame and axis of an image."""
MOST = 2**29
"""Bytes of a label map, inflated."""
APART = 1e-2
"""Millimetres by which a label map may lie beside its volume."""


class Grid:
    """Where the slices of a volume lie among its voxels.

    Args:
        images: Slices of one volume, in order; of a NIfTI volume some may be missing.
        places: Where they lie, evenly spaced; None where they are cut from a file that holds the whole volume.

    Attributes:
        images: Their names.
        affine: [4, 4], from indices of voxels to millimetres.
        count: Slices of the whole volume.
        index: The place of each of `images` among them.
    """

    def __init__(self, images: Sequence[ImageRef], places: Sequence[Place] | None) -> None:
        self.images = images
        self._volume = places is None
        if places is None:
            volume = open_volume(images[0].path)
            self.affine, self._along = volume.affine, PLANES.index(images[0].axis or "axial")
            self.count = volume.shape[self._along]
            self.index = [image.frame or 0 for image in images]
        else:
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


@dataclass(frozen=True)
class Part:
    """Slices of a volume that are evenly spaced, of which one grid can be made.

    Attributes:
        images: Their names.
        places: Where they lie; None where they are cut from a file that holds the whole volume.
        start: The number of the first of them among all slices.
    """

    images: Sequence[ImageRef]
    places: Sequence[Place] | None
    start: int = 0

    def of(self, all_slices: Sequence[Any]) -> Sequence[Any]:
        """What belongs to these slices, of what belongs to all."""
        return all_slices[self.start : self.start + len(self.images)]

    def grid(self) -> Grid:
        """Where they lie among the voxels."""
        return Grid(self.images, self.places)


def parts(images: Sequence[ImageRef], places: Sequence[Place] | None) -> list[Part]:
    """A volume's slices in evenly spaced parts, as `madclip predict` has them; `places` as in `Part`."""
    if places is None:
        return [Part(images, None)]
    runs = even_runs(places)
    return [Part(images[run.start : run.stop], places[run.start : run.stop], run.start) for run in runs]


def parts_of(images: list[Slice]) -> list[Part]:
    """As `parts`, of images as they came over the pipe; reads the header of each file once.

    Raises:
        DataError: The files do not say where they lie.
    """
    named = [ImageRef(Path(path), frame, axis) for path, frame, axis in images]
    if is_volume(named[0].path):
        return parts(named, None)
    found = expand_inputs(sorted({image.path for image in named}))
    series = next((one for one in found.series if set(named) <= set(one.images)), None)
    if series is None or series.places is None:
        raise DataError("these slices do not say where they lie, so they make no volume")
    place = dict(zip(series.images, series.places, strict=True))
    return parts(named, [place[image] for image in named])


def stretches(images: list[Slice]) -> Answer:
    """How many of the slices make a volume, and how many of the next, and so on: `counts`."""
    return counts_of(parts_of(images)), b""


def counts_of(found: list[Part]) -> Header:
    """What is said instead of a volume where the stretch that is asked for is none of these."""
    return {"counts": [len(part.images) for part in found]}


def chosen(found: list[Part], stretch: int | None) -> Part | None:
    """The stretch of a number from 1; without one, the whole volume where it is but one."""
    if stretch is None:
        return found[0] if len(found) == 1 else None
    return found[stretch - 1] if stretch <= len(found) else None


def image_volume(images: list[Slice], stretch: int | None) -> Answer:
    """A volume as .nii.gz, in the values that its files mean."""
    found = parts_of(images)
    part = chosen(found, stretch)
    if part is None:
        return counts_of(found), b""
    first = part.images[0].path
    if isinstance(reader_of(first), NIfTI):
        content = first.read_bytes()
        return {}, content if content.startswith(b"\x1f\x8b") else gzip.compress(content, 1)
    if is_volume(first):
        volume = open_volume(first)
        return {}, packed(volume.voxels, volume.affine)
    grid = part.grid()
    values = np.stack([_grey(read_stored(image).values) for image in grid.images])
    return {}, packed(grid.volume(values.astype(np.float32)), grid.affine)  # all slices of a series are there


def _grey(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values if values.ndim == 2 else values.mean(2)


def mask_volume(images: list[Slice], stretch: int | None, masks: list[str | None], size: list[int]) -> Answer:
    """The masks of a volume's slices as one label map, uint8; `size` is width and height of a slice."""
    found = parts_of(images)
    part = chosen(found, stretch)
    if part is None:
        return counts_of(found), b""
    grid = part.grid()
    shown = grid.empty(size[1], size[0], np.uint8)
    for index, path in zip(grid.index, part.of(masks), strict=True):
        if path is not None:
            shown[index] = read_mask(Path(path))
    return {}, packed(grid.volume(shown), grid.affine)


def mask_slices(images: list[Slice], stretch: int | None, body: bytes) -> Answer:
    """A label map of a volume as the masks of its slices: PNG after PNG in the body, their lengths in `lengths`.

    A slice on which nothing is marked has length 0; `start` is the number of the first slice among all.

    Raises:
        DataError: The label map cannot be read, or lies elsewhere.
    """
    import nibabel

    found = parts_of(images)
    part = chosen(found, stretch)
    if part is None:
        return counts_of(found), b""
    grid = part.grid()
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
    made = [png(shown[index].astype(np.uint8) * 255) if shown[index].any() else b"" for index in grid.index]
    return {"start": part.start, "lengths": [len(one) for one in made]}, b"".join(made)


def packed(values: npt.NDArray[Any], affine: npt.NDArray[np.float64], shown: tuple[float, float] = (0, 0)) -> bytes:
    """A volume [I, J, K] as the bytes of a .nii.gz file, as `clinical.nifti.write_volume` writes it.

    Raises:
        MissingExtraError: nibabel is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        write_volume(path, values, affine, shown)
        return path.read_bytes()
