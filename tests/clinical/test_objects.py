"""DICOM results: valid by dciodvfy, read alike by highdicom and dcmqi, kept byte for byte by a real archive."""

import io
import json
import subprocess

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import DigitalXRayImageStorageForPresentation

from clinical.conftest import tool
from data.scanner import dicom, save, slices
from data.test_nifti import nifti
from madclip.clinical.objects import (
    Finding,
    Origin,
    fractional,
    headers_for,
    parametric_map,
    picture,
    report,
    segmentation,
)
from madclip.errors import DataError

ORIGIN = Origin("ab" * 32, "1.2.3", 0.5, "Brain")
SHAPE = (6, 12, 16)
CANARY = "ZZCANARY"


@pytest.fixture
def sources(tmp_path):
    paths = slices(tmp_path / "study", [0.0, 3.0, 6.0, 9.0, 12.0, 15.0], PatientName=f"{CANARY}^A", PatientID=CANARY)
    return headers_for([pydicom.dcmread(path) for path in paths])


@pytest.fixture
def regions():
    """Two lesions with slices between them in which there is nothing."""
    made = np.zeros(SHAPE, bool)
    made[0:2, 2:5, 3:7] = True
    made[4:6, 7:10, 9:14] = True
    return made


@pytest.fixture
def radiograph(tmp_path):
    made = dicom(np.zeros((40, 30), np.uint16), PatientOrientation=["L", "F"], Modality="DX")
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    del made.PatientID
    return headers_for([pydicom.dcmread(save(made, tmp_path / "film.dcm"))])[0]


def written(made, path):
    made.save_as(path, enforce_file_format=True)
    return path


def test_everything_is_valid(tmp_path, sources, regions, radiograph, dciodvfy):
    heat = regions * np.float32(0.7)
    finding = Finding(0.7, 0.6, "uncertain", "The score fits normal and anomalous images alike.")
    made = {
        "seg": segmentation(sources, regions, ORIGIN),
        "map": parametric_map(sources, heat, ORIGIN),
        "picture": picture(sources[2], np.zeros((12, 16, 3), np.uint8), ORIGIN),
        "report": report(sources, finding, ORIGIN),
        "film": fractional(radiograph, np.full((40, 30), 0.5, np.float32), ORIGIN),
    }
    for name, one in made.items():
        assert dciodvfy(written(one, tmp_path / f"{name}.dcm")) == []
        assert "research use only" in one.SeriesDescription
        assert len(one.SeriesDescription) <= 64
        assert one.StudyInstanceUID == sources[0].StudyInstanceUID
    # An archive files by the patient, whose module is the source's.
    assert {str(made[name].PatientID) for name in ("seg", "map", "picture", "report")} == {CANARY}


def test_a_segmentation_is_read_back(tmp_path, sources, regions):
    path = written(segmentation(sources, regions, ORIGIN), tmp_path / "seg.dcm")
    found = highdicom.seg.segread(path)
    assert found.SegmentationType == "BINARY"
    assert int(found.NumberOfFrames) == 6
    uids = [source.SOPInstanceUID for source in sources]
    pixels = found.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(pixels > 0, regions)


