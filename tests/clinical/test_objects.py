"""DICOM results: valid by dciodvfy, read alike by highdicom and dcmqi, kept byte for byte by a real archive."""

import json
import subprocess
import urllib.request
import warnings
from copy import deepcopy
from dataclasses import replace

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
from madclip.data.series import facts_of, sorted_series
from madclip.errors import DataError
from madclip.prediction import Prediction
from madclip.report.dicom import DicomWriter

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


def test_a_map_is_shown_from_0_to_1(sources, regions):
    """By the window in the object, as pydicom applies it, and not as a step at 0, which a linear window of 1 is."""
    made = parametric_map(sources, regions * np.float32(0.7), ORIGIN)
    shared = made.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0]
    values = np.array([0.0, 0.07, 0.5, 1.0])
    assert shared.VOILUTFunction == "LINEAR_EXACT"
    low = shared.WindowCenter - shared.WindowWidth / 2
    np.testing.assert_allclose((values - low) / shared.WindowWidth, values)


def test_a_report_refers_to_the_image_that_it_is_of(sources):
    made = report(sources, Finding(0.7, None, None, "said", source=4), ORIGIN)
    assert sources[4].SOPInstanceUID in str(made.ContentSequence)
    assert sources[0].SOPInstanceUID not in str(made.ContentSequence)


def test_what_nothing_can_refer_to_is_refused(sources):
    for name in ("SOPInstanceUID", "SOPClassUID", "Modality"):
        one = deepcopy(sources[0])
        delattr(one, name)
        with pytest.raises(DataError, match=f"has no {name}"):
            headers_for([one])


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


def test_a_later_run_says_so_and_is_another_object(tmp_path, sources, regions, dciodvfy):
    later = replace(ORIGIN, run=2)
    finding = Finding(0.7, 0.6, "uncertain", "said.")
    for make in (lambda o: segmentation(sources, regions, o), lambda o: report(sources, finding, o)):
        first, second = make(ORIGIN), make(later)
        assert dciodvfy(written(second, tmp_path / "second.dcm")) == []
        assert second.SeriesNumber == first.SeriesNumber + 10
        assert "run 2: research use only" in second.SeriesDescription
        assert second.SOPInstanceUID != first.SOPInstanceUID
        assert second.SeriesInstanceUID != first.SeriesInstanceUID
    said = [one.value for one in second.iterall() if one.keyword == "TextValue"]
    assert any("Run 2: it replaces earlier results of this series" in one for one in said)


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
    server = orthanc.removesuffix("/dicom-web")
    for number, one in enumerate(kept):
        asked = urllib.request.Request(f"{server}/tools/lookup", data=one.SOPInstanceUID.encode())
        with urllib.request.urlopen(asked, timeout=20) as answer:
            (place,) = [found["Path"] for found in json.load(answer) if found["Type"] == "Instance"]
        with urllib.request.urlopen(f"{server}{place}/file", timeout=20) as answer:
            assert answer.read() == (tmp_path / f"{number}.dcm").read_bytes()
        back = client.retrieve_instance(one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID)
        assert back == one
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
    (film_row,) = (row for row in rows if len(row["dicom"]) == 3)
    assert film_row["notes"][-1].startswith("no map: the images do not say where they lie")
    for path in sorted((out / "dicom").glob("*.dcm")):
        assert dciodvfy(path) == []
    first = {path.name: pydicom.dcmread(path).SOPInstanceUID for path in (out / "dicom").glob("*.dcm")}
    assert madclip_run(*command, "--out", tmp_path / "again") == 0
    again = {path.name: pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "again/dicom").glob("*.dcm")}
    assert first == again
    nifti(tmp_path / "a.nii.gz")
    refused = ["predict", small_detector, tmp_path / "a.nii.gz", "--dicom", "film", "--out", tmp_path / "no"]
    assert madclip_run(*refused) == 2


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ([1, 0, 0, 0, 1, 0], ["L", "P"]),  # axial, seen from the feet
        ([0, 1, 0, 0, 0, -1], ["P", "F"]),  # sagittal
        ([1, 0, 0, 0, 0, -1], ["L", "F"]),  # coronal, seen from the front
        ([-1, 0, 0, 0, -0.94, 0.34], ["R", "A"]),  # turned and tilted
        (None, ""),  # nothing says it, and nothing is made up
    ],
)
def test_a_picture_says_which_way_the_patient_lies(tmp_path, sources, ways, expected, dciodvfy):
    source = sources[0]
    if ways is None:
        del source.ImageOrientationPatient
    else:
        source.ImageOrientationPatient = ways
    path = written(picture(source, np.zeros((12, 16, 3), np.uint8), ORIGIN), tmp_path / "picture.dcm")
    assert pydicom.dcmread(path).PatientOrientation == expected
    assert dciodvfy(path) == []


