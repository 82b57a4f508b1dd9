"""Labelled images on disk: what a data set is, and the folder layouts and manifests it may come in."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from madclip.data.readers import IMAGE_SUFFIXES, Image, read_image, read_mask
from madclip.data.ref import ImageRef, as_ref
from madclip.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    import numpy.typing as npt

Split = Literal["train", "valid", "test"]
Layout = Literal["bmad", "folders", "anomalib", "manifest"]

SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
LABELS = {
    **dict.fromkeys(("0", "0.0", "normal", "good", "healthy", "negative"), 0),
    **dict.fromkeys(("1", "1.0", "abnormal", "anomalous", "anomaly", "ungood", "bad", "defect", "positive"), 1),
}
"""Labels of a manifest, in any case."""
NORMAL_FOLDERS = frozenset({"good", "normal"})
ABNORMAL_FOLDERS = frozenset({"ungood", "abnormal", "anomalous", "bad"})
MASK_FOLDERS = frozenset({"anomaly_mask", "anomaly_masks", "label", "labels", "mask", "masks", "ground_truth"})
MANIFESTS = ("manifest.csv", "manifest.jsonl")
_SLICE = re.compile(r"^(?P<patient>.*\d.*)_\d+$")


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        image: Its name; a path given to the constructor is taken as the whole file.
        label: 0 normal, 1 abnormal.
        mask: The name of its mask, where there is one.
        patient: Whose image it is, where that is known.
        split: `train`, `valid` or `test`, where the data set has splits.
    """

    image: ImageRef
    label: int
    mask: ImageRef | None = None
    patient: str | None = None
    split: str | None = None

    def __init__(
        self,
        image: ImageRef | Path | str,
        label: int,
        mask: ImageRef | Path | str | None = None,
        patient: str | None = None,
        split: str | None = None,
    ) -> None:
        values = (as_ref(image), label, None if mask is None else as_ref(mask), patient, split)
        for name, value in zip(("image", "label", "mask", "patient", "split"), values, strict=True):
            object.__setattr__(self, name, value)

    @property
    def group(self) -> str | None:
        """What the image shares with others that are not independent of it: its patient, or else its volume."""
        if self.patient is not None:
            return f"patient {self.patient}"
        return None if self.image.frame is None else f"volume {self.image.path}"


