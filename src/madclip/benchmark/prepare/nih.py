"""NIHChest, ChestX-ray14: `Data_Entry_2017.csv`, PNG files in `images_001/images` and so on, `test_list.txt`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from madclip.benchmark.prepare.layout import VALID_PER_CLASS, Original, split_patients
from madclip.benchmark.prepare.tables import find_table, read_rows
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

RULE = (
    "No Finding against any finding. All images of the published test_list.txt are test. Of the other images, whole "
    f"patients in an order drawn from the seed go to valid until it has {VALID_PER_CLASS} normal and "
    f"{VALID_PER_CLASS} abnormal images; the rest is left out."
)
NORMAL = "No Finding"
FINDINGS = frozenset(
    {
        "Atelectasis",
        "Cardiomegaly",
        "Consolidation",
        "Edema",
        "Effusion",
        "Emphysema",
        "Fibrosis",
        "Hernia",
        "Infiltration",
        "Mass",
        "Nodule",
        "Pleural_Thickening",
        "Pneumonia",
        "Pneumothorax",
    }
)


def read_originals(source: Path, seed: int) -> list[Original]:
    """Every image of the published test list, and a few others for valid; none is opened here.

    Raises:
        DataError: The table, the list or an image is missing, or a row has no patient or findings that are not known.
    """
    tables = sorted(source.rglob("Data_Entry_2017*.csv"))
    if not tables:
        raise DataError(f"{source}: no Data_Entry_2017.csv; is the download complete?")
    published = _read_list(find_table(source, "test_list.txt"))
    images = {path.name: path for path in source.rglob("*.png")}
    found: dict[str, Original] = {}
    for where, row in read_rows(tables[0], ("Image Index", "Finding Labels", "Patient ID")):
        name, patient = row["Image Index"], row["Patient ID"]
        if name not in images:
            raise DataError(f"{where}: no image {name!r} in the folders; is the download complete?")
        if name in found:
            raise DataError(f"{where}: {name!r} is there a second time")
        findings = {part.strip() for part in row["Finding Labels"].split("|")}
        if not patient or (findings != {NORMAL} and not findings <= FINDINGS):
            raise DataError(f"{where}: no patient, or findings that are not known: {row['Finding Labels']!r}")
        found[name] = Original(images[name], int(findings != {NORMAL}), patient)
    for name, where in published.items():
        if name not in found:
            raise DataError(f"{where}: {name!r} is not in {tables[0].name}; is the download complete?")
    test = [replace(one, split="test") for name, one in found.items() if name in published]
    tested = {one.patient for one in test}
    others = split_patients((one for one in found.values() if one.patient not in tested), seed)
    return [*(one for one in others if one.split == "valid"), *test]


def _read_list(path: Path) -> dict[str, str]:
    """Names of images, and where each stands."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a list of images ({error})") from error
    return {line.strip(): f"{path}: line {number}" for number, line in enumerate(lines, start=1) if line.strip()}
