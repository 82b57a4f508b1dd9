"""What is in a data set, and what is wrong with it, before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from madclip.calibration.thresholds import images_needed
from madclip.data.load import AUTO, scan_dataset
from madclip.data.readers import read_image, read_many, read_mask
from madclip.data.samples import KINDS as CLASSES
from madclip.data.samples import UNUSED, Dataset, Reading, Sample, said_of_patients, said_of_volumes
from madclip.data.unseen import LostLesions, lost_lesions
from madclip.errors import DataError
from madclip.grey_range import parse_grey_range
from madclip.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from madclip.data.readers import Image
    from madclip.grey_range import GreyRange
    from madclip.recipe import View

Severity = Literal["error", "warning"]

KINDS: dict[str, tuple[Severity, str]] = {
    "no_normal": ("error", "no normal images to learn from"),
    "counts": ("error", "another number of images than the registered set has"),
    "unmatched": ("error", "mask folders in which no mask has the name of an image"),
    "unreadable": ("error", "images that cannot be read"),
    "unreadable_mask": ("error", "masks that cannot be read"),
    "mask_size": ("error", "masks of another size than their image"),
    "empty_mask": ("error", "empty masks of abnormal images; remove the mask or correct the label"),
    "normal_with_mask": ("error", "masks that mark a lesion in a normal image; correct one of them"),
    "label_conflict": ("error", "the same image, labelled both normal and abnormal"),
    "image_across": ("error", "the same image in two splits; what is measured would be too good"),
    "patient_across": ("error", "the same patient or volume in two splits; what is measured would be too good"),
    "unmeasured": ("warning", "a class without images to measure on: how well a detector ranks cannot be said"),
    "duplicate": ("warning", "the same image twice in one split"),
    "missing_mask": ("warning", "abnormal images without a mask, beside others that have one"),
    "dark": ("warning", "images that use less than an eighth of their range, as 12 bits stored in 16 do"),
    "no_range": ("warning", "images whose percentiles, as asked for, are one value; only black and white is left"),
    "constant": ("warning", "images of a single value, such as black ones; there is nothing to see in them"),
    "lost_lesion": ("warning", "images with lesions of which nothing is left when the mask is resized"),
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
        patients_from: `manifest`, `names`, `folders` or `none`.
        counts: By split (`all` where there are none): numbers of `normal` and `abnormal` images, of usable `masks`, and
            of `patients`.
        sizes: Readable images by "width x height", the most frequent first.
        depths: Readable images by kind of value ("8-bit", "16-bit", "float").
        problems: Errors first.
        patients: One line on how many patients are known and from what.
        volumes: One line on how many images are slices of volumes; empty where none is.
        passed_over: Number of hidden files and folders, and those of tools, that were not looked into.
        learns: Where there are normal images alone to learn from, how many, and which thresholds they allow; else
            empty.
    """

    root: str
    layout: str
    patients_from: str
    counts: dict[str, dict[str, int]]
    sizes: dict[str, int]
    depths: dict[str, int]
    problems: tuple[Problem, ...]
    patients: str = ""
    volumes: str = ""
    passed_over: int = 0
    learns: str = ""

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
    lost: LostLesions | None


def check_dataset(
    root: Path | str, reading: Reading = AUTO, *, view: View | None = None, progress: Progress = silent
) -> CheckReport:
    """Reads every image and mask of a data set and reports what is there and what is wrong.

    Images are the same when their pixels are, whatever the format. A patient in two splits is an error where a manifest
    or a given rule names the patients, and a warning where `auto` inferred them from file names or folders.

    Args:
        root: As for `load_dataset`.
        reading: As for `load_dataset`.
        view: How images and masks are going to be read and resized, to find grey values and lesions that are lost on
            the way; None reads files as they are and looks for no such lesions.
        progress: Told how many images are read.

    Raises:
        DataError: The folder or the manifest cannot be understood at all.
    """
    dataset = scan_dataset(root, reading)
    found: list[_Finding] = []
    for _, finding in read_many(dataset.samples, lambda sample: _examine(sample, view)):
        if isinstance(finding, DataError):
            raise finding
        found.append(finding)
        progress("check", len(found), len(dataset.samples))
    files = _structure(dataset, ((one.sample, one.digest) for one in found if one.digest))
    return CheckReport(
        root=str(dataset.root),
        layout=dataset.layout,
        patients_from=dataset.patients_from,
        counts=_counts(dataset, found),
        sizes=dict(Counter(f"{one.size[1]} x {one.size[0]}" for one in found if one.size).most_common()),
        depths=dict(Counter(one.depth for one in found if one.size).most_common()),
        problems=_in_order(
            [*_problems(files, guessed=dataset.patients_guessed), *_met(dataset, found), *_unused(dataset)]
        ),
        patients=said_of_patients(dataset),
        volumes=said_of_volumes(dataset),
        passed_over=dataset.passed_over,
        learns=_learned_from_normals(dataset.shot_pool),
    )