@dataclass(frozen=True)
class Dataset:
    """Labelled images in the order of their names.

    Attributes:
        root: The folder, or the manifest's folder.
        layout: How it was laid out: `bmad`, `folders`, `anomalib` or `manifest`.
        samples: All of them, sorted by path.
        patients_from: Where patients are known from: `manifest`, `names` (of the files), or `none`.
        unused: Files among the images that belong to nothing: masks without an image, unknown formats, unknown folders.
    """

    root: Path
    layout: str
    samples: tuple[Sample, ...]
    patients_from: str = "none"
    unused: tuple[Path, ...] = ()

    def split(self, name: str | None) -> tuple[Sample, ...]:
        """The samples of `train`, `valid` or `test`, or those of no split (None)."""
        return tuple(sample for sample in self.samples if sample.split == name)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have samples, in the order train, valid, test."""
        return tuple(name for name in ("train", "valid", "test") if self.split(name))

    @property
    def normal(self) -> tuple[Sample, ...]:
        """The normal samples."""
        return tuple(sample for sample in self.samples if sample.label == 0)

    @property
    def abnormal(self) -> tuple[Sample, ...]:
        """The anomalous samples."""
        return tuple(sample for sample in self.samples if sample.label == 1)

    @property
    def has_masks(self) -> bool:
        """Whether any anomalous image has a mask."""
        return any(sample.mask for sample in self.abnormal)

    @property
    def shot_pool(self) -> tuple[Sample, ...]:
        """Where shots come from: `valid`, else `train`, else the images of no split. Never from `test`."""
        return self.split("valid") or self.split("train") or self.split(None)

    @property
    def test_pool(self) -> tuple[Sample, ...]:
        """What is evaluated: `test`, else the images of no split."""
        return self.split("test") or self.split(None)

    def name(self, image: ImageRef | Path) -> str:
        """An image or a path as it is shown: relative to the root where it lies below it."""
        ref = as_ref(image)
        below = ref.path.relative_to(self.root) if ref.path.is_relative_to(self.root) else ref.path
        return below.as_posix() if ref.frame is None else f"{below.as_posix()}#{ref.frame}"


def load_dataset(root: Path | str, *, patient_from_name: str | None = "auto") -> Dataset:
    """Finds the labelled images of a folder or a manifest; reads no pixels.

    Layouts, told apart by their folders (names in any case, images at any depth below a class folder):

    - `bmad`: `valid/` and `test/` (and `train/`), in each `good/` and `Ungood/`, images in `img/` or directly, masks in
      `anomaly_mask/` or `label/` beside `img/` or beside the class folders.
    - `folders`: `normal/`, `abnormal/`, `masks/`, with or without split folders around them.
    - `anomalib`: `train/good`, `test/good`, `test/<defect>`, `ground_truth/<defect>`.
    - `manifest`: a `.csv` or `.jsonl` file, or a folder with `manifest.csv` or `manifest.jsonl`. Columns `image` (or
      `path`), `label`, and optionally `mask`, `patient`, `split`; paths relative to the manifest.

    A mask belongs to the image of the same name, whatever the suffixes; `<name>_mask` is understood too.

    Args:
        root: The folder or the manifest.
        patient_from_name: How patients are known in the folder layouts. `auto`: names are taken as `<patient>_<slice>`
            if that is true of all of them (a number after the last underscore, a digit somewhere before it), there are
            at least two patients, fewer patients than images, and none has more than half of the images. None: they
            are unknown. Otherwise a regular expression, searched in the path below the class folder without its
            suffix, whose first group (or `patient` group) is the patient; a name that does not match has no patient.

    Raises:
        DataError: There is no such folder, it is empty or has no known layout, a class has no image, or a row of a
            manifest cannot be used (file and row are named).
        RecipeError: `patient_from_name` is not a regular expression with a group.
    """
    dataset = scan_dataset(root, patient_from_name=patient_from_name)
    for label, found in (("normal", dataset.normal), ("abnormal", dataset.abnormal)):
        if not found:
            count = len(dataset.samples)
            raise DataError(f"{root}: no {label} images among {count} (layout {dataset.layout}); both kinds are needed")
    return dataset


def scan_dataset(root: Path | str, *, patient_from_name: str | None = "auto") -> Dataset:
    """`load_dataset` that accepts a data set with a single class, for checks."""
    root = Path(root)
    if root.is_file():
        return _read_manifest(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder or manifest")
    manifests = [root / name for name in MANIFESTS if (root / name).is_file()]
    if len(manifests) > 1:
        raise DataError(f"{root}: both {' and '.join(MANIFESTS)}; name the one to use")
    return _read_manifest(manifests[0]) if manifests else _read_folders(root, patient_from_name)


def read_sample(sample: Sample) -> tuple[Image, npt.NDArray[np.bool_] | None]:
    """Reads an image with its mask: bool [H, W] of the image's size, or None where there is none (or it is normal).

    Raises:
        DataError: Either cannot be read; sizes differ; an anomalous image's mask is empty, or a normal one's is not.
    """
    image = read_image(sample.image)
    return image, read_sample_mask(sample, image.size)


def read_sample_mask(sample: Sample, size: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
    """Reads the mask of an image of a known height and width; result and errors as in `read_sample`."""
    if sample.mask is None:
        return None
    mask = read_mask(sample.mask)
    if mask.shape != size:
        (mask_height, mask_width), (height, width) = mask.shape, size
        raise DataError(
            f"{sample.mask}: mask of {mask_width} x {mask_height} pixels "
            f"for an image of {width} x {height} ({sample.image})"
        )
    if sample.label == 0:
        if mask.any():
            raise DataError(
                f"{sample.mask}: marks a lesion in a normal image ({sample.image}); correct the label or the mask"
            )
        return None
    if not mask.any():
        raise DataError(f"{sample.mask}: the mask of an abnormal image is empty; remove the mask or correct the label")
    return mask


# Folders


@dataclass(frozen=True)
class _ClassFolder:
    path: Path
    label: int
    split: Split | None
    around: Path
    """The split's folder, or the root."""


