"""NIfTI: volumes with two forms of where they lie, in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from madclip.data.readers.protocol import UNREADABLE, inflated
from madclip.data.readers.volume import MAX_BYTES, Volume, VolumeReader, check_geometry
from madclip.errors import DataError, MissingExtraError
from madclip.files import until_changed

if TYPE_CHECKING:
    from pathlib import Path

    from madclip.grey_range import Limits

_MILLIMETRES = {"micron": 1e-3, "meter": 1e3}
"""What lengths in other units than millimetres are multiplied by."""
_WORDS = {348: (344, b"1\0"), 540: (4, b"2\0")}
"""Where the magic word stands and how it ends, by the length of the header that the file begins with."""


class NIfTI(VolumeReader):
    """NIfTI-1 and NIfTI-2 in one file, compressed by gzip or not."""

    name = "NIfTI"
    suffixes = (".nii", ".nii.gz")

    def recognises(self, head: bytes, path: Path) -> bool:  # noqa: ARG002  (the protocol's)
        """By the header, inflated where the file is compressed."""
        return magic_word(head) == b"n+"

    def open(self, path: Path) -> Volume:
        """See `VolumeReader.open`."""
        return _opened(path)


def magic_word(head: bytes) -> bytes:
    """How the first bytes of a file say NIfTI: `n+` where voxels follow, `ni` where they are in another file.

    Empty where it is no NIfTI.
    """
    head = inflated(head)
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        at, ending = _WORDS.get(int.from_bytes(head[:4], order), (0, b""))
        if ending and head[at + 2 : at + 4] == ending:
            return head[at : at + 2]
    return b""


@until_changed(2)
def _opened(path: Path) -> Volume:
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError
    except ImportError:
        raise MissingExtraError.of("NIfTI volumes", "dicom") from None
    try:
        image: Any = nibabel.load(path, mmap=True)
        shape = check_volume(path, image)
        voxels = np.asanyarray(image.dataobj.get_unscaled()).reshape(shape)
        if voxels.dtype.names:
            voxels = np.stack([voxels[name] for name in ("R", "G", "B")], axis=-1)
        slope, intercept = image.dataobj.slope, image.dataobj.inter
        units = image.header.get_xyzt_units()[0]
        affine = image.affine * np.array([[_MILLIMETRES.get(units, 1.0)]] * 3 + [[1.0]])
        return Volume(voxels, slope, intercept, affine, _named(image.header), _note(image))
    except DataError:
        raise
    except (*UNREADABLE, ImageFileError, HeaderDataError) as error:
        raise DataError(f"{path}: a damaged NIfTI volume ({type(error).__name__})") from None


def check_volume(path: Path, image: Any, most: int = MAX_BYTES) -> tuple[int, ...]:
    """The three sides of a volume that nibabel has opened, as in `check_geometry`.

    Raises:
        DataError: As there, or neither form of the header is said to be right.
    """
    shape = check_geometry(path, image.shape, image.get_data_dtype(), image.affine, most)
    if not (image.header["sform_code"] or image.header["qform_code"]):
        raise DataError(
            f"{path}: its header does not say how it lies in the patient (sform and qform codes are 0); set a form "
            "that is right, as with nibabel's set_sform(affine, code=1)"
        )
    return shape


def _named(header: Any) -> Limits | None:
    low, high = float(header["cal_min"]), float(header["cal_max"])
    return (low, high) if np.isfinite((low, high)).all() and low < high else None


def _note(image: Any) -> str:
    """Where the header contradicts itself, and that a range had to be assumed."""
    said = []
    header = image.header
    if header["sform_code"] and header["qform_code"]:
        sform, qform = header.get_sform(), header.get_qform()
        if np.abs(sform - qform).max() > 1e-2:
            said.append("The two orientations in its header differ; its sform was used.")
    zooms = np.linalg.norm(image.affine[:3, :3], axis=0)
    if not np.allclose(zooms, header.get_zooms()[:3], rtol=1e-2):
        said.append("The voxel sizes in its header differ from those of its orientation, which were used.")
    return " ".join(said)
