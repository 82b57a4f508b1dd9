"""ADNI: the archive's list of images (CSV) and NIfTI files whose names end in the image's number, `_I12345.nii`."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from madclip.benchmark.prepare.layout import VOLUME_RULE, Original, split_volumes
from madclip.benchmark.prepare.tables import read_rows
from madclip.benchmark.prepare.volumes import open_volume, read_slice, to_grey
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

SHARES = (0.40, 0.45, 0.50, 0.55, 0.60)
RULE = (
    "CN is normal, AD abnormal, everyone else is left out. Of each volume five slices across its third axis, at 40 to "
    f"60 % of it, each between its 0.5th and 99.5th percentile. {VOLUME_RULE}"
)
LABELS = {"CN": 0, "AD": 1}
_NUMBER = re.compile(r"_(?P<number>I\d+)\.nii(?:\.gz)?$")


def read_originals(source: Path, seed: int) -> list[Original]:
    """Slices of every listed volume that is there; only headers are read here.

    Raises:
        DataError: There is no list, or none of its images is there.
    """
    tables = sorted(source.rglob("*.csv"))
    if len(tables) != 1:
        raise DataError(f"{source}: {len(tables)} CSV files; keep the archive's list of images, and no other, there")
    volumes = {m["number"]: path for path in sorted(source.rglob("*.nii*")) if (m := _NUMBER.search(path.name))}
    found = []
    for where, row in read_rows(tables[0], ("Image Data ID", "Subject", "Group")):
        if row["Group"] not in LABELS or row["Image Data ID"] not in volumes:
            continue
        if not row["Subject"]:
            raise DataError(f"{where}: no subject")
        number, path = row["Image Data ID"], volumes[row["Image Data ID"]]
        for share in SHARES:
            index = int(share * open_volume(path).shape[2])
            name = f"{number}_{index}.png"
            found.append(Original(path, LABELS[row["Group"]], row["Subject"], "", name, partial(_picture, path, index)))
    if not found:
        raise DataError(f"{tables[0]}: none of its CN and AD images is there (files *_I12345.nii)")
    return split_volumes(found, seed)


def _picture(path: Path, index: int) -> npt.NDArray[np.uint8]:
    values = read_slice(path, index)
    low, high = np.percentile(values, [0.5, 99.5])
    return to_grey(np.rot90(np.clip(values, low, high)))