def _read_folders(root: Path, patient_from_name: str | None) -> Dataset:
    layout, folders, unknown = _class_folders(root)
    # Abnormal images first: masks that several class folders share are theirs.
    owners: dict[Path, Path] = {}
    samples: list[tuple[str, Sample]] = []
    seen_masks: set[Path] = set()
    unused: list[Path] = [*unknown]
    for folder in sorted(folders, key=lambda folder: -folder.label):
        masks, base = _masks(root, folder), _below(folder.path, "img")
        seen_masks.update(masks.values())
        for key, image in _images(base, unused):
            mask = masks.get(key) or masks.get(f"{key}_mask")
            if mask in owners:
                if folder.label == 1:
                    raise DataError(f"{mask}: is the mask of two images, {owners[mask]} and {image}; rename them")
                mask = None
            if mask:
                owners[mask] = image
            samples.append((key, Sample(image, folder.label, mask, None, folder.split)))
    if not samples:
        raise DataError(f"{root}: layout {layout}, but its folders hold no image (PNG, JPEG, TIFF, BMP)")
    unused += sorted(seen_masks - owners.keys())
    patients = _patients([key for key, _ in samples], patient_from_name)
    named = [replace(sample, patient=patient) for (_, sample), patient in zip(samples, patients, strict=True)]
    return Dataset(
        root=root,
        layout=layout,
        samples=_sorted(named),
        patients_from="names" if any(patients) else "none",
        unused=tuple(sorted(set(unused))),
    )


def _class_folders(root: Path) -> tuple[Layout, list[_ClassFolder], list[Path]]:
    """The layout, the folders of its classes, and folders that are neither classes nor masks."""
    splits = [(SPLITS[folder.name.lower()], folder) for folder in _folders(root) if folder.name.lower() in SPLITS]
    around: list[tuple[Split | None, Path]] = [*splits] if splits else [(None, root)]
    found: list[_ClassFolder] = []
    unknown: list[Path] = []
    layout: Layout = "folders"
    for split, parent in around:
        classes = [folder for folder in _folders(parent) if folder.name.lower() not in MASK_FOLDERS]
        names = {folder.name.lower() for folder in classes}
        # Where no folder is called abnormal, every other name beside good/ is a kind of defect (anomalib, MVTec AD).
        defects = bool(splits) and "good" in names and not names & ABNORMAL_FOLDERS
        if names & {"good", "ungood"} and layout == "folders":
            layout = "bmad"
        for folder in classes:
            name = folder.name.lower()
            if name in NORMAL_FOLDERS | ABNORMAL_FOLDERS:
                found.append(_ClassFolder(folder, int(name in ABNORMAL_FOLDERS), split, parent))
            elif defects:
                found.append(_ClassFolder(folder, 1, split, parent))
                layout = "anomalib"
            else:
                unknown.append(folder)
    if not found:
        if not any(root.iterdir()):
            raise DataError(f"{root}: the folder is empty")
        listed = ", ".join(sorted(path.name for path in root.iterdir() if not path.name.startswith("."))[:6])
        raise DataError(
            f"{root}: no known layout (found {listed or 'hidden files only'}); "
            "expected good/ and Ungood/ or normal/ and abnormal/ (in valid/ and test/, or directly), or a manifest.csv"
        )
    return layout, found, unknown


def _masks(root: Path, folder: _ClassFolder) -> dict[str, Path]:
    """Masks that images of a class folder may have, by their path below the mask folder without suffix."""
    masks: dict[str, Path] = {}
    for parent in dict.fromkeys((folder.path, folder.around, root)):
        for base in (path for path in _folders(parent) if path.name.lower() in MASK_FOLDERS):
            for_class = base / folder.path.name
            # Masks beside the split folders name their class, or else training images would take those of test images.
            if for_class.is_dir():
                base = for_class  # noqa: PLW2901
            elif parent == root != folder.around:
                continue
            for path in _walk(base):
                key = path.relative_to(base).with_suffix("").as_posix()
                if path.suffix.lower() in IMAGE_SUFFIXES and masks.setdefault(key, path) != path:
                    raise DataError(f"{path}: a second mask of the same name as {masks[key]}; remove one")
    for path in _walk(folder.path):
        if path.stem.endswith("_mask") and path.suffix.lower() in IMAGE_SUFFIXES:
            masks.setdefault(path.relative_to(_below(folder.path, "img")).with_suffix("").as_posix(), path)
    return masks