def multiframe(path, order):
    """Five frames 3 mm apart as one enhanced CT, in an order of their own."""
    single = slices(path.parent / "single", [3.0 * n for n in range(5)], **ENHANCED)
    headers = headers_for([pydicom.dcmread(one) for one in single])
    for header in headers:
        header.SeriesNumber, header.Manufacturer = 1, "maker"
    uids = {f"{name}_instance_uid": pydicom.uid.generate_uid() for name in ("series", "sop")}
    make = highdicom.legacy.LegacyConvertedEnhancedCTImage
    return written(make([headers[n] for n in order], series_number=2, instance_number=1, **uids), path)


ENHANCED = {f"{what}Date": "20200101" for what in ("Content", "Acquisition", "Series")}
ENHANCED |= {f"{what}Time": "101010" for what in ("Content", "Acquisition", "Series")}
ENHANCED |= {
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "KVP": 120,
    "PatientPosition": "HFS",
    "AcquisitionNumber": 1,
}
ENHANCED |= {"RescaleSlope": 1, "RescaleIntercept": 0, "SliceThickness": 3, "BurnedInAnnotation": "NO"}


def results_of(folder, paths, maps, kinds):
    """What is written of the one series that files make, by the maps of its images as they lie in the patient."""
    (series,) = sorted_series(facts_of(path) for path in paths)
    (folder / "out").mkdir()
    writer = DicomWriter(folder / "out", kinds, ORIGIN)
    writer.write(0, series, maps, [Prediction(float(heat.max()), heat, heat.shape) for heat in maps])
    return [pydicom.dcmread(folder / "out" / name) for name in writer.names(0)], writer.refused(0)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 1, 3]])
def test_frames_of_one_file_keep_their_places(tmp_path, order):
    maps = np.zeros((5, 12, 16), np.float32)
    for number in range(5):  # the slice at 3 * n mm has n + 1 marked pixels, the first of 0.9
        maps[number, 2, : number + 1] = 0.9 - 0.05 * np.arange(number + 1)
    made, refused = results_of(tmp_path, [multiframe(tmp_path / "m.dcm", order)], maps, ("seg", "map"))
    assert (len(made), refused) == (2, [])
    for one in made:
        frames = zip(one.PerFrameFunctionalGroupsSequence, one.pixel_array, strict=True)
        marked = {float(f.PlanePositionSequence[0].ImagePositionPatient[2]): int((p > 0).sum()) for f, p in frames}
        assert marked == {0.0: 1, 3.0: 2, 6.0: 3, 9.0: 4, 12.0: 5}


def test_each_radiograph_of_a_series_has_its_map(tmp_path, dciodvfy):
    paths = []
    for number in range(3):
        made = dicom(np.zeros((40, 30), np.uint16), PatientOrientation=["L", "F"], Modality="DX", InstanceNumber=number)
        made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
        paths.append(save(made, tmp_path / f"{number}.dcm"))
    maps = np.stack([np.full((40, 30), value, np.float32) for value in (0.2, 0.4, 0.6)])
    made, refused = results_of(tmp_path, paths, maps, ("seg", "map"))
    assert [int(one.pixel_array.max()) for one in made] == [51, 102, 153]
    referred = [one.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID for one in made]
    assert referred == [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    assert len({one.SOPInstanceUID for one in made}) == 3
    (said,) = refused
    assert said.startswith("no map: the images do not say where they lie")
    for path in (tmp_path / "out/dicom").glob("*.dcm"):
        assert dciodvfy(path) == []


@pytest.mark.parametrize("value", [CANARY, f"{CANARY}=\\bad\x07", "z" * 80 + CANARY])
def test_no_warning_and_no_error_quotes_the_patient(tmp_path, sources, regions, value, caplog):
    for source in sources:
        for name in PATIENT:
            source.add_new(name, pydicom.datadict.dictionary_VR(name), value)
    caplog.clear()  # of what pydicom says where this test sets such values
    heat = regions * np.float32(0.7)
    makers = [
        lambda: segmentation(sources, regions, ORIGIN),
        lambda: parametric_map(sources, heat, ORIGIN),
        lambda: picture(sources[2], np.zeros((12, 16, 3), np.uint8), ORIGIN),
        lambda: report(sources, Finding(0.7, 0.6, None, "Sure."), ORIGIN),
        lambda: fractional(sources[0], heat[0], ORIGIN),
    ]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for make in makers:
            try:
                written(make(), tmp_path / "made.dcm")
            except DataError as error:
                assert CANARY not in f"{error} {error.__cause__}"  # noqa: PT017
    assert [str(one.message) for one in said if CANARY in str(one.message)] == []
    assert CANARY not in caplog.text


PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName")
PATIENT += ("StudyID", "StudyDate", "StudyTime", "StudyDescription", "PatientAge", "PatientComments", "Laterality")
