"""OCT2017 (Kermany et al., Cell 2018): `train/`, `test/` and, in some copies, `val/`, each with a folder per class."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from madclip.benchmark.prepare.layout import SPLIT_RULE, Original, split_patients
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

RULE = f"{SPLIT_RULE} Normal images of train/ go to train, save those of patients in valid or test."
CLASSES = ("NORMAL", "CNV", "DME", "DRUSEN")
_NAME = re.compile(rf"^(?:{'|'.join(CLASSES)})-(?P<patient>\d+)-\d+$")


def read_originals(source: Path, seed: int) -> list[Original]:
    """Normal against CNV, DME and DRUSEN; `test/` and `val/` are split anew by patient, `train/` gives normal images.

    Raises:
        DataError: A folder is missing or empty, or a name is not `CLASS-PATIENT-NUMBER.jpeg`.
    """
    held_out = [one for name in CLASSES for one in _images(source / "test" / name)]
    if (source / "val").is_dir():
        held_out += [one for name in CLASSES for one in _images(source / "val" / name)]
    split = split_patients(held_out, seed)
    elsewhere = {one.patient for one in split}
    train = [one for one in _images(source / "train" / "NORMAL") if one.patient not in elsewhere]
    return [*split, *(Original(one.image, 0, one.patient, "train") for one in train)]


def _images(folder: Path) -> list[Original]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; the download of OCT2017 has train/ and test/ with one per class")
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        name = _NAME.match(path.stem)
        if not name or path.suffix.lower() not in (".jpeg", ".jpg") or not path.is_file():
            raise DataError(f"{path}: not an image of OCT2017 (CLASS-PATIENT-NUMBER.jpeg); remove it")
        found.append(Original(path, int(folder.name != "NORMAL"), name["patient"]))
    if not found:
        raise DataError(f"{folder}: no images; is the download complete?")
    return found
