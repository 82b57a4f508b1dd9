"""ADNI: the archive's list of images (CSV) and NIfTI files whose names end in the image's number, `_I12345.nii`."""

from __future__ import annotations

import re
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.benchmark.prepare.layout import VOLUME_RULE, Original, split_volumes
from madclip.benchmark.prepare.tables import read_rows
from madclip.benchmark.prepare.volumes import open_volume, to_grey
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

SHARES = (0.40, 0.45, 0.50, 0.55, 0.60)
RULE = (
    "CN is normal, AD abnormal, everyone else is left out. Of each volume five axial slices (the axis nearest to "
    "foot-to-head by its affine), at 40 to 60 % of it from below, each between its 0.5th and 99.5th percentile, "
    f"anterior on top. {VOLUME_RULE}"
)
LABELS = {"CN": 0, "AD": 1}
_NUMBER = re.compile(r"_(?P<number>I\d+)\.nii(?:\.gz)?$")


def read_originals(source: Path, seed: int) -> list[Original]:
    """Slices of every listed CN and AD volume; only headers are read here.

    Raises:
        DataError: There is no list, or more than one, or a volume is missing, damaged or listed twice.
    """
    tables = sorted(source.rglob("*.csv"))
    if len(tables) != 1:
        raise DataError(f"{source}: {len(tables)} CSV files; keep the archive's list of images, and no other, there")
    volumes = {m["number"]: path for path in sorted(source.rglob("*.nii*")) if (m := _NUMBER.search(path.name))}
    found: dict[str, list[Original]] = {}
    for where, row in read_rows(tables[0], ("Image Data ID", "Subject", "Group")):
        if row["Group"] not in LABELS:
            continue
        number, subject, label = row["Image Data ID"], row["Subject"], LABELS[row["Group"]]
        if not subject:
            raise DataError(f"{where}: no subject")
        if number not in volumes:
            raise DataError(f"{where}: no volume whose name ends in _{number}.nii; is the download complete?")
        if number in found:
            raise DataError(f"{where}: {number} is there a second time")
        path = volumes[number]
        found[number] = [
            Original(path, label, subject, "", f"{number}_{index}.png", partial(_picture, path, index))
            for index in sorted({int(share * _height(path)) for share in SHARES})
        ]
    if not found:
        raise DataError(f"{tables[0]}: no row of group CN or AD")
    return split_volumes((one for slices in found.values() for one in slices), seed)


def _orientation(volume: Any) -> npt.NDArray[np.float64]:
    """For each stored axis the one of right, front and up that it is nearest to, and its sign: [3, 2]."""
    from nibabel import orientations

    found: npt.NDArray[np.float64] = orientations.io_orientation(volume.affine)  # type: ignore[no-untyped-call]
    return found


@lru_cache(maxsize=1)
def _height(path: Path) -> int:
    """Axial slices of a volume, from its header.

    Raises:
        DataError: The file cannot be read, or does not say how it lies.
    """
    volume = open_volume(path)
    try:
        return int(volume.shape[_orientation(volume)[:, 0].tolist().index(2)])
    except (ValueError, np.linalg.LinAlgError) as error:
        raise DataError(f"{path}: its affine does not say which way is up") from error


@lru_cache(maxsize=1)
def _values(path: Path) -> npt.NDArray[np.float32]:
    """A whole volume, its axes to the right, to the front and up."""
    volume = open_volume(path)
    try:
        values = np.asarray(volume.as_reoriented(_orientation(volume)).dataobj, dtype=np.float32)
    except Exception as error:  # cut off or damaged
        raise DataError(f"{path}: cannot be read to its end ({' '.join(str(error).split())[:120]})") from error
    if not np.isfinite(values).all():
        raise DataError(f"{path}: has NaN or infinite values; replace them")
    return values


def _picture(path: Path, index: int) -> npt.NDArray[np.uint8]:
    values = _values(path)[:, :, index]
    low, high = np.percentile(values, [0.5, 99.5])
    return to_grey(np.rot90(np.clip(values, low, high)))
