"""OCTDL (Kulyabin et al., Scientific Data 2024): `OCTDL_labels.csv`, a folder per disease beside it or in `OCTDL/`."""

from __future__ import annotations

from pathlib import Path

from madclip.benchmark.prepare.layout import SPLIT_RULE, Original, split_patients
from madclip.benchmark.prepare.tables import read_rows
from madclip.errors import DataError

RULE = SPLIT_RULE
NORMAL = "NO"
DISEASES = (NORMAL, "AMD", "DME", "ERM", "RAO", "RVO", "VID")
LABELS = "OCTDL_labels.csv"
_COLUMNS = ("file_name", "disease", "patient_id")
_SUFFIXES = (".jpg", ".jpeg", ".png")


def read_originals(source: Path, seed: int) -> list[Original]:
    """NO (normal) against every disease, split by the table's patients.

    Raises:
        DataError: The table is missing or lacks a column, a row has no image or no known disease, or is there twice.
    """
    table = next((path for path in (source / LABELS, source / "OCTDL" / LABELS) if path.is_file()), None)
    if not table:
        raise DataError(f"{source}: no {LABELS}; put it beside the folders of the diseases")
    images = _images(source)
    found: dict[Path, Original] = {}
    for where, row in read_rows(table, _COLUMNS):
        name, disease, patient = (row[column] for column in _COLUMNS)
        if disease not in DISEASES or not patient:
            raise DataError(f"{where}: no patient, or a disease other than {', '.join(DISEASES)}")
        # The table's names carry no suffix; only names that were found in the folders are used.
        image = images.get((disease, name)) or images.get((disease, Path(name).stem))
        if not image:
            raise DataError(f"{where}: no image {name!r} in the folder {disease}; is the download complete?")
        if image in found:
            raise DataError(f"{where}: {name!r} is there a second time")
        found[image] = Original(image, int(disease != NORMAL), patient)
    return split_patients(found.values(), seed)


def _images(source: Path) -> dict[tuple[str, str], Path]:
    """Images by disease and name without suffix."""
    return {
        (disease, path.stem): path
        for disease in DISEASES
        for folder in (source / disease, source / "OCTDL" / disease)
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in _SUFFIXES and path.is_file()
    }
