"""CheXpert: `train.csv`, `valid.csv`, and `train|valid/patientN/studyN/viewN_frontal.jpg`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from madclip.benchmark.prepare.layout import SPLIT_RULE, Original, split_patients
from madclip.benchmark.prepare.tables import read_rows
from madclip.errors import DataError

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
    "Frontal views. No Finding against any finding that is certain (support devices are none); images with an "
    f"uncertain finding, or with nothing said, are left out. {SPLIT_RULE}"
)


def read_originals(source: Path, seed: int) -> list[Original]:
    """Every frontal view of both tables whose label is certain.

    Raises:
        DataError: There is no table, an image is missing, or a value is not one of the table's.
    """
    tables = sorted(path for path in source.rglob("*.csv") if path.name in ("train.csv", "valid.csv"))
    if not tables:
        raise DataError(f"{source}: no train.csv or valid.csv; is the download complete?")
    images = {path.parts[-4:]: path for path in source.rglob("*.jpg")}
    found = []
    for table in tables:
        for where, row in read_rows(table, ("Path", "Frontal/Lateral", "No Finding", *FINDINGS)):
            label = _label(where, row)
            if label is None or row["Frontal/Lateral"] != "Frontal":
                continue
            parts = PurePosixPath(row["Path"]).parts[-4:]
            image = images.get(parts)
            if not image or len(parts) < 4:
                raise DataError(f"{where}: no image {row['Path']!r} in the folders; is the download complete?")
            patient = image.parts[-3]
            found.append(Original(image, label, patient, "", "_".join(image.parts[-4:])))
    return split_patients(found, seed)


def _label(where: str, row: dict[str, str]) -> int | None:
    """1 with a finding, 0 without, None where it is uncertain or not said."""
    try:
        values = {name: float(row[name] or 0) for name in ("No Finding", *FINDINGS)}
    except ValueError as error:
        raise DataError(f"{where}: a finding is 1, 0, -1 or empty ({error})") from error
    if any(value < 0 for value in values.values()):
        return None
    if any(values[name] == 1 for name in FINDINGS):
        return 1
    return 0 if values["No Finding"] == 1 else None
