"""LiverCT: LiTS (`volume-N.nii`, `segmentation-N.nii`) for valid and test, BTCV (`img`, `label`) for train."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from madclip.benchmark.prepare.layout import Original, split_volumes
from madclip.benchmark.prepare.volumes import read_slice, same_shape, slices_with, to_grey
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

RULE = (
    "LiTS: every 10th slice with liver; abnormal with any lesion voxel. Whole patients in an order drawn from the seed "
    "go to valid until it has 16 images of each class, all others to test. BTCV: every slice with liver goes to train. "
    "LiTS is clipped to -200..250 HU, BTCV is not; a slice is scaled to its own range, multiplied by the liver, "
    "flipped vertically, and equalised over values that are not 0, those below 150 compressed to 30..150."
)
STEP = 10
LIVER_BTCV = 6
LESION = 2
_LITS = re.compile(r"^volume-(?P<number>\d+)\.nii(?:\.gz)?$")
_BTCV = re.compile(r"^img(?P<number>\d+)\.nii(?:\.gz)?$")


def read_originals(source: Path, seed: int) -> list[Original]:
    """Slices of every patient; segmentations are read here, volumes when their slices are written.

    Raises:
        DataError: There are no volumes, or a segmentation is missing or has another shape.
    """
    lits: list[Original] = []
    for volume, number in _found(source, _LITS):
        labels = _beside(volume, volume.name.replace("volume", "segmentation"))
        same_shape(volume, labels)
        ill = slices_with(labels, lambda values: values == LESION)
        there = np.flatnonzero(slices_with(labels, lambda values: values > 0))
        for index in there[::STEP].tolist():
            label = int(ill[index])
            mask = partial(_lesion, labels, index) if label else None
            picture = partial(_picture, volume, labels, index, 0, clip=True)
            lits.append(Original(volume, label, f"lits{number}", "", f"lits{number}_{index}.png", picture, mask))
    if not lits:
        raise DataError(f"{source}: no volume-N.nii with liver; put LiTS there, its batches in any folders")
    train = []
    for volume, number in _found(source, _BTCV):
        labels = _beside(volume, volume.name.replace("img", "label"), volume.parent.parent / "label")
        same_shape(volume, labels)
        for index in np.flatnonzero(slices_with(labels, lambda values: values == LIVER_BTCV)).tolist():
            picture = partial(_picture, volume, labels, index, LIVER_BTCV, clip=False)
            train.append(Original(volume, 0, f"btcv{number}", "train", f"btcv{number}_{index}.png", picture))
    return [*split_volumes(lits, seed), *train]


def _found(source: Path, pattern: re.Pattern[str]) -> list[tuple[Path, str]]:
    matched = ((path, pattern.match(path.name)) for path in sorted(source.rglob("*.nii*")))
    return [(path, match["number"]) for path, match in matched if match]


def _beside(volume: Path, name: str, *elsewhere: Path) -> Path:
    for folder in (volume.parent, *elsewhere):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{volume}: no {name} for it; is the download complete?")


def _picture(volume: Path, labels: Path, index: int, organ: int, *, clip: bool) -> npt.NDArray[np.uint8]:
    values, segmented = read_slice(volume, index), read_slice(labels, index)
    liver = segmented == organ if organ else segmented > 0
    return render(np.clip(values, -200, 250) if clip else values, liver)


def _lesion(labels: Path, index: int) -> npt.NDArray[np.bool_]:
    return np.flipud(read_slice(labels, index) == LESION)


def render(values: npt.NDArray[np.float32], liver: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """A slice as BMAD shows it: see `RULE`."""
    grey = np.flipud(to_grey(values) * liver)
    inside = grey > 0
    if not inside.any():
        return grey
    share = np.cumsum(np.bincount(grey[inside], minlength=256)) / inside.sum()
    equal = 255 * share[grey]
    equal = np.where(equal < 150, 30 + equal * (120 / 150), equal)
    return np.where(inside, equal.round(), 0).astype(np.uint8)
