"""CheXpert: `train.csv`, `valid.csv`, and `train|valid/patientN/studyN/viewN_frontal.jpg`."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from madclip.benchmark.prepare.layout import SPLIT_RULE, Original, split_patients
from madclip.benchmark.prepare.tables import read_rows
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

FINDINGS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
)
RULE = (
    "All frontal views of train.csv and valid.csv. No Finding against any finding that is certain (support devices are "
    f"none); images with an uncertain finding, or with nothing said, are left out. {SPLIT_RULE}"
)
VALUES = {"": 0, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": -1, "-1.0": -1}
VIEWS = ("Frontal", "Lateral")


def read_originals(source: Path, seed: int) -> list[Original]:
    """Every frontal view of both tables whose label is certain; none is opened here.

    Raises:
        DataError: There is no table, an image is missing or named twice, or a value is not one of the table's.
    """
    tables = sorted(path for path in source.rglob("*.csv") if path.name in ("train.csv", "valid.csv"))
    if not tables:
        raise DataError(f"{source}: no train.csv or valid.csv; is the download complete?")
    images = {path.parts[-4:]: path for path in source.rglob("*.jpg")}
    found: dict[Path, Original] = {}
    for table in tables:
        for where, row in read_rows(table, ("Path", "Frontal/Lateral", "No Finding", *FINDINGS)):
            label = _label(where, row)
            if row["Frontal/Lateral"] not in VIEWS:
                raise DataError(f"{where}: the view is one of {', '.join(VIEWS)}, not {row['Frontal/Lateral']!r}")
            if label is None or row["Frontal/Lateral"] != "Frontal":
                continue
            parts = PurePosixPath(row["Path"]).parts[-4:]
            image = images.get(parts)
            if not image or len(parts) < 4:
                raise DataError(f"{where}: no image {row['Path']!r} in the folders; is the download complete?")
            if image in found:
                raise DataError(f"{where}: {row['Path']!r} is there a second time")
            found[image] = Original(image, label, image.parts[-3], "", "_".join(image.parts[-4:]))
    return split_patients(found.values(), seed)


def _label(where: str, row: dict[str, str]) -> int | None:
    """1 with a finding, 0 without, None where it is uncertain or not said."""
    for name in ("No Finding", *FINDINGS):
        if row[name] not in VALUES:
            raise DataError(f"{where}: {name} is 1, 0, -1 or empty, not {row[name]!r}")
    values = [VALUES[row[name]] for name in FINDINGS]
    normal = VALUES[row["No Finding"]]
    if -1 in (normal, *values):
        return None
    if 1 in values:
        return 1
    return 0 if normal == 1 else None
