"""What a data set is: labelled images, their masks and patients, and what was found beside them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from madclip.data.ref import ImageRef, as_ref
from madclip.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

KINDS = ("normal", "abnormal")
"""The classes, by their label; a data set that is measured has both."""
NORMAL_ONLY = KINDS[:1]
"""What a data set must have to be learned from."""
Split = Literal["train", "valid", "test"]
Layout = Literal["bmad", "folders", "anomalib", "manifest"]
UnusedKind = Literal["beside_splits", "not_a_class", "loose", "beside_img", "no_image", "format", "dead_link"]

_SLICES = re.compile(r"all|[1-9][0-9]{0,5}|[0-9]{0,6}:[0-9]{0,6}(?::[1-9][0-9]{0,5})?")

UNUSED: dict[UnusedKind, str] = {
    "beside_splits": "beside the split folders",
    "not_a_class": "neither a class nor masks",
    "loose": "outside the class folders",
    "beside_img": "beside img/, in which the images of this class are",
    "no_image": "masks without an image",
    "format": "of a format that is not read",
    "dead_link": "links that lead nowhere or in a circle",
}
"""Why a file or a folder belongs to no image."""


@dataclass(frozen=True)
class Reading:
    """How a data set is to be understood where its folders do not say it.

    Attributes:
        patients: How patients are known in the folder layouts. `auto`: from folders or names, where that is safe
            (`madclip.data.patients` has the rule). `none`: they are unknown. `folder`: the first folder below the class
            folder. `header`: the id in the header of a DICOM file, of which a digest is kept. Otherwise a regular
            expression, searched in the path below the class folder without its suffix, whose first group (or `patient`
            group) is the patient; a name that does not match has no patient.
        normal: Class folders (of a manifest: labels) whose images are normal; a slash at the end does not count.
        abnormal: Those whose images are abnormal. Where both are given, other folders are left out.
        axis: How volumes are cut: `axial`, `coronal`, `sagittal`, or across their axis `0`, `1` or `2` on disk.
        slices: Which slices of a labelled volume are taken: `all`, so many of each class at even distances, or
            START:STOP:STEP as in Python.

    Raises:
        RecipeError: `patients` is not a regular expression with a group, a name stands on both sides, or `slices` says
            nothing.
    """

    patients: str = "auto"
    normal: tuple[str, ...] = ()
    abnormal: tuple[str, ...] = ()
    axis: str = "axial"
    slices: str = "all"

    def __post_init__(self) -> None:
        for side in ("normal", "abnormal"):
            names = getattr(self, side)
            names = (names,) if isinstance(names, str) else tuple(names)
            object.__setattr__(self, side, tuple(name.rstrip("/\\") or name for name in names))
        both = {name.casefold() for name in self.normal} & {name.casefold() for name in self.abnormal}
        if both:
            raise RecipeError(f"{min(both)!r} cannot be both normal and abnormal")
        if not _SLICES.fullmatch(self.slices):
            raise RecipeError(f"slices {self.slices!r}: give all, a number of each class, or START:STOP:STEP")
        if self.patients not in ("auto", "none", "folder", "header"):
            self._check_rule()

    def _check_rule(self) -> None:
        try:
            pattern = re.compile(self.patients)
        except re.error as error:
            raise RecipeError(
                f"patients {self.patients!r} is neither auto, none, folder or header, nor a regular expression: {error}"
            ) from error
        if not pattern.groups:
            raise RecipeError(
                f"patients {self.patients!r} has no group; bracket the patient, such as ^(.+)_[0-9]+$, "
                "or say auto, none, folder or header"
            )


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        image: Its name; a path given to the constructor is taken as the whole file.
        label: 0 normal, 1 abnormal.
        mask: The name of its mask, where there is one.
        patient: Whose image it is, where that is known.
        split: `train`, `valid` or `test`, where the data set has splits.
        volume: Digest that the slices of one volume, stack or DICOM series share; None for an image by itself.
    """

    image: ImageRef
    label: int
    mask: ImageRef | None = None
    patient: str | None = None
    split: str | None = None
    volume: str | None = None

    def __init__(
        self,
        image: ImageRef | Path | str,
        label: int,
        mask: ImageRef | Path | str | None = None,
        patient: str | None = None,
        split: str | None = None,
        volume: str | None = None,
    ) -> None:
        values = (as_ref(image), label, None if mask is None else as_ref(mask), patient, split, volume)
        for name, value in zip(("image", "label", "mask", "patient", "split", "volume"), values, strict=True):
            object.__setattr__(self, name, value)

    @property
    def groups(self) -> tuple[str, ...]:
        """All that the image shares with others that are not independent of it: its patient, and its volume."""
        patient = () if self.patient is None else (f"patient {self.patient}",)
        if self.volume is not None:
            return (*patient, f"volume {self.volume}")
        return patient if self.image.frame is None else (*patient, f"volume {self.image.path.resolve()}")

    @property
    def group(self) -> str | None:
        """What images are kept together by: the patient, or else the volume."""
        return next(iter(self.groups), None)


