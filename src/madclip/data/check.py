"""What is in a data set, and what is wrong with it, before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from madclip.data.readers import read_image, read_many, read_mask
from madclip.data.samples import Dataset, Sample, scan_dataset
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from pathlib import Path

Severity = Literal["error", "warning"]

DARK = 1 / 8
"""An image that stays below this share of its range looks black to a backbone (10 or 12 bits stored in 16)."""

KINDS: dict[str, tuple[Severity, str]] = {
    "one_class": ("error", "one class has no images"),
    "counts": ("error", "another number of images than the registered set has"),
    "unreadable": ("error", "images that cannot be read"),
    "unreadable_mask": ("error", "masks that cannot be read"),
    "mask_size": ("error", "masks of another size than their image"),
    "empty_mask": ("error", "empty masks of abnormal images; remove the mask or correct the label"),
    "normal_with_mask": ("error", "masks that mark a lesion in a normal image; correct one of them"),
    "label_conflict": ("error", "the same image, labelled both normal and abnormal"),
    "image_across": ("error", "the same image in two splits; what is measured would be too good"),
    "patient_across": ("error", "the same patient in two splits; what is measured would be too good"),
    "duplicate": ("warning", "the same image twice in one split"),
    "missing_mask": ("warning", "abnormal images without a mask, beside others that have one"),
    "dark": ("warning", "images that use less than an eighth of their range; rescale 10 or 12 bits stored in 16"),
    "unused": ("warning", "files or folders that belong to no image"),
}
"""Severity and meaning of every kind of problem, in the order of the report."""


@dataclass(frozen=True)
class Problem:
    """One kind of problem, and the files that have it.

    Attributes:
        severity: `error`: these files cannot be used, or what is measured with them is wrong. `warning`: look at them.
        kind: One of `KINDS`.
        message: One line for a person.
        files: Names relative to the root; images that belong together are joined by ` = `.
    """

    severity: Severity
    kind: str
    message: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class CheckReport:
    """What is in a data set and what is wrong with it.

    Attributes:
        root: The data set.
        layout: As detected.
        patients_from: `manifest`, `names` or `none`.
        counts: By split (`all` where there are none): numbers of `normal` and `abnormal` images, of usable `masks`, and
            of `patients`.
        sizes: Readable images by "width x height", the most frequent first.
        depths: Readable images by kind of value ("8-bit", "16-bit", "float").
        problems: Errors first.
    """

    root: str
    layout: str
    patients_from: str
    counts: dict[str, dict[str, int]]
    sizes: dict[str, int]
    depths: dict[str, int]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error; there may be warnings."""
        return all(problem.severity != "error" for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "ok": self.ok}


@dataclass(frozen=True)
class _Finding:
    """What is kept of a sample once it has been read; never its pixels."""

    sample: Sample
    size: tuple[int, int] | None
    depth: str
    digest: str
    image_problem: tuple[str, str] | None
    mask_problem: tuple[str, str] | None
    """Kind, and the reader's own message where there is one."""