def test_its_lesions_lie_where_dcmqi_finds_them(tmp_path, sources, regions):
    sitk = pytest.importorskip("SimpleITK")
    path = written(segmentation(sources, regions, ORIGIN), tmp_path / "seg.dcm")
    out = tmp_path / "dcmqi"
    out.mkdir()
    program = tool("segimage2itkimage")
    command = [program, "--inputDICOM", path, "--outputDirectory", out, "--outputType", "nii"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (image,) = map(sitk.ReadImage, map(str, sorted(out.glob("*.nii*"))))
    labels = sitk.ConnectedComponent(image)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(labels)
    theirs = sorted(shape.GetCentroid(label) for label in shape.GetLabels())
    # Millimetres by hand: columns are 1 mm apart, rows 2 mm, slices 3 mm; the first pixel lies at (-8, -6, 0).
    expected = [(-8 + 4.5, -6 + 2 * 3, 3 * 0.5), (-8 + 11, -6 + 2 * 8, 3 * 4.5)]
    np.testing.assert_allclose(theirs, expected, atol=0.01)


def test_a_parametric_map_is_exact(tmp_path, sources):
    heat = np.random.default_rng(1).random(SHAPE).astype(np.float32)
    path = written(parametric_map(sources, heat, ORIGIN), tmp_path / "map.dcm")
    found = pydicom.dcmread(path)
    heights = [
        group.PlanePositionSequence[0].ImagePositionPatient[2] for group in found.PerFrameFunctionalGroupsSequence
    ]
    np.testing.assert_array_equal(found.pixel_array[np.argsort(heights)], heat)


def test_a_radiograph_has_a_fractional_map(tmp_path, radiograph):
    heat = np.linspace(0, 1.0000002, 1200, dtype=np.float32).reshape(40, 30)
    path = written(fractional(radiograph, heat, ORIGIN), tmp_path / "film.dcm")
    found = pydicom.dcmread(path)
    assert found.SegmentationType == "FRACTIONAL"
    np.testing.assert_allclose(found.pixel_array / 255, heat, atol=0.003)
    with pytest.raises(DataError, match="where they lie"):
        parametric_map([radiograph], heat[None], ORIGIN)
    with pytest.raises(DataError, match="where they lie"):
        segmentation([radiograph], heat[None] > 0.5, ORIGIN)


def test_nothing_marked_is_said(sources):
    with pytest.raises(DataError, match="nothing reaches the threshold"):
        segmentation(sources, np.zeros(SHAPE, bool), ORIGIN)


def test_the_same_result_has_the_same_uid_and_anything_else_a_new_one(sources, regions):
    from dataclasses import replace

    first = segmentation(sources, regions, ORIGIN)
    assert segmentation(sources, regions, ORIGIN).SOPInstanceUID == first.SOPInstanceUID
    changed = regions.copy()
    changed[3, 3, 3] = True
    others = [
        segmentation(sources, changed, ORIGIN),
        segmentation(sources[::-1][:5], regions[:5], ORIGIN),
        *(segmentation(sources, regions, replace(ORIGIN, **{name: value})) for name, value in CHANGES.items()),
        parametric_map(sources, regions * np.float32(1), ORIGIN),
    ]
    uids = [first.SOPInstanceUID, *(one.SOPInstanceUID for one in others)]
    assert len({*uids}) == len(uids)
    for uid in uids:
        assert uid.startswith("2.25.")
        assert uid.is_valid


CHANGES = {"detector": "cd" * 32, "version": "1.2.4", "threshold": 0.6}


def test_a_report_says_score_threshold_and_how_sure_it_is(sources):
    made = report(sources, Finding(0.71, 0.62, "anomalous", "Few shots."), ORIGIN)
    text = " ".join(str(element.value) for element in made.iterall() if element.VR in ("UT", "DS", "LO"))
    for part in ("0.71", "0.62", "Anomalous", "Few shots. For research use only, not for diagnosis."):
        assert part in text
    assert "Uncalibrated" in str(report(sources, Finding(0.71, None, None, "No threshold."), ORIGIN))


def test_an_archive_keeps_them_byte_for_byte(tmp_path, sources, regions, orthanc):
    from dicomweb_client.api import DICOMwebClient

    client = DICOMwebClient(orthanc)
    made = [
        segmentation(sources, regions, ORIGIN),
        parametric_map(sources, regions * np.float32(0.5), ORIGIN),
        report(sources, Finding(0.7, 0.6, "normal", "Sure."), ORIGIN),
    ]
    kept = [pydicom.dcmread(written(one, tmp_path / f"{number}.dcm")) for number, one in enumerate(made)]
    client.store_instances(kept)
    for number, one in enumerate(kept):
        back = client.retrieve_instance(one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)
        buffer = io.BytesIO()
        back.save_as(buffer, enforce_file_format=True)
        again = pydicom.dcmread(io.BytesIO(buffer.getvalue()))
        assert again == pydicom.dcmread(tmp_path / f"{number}.dcm")
    found = client.search_for_series(search_filters={"StudyInstanceUID": sources[0].StudyInstanceUID})
    assert {one["0020000E"]["Value"][0] for one in found} == {one.SeriesInstanceUID for one in kept}


def test_predict_writes_them(tmp_path, madclip_run, small_detector, dciodvfy):
    slices(tmp_path / CANARY, [0.0, 3.0, 6.0], [np.full((40, 40), 500 * n, np.uint16) for n in range(3)], BitsStored=12)
    film = dicom(np.full((40, 40), 900, np.uint16), BitsStored=12, SeriesInstanceUID="1.2.9", Modality="DX")
    film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    save(film, tmp_path / CANARY / "x.dcm")
    out = tmp_path / "out"
    command = ["predict", small_detector, tmp_path / CANARY, "--dicom", "seg,map,picture,report", "--region", "0.01"]
    assert madclip_run(*command, "--out", out) == 0
    rows = [json.loads(line) for line in (out / "series.jsonl").read_text().splitlines()]
    assert sorted(len(row["dicom"]) for row in rows) == [3, 4]
    for path in sorted((out / "dicom").glob("*.dcm")):
        assert dciodvfy(path) == []
    first = {path.name: pydicom.dcmread(path).SOPInstanceUID for path in (out / "dicom").glob("*.dcm")}
    assert madclip_run(*command, "--out", tmp_path / "again") == 0
    again = {path.name: pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "again/dicom").glob("*.dcm")}
    assert first == again
    nifti(tmp_path / "a.nii.gz")
    refused = ["predict", small_detector, tmp_path / "a.nii.gz", "--dicom", "film", "--out", tmp_path / "no"]
    assert madclip_run(*refused) == 2
