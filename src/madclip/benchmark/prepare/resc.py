"""RESC (AI Challenger 2018, retinal edema): `original_images/CASE.img/N.bmp`, `label_images/CASE_labelMark/N.bmp`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from madclip.benchmark.prepare.layout import Original, split_volumes
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

RULE = (
    "Abnormal with any labelled pixel. Whole cases of the published validation set in an order drawn from the seed go "
    "to valid until it has 16 images of each class, all others to test. Normal scans of the published training set go "
    "to train."
)
_SUFFIXES = (".bmp", ".png", ".jpg")


def read_originals(source: Path, seed: int) -> list[Original]:
    """Scans of every case; labels are read here.

    Raises:
        DataError: A folder is missing, or a scan has no label of its size.
    """
    parts = {}
    for name in ("training", "validation"):
        roots = [path for path in sorted(source.rglob("original_images")) if f"{name}set" in _above(path, source)]
        if not roots:
            raise DataError(f"{source}: no folder original_images below one called *{name}set; unpack RESC there")
        parts[name] = [one for root in roots for one in _scans(root)]
    split = split_volumes(parts["validation"], seed)
    elsewhere = {one.patient for one in split}
    train = [one for one in parts["training"] if not one.label and one.patient not in elsewhere]
    return [*split, *(replace(one, split="train") for one in train)]


def _above(path: Path, source: Path) -> str:
    return path.relative_to(source.parent).parent.as_posix().lower()


def _scans(root: Path) -> list[Original]:
    found = []
    for case in sorted(path for path in root.iterdir() if path.is_dir()):
        stem = case.name.removesuffix(".img")
        folder = root.parent / "label_images" / f"{stem}_labelMark"
        if not folder.is_dir():
            raise DataError(f"{case}: no {folder.name} in label_images; is the download complete?")
        labels = {path.stem: path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES}
        for scan in sorted(path for path in case.iterdir() if path.suffix.lower() in _SUFFIXES):
            if scan.stem not in labels:
                raise DataError(f"{scan}: no label in {folder.name}; is the download complete?")
            label = int(_marked(labels[scan.stem]).any())
            mask = partial(_marked, labels[scan.stem]) if label else None
            name = f"{stem}_{scan.stem}.png"
            found.append(Original(scan, label, stem.partition("_")[0], "", name, partial(_grey, scan), mask))
    return found


def _grey(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"))
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not an image ({error})") from error


def _marked(path: Path) -> npt.NDArray[np.bool_]:
    return _grey(path) > 0
