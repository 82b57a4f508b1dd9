"""BrainMRI from BraTS 2021: a folder per patient with `_flair.nii.gz` and `_seg.nii.gz`; BMAD's patients."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from madclip.benchmark.prepare.layout import Original, published_splits
from madclip.benchmark.prepare.volumes import read_slice, slices_with, to_grey
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

RULE = (
    "BMAD's patients. Axial FLAIR slices 60 to 99, each scaled to its own range and saved through matplotlib's colour "
    "map bone. Normal: slices without a label of patients named for train, valid (one of each, drawn by the seed) and "
    "test (640 drawn by the seed). Abnormal: slices with any label, every 10th of the patients named for valid, every "
    "8th of those not named at all."
)
FIRST, LAST = 60, 99
TRAIN, TEST = 7500, 640
"""Normal images that BMAD keeps of each."""
_PATIENT = re.compile(r"^BraTS(?:2021|20)?_(?P<patient>\d+)$")


def read_originals(source: Path, seed: int) -> list[Original]:
    """Slices of every patient; segmentations are read here, FLAIR volumes when their slices are written.

    Raises:
        DataError: There are no patients, or a volume is missing or has another shape.
    """
    known = published_splits()["brain"]
    random = np.random.default_rng(seed)
    found: dict[str, list[Original]] = {"train": [], "valid": [], "test": []}
    abnormal: list[Original] = []
    folders = sorted(path for path in source.rglob("BraTS*") if path.is_dir() and _PATIENT.match(path.name))
    if not folders:
        raise DataError(f"{source}: no folders BraTS2021_NUMBER; unpack the training data of BraTS 2021 there")
    for folder in folders:
        patient = folder.name.rpartition("_")[2]
        flair, labels = (_volume(folder, kind) for kind in ("flair", "seg"))
        ill = slices_with(labels, lambda values: values > 0)
        last = min(LAST, len(ill) - 1)
        normal = [index for index in range(FIRST, last + 1) if not ill[index]]
        for split in ("train", "valid", "test"):
            if patient in known[split if split == "train" else f"{split}_normal"] and normal:
                chosen = [int(random.choice(normal))] if split == "valid" else normal
                found[split] += [_original(flair, None, patient, index, 0, split) for index in chosen]
        if not any(patient in patients for name, patients in known.items() if name != "valid_abnormal"):
            split, step = ("valid", 10) if patient in known["valid_abnormal"] else ("test", 8)
            indices = (index for index in range(FIRST, last + 1, step) if ill[index])
            abnormal += [_original(flair, labels, patient, index, 1, split) for index in indices]
    return [
        *_draw(found["train"], TRAIN, random),
        *found["valid"],
        *_draw(found["test"], TEST, random),
        *abnormal,
    ]


def _draw(originals: list[Original], most: int, random: np.random.Generator) -> list[Original]:
    if len(originals) <= most:
        return originals
    return [originals[index] for index in sorted(random.choice(len(originals), most, replace=False))]


def _volume(folder: Path, kind: str) -> Path:
    for suffix in (".nii.gz", ".nii"):
        path = folder / f"{folder.name}_{kind}{suffix}"
        if path.is_file():
            return path
    raise DataError(f"{folder}: no {folder.name}_{kind}.nii.gz; is the download complete?")


def _original(flair: Path, labels: Path | None, patient: str, index: int, label: int, split: str) -> Original:
    mask: Callable[[], npt.NDArray[np.bool_]] | None = None
    if labels is not None:
        mask = partial(_mask, labels, index)
    return Original(flair, label, patient, split, f"{patient}_{index}.png", partial(_picture, flair, index), mask)


def _picture(flair: Path, index: int) -> npt.NDArray[np.uint8]:
    from matplotlib import colormaps

    bone: npt.NDArray[np.uint8] = colormaps["bone"](to_grey(read_slice(flair, index)), bytes=True)[..., :3]
    return bone


def _mask(labels: Path, index: int) -> npt.NDArray[np.bool_]:
    return read_slice(labels, index) > 0
