"""Chest from RSNA's pneumonia challenge: `stage_2_detailed_class_info.csv`, `stage_2_train_images/ID.dcm`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from madclip.benchmark.prepare.layout import VALID_PER_CLASS, Original
from madclip.benchmark.prepare.tables import find_table, read_rows
from madclip.benchmark.registry import registered
from madclip.data.readers.formats import read_stored
from madclip.data.readers.images import to_pixels
from madclip.data.ref import ImageRef
from madclip.errors import DataError
from madclip.grey_range import parse_grey_range

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt

RULE = (
    "Normal against lung opacity and any other finding. In an order drawn from the seed, normal images go to train and "
    "images of both classes in proportion to valid, as large a share of the download as BMAD's numbers are of the "
    f"whole one, with at least {VALID_PER_CLASS} images of each class in valid; all others go to test. The challenge "
    "gives every image a patient of its own, so images of one person cannot be kept together."
)
TABLE = "stage_2_detailed_class_info.csv"
CLASSES = {"Normal": 0, "Lung Opacity": 1, "No Lung Opacity / Not Normal": 1}


def read_originals(source: Path, seed: int) -> list[Original]:
    """Every image of the table; none is opened here.

    Raises:
        DataError: The table or an image is missing, a row names no known class, or there are too few images.
    """
    images = {path.stem: path for path in source.rglob("*.dcm")}
    found: dict[str, Original] = {}
    for where, row in read_rows(find_table(source, TABLE), ("patientId", "class")):
        patient, kind = row["patientId"], row["class"]
        if kind not in CLASSES:
            raise DataError(f"{where}: the class is one of {', '.join(CLASSES)}, not {kind!r}")
        image = images.get(patient)
        if not image:
            raise DataError(f"{where}: no image {patient}.dcm; is the download complete?")
        label = CLASSES[kind]
        # The table has one row for each box, so the same image may come again.
        if patient in found and found[patient].label != label:
            raise DataError(f"{where}: {patient} has another class further up")
        found[patient] = Original(image, label, patient, "", f"{image.stem}.png", partial(read_dicom, image))
    return split_images(found.values(), seed)


def split_images(originals: Iterable[Original], seed: int) -> list[Original]:
    """Give every image `train`, `valid` or `test` by `RULE`; the order of the images does not matter.

    Raises:
        DataError: Too few images of a class are left for valid and test.
    """
    published = {split: counts["total"] for split, counts in registered("Chest").counts.items()}
    images = sorted(originals, key=lambda one: one.patient)
    order = np.random.default_rng(seed).permutation(len(images))
    sides = [[images[i] for i in order if images[i].label == label] for label in (0, 1)]
    train = min(len(sides[0]), round(published["train"] / sum(published.values()) * len(images)))
    found = [replace(one, split="train") for one in sides[0][:train]]
    sides[0] = sides[0][train:]
    share = published["valid"] / (published["valid"] + published["test"])
    for side, what in zip(sides, ("normal", "abnormal"), strict=True):
        valid = max(VALID_PER_CLASS, round(share * len(side)))
        if len(side) <= valid:
            raise DataError(
                f"too few {what} images to split them: {len(side)} are left, valid needs {valid} and test at least "
                "one; is the download complete?"
            )
        found += [replace(one, split="valid" if i < valid else "test") for i, one in enumerate(side)]
    return found


def read_dicom(path: Path) -> npt.NDArray[np.uint8]:
    """Grey values of a DICOM radiograph, 8 bits as stored or scaled to that, dark where air is: [H, W].

    Raises:
        DataError: Not a single grey image, too large, or damaged.
        MissingExtraError: pydicom is not installed.
    """
    stored = read_stored(ImageRef(path))
    if stored.values.ndim != 2:
        raise DataError(f"{path}: an image in colours is no radiograph")
    rule = "full" if stored.values.dtype == np.uint8 else "data"
    pixels = to_pixels(stored, parse_grey_range(rule), str(path))[0]
    return np.asarray((pixels * 255).round(), np.uint8)