def _learned_from_normals(pool: Sequence[Sample]) -> str:
    """What a fit makes of images of which none is abnormal, in one sentence; empty where some are, or all."""
    if not pool or any(sample.label for sample in pool):
        return ""
    count, (often, seldom) = len(pool), (images_needed(one) for one in (0.9, 0.95))
    if count < often:
        allowed = f"too few for a threshold: one that calls 10 % of normal images anomalous needs {often}"
    elif len({sample.group or sample.image for sample in pool}) < 2:
        allowed = "all of one patient or volume, which allows no threshold"
    elif count < seldom:
        allowed = f"enough for a threshold that calls 10 % of normal images anomalous; one at 5 % needs {seldom}"
    else:
        allowed = "enough for a threshold that calls 10 % of normal images anomalous, or 5 %"
    return f"no abnormal images to learn from: a detector learns from the {count} normal alone, {allowed}"


def errors_of(dataset: Dataset) -> tuple[Problem, ...]:
    """The errors of `check_dataset` that are found without decoding an image, for a fit to stop at.

    These are `unmatched`, `label_conflict`, `image_across` and `patient_across`, over all splits. Copies
    of an image are found by their bytes: only files of the same size are opened, and only those that agree in a few
    kilobytes are read whole. The same pixels in another format, and what is wrong with a single image or mask,
    are met by `check_dataset` alone, or by the fit when it reads its shots. Patients that were guessed are no reason to
    stop, and neither are missing normal images, which `load_dataset` refuses where they are needed.
    """
    problems = _problems(_structure(dataset, _digests(dataset.samples)), guessed=dataset.patients_guessed)
    return _in_order(one for one in problems if one.severity == "error" and one.kind != "no_normal")


def _digests(samples: Iterable[Sample]) -> list[tuple[Sample, str]]:
    """SHA-256 of those files that may be copies of another one, by size, then by a part, then by all bytes."""
    groups = [list(samples)]
    for key in (_size, _middle, _digest):
        divided: list[list[Sample]] = []
        for group in groups:
            parts: dict[str, list[Sample]] = defaultdict(list)
            for sample in group:
                parts[key(sample)].append(sample)
            divided += [part for name, part in parts.items() if name and len(part) > 1]
        groups = divided
    return [(sample, str(number)) for number, group in enumerate(groups) for sample in group]


def _size(sample: Sample) -> str:
    try:
        return f"{sample.image.path.stat().st_size} {sample.image.frame}"
    except OSError:
        return ""