def check_dataset(
    root: Path | str,
    *,
    patient_from_name: str | None = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Reads every image and mask of a data set and reports what is there and what is wrong.

    Images are the same when their pixels are, whatever the format. A patient in two splits is an error where a manifest
    or a given rule names the patients, and a warning where `auto` inferred them from file names.

    Args:
        root: As for `load_dataset`.
        patient_from_name: As for `load_dataset`.
        progress: Called with (done, total) images.

    Raises:
        DataError: The folder or the manifest cannot be understood at all.
    """
    dataset = scan_dataset(root, patient_from_name=patient_from_name)
    found: list[_Finding] = []
    for _, finding in read_many(dataset.samples, _examine):
        if isinstance(finding, DataError):
            raise finding
        found.append(finding)
        if progress:
            progress(len(found), len(dataset.samples))
    inferred = patient_from_name == "auto" and dataset.patients_from == "names"
    return CheckReport(
        root=str(dataset.root),
        layout=dataset.layout,
        patients_from=dataset.patients_from,
        counts=_counts(dataset, found),
        sizes=dict(Counter(f"{one.size[1]} x {one.size[0]}" for one in found if one.size).most_common()),
        depths=dict(Counter(one.depth for one in found if one.size).most_common()),
        problems=_problems(_files_by_kind(dataset, found), found, inferred=inferred),
    )


def _examine(sample: Sample) -> _Finding:
    try:
        image = read_image(sample.image)
    except DataError as error:
        return _Finding(sample, None, "", "", ("unreadable", str(error)), _examine_mask(sample, None))
    digest = hashlib.sha256(repr(image.size).encode())
    digest.update(image.pixels.data)
    dark = 0 < image.pixels.max() < DARK
    return _Finding(
        sample,
        image.size,
        image.depth,
        digest.hexdigest(),
        ("dark", "") if dark else None,
        _examine_mask(sample, image.size),
    )


def _examine_mask(sample: Sample, size: tuple[int, int] | None) -> tuple[str, str] | None:
    if sample.mask is None:
        return None
    try:
        mask = read_mask(sample.mask)
    except DataError as error:
        return "unreadable_mask", str(error)
    if size and mask.shape != size:
        return "mask_size", ""
    if sample.label == 1 and not mask.any():
        return "empty_mask", ""
    if sample.label == 0 and mask.any():
        return "normal_with_mask", ""
    return None


def _counts(dataset: Dataset, found: list[_Finding]) -> dict[str, dict[str, int]]:
    counts = {}
    for split in (*dataset.splits, None):
        within = [one for one in found if one.sample.split == split]
        if within:
            counts[split or "all"] = {
                "normal": sum(one.sample.label == 0 for one in within),
                "abnormal": sum(one.sample.label == 1 for one in within),
                "masks": sum(
                    one.sample.label == 1 and one.sample.mask is not None and not one.mask_problem for one in within
                ),
                "patients": len({one.sample.patient for one in within} - {None}),
            }
    return counts


def _files_by_kind(dataset: Dataset, found: list[_Finding]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = defaultdict(list)
    for one in found:
        if one.image_problem:
            files[one.image_problem[0]].append(dataset.name(one.sample.image))
        if one.mask_problem and one.sample.mask:
            files[one.mask_problem[0]].append(dataset.name(one.sample.mask))
    files["one_class"] = [
        name for name, side in (("normal", dataset.normal), ("abnormal", dataset.abnormal)) if not side
    ]
    if dataset.has_masks:
        files["missing_mask"] = [dataset.name(sample.image) for sample in dataset.abnormal if not sample.mask]
    files["unused"] = [dataset.name(path) for path in dataset.unused]
    for group in _together(found, lambda one: one.digest or None):
        names = " = ".join(dataset.name(sample.image) for sample in group)
        files["image_across" if len({sample.split for sample in group}) > 1 else "duplicate"].append(names)
        if len({sample.label for sample in group}) > 1:
            files["label_conflict"].append(names)
    for group in _together(found, lambda one: one.sample.patient):
        one_each = {sample.split: dataset.name(sample.image) for sample in reversed(group)}
        if len(one_each) > 1:
            files["patient_across"].append(" = ".join(sorted(one_each.values())))
    return files


def _together(found: list[_Finding], key: Callable[[_Finding], Hashable]) -> list[list[Sample]]:
    """Samples that share a key other than None, where there is more than one."""
    groups: dict[Hashable, list[Sample]] = defaultdict(list)
    for one in found:
        if (value := key(one)) is not None:
            groups[value].append(one.sample)
    return [group for group in groups.values() if len(group) > 1]


def _problems(files: dict[str, list[str]], found: list[_Finding], *, inferred: bool) -> tuple[Problem, ...]:
    # What the reader said of the first file of a kind says more than the kind does.
    said: dict[str, str] = {}
    for one in found:
        for problem in (one.image_problem, one.mask_problem):
            if problem and problem[1]:
                said.setdefault(*problem)
    problems: list[Problem] = []
    for kind, (severity, meaning) in KINDS.items():
        if not files[kind]:
            continue
        message = f"{meaning}; the first: {said[kind]}" if kind in said else meaning
        if kind == "patient_across" and inferred:
            problems.append(Problem("warning", kind, f"{message} (patients inferred from names)", tuple(files[kind])))
        else:
            problems.append(Problem(severity, kind, message, tuple(files[kind])))
    return tuple(sorted(problems, key=lambda problem: problem.severity != "error"))