def _images(base: Path, unused: list[Path]) -> Iterator[tuple[str, Path]]:
    """Images below a class folder, by their path without suffix; masks beside them and mask folders are left out."""
    paths = [path for path in _walk(base) if not MASK_FOLDERS & {part.lower() for part in path.relative_to(base).parts}]
    keys = {path.with_suffix("") for path in paths}
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            unused.append(path)
        elif not (path.stem.endswith("_mask") and path.with_name(path.stem.removesuffix("_mask")) in keys):
            yield path.relative_to(base).with_suffix("").as_posix(), path


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _below(folder: Path, name: str) -> Path:
    return next((path for path in _folders(folder) if path.name.lower() == name), folder)


def _walk(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _sorted(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: (sample.image.path.as_posix(), sample.image.frame or 0)))


def _patients(keys: list[str], rule: str | None) -> list[str | None]:
    if rule is None:
        return [None] * len(keys)
    if rule == "auto":
        found = [match["patient"] if (match := _SLICE.match(key)) else None for key in keys]
        groups = Counter(found)
        plausible = None not in groups and 2 <= len(groups) < len(keys) and max(groups.values()) <= len(keys) / 2
        return found if plausible else [None] * len(keys)
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise RecipeError(f"patient_from_name {rule!r} is not a regular expression: {error}") from error
    if not pattern.groups:
        raise RecipeError(f"patient_from_name {rule!r} has no group; bracket the patient, such as ^(.+)_[0-9]+$")
    group = "patient" if "patient" in pattern.groupindex else 1
    return [match[group] if (match := pattern.search(key)) else None for key in keys]


# Manifests


def _read_manifest(path: Path) -> Dataset:
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: not a data set; give a folder, or a manifest named .csv or .jsonl")
    samples: dict[ImageRef, Sample] = {}
    for where, row in readers[path.suffix.lower()](path):
        sample = _sample_of_row(path.parent, where, row)
        if sample.image in samples:
            raise DataError(f"{where}: {sample.image} has an earlier row")
        samples[sample.image] = sample
    if not samples:
        raise DataError(f"{path}: the manifest has no rows")
    return Dataset(
        root=path.parent,
        layout="manifest",
        samples=_sorted(samples.values()),
        patients_from="manifest" if any(sample.patient for sample in samples.values()) else "none",
    )


def _sample_of_row(folder: Path, where: str, row: dict[str, str]) -> Sample:
    name = row.get("image") or row.get("path")
    if not name:
        raise DataError(f"{where}: no image; the column is called image or path")
    label = row.get("label", "").lower()
    if label not in LABELS:
        raise DataError(f"{where}: label {row.get('label', '')!r} is unknown; use 0 or normal, 1 or abnormal")
    split = row.get("split", "").lower()
    if split and split not in SPLITS:
        raise DataError(f"{where}: split {row['split']!r} is unknown; use train, valid, test or nothing")
    image = folder / name
    mask = folder / row["mask"] if row.get("mask") else None
    for kind, file in (("image", image), ("mask", mask)):
        if file is not None and not file.is_file():
            raise DataError(f"{where}: {kind} {file} does not exist")
    return Sample(image, LABELS[label], mask, row.get("patient") or None, SPLITS[split] if split else None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    lines = _lines(path)
    header = lines[0] if lines else ""
    delimiter = max(",;\t", key=header.count)
    rows = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or []]
        if not {"image", "path"} & set(rows.fieldnames) or "label" not in rows.fieldnames:
            raise DataError(f"{path}: the first row must name the columns image (or path) and label, found {header!r}")
        for row in rows:
            where = f"{path}, row {rows.line_num}"
            if None in row or None in row.values():
                raise DataError(f"{where}: not as many fields as the header names")
            yield where, {name: value.strip() for name, value in row.items()}
    except csv.Error as error:
        raise DataError(f"{path}, row {rows.line_num}: not valid CSV ({error})") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, row {number}"
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with image and label")
        values = {str(name).lower(): value for name, value in row.items() if value is not None}
        yield (
            where,
            {name: str(int(value) if isinstance(value, bool) else value).strip() for name, value in values.items()},
        )
