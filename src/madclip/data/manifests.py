"""Data sets as tables: CSV as Excel and pandas write it, and JSON Lines."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madclip.data.classes import SPLITS, label_of, missing_name, unclear_names
from madclip.data.patients import find_patients
from madclip.data.ref import ImageRef
from madclip.data.samples import Dataset, Reading, Sample, in_order
from madclip.data.walk import bare, folded
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFESTS = ("manifest.csv", "manifest.jsonl")
IMAGE_COLUMNS = ("image", "image_path", "path", "file_path", "filepath", "filename", "file_name", "file")
"""Names of the column that names the image; the first of them that a manifest has counts."""
COLUMNS = ("image", "frame", "axis", "label", "mask", "mask_frame", "patient", "split")
"""What `write_manifest` writes, where it has it."""
_UNKNOWN = frozenset({"", "nan", "null", "none", "n/a", "<na>", "nat"})
_WORKBOOKS = frozenset({".xlsx", ".xlsm", ".xls", ".ods", ".numbers"})
_SHOWN = 5

Row = dict[str, str]


def read_manifest(path: Path, reading: Reading) -> Dataset:
    """Reads a manifest; see `madclip.data.load.load_dataset`.

    Raises:
        DataError: It is no table, a row cannot be used (the row is named), files are missing (all are counted), or a
            label that was named is not there, or one may be normal or abnormal.
    """
    samples: dict[ImageRef, Sample] = {}
    files = _Files(path.parent)
    rows = list(_rows(path))
    _check_labels(path, {row.get("label", "") for _, row in rows}, reading)
    for where, row in rows:
        sample = _sample_of(where, row, reading, files)
        if sample.image in samples:
            raise DataError(f"{where}: {sample.image} has an earlier row")
        samples[sample.image] = sample
    if files.missing:
        raise DataError(_said_of_missing(path, files.missing))
    if not samples:
        raise DataError(f"{path}: the manifest has no rows")
    known = any(sample.patient is not None for sample in samples.values())
    named = Dataset(
        root=path.parent,
        layout="manifest",
        samples=in_order(samples.values()),
        patients_from="manifest" if known else "none",
        patients_note="" if known else "the manifest names none",
    )
    return named if reading.patients == "auto" else _with_patients(named, reading.patients)


def _check_labels(path: Path, labels: set[str], reading: Reading) -> None:
    there = ", ".join(sorted(labels - {""}))
    if labels and (missing := missing_name({folded(label) for label in labels}, reading)):
        raise DataError(f"{path}: no label {missing!r} that was named as a class; there are: {there}")
    for label in sorted(unclear_names(labels, reading)):
        raise DataError(
            f"{path}: among the labels {there}, {label!r} may be normal or abnormal; say --normal {label} or "
            f"--abnormal {label}"
        )


def _with_patients(data: Dataset, rule: str) -> Dataset:
    """A manifest's data set whose patients are found by a rule that was asked for, whatever its column says."""
    keys = [data.name(bare(sample.image.path)) for sample in data.samples]
    found = find_patients(keys, [sample.label for sample in data.samples], rule)
    samples = (replace(sample, patient=patient) for sample, patient in zip(data.samples, found.of, strict=True))
    return replace(data, samples=tuple(samples), patients_from=found.source, patients_note=found.note)


