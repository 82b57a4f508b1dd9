"""DICOM objects that an archive keeps beside a scan: regions, maps, pictures and a report, all marked as research.

Every object carries the patient module of its source, since an archive files by it, refers to the source's instances,
and has a UID of what it holds: the same result has the same UID, and anything else a new one.
"""

from __future__ import annotations

import hashlib
import warnings
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

from madclip.data.series import MANUFACTURER
from madclip.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from pydicom.dataset import Dataset

RESEARCH = "research use only, not for diagnosis"
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_SCHEME = "99MADCLIP"
"""Our coding scheme, where DICOM and SNOMED have no word."""
_MUST_BE = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality")
"""What results refer to of their sources."""
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
"""Attributes of type 2 that anonymisers remove: highdicom asks every source for them."""
_NUMBERS = {"segmentation": 9101, "map": 9102, "picture": 9103, "report": 9104}
"""Series numbers, far from those of scanners."""


@dataclass(frozen=True)
class Origin:
    """What made a result.

    Attributes:
        detector: SHA-256 of all that the detector's predictions depend on.
        version: The version of this package.
        threshold: The value of a map from which a pixel belongs to the region.
        objective: What the detector was fitted for, as shown to people.
        run: How often the study was predicted, this time included, as more of it came; results of a later run replace
            those of an earlier one of the same series.
    """

    detector: str
    version: str
    threshold: float
    objective: str = ""
    run: int = 1


@dataclass(frozen=True)
class Finding:
    """What a report says of a series or an image.

    Attributes:
        score: The anomaly score, 0 to 1.
        threshold: The score from which the detector decides for anomalous; None where it is not calibrated.
        verdict: `normal`, `anomalous` or `uncertain`; None where the detector is not calibrated.
        statement: How sure it is and why, in a sentence or two.
        source: The place, among the sources, of the image that it is of.
    """

    score: float
    threshold: float | None
    verdict: str | None
    statement: str
    source: int = 0


def segmentation(sources: Sequence[Dataset], regions: npt.NDArray[np.bool_], origin: Origin) -> Dataset:
    """The region above the threshold as a binary DICOM SEG, a frame for each slice, empty ones too.

    Args:
        sources: The slices' headers in any order, or that of one multi-frame image.
        regions: [N, H, W], in the order of the slices, or in that of the frames in their file.
        origin: What made them.

    Raises:
        DataError: The sources do not say where they lie, or nothing is marked.
    """
    if not regions.any():
        raise DataError("nothing reaches the threshold, and a DICOM segmentation of nothing says nothing")
    found = _segmented(sources, np.asarray(regions, np.uint8), origin, "BINARY")
    return _described(found, sources, "anomaly region", origin)


def fractional(source: Dataset, heat: npt.NDArray[np.float32], origin: Origin) -> Dataset:
    """The heat map [H, W] of a plain radiograph as a fractional DICOM SEG, which needs no position in the patient."""
    values = np.clip(np.asarray(heat, np.float32), 0, 1)[None]
    found = _segmented([source], values, origin, "FRACTIONAL")
    if "FrameOfReferenceUID" not in found:  # then this says how the picture lies, if only that nobody knows
        found.PatientOrientation = source.get("PatientOrientation")
    return _described(found, [source], "anomaly map", origin)


def parametric_map(sources: Sequence[Dataset], maps: npt.NDArray[np.float32], origin: Origin) -> Dataset:
    """The heat maps [N, H, W] of slices that lie in a patient as a float32 Parametric Map; order as in `segmentation`.

    Raises:
        DataError: The sources do not say where they lie, as radiographs.
    """
    highdicom = _highdicom()
    _check_places(sources)
    values = np.asarray(maps, np.float32)
    mapping = highdicom.pm.RealWorldValueMapping(
        lut_label="score",
        lut_explanation="anomaly score of a pixel, 0 to 1",
        unit=_code("1", "UCUM", "no units"),
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=_concept(highdicom, "score", "Anomaly score"),
    )
    found = _built(
        highdicom.pm.ParametricMap,
        sources,
        values,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[highdicom.VOILUTTransformation(0.5, 1.0, voi_lut_function="LINEAR_EXACT")],
        content_label="ANOMALY_MAP",
        **_common("map", sources, origin, values),
    )
    return _described(found, sources, "anomaly map", origin)