def _middle(sample: Sample) -> str:
    try:
        with sample.image.path.open("rb") as file:
            file.seek(sample.image.path.stat().st_size // 2)
            return hashlib.sha256(file.read(4096)).hexdigest()
    except OSError:
        return ""


def _digest(sample: Sample) -> str:
    try:
        return sample.image.digest()
    except OSError:
        return ""


def _examine(sample: Sample, view: View | None) -> _Finding:
    try:
        image = read_image(sample.image, view.grey_range if view else "file")
    except DataError as error:
        problem, _ = _examine_mask(sample, None)
        return _Finding(sample, None, "", "", ("unreadable", str(error)), problem, None)
    digest = hashlib.sha256(repr(image.size).encode())
    digest.update(image.pixels.data)
    problem, mask = _examine_mask(sample, image.size)
    lost = None if mask is None or view is None or problem else lost_lesions(mask, view)
    kind = _kind_of_pixels(image, parse_grey_range(view.grey_range if view else "file"))
    return _Finding(
        sample, image.size, image.depth, digest.hexdigest(), (kind, image.note or "") if kind else None, problem, lost
    )


def _kind_of_pixels(image: Image, rule: GreyRange) -> str:
    flat = image.pixels.reshape(len(image.pixels), -1)
    if (flat.min(axis=1) == flat.max(axis=1)).all():
        return "constant"
    if not image.note:
        return ""
    return "no_range" if rule.kind == "percentiles" else "dark"


def _examine_mask(
    sample: Sample, size: tuple[int, int] | None
) -> tuple[tuple[str, str] | None, npt.NDArray[np.bool_] | None]:
    if sample.mask is None:
        return None, None
    try:
        mask = read_mask(sample.mask)
    except DataError as error:
        return ("unreadable_mask", str(error)), None
    if size and mask.shape != size:
        return ("mask_size", ""), mask
    if sample.label == 1 and not mask.any():
        return ("empty_mask", ""), mask
    if sample.label == 0 and mask.any():
        return ("normal_with_mask", ""), mask
    return None, mask


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


def _structure(dataset: Dataset, digests: Iterable[tuple[Sample, str]]) -> dict[str, list[str]]:
    """Names by kind of what is wrong with the set as a whole; images with the same digest are the same."""
    files: dict[str, list[str]] = defaultdict(list)
    # A set that is all test images is not learned from.
    if not any(sample.label == 0 for sample in dataset.shot_pool or dataset.samples):
        files["no_normal"] = [", ".join(sorted({one.split or "all" for one in dataset.shot_pool or dataset.samples}))]
    measured = {sample.label for sample in dataset.test_pool}
    files["unmeasured"] = [kind for label, kind in enumerate(CLASSES) if measured and label not in measured]
    files["unmatched"] = [dataset.name(path) for path in dataset.unmatched]
    if dataset.has_masks:
        files["missing_mask"] = [dataset.name(sample.image) for sample in dataset.abnormal if not sample.mask]
    for group in _together(digests):
        names = " = ".join(dataset.name(sample.image) for sample in group)
        files["image_across" if len({sample.split for sample in group}) > 1 else "duplicate"].append(names)
        if len({sample.label for sample in group}) > 1:
            files["label_conflict"].append(names)
    for group in _together((sample, key) for sample in dataset.samples for key in sample.groups):
        one_each = {sample.split: dataset.name(sample.image) for sample in reversed(group)}
        if len(one_each) > 1:
            said = " = ".join(sorted(one_each.values()))
            files["patient_across"] += [said] if said not in files["patient_across"] else []
    return files


def _together(keyed: Iterable[tuple[Sample, Hashable]]) -> list[list[Sample]]:
    """Samples that share a key, where there is more than one."""
    groups: dict[Hashable, list[Sample]] = defaultdict(list)
    for sample, key in keyed:
        groups[key].append(sample)
    return [group for group in groups.values() if len(group) > 1]


def _problems(files: dict[str, list[str]], *, guessed: bool) -> list[Problem]:
    problems = []
    for kind, names in files.items():
        severity, meaning = KINDS[kind]
        if kind == "patient_across" and guessed:
            severity, meaning = "warning", f"{meaning} (patients were guessed from names or folders)"
        if names:
            problems.append(Problem(severity, kind, meaning, tuple(names)))
    return problems


def _met(dataset: Dataset, found: list[_Finding]) -> list[Problem]:
    """What is wrong with single images and masks; the first one's own message says more than the kind does."""
    files: dict[str, list[str]] = defaultdict(list)
    said: dict[str, str] = {}
    for one in found:
        image, mask = dataset.name(one.sample.image), one.sample.mask and dataset.name(one.sample.mask)
        lost = ("lost_lesion", str(one.lost)) if one.lost else None
        for problem, name in ((one.image_problem, image), (one.mask_problem, mask), (lost, image)):
            if problem and name:
                files[problem[0]].append(name)
                if problem[1]:
                    said.setdefault(*problem)
    problems = []
    for kind, names in files.items():
        severity, meaning = KINDS[kind]
        message = f"{meaning}; the first: {said[kind]}" if kind in said else meaning
        problems.append(Problem(severity, kind, message, tuple(names)))
    return problems


def _unused(dataset: Dataset) -> list[Problem]:
    """What belongs to no image, one problem for each reason."""
    problems = []
    for kind, meaning in UNUSED.items():
        within = [one for one in dataset.unused if one.kind == kind]
        hints = "; ".join(f"{dataset.name(one.path)}: {one.hint}" for one in within if one.hint)
        message = f"{KINDS['unused'][1]}: {meaning}" + (f" ({hints})" if hints else "")
        if within:
            problems.append(Problem("warning", "unused", message, tuple(dataset.name(one.path) for one in within)))
    return problems


def _in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Errors first, then in the order of `KINDS`."""
    kinds = list(KINDS)
    return tuple(sorted(problems, key=lambda one: (one.severity != "error", kinds.index(one.kind))))