def manifest_text(rows: list[Row]) -> str:
    """A manifest as CSV: the columns of `COLUMNS` that some row fills, image, label, mask, patient and split always."""
    optional = {"frame", "axis", "mask_frame"}
    names = [name for name in COLUMNS if name not in optional or any(row.get(name) for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def row_of(sample: Sample, folder: Path, label: str) -> Row:
    """The row of a sample in a manifest that lies in `folder`."""
    frames = {
        "frame": sample.image.frame,
        "axis": sample.image.axis or None,
        "mask_frame": sample.mask.frame if sample.mask else None,
    }
    return {
        "image": _relative(sample.image.path, folder),
        "label": label,
        "mask": _relative(sample.mask.path, folder) if sample.mask else "",
        "patient": sample.patient or "",
        "split": sample.split or "",
        **{name: str(frame) for name, frame in frames.items() if frame is not None},
    }


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


# Rows


def _sample_of(where: str, row: Row, reading: Reading, files: _Files) -> Sample:
    name = next((row[column] for column in IMAGE_COLUMNS if row.get(column)), "")
    if not name:
        raise DataError(f"{where}: no image; the column is called image (or {', '.join(IMAGE_COLUMNS[1:])})")
    text = row.get("label", "")
    # A label map says by itself which slices of a whole volume are abnormal.
    label = 1 if not text and row.get("mask") and not row.get("frame") else label_of(text, reading)
    if label is None:
        raise DataError(
            f"{where}: label {text!r} is unknown; use 0 or normal, 1 or abnormal, "
            "or say what it is with --normal NAME or --abnormal NAME"
        )
    split = row.get("split", "").lower()
    if split and split not in SPLITS:
        raise DataError(f"{where}: split {row['split']!r} is unknown; use train, valid, test or nothing")
    axis = _axis(where, row)
    image = ImageRef(files.find(where, "image", name), _frame(where, "frame", row), axis)
    mask = None
    if row.get("mask"):
        mask_frame = _frame(where, "mask_frame", row)
        mask = ImageRef(files.find(where, "mask", row["mask"]), mask_frame, axis if mask_frame is not None else "")
    return Sample(image, label, mask, _patient(row.get("patient", "")), SPLITS[split] if split else None)


def _patient(text: str) -> str | None:
    """A patient's name; numbers that pandas turned into floats are the numbers they were."""
    return re.sub(r"^(\d+)\.0+$", r"\1", text) or None


def _frame(where: str, column: str, row: Row) -> int | None:
    text = row.get(column, "")
    if not text:
        return None
    if not re.fullmatch(r"\d+(\.0+)?", text):
        raise DataError(f"{where}: {column} {text!r} is not a whole number from 0")
    return int(text.partition(".")[0])


def _axis(where: str, row: Row) -> str:
    axis = row.get("axis", "").lower()
    if axis not in ("", "axial", "coronal", "sagittal"):
        raise DataError(f"{where}: axis {axis!r} is unknown; use axial, coronal, sagittal or nothing")
    return "" if axis == "axial" or not row.get("frame") else axis


class _Files:
    """Finds the files that a manifest names, and keeps those that are missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: list[str] = []
        self._listed: dict[Path, dict[str, list[Path]]] = {}

    def find(self, where: str, kind: str, name: str) -> Path:
        """The file of this name: as it stands, with slashes for backslashes, or of the same name once folded.

        An image may be a folder, which then holds one DICOM series.
        """
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
            path = self.folder / spelling
            if path.is_file() or (kind == "image" and path.is_dir()):
                return path
            alike = self._list(path.parent).get(folded(path.name), [])
            if len(alike) == 1:
                return alike[0]
        self.missing.append(f"{where}: {kind} {path} does not exist")
        return path

    def _list(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._listed:
            names: dict[str, list[Path]] = {}
            with contextlib.suppress(OSError, ValueError):
                for path in folder.iterdir():
                    if path.is_file():
                        names.setdefault(folded(path.name), []).append(path)
            self._listed[folder] = names
        return self._listed[folder]


def _said_of_missing(path: Path, missing: list[str]) -> str:
    if len(missing) == 1:
        return missing[0]
    shown = [line.removeprefix(f"{path}, ").removesuffix(" does not exist") for line in missing[:_SHOWN]]
    rest = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
    return f"{path}: {len(missing):,} files do not exist: {', '.join(shown)}{rest}"


# Tables


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    suffix = path.suffix.lower()
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".txt": _csv_rows, ".jsonl": _jsonl_rows}
    try:
        content = path.read_bytes() if suffix in {*readers, *_WORKBOOKS} else b""
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if suffix in _WORKBOOKS or content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{path}: a workbook; save the sheet as CSV (in Excel: Save As, CSV UTF-8) and give that file")
    if suffix not in readers:
        raise DataError(f"{path}: not a data set; give a folder, or a manifest named .csv or .jsonl")
    for where, row in readers[suffix](path, _text(path, content)):
        values = {name: value.strip() for name, value in row.items()}
        values = {name: "" if value.lower() in _UNKNOWN or value == "NA" else value for name, value in values.items()}
        if any(values.values()):
            yield where, values


def _text(path: Path, content: bytes) -> str:
    """Text in UTF-8, in UTF-16 (as Excel's `Unicode text`), or in cp1252 (as Excel's plain CSV)."""
    encodings = ["utf-8-sig", "cp1252"]
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encodings = ["utf-16"]
    elif b"\0" in content[:2]:
        encodings = ["utf-16-be" if content[0] == 0 else "utf-16-le"]
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise DataError(f"{path}: cannot be read as text; save it as CSV UTF-8")


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    lines = io.StringIO(text, newline="")
    skipped = 0
    if text[:4].lower() == "sep=":
        lines.readline()
        skipped = 1
    start = lines.tell()
    header = lines.readline().rstrip("\r\n")
    lines.seek(start)
    rows = csv.reader(lines, delimiter=max(",;\t", key=header.count), strict=True)
    try:
        names = [re.sub(r"[ \-]+", "_", name.strip().lower()) for name in next(rows, [])]
        if not set(IMAGE_COLUMNS) & set(names) or "label" not in names:
            raise DataError(f"{path}: the first row must name the columns image (or path) and label, found {header!r}")
        double = next((name for name in names if name and names.count(name) > 1), None)
        if double:
            raise DataError(f"{path}: two columns are called {double}; rename one")
        for row in rows:
            where = f"{path}, row {rows.line_num + skipped}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) < len(names) or any(cell.strip() for cell in row[len(names) :]):
                raise DataError(f"{where}: not as many fields as the header names")
            yield where, dict(zip(names, row, strict=False))
    except csv.Error as error:
        raise DataError(f"{path}, row {rows.line_num + skipped}: not valid CSV ({error})") from error


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, row {number}"
        try:
            row: Any = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with image and label")
        yield where, {str(name).lower(): _plain(value) for name, value in row.items()}


def _plain(value: Any) -> str:
    """A JSON value as a CSV would hold it; null and NaN are nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