def picture(source: Dataset, overlay: npt.NDArray[np.uint8], origin: Origin) -> Dataset:
    """A picture [H, W, 3] of a heat map over its image as a Secondary Capture."""
    highdicom = _highdicom()
    common = _common("picture", [source], origin, overlay)
    orientation = _orientation(source)
    found = _built(
        highdicom.sc.SCImage.from_ref_dataset,
        source,
        overlay,
        "RGB",
        8,
        "PATIENT",
        series_instance_uid=common["series_instance_uid"],
        series_number=common["series_number"],
        sop_instance_uid=common["sop_instance_uid"],
        instance_number=1,
        manufacturer=MANUFACTURER,
        patient_orientation=orientation or ("L", "F"),
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )
    if orientation is None:
        found.PatientOrientation = None  # highdicom insists on one; empty says that nobody knows
    if source.get("BurnedInAnnotation"):
        # Nothing is drawn that names a patient, but what is below may name one.
        found.BurnedInAnnotation = source.BurnedInAnnotation
    return _described(found, [source], "anomaly overlay", origin)


def report(sources: Sequence[Dataset], finding: Finding, origin: Origin) -> Dataset:
    """A TID 1500 report: score, threshold, verdict, and in words how sure that is."""
    highdicom = _highdicom()
    sr = highdicom.sr
    observer = sr.ObserverContext(
        observer_type=_code("121007", "DCM", "Device"),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_uid(origin.detector), name=MANUFACTURER, model_name=origin.objective or None
        ),
    )
    measured = [("score", "Anomaly score", finding.score)]
    if finding.threshold is not None:
        measured.append(("threshold", "Threshold of the anomaly score", finding.threshold))
    verdict = finding.verdict or "uncalibrated"
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=_uid(origin.detector, "finding"), identifier="anomaly"),
        algorithm_id=sr.AlgorithmIdentification(name=MANUFACTURER, version=origin.version),
        measurements=[
            sr.Measurement(name=_concept(highdicom, code, name), value=value, unit=_code("1", "UCUM", "no units"))
            for code, name, value in measured
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(
                name=_concept(highdicom, "verdict", "Verdict"), value=_concept(highdicom, verdict, verdict.capitalize())
            )
        ],
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(sources[finding.source])],
    )
    again = f"Run {origin.run}: it replaces earlier results of this series. " if origin.run > 1 else ""
    said = sr.TextContentItem(
        name=_code("121106", "DCM", "Comment"),
        value=f"{finding.statement} {again}For {RESEARCH}.",
        relationship_type="CONTAINS",
    )
    group[0].ContentSequence.append(said)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_code("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=[group],
        title=_code("126000", "DCM", "Imaging Measurement Report"),
    )
    text = f"{finding}".encode()
    common = _common("report", sources, origin, np.frombuffer(text, np.uint8))
    for name in ("manufacturer_model_name", "software_versions", "device_serial_number"):
        common.pop(name)
    made = _built(sr.ComprehensiveSR, evidence=sources, content=content[0], **common)
    return _described(made, sources, "anomaly report", origin)


def headers_for(sources: Sequence[Dataset]) -> list[Dataset]:
    """Headers of sources with what highdicom asks for: attributes that may be empty, and the slices' thickness.

    A thickness that is missing is the usual distance between the slices.

    Raises:
        DataError: One does not say which object it is, so that nothing can refer to it.
    """
    from pydicom.valuerep import DSfloat

    found = [copy(source) for source in sources]
    for one in found:
        if missing := [name for name in _MUST_BE if not one.get(name)]:
            raise DataError(f"a source has no {missing[0]}, so that nothing can refer to it")
        for name in _MAY_BE_EMPTY:
            if name not in one:
                setattr(one, name, "")
        if "DeidentificationMethod" in one and not one.DeidentificationMethod:
            one.DeidentificationMethod = "not stated"  # may not be empty
    corners = np.array([one.ImagePositionPatient for one in found if one.get("ImagePositionPatient")], np.float64)
    gaps = np.linalg.norm(np.diff(corners, axis=0), axis=1) if len(corners) > 1 else np.ones(1)
    for one in found:
        if one.get("ImagePositionPatient") and not one.get("SliceThickness"):
            one.SliceThickness = DSfloat(float(np.median(gaps)) or 1.0, auto_format=True)
    return found


