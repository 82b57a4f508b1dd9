"""Labelled volumes, stacks and DICOM series in a data set: as slices with labels, and with the patients they are of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from madclip.data.readers import frames_of, holds_image, read_mask
from madclip.data.readers.dicom import DICOM, check_pixels, is_segmentation, planes_of, read_header
from madclip.data.readers.formats import is_volume, open_volume, read_stored, reader_of
from madclip.data.ref import ImageRef
from madclip.data.samples import Dataset, Reading, Sample, in_order
from madclip.data.series import Facts, Place, digest_of, facts_of, place_of, sorted_series
from madclip.data.walk import Walk
from madclip.errors import DataError
from madclip.files import until_changed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MARGIN = 1
"""Slices so near to one with a lesion are neither normal nor abnormal: a lesion does not end where its outline does."""
_APART = 1e-2
"""Millimetres by which a label map may lie beside its volume."""
_FAR = 100
"""Millimetres from the corner at which a turned direction shows."""
_SINGLE = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".npy", ".jp2", ".j2k"})
"""Endings of files that are taken for one image without a look at them."""


@dataclass
class Expanded:
    """What a labelled file stands for.

    Attributes:
        samples: Its images.
        patient: Digest of the patient's id in its header; None where it has none.
        study: Digest of the study's UID; None where it is no DICOM.
        left: Number of slices that are neither normal nor abnormal, or hold nothing.
        whole: All its images, where they are a whole volume or series in which nothing is abnormal.
    """

    samples: list[Sample]
    patient: str | None = None
    study: str | None = None
    left: int = 0
    whole: tuple[ImageRef, ...] = ()


def with_volumes(dataset: Dataset, reading: Reading) -> Dataset:
    """A data set in which whole volumes are their slices, and what headers say of patients and series is known.

    A volume of a normal class gives normal slices. One with a label map gives abnormal slices where the map marks
    something and normal ones elsewhere, but not next to those. `reading.slices` says which of them are taken.

    Raises:
        DataError: A volume is abnormal and nothing says which slices are, or its label map does not fit.
    """
    found = [_expanded(sample, reading) for sample in dataset.samples]
    if all(one.samples == [sample] for one, sample in zip(found, dataset.samples, strict=True)):
        if reading.patients == "header":
            raise DataError(f"{dataset.root}: patients 'header': none of its images is a DICOM file; name another rule")
        return dataset
    of = {sample.image: one for one in found for sample in one.samples}
    samples = in_order(sample for one in found for sample in one.samples)
    whole = tuple((str(one.samples[0].volume), one.whole) for one in found if one.whole and one.samples)
    known = replace(dataset, samples=samples, left=sum(one.left for one in found), whole=whole)
    return _with_patients(known, [of[sample.image] for sample in samples], reading)


@dataclass(frozen=True)
class _Stack:
    """What a labelled file or folder holds: images that belong together, in order, and what headers say of them."""

    images: tuple[ImageRef, ...]
    volume: str
    headers: tuple[Facts, ...] = ()


def volume_of(image: ImageRef) -> str | None:
    """Digest of the volume or series that an image is of; None where it is one by itself, or cannot be read."""
    stack = None if image.frame is None and image.path.suffix.lower() in _SINGLE else _stack(image, "axial")
    return None if stack is None else stack.volume


def _expanded(sample: Sample, reading: Reading) -> Expanded:
    path, frame = sample.image.path, sample.image.frame
    if frame is None and path.suffix.lower() in _SINGLE:
        return Expanded([sample])
    stack = _series_in(path) if path.is_dir() else _stack(sample.image, reading.axis)
    if stack is None:
        return Expanded([sample])
    known = stack.headers[0] if stack.headers else None
    made = Expanded([replace(sample, volume=stack.volume)])
    if known is not None:
        made.patient, made.study = known.patient, known.study
    if stack.images != (sample.image,):
        made.samples, lesions = _slices(made.samples[0], stack, reading)
        made.left = len(stack.images) - len(made.samples)
        made.whole = () if lesions else stack.images
    elif (
        sample.mask is not None and sample.mask.frame is None and (frame is not None or _segmentation(sample.mask.path))
    ):
        (mask,) = _masks(sample, stack)
        if mask is None and sample.label:
            raise DataError(f"{sample.mask}: marks nothing in {sample.image}, which is said to be abnormal")
        made.samples = [replace(made.samples[0], mask=mask)]
    return made


def _stack(image: ImageRef, axis: str) -> _Stack | None:
    """What a file holds; None where that is one image by itself, or cannot be read, which is told when it is."""
    try:
        facts = facts_of(image.path)
        named = (facts.images if facts else frames_of(image.path, axis)) if image.frame is None else (image,)
    except DataError:
        return None
    if facts:
        return _Stack(_as_they_lie(facts, named), facts.series, (facts,)) if named else None
    return _Stack(named, ImageRef(image.path).digest()) if named != (ImageRef(image.path),) else None


def _as_they_lie(facts: Facts, named: tuple[ImageRef, ...]) -> tuple[ImageRef, ...]:
    """The frames of a file in the order in which they lie in the patient, where they are one stack."""
    series = sorted_series([facts]) if len(named) > 1 else []
    return series[0].images if len(series) == 1 else named


def _series_in(folder: Path) -> _Stack:
    """The one DICOM series in a folder that a manifest names in place of an image."""
    found = [facts for path in sorted(Walk().files(folder)) if holds_image(path) and (facts := facts_of(path))]
    headers = tuple(facts for facts in found if facts.images)
    series = sorted_series(headers)
    if len(series) != 1:
        raise DataError(f"{folder}: {len(series)} DICOM series; an image is a file, or a folder with one series")
    return _Stack(series[0].images, headers[0].series, headers)


def _slices(sample: Sample, stack: _Stack, reading: Reading) -> tuple[list[Sample], bool]:
    """The labelled slices of a volume, and whether any slice is abnormal."""
    images = stack.images
    if sample.mask is None and sample.label == 1:
        raise DataError(
            f"{sample.image}: {len(images)} slices, and nothing says which are abnormal; give its label map as the "
            "mask, or name slices in a manifest (column frame)"
        )
    masks = _masks(sample, stack)
    marked = np.array([mask is not None and bool(read_mask(mask).any()) for mask in masks])
    near = np.convolve(marked, np.ones(2 * MARGIN + 1), "same") > 0
    chosen = [
        *_chosen([number for number in range(len(images)) if marked[number]], reading.slices),
        *_chosen([n for n in range(len(images)) if not near[n] and not _is_flat(images[n])], reading.slices),
    ]
    made = [
        replace(sample, image=images[number], label=int(marked[number]), mask=masks[number] if marked[number] else None)
        for number in sorted(chosen)
    ]
    return made, bool(marked.any())


def _masks(sample: Sample, stack: _Stack) -> list[ImageRef | None]:
    """The slice of the label map that belongs to each slice."""
    images = stack.images
    if sample.mask is None:
        return [None] * len(images)
    path = sample.mask.path
    if sample.mask.frame is not None:
        raise DataError(f"{sample.mask}: one slice of a label map for a whole volume ({sample.image}); name none")
    if _segmentation(path):
        return _planes(path, sample.image, stack)
    if not sample.image.path.is_dir() and is_volume(path) and is_volume(sample.image.path):
        _check_alike(path, sample.image.path)
        return [ImageRef(path, image.frame, image.axis) for image in images]
    if sample.image.path.is_dir() or is_volume(path) or is_volume(sample.image.path):
        raise DataError(
            f"{path}: a label map of another format than {sample.image.path}, so that nothing says which slice of it "
            "belongs to which image; give a DICOM segmentation, or convert both to NIfTI"
        )
    found, all_frames = frames_of(path), frames_of(sample.image.path)
    if len(found) != len(all_frames):
        raise DataError(f"{path}: {len(found)} slices for a volume of {len(all_frames)} ({sample.image.path})")
    by_frame = dict(zip(all_frames, found, strict=True))  # as they stand in their files
    return [by_frame[image] for image in images]


@until_changed(8)
def _segmentation(path: Path) -> bool:
    """Whether a mask is a DICOM segmentation, which many slices may share; contours are refused."""
    if not isinstance(reader_of(path), DICOM):
        return False
    header = read_header(path)
    check_pixels(path, header)
    return is_segmentation(header)


def _planes(path: Path, image: ImageRef, stack: _Stack) -> list[ImageRef | None]:
    """What a DICOM segmentation marks in each image, by the instances that it refers to; None where nothing."""
    header = read_header(path)
    planes = planes_of(path)
    number = {(digest_of(uid), frame): place for place, (uid, frame) in enumerate(planes)}
    first = [frames[0] for frames in planes.values()]
    found: dict[ImageRef, int] = {}
    for facts in stack.headers:
        for place, one in enumerate(facts.images):
            frames = (0, 1) if one.frame is None else (one.frame + 1,)
            drawn = next((number[facts.instance, frame] for frame in frames if (facts.instance, frame) in number), None)
            if drawn is None:
                continue
            lies = facts.places[place] if facts.places else None
            _check_place(path, place_of(header, first[drawn]), lies)
            found[one] = drawn
    series = {digest_of(one.get("SeriesInstanceUID")) for one in header.get("ReferencedSeriesSequence") or ()}
    if not found and (len(stack.images) > 1 or stack.volume not in series):
        raise DataError(f"{path}: a DICOM segmentation that was drawn on other images than {image}")
    several = len(planes) > 1
    return [ImageRef(path, found[one] if several else None) if one in found else None for one in stack.images]


def _check_place(path: Path, drawn: Place | None, image: Place | None) -> None:
    """Refuses a segmentation whose pixels are not those of the image that it refers to: turned, shifted or finer."""
    if drawn is None or image is None:
        return
    one, other = (np.array([*a.corner, *(_FAR * w for w in (*a.row, *a.column)), *a.spacing]) for a in (drawn, image))
    if np.abs(one - other).max() > _APART:
        raise DataError(f"{path}: its pixels lie elsewhere than those of the images it was drawn on; resample it")


def _check_alike(mask: Path, image: Path) -> None:
    """Refuses a label map that does not lie where its volume lies."""
    one, other = open_volume(mask), open_volume(image)
    if one.shape != other.shape:
        sizes = [" x ".join(map(str, volume.shape)) for volume in (one, other)]
        raise DataError(f"{mask}: a label map of {sizes[0]} voxels for a volume of {sizes[1]} ({image})")
    apart = np.abs(one.upright_affine - other.upright_affine)
    voxel = np.linalg.norm(other.upright_affine[:3, :3], axis=0).min()
    at_end = (apart @ (*other.shape, 1)).max()  # a small turn or scale adds up along a side
    if apart.max() > _APART or at_end > voxel / 2:
        raise DataError(f"{mask}: lies elsewhere in the patient than its volume ({image}); resample it onto it")


def _chosen(numbers: Sequence[int], rule: str) -> Sequence[int]:
    """The slices of one class that a rule as `Reading.slices` takes."""
    if rule == "all":
        return numbers
    if ":" not in rule:
        places = np.linspace(0, len(numbers) - 1, min(int(rule), len(numbers))).round().astype(int)
        return [numbers[place] for place in places]
    within = slice(*(int(part) if part else None for part in rule.split(":")))
    wanted = range(*within.indices(1 + max(numbers, default=0)))
    return [number for number in numbers if number in wanted]


def _is_flat(image: ImageRef) -> bool:
    """Whether a slice holds one value all over: there is nothing of the patient in it."""
    values = read_stored(image).values
    return bool((values == values.flat[0]).all())


def _with_patients(dataset: Dataset, found: Sequence[Expanded], reading: Reading) -> Dataset:
    """Patients by the headers, where they are asked for or nobody said otherwise; else each volume counts as one.

    So does one that a manifest, which names patients of others, leaves without. Where ids are missing, or all the same
    as anonymised files have them, the images of a study belong together.
    """
    said = dataset.patients and not dataset.patients_guessed
    if reading.patients not in ("auto", "header"):
        return dataset
    if said and reading.patients == "auto":
        return replace(dataset, samples=tuple(replace(s, patient=s.patient or s.volume) for s in dataset.samples))
    ids = [one.patient for one in found]
    differ = len({*ids} - {None}) > 1
    of, note = ids, "PatientID"
    if reading.patients == "header":
        if not all(ids):
            raise DataError(f"{dataset.root}: not all images have a patient's id in their header; name another rule")
    elif not (all(ids) and differ):
        if dataset.patients and not differ:  # guessed, and no header says better
            return dataset
        pairs = zip(dataset.samples, found, strict=True)
        of = [(differ and one.patient) or one.study or sample.volume for sample, one in pairs]
        note = "PatientID, or else the study" if differ else "the study"
        if not all(of):
            return dataset
    headers = any(one.study for one in found)
    samples = tuple(replace(sample, patient=one) for sample, one in zip(dataset.samples, of, strict=True))
    source, note = ("headers", note) if headers else ("volumes", "(each volume or series counts as one)")
    return replace(dataset, samples=samples, patients_from=source, patients_note=note, patients_guessed=False)
