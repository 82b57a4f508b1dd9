"""Heat maps of volumes as NIfTI, in the geometry of the scan."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.errors import MissingExtraError
from madclip.files import new_file

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

_SHEAR = 1e-4
"""Cosine of the angle between axes up to which a matrix has no shear."""


def write_heatmap(
    path: Path, maps: npt.NDArray[np.float32], affine: npt.NDArray[np.float64], about: str = "anomaly map"
) -> None:
    """Writes maps as a float32 volume of the scan's geometry, whole or not at all; the same maps give the same bytes.

    Both forms of the header say the same, with code 1 (scanner); a matrix with shear stands in the sform alone, since a
    qform cannot hold it. Viewers are told to show 0 to 1.

    Args:
        path: Ends in `.nii.gz`.
        maps: [I, J, K] in 0..1.
        affine: [4, 4], from indices to millimetres to the right, to the front and to the head.
        about: What the header calls it, in at most 40 letters.

    Raises:
        MissingExtraError: nibabel is not installed.
        OSError: The file cannot be written.
    """
    write_volume(path, np.asarray(maps, np.float32), affine, (0, 1), f"madclip {about}; research use only")


def write_volume(
    path: Path,
    values: npt.NDArray[Any],
    affine: npt.NDArray[np.float64],
    shown: tuple[float, float] = (0, 0),
    about: str = "",
) -> None:
    """Writes a volume of any values as `write_heatmap` does, with the same errors.

    Args:
        path: Ends in `.nii.gz`.
        values: [I, J, K].
        affine: As for `write_heatmap`.
        shown: The values that viewers are told to show as black and white; (0, 0) leaves it to them.
        about: What the header says of it, ASCII.
    """
    try:
        import nibabel
    except ImportError:
        raise MissingExtraError.of("NIfTI volumes", "dicom") from None
    volume: Any = nibabel.Nifti1Image
    image = volume(values, affine)
    image.set_sform(affine, 1)
    image.set_qform(None if has_shear(affine) else affine, 0 if has_shear(affine) else 1)
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = shown
    image.header["descrip"] = about.encode()
    with (
        new_file(path) as partial,
        partial.open("wb") as file,
        gzip.GzipFile("", "wb", 6, file, mtime=0) as packed,
    ):
        image.to_stream(packed)


def has_shear(affine: npt.NDArray[np.float64]) -> bool:
    """Whether the axes of a matrix do not stand upright on one another."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > _SHEAR)
