"""Slices of scanner files as volumes: which belong together, in which order they lie in the patient, and what is odd.

Names and ids of headers are used to tell series and patients apart and are never kept: only their digests are.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.dicom import DICOM, count_frames, read_header, unreadable
from madclip.data.readers.dicom_values import of_frame, spacing_of
from madclip.data.readers.formats import reader_of
from madclip.data.ref import ImageRef
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from pydicom.dataset import Dataset

MANUFACTURER = "madclip"
"""Who made our own results, which are no images to predict."""
_RESULTS = ("1.2.840.10008.5.1.4.1.1.30", "1.2.840.10008.5.1.4.1.1.481.2")
"""Parametric maps and doses: numbers that somebody computed."""
SAME_PLACE = 1e-2
"""Slices nearer than this lie at one place: mm."""
EVEN = 0.05
"""Distances between slices may differ by this share of the usual one and still count as even."""
_SAME_DIRECTION = 0.999
"""Cosine of the angle between normals up to which slices are parallel."""
_TILTED = 0.5
"""Degrees from which slices count as not stacked along their normal."""


@dataclass(frozen=True)
class Place:
    """Where a slice lies in the patient.

    Attributes:
        corner: Centre of its first pixel, mm (left, posterior, superior; as DICOM has it).
        row: Direction in which a row runs, a unit vector.
        column: Direction in which a column runs, a unit vector.
        spacing: Millimetres between rows and between columns.
    """

    corner: tuple[float, float, float]
    row: tuple[float, float, float]
    column: tuple[float, float, float]
    spacing: tuple[float, float]

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        """The direction that stands upright on the slice."""
        return np.cross(self.row, self.column)

    @property
    def height(self) -> float:
        """How far along the normal the slice lies, mm."""
        return float(self.normal @ np.array(self.corner))


@dataclass(frozen=True)
class Series:
    """Images of one DICOM series, one multi-frame file or one volume, in the order in which they lie in the patient.

    Attributes:
        images: Their names.
        places: Where they lie; None where the files do not say it, as in ultrasound.
        notes: What is odd about them, a sentence each.
        study: What the series of one study share and others do not; empty for what is no DICOM.
    """

    images: tuple[ImageRef, ...]
    places: tuple[Place, ...] | None = None
    notes: tuple[str, ...] = ()
    study: str = ""


@dataclass(frozen=True)
class Facts:
    """What the header of a DICOM file says of where its images belong.

    Attributes:
        images: The names of its images; none where it holds no pixels, or what somebody computed of others: a
            segmentation, a parametric map, a dose, a result of ours.
        places: One for each image; None where a position is missing.
        series: Digest of the series' UID.
        study: Digest of the study's UID.
        patient: Digest of the patient's id; None where there is none.
        kind: Size and image type, by which localisers and slices of one series are told apart.
        number: The number of the image in its series, 0 where there is none.
        instance: Digest of the instance's UID.
    """

    images: tuple[ImageRef, ...]
    places: tuple[Place, ...] | None
    series: str
    study: str
    patient: str | None
    kind: tuple[Any, ...]
    number: int
    instance: str = ""


def facts_of(path: Path) -> Facts | None:
    """What a file's header says of where its images belong; None where the file is no DICOM.

    Raises:
        DataError: The header cannot be read.
    """
    if not isinstance(reader_of(path), DICOM):
        return None
    header = read_header(path)
    try:
        return _facts(path, header)
    except unreadable() as error:  # whose words may quote the header
        raise DataError(f"{path}: a damaged DICOM file ({type(error).__name__})") from None


def _facts(path: Path, header: Dataset) -> Facts:
    count = count_frames(path, header)
    result = header.get("SOPClassUID") in _RESULTS or str(header.get("Manufacturer") or "") == MANUFACTURER
    pixels = "Rows" in header and "BitsAllocated" in header and "SegmentSequence" not in header and not result
    images = [ImageRef(path, number if count > 1 else None) for number in range(count)] if pixels else []
    places = [place_of(header, number) for number in range(len(images))]
    patient = str(header.get("PatientID") or "").strip()
    spacing = spacing_of(header, 0)
    size = (header.get("Rows"), header.get("Columns"), *(round(one, 4) for one in spacing or ()))
    kind = (*size, "LOCALIZER" in (header.get("ImageType") or ()))
    return Facts(
        images=tuple(images),
        places=tuple(place for place in places if place) if all(places) else None,
        series=digest_of(header.get("SeriesInstanceUID") or path),
        study=digest_of(header.get("StudyInstanceUID") or path),
        patient=digest_of(patient) if patient else None,
        kind=kind,
        number=int(header.get("InstanceNumber") or 0),
        instance=digest_of(header.get("SOPInstanceUID") or path),
    )


def sorted_series(found: Iterable[Facts]) -> list[Series]:
    """The series that files belong to, each in the order in which its slices lie, in the order of their first files."""
    groups: dict[tuple[Any, ...], list[list[Facts]]] = defaultdict(list)
    order: list[list[Facts]] = []
    for facts in found:
        if not facts.images:
            continue
        alike = groups[(facts.series, *facts.kind, facts.images if len(facts.images) > 1 else ())]
        group = next((group for group in alike if _same_direction(group[0], facts)), None)
        if group is None:
            group = []
            alike.append(group)
            order.append(group)
        group.append(facts)
    parts = Counter(group[0].series for group in order)
    return [_in_order(group, parts[group[0].series]) for group in order]


def _in_order(group: Sequence[Facts], parts: int) -> Series:
    notes = [f"One of {parts} groups of the series that differ in size, orientation or kind."] if parts > 1 else []
    images = [(image, facts) for facts in group for image in facts.images]
    study = group[0].study
    if any(facts.places is None for facts in group):
        if len(group) > 1:
            notes.append("Some slices have no position: they are in the order of their numbers.")
        images.sort(key=lambda one: (one[1].number, one[0]))
        return Series(tuple(image for image, _ in images), None, tuple(notes), study)
    placed = [(place, image) for facts in group for image, place in zip(facts.images, facts.places or (), strict=True)]
    placed.sort(key=lambda one: (round(one[0].height, 3), one[1]))
    places = tuple(place for place, _ in placed)
    return Series(tuple(image for _, image in placed), places, (*notes, *said_of_gaps(places)), study)


def said_of_gaps(places: Sequence[Place]) -> list[str]:
    """What is odd about how slices in order are stacked: doubles, gaps, a tilt; a sentence each."""
    if len(places) < 2:
        return []
    said = []
    gaps = np.diff([place.height for place in places])
    doubles = int((gaps < SAME_PLACE).sum())
    if doubles:
        said.append(f"{doubles} of {len(places)} slices lie at the place of another one.")
    apart = gaps[gaps >= SAME_PLACE]
    if not apart.size:
        return said
    usual = float(np.median(apart))
    if (np.abs(apart - usual) > EVEN * usual).any():
        missing = np.round(apart / usual)
        if (np.abs(apart - missing * usual) <= EVEN * usual).all():
            said.append(
                f"{int((missing - 1).sum())} slices are missing between others (they are {usual:.2f} mm apart)."
            )
        else:
            said.append(f"Slices are unevenly spaced, from {apart.min():.2f} to {apart.max():.2f} mm apart.")
    way = np.array(places[-1].corner) - np.array(places[0].corner)
    cosine = abs(float(way @ places[0].normal)) / max(float(np.linalg.norm(way)), 1e-9)
    angle = float(np.degrees(np.arccos(min(1.0, cosine))))
    if angle > _TILTED:
        said.append(f"Slices are stacked at {angle:.1f} degrees to their normal, as with a tilted gantry.")
    return said


def _same_direction(one: Facts, other: Facts) -> bool:
    """Whether slices of two files can be of one stack."""
    if one.places is None or other.places is None:
        return one.places is other.places
    return bool(one.places[0].normal @ other.places[0].normal > _SAME_DIRECTION)


def place_of(header: Dataset, index: int) -> Place | None:
    """Where a frame lies in the patient; None where its header does not say it."""
    corner = of_frame(header, index, "PlanePositionSequence").get("ImagePositionPatient")
    directions = of_frame(header, index, "PlaneOrientationSequence").get("ImageOrientationPatient")
    spacing = spacing_of(header, index)
    if not corner or not directions or spacing is None or len(corner) != 3 or len(directions) != 6:
        return None
    x, y, z = (float(value) for value in corner)
    ways = np.array([float(value) for value in directions]).reshape(2, 3)
    lengths = np.linalg.norm(ways, axis=1)
    if not np.isfinite([x, y, z]).all() or not np.allclose(lengths, 1, atol=1e-2) or abs(ways[0] @ ways[1]) > 1e-2:
        return None
    (a, b, c), (d, e, f) = ways / lengths[:, None]
    return Place((x, y, z), (a, b, c), (d, e, f), spacing)


def digest_of(value: object) -> str:
    """What a UID or a patient's id is kept as."""
    return hashlib.blake2b(str(value).encode(), digest_size=8, person=b"madclip").hexdigest()