@dataclass(frozen=True, order=True)
class Unused:
    """A file or a folder in a data set that belongs to no image.

    Attributes:
        path: The file or folder.
        kind: One of `UNUSED`.
        hint: What was perhaps meant, or an empty string.
    """

    path: Path
    kind: UnusedKind
    hint: str = ""


@dataclass(frozen=True)
class Dataset:
    """Labelled images in the order of their names.

    Attributes:
        root: The folder, or the manifest's folder.
        layout: How it was laid out: `bmad`, `folders`, `anomalib` or `manifest`.
        samples: All of them, sorted by path.
        patients_from: Where patients are known from: `manifest`, `names` (of the files), `folders`, `headers`,
            `volumes`, or `none`.
        patients_note: By which rule they are known, or why they are not.
        patients_guessed: Whether nobody said so: they were taken from names or folders because that looked safe.
        unused: What lies among the images and belongs to none of them.
        passed_over: Number of hidden files and folders, and those of tools, that were not looked into.
        unmatched: Mask folders in which no mask has the name of an image.
        left: Number of slices of labelled volumes that are not taken: beside a lesion, without content, or not asked
            for.
        whole: The normal volumes and series that the data set has whole: their digest and all their images, also those
            that are not taken.
    """

    root: Path
    layout: str
    samples: tuple[Sample, ...]
    patients_from: str = "none"
    patients_note: str = ""
    patients_guessed: bool = False
    unused: tuple[Unused, ...] = ()
    passed_over: int = 0
    unmatched: tuple[Path, ...] = ()
    left: int = 0
    whole: tuple[tuple[str, tuple[ImageRef, ...]], ...] = ()

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
        """The abnormal samples."""
        return tuple(sample for sample in self.samples if sample.label == 1)

    @property
    def has_masks(self) -> bool:
        """Whether any abnormal image has a mask."""
        return any(sample.mask for sample in self.abnormal)

    @property
    def patients(self) -> frozenset[str]:
        """The patients that are known."""
        return frozenset(sample.patient for sample in self.samples if sample.patient is not None)

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
        return f"{below.as_posix()}{ref.mark}"

    def digest(self) -> str:
        """SHA-256 over the contents of all images and masks, in their order; it reads every file once.

        Raises:
            OSError: A file cannot be read.
        """
        found = hashlib.sha256()
        for sample in self.samples:
            for image in (sample.image, sample.mask):
                found.update((image.digest() if image else "-").encode())
        return found.hexdigest()


def in_order(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Samples in the order of their names, frames of a file in their own order."""
    return tuple(sorted(samples, key=lambda sample: (sample.image.path.as_posix(), sample.image.frame or 0)))


def said_of_patients(dataset: Dataset) -> str:
    """One line on how many patients are known and from what: `12 patients, from the names <patient>_<slice>`."""
    if not dataset.patients:
        reason = f" ({dataset.patients_note})" if dataset.patients_note else ""
        return f"patients unknown: every image counts as a patient of its own{reason}"
    sources = {
        "manifest": "the manifest",
        "folders": "the folders",
        "names": "the names",
        "headers": "the headers,",
        "volumes": "the volumes",
    }
    source = f"{sources.get(dataset.patients_from, dataset.patients_from)} {dataset.patients_note}".strip()
    unknown = sum(sample.patient is None for sample in dataset.samples)
    rest = f"; of {_counted(unknown, 'image')} the patient is unknown" if unknown else ""
    return f"{_counted(len(dataset.patients), 'patient')}, from {source}{rest}"


def said_of_volumes(dataset: Dataset) -> str:
    """One line on how many images are slices of volumes or series, or an empty string where none is."""
    slices = [sample for sample in dataset.samples if sample.volume is not None]
    if not slices:
        return ""
    left = f"; {_counted(dataset.left, 'slice')} not taken" if dataset.left else ""
    within = len({sample.volume for sample in slices})
    return f"{_counted(len(slices), 'slice')} of {within:,} {'volume' if within == 1 else 'volumes'} or series{left}"


def said_of_unused(dataset: Dataset) -> str:
    """One line on what lies in the data set and is not used, or an empty string where there is nothing."""
    counts = Counter(one.kind for one in dataset.unused)
    parts = [f"{counts[kind]} {meaning}" for kind, meaning in UNUSED.items() if counts[kind]]
    said = f"{_counted(sum(counts.values()), 'file or folder')} not used: {', '.join(parts)}" if parts else ""
    hints = [f"{dataset.name(one.path)}: {one.hint}" for one in dataset.unused if one.hint]
    counted = [f"{dataset.passed_over} hidden or of a tool, passed over"] if dataset.passed_over else []
    said = "; ".join([*([said] if said else []), *counted])
    return " (".join([said, "; ".join(hints)]) + ")" if hints else said


def _counted(number: int, what: str) -> str:
    plural = "files or folders" if what == "file or folder" else f"{what}s"
    return f"{number:,} {what if number == 1 else plural}"