def derived_uid(kind: str, sources: Sequence[Dataset], origin: Origin, content: bytes = b"") -> str:
    """A UID of what a result is made from: kind, source instances, detector, threshold, version, and its content."""
    instances = sorted(str(source.SOPInstanceUID) for source in sources)
    facts = [kind, *instances, origin.detector, repr(origin.threshold), origin.version]
    facts += [f"run {origin.run}"] if origin.run > 1 else []
    return _uid(*facts, hashlib.sha256(content).hexdigest())


def _uid(*facts: str) -> str:
    """A UID below 2.25, by the digest of facts."""
    digest = hashlib.sha256("\0".join(facts).encode()).digest()
    return f"2.25.{UUID(bytes=digest[:16], version=5).int}"


def _common(kind: str, sources: Sequence[Dataset], origin: Origin, content: npt.NDArray[Any]) -> dict[str, Any]:
    """What all objects are made with."""
    return {
        "series_instance_uid": derived_uid(f"series of {kind}", sources, origin),
        "series_number": _NUMBERS[kind] + 10 * (origin.run - 1),
        "sop_instance_uid": derived_uid(kind, sources, origin, np.ascontiguousarray(content).tobytes()),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MANUFACTURER,
        "software_versions": origin.version,
        "device_serial_number": origin.detector[:16],
    }


def _segmented(sources: Sequence[Dataset], values: npt.NDArray[Any], origin: Origin, kind: str) -> Any:
    highdicom = _highdicom()
    if kind == "BINARY":
        _check_places(sources)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=MANUFACTURER, version=origin.version, family=_code("123109", "DCM", "Artificial Intelligence")
    )
    described = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="anomaly",
        segmented_property_category=_code("49755003", "SCT", "Morphologically Abnormal Structure"),
        segmented_property_type=_code("52988006", "SCT", "Lesion"),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=derived_uid("segment", sources, origin),
        tracking_id="anomaly",
    )
    return _built(
        highdicom.seg.Segmentation,
        list(sources),
        values,
        kind,
        [described],
        omit_empty_frames=False,
        content_label="ANOMALY",
        content_description=f"At or above {origin.threshold:.4f}" if kind == "BINARY" else "Anomaly score",
        **_common("segmentation", sources, origin, values),
    )


def _orientation(source: Dataset) -> tuple[str, str] | None:
    """The directions in which rows and columns of an image run, such as `("L", "P")`; None where nothing says it."""
    stated = source.get("PatientOrientation")
    if stated and len(stated) == 2:
        return str(stated[0]), str(stated[1])
    ways = source.get("ImageOrientationPatient")
    if not ways or len(ways) != 6:
        return None
    row, column = np.array([float(value) for value in ways]).reshape(2, 3)
    return _letter(row), _letter(column)


def _letter(way: npt.NDArray[np.float64]) -> str:
    """The end of the patient that a direction (left, posterior, superior) points at most."""
    axis = int(np.abs(way).argmax())
    return ("RL", "AP", "FH")[axis][int(way[axis] > 0)]


def _check_places(sources: Sequence[Dataset]) -> None:
    first = sources[0]
    if not (first.get("FrameOfReferenceUID") and (first.get("ImagePositionPatient") or first.get("NumberOfFrames"))):
        raise DataError("the images do not say where they lie in the patient (no frame of reference, or no position)")


def _built(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What highdicom makes, or one line where the sources lack what it needs; its own words may quote them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote names of patients
            return make(*arguments, **options)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"the images' headers lack what such an object needs ({type(error).__name__})") from None


def _described(found: Any, sources: Sequence[Dataset], what: str, origin: Origin) -> Dataset:
    again = f"madclip {what}, run {origin.run}: research use only"
    found.SeriesDescription = again if origin.run > 1 else f"madclip {what}: {RESEARCH}"[:64]
    if sources[0].get("StudyDescription"):
        found.StudyDescription = sources[0].StudyDescription
    if "Laterality" not in found and found.SOPClassUID != _SEGMENTATION and found.Modality != "SR":
        found.Laterality = sources[0].get("Laterality", "")
    made: Dataset = found
    return made


def _code(value: str, scheme: str, meaning: str) -> Any:
    from pydicom.sr.coding import Code

    return Code(value, scheme, meaning)


def _concept(highdicom: Any, value: str, meaning: str) -> Any:
    return highdicom.sr.CodedConcept(value=value, scheme_designator=_SCHEME, meaning=meaning)


def _highdicom() -> Any:
    from madclip.data.readers.dicom import import_pydicom

    import_pydicom()
    try:
        import highdicom
    except ImportError:
        raise MissingExtraError.of("DICOM results", "dicom") from None
    return highdicom
