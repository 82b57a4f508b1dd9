"""DICOM segmentations as masks: files that highdicom writes, of other segments, orders and kinds than ours."""

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.sr.coding import CodedConcept
from pydicom.uid import DigitalXRayImageStorageForPresentation, RTStructureSetStorage

from data.scanner import dicom, save, slices
from madclip.clinical.objects import headers_for
from madclip.data import read_mask
from madclip.data.inputs import expand_inputs
from madclip.data.load import load_dataset
from madclip.data.readers import frames_of
from madclip.errors import DataError

HEIGHTS = [0.0, 12.0, 3.0, 9.0, 6.0, 15.0]
LESIONS = np.zeros((6, 12, 16, 2), np.uint8)
"""By height: two segments that overlap at 3 mm; nothing elsewhere but for the first at 6 mm."""
LESIONS[1, 2:5, 3:7, 0] = 1
LESIONS[1, 4:9, 5:9, 1] = 1
LESIONS[2, 2:4, 3:7, 0] = 1


def segment(number):
    kind = CodedConcept("49755003", "SCT", "Morphologically abnormal structure")
    algorithm = highdicom.AlgorithmIdentificationSequence("test", CodedConcept("123109", "DCM", "Manual"), "1")
    return highdicom.seg.SegmentDescription(number, f"s{number}", kind, kind, "MANUAL", algorithm)


def segmentation(sources, pixels, path, kind="BINARY", **options):
    made = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=[segment(n + 1) for n in range(pixels.shape[-1])],
        series_instance_uid=highdicom.UID(),
        series_number=2,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=True,
        **options,
    )
    return save(made, path)


@pytest.fixture
def study(tmp_path):
    values = [np.full((12, 16), number, np.uint16) + np.eye(12, 16, dtype=np.uint16) for number in range(6)]
    slices(tmp_path / "ct", HEIGHTS, values)
    return tmp_path


def headers(folder):
    found = [pydicom.dcmread(path) for path in folder.glob("*.dcm")]
    return headers_for(sorted(found, key=lambda one: one.ImagePositionPatient[2]))


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_what_a_segmentation_marks_is_known_by_the_instance_it_refers_to(study, kind):
    sources = headers(study / "ct")
    pixels = LESIONS if kind == "BINARY" else LESIONS[..., :1] * (1 if kind == "LABELMAP" else np.float32(0.5))
    path = segmentation(sources, pixels, study / "seg.dcm", kind)
    (study / "manifest.csv").write_text("image,label,mask\nct,,seg.dcm\n")
    found = load_dataset(study)
    # By height 0 to 15: abnormal at 3 and 6, so that 0 and 9 are neither; 12 and 15 are normal.
    assert found.left == 2
    by_file = {sample.image.path.name: sample for sample in found.samples}
    assert sorted(by_file) == ["001.dcm", "002.dcm", "004.dcm", "005.dcm"]
    assert [by_file[f"00{n}.dcm"].label for n in (1, 2, 4, 5)] == [0, 1, 1, 0]
    marks = LESIONS.any(-1) if kind == "BINARY" else LESIONS[..., 0] > 0
    for name, place in (("002.dcm", 1), ("004.dcm", 2)):
        np.testing.assert_array_equal(read_mask(by_file[name].mask), marks[place])
    assert len({sample.volume for sample in found.samples}) == 1
    assert len(frames_of(path)) == 2  # images that something is marked in, not frames


def test_a_slice_may_be_named_with_the_segmentation_of_its_series(study):
    segmentation(headers(study / "ct"), LESIONS, study / "seg.dcm")
    rows = ["ct/002.dcm,abnormal,seg.dcm", "ct/001.dcm,normal,"]
    (study / "manifest.csv").write_text("\n".join(["image,label,mask", *rows]))
    found = load_dataset(study)
    (abnormal,) = found.abnormal
    np.testing.assert_array_equal(read_mask(abnormal.mask), LESIONS[1].any(-1))
    (study / "manifest.csv").write_text("\n".join(["image,label,mask", "ct/000.dcm,abnormal,seg.dcm", rows[1]]))
    with pytest.raises(DataError, match=r"marks nothing in .*000.dcm, which is said to be abnormal"):
        load_dataset(study)


def test_a_radiograph_and_its_mask_in_a_folder(tmp_path):
    film = dicom(np.eye(12, 16, dtype=np.uint16) * 9, PatientOrientation=["L", "F"], Modality="DX")
    film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    path = save(film, tmp_path / "abnormal/film.dcm")
    save(dicom(np.eye(12, 16, dtype=np.uint16) * 7), tmp_path / "normal/other.dcm")
    (source,) = headers_for([pydicom.dcmread(path)])
    segmentation([source], LESIONS[1][None], tmp_path / "masks/film.dcm")
    (sample,) = load_dataset(tmp_path).abnormal
    np.testing.assert_array_equal(read_mask(sample.mask), LESIONS[1].any(-1))


def test_our_own_results_are_no_images(study):
    """A folder with a study and what was written of it is the study."""
    segmentation(headers(study / "ct"), LESIONS, study / "ct/000_seg.dcm")
    ours = dicom(np.zeros((12, 16, 3), np.uint8), Manufacturer="madclip", Modality="OT", SeriesInstanceUID="1.9")
    save(ours, study / "ct/000_picture.dcm")
    dose = dicom(np.ones((12, 16), np.uint16), SeriesInstanceUID="1.8", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2")
    save(dose, study / "ct/dose.dcm")
    found = expand_inputs([study / "ct"])
    assert len(found.images) == 6
    assert found.passed_over == {"DICOM without an image": 3}


def test_segmentations_that_do_not_fit_are_refused(study):
    manifest = study / "manifest.csv"
    manifest.write_text("image,label,mask\nct,,seg.dcm\n")
    slices(study / "elsewhere", HEIGHTS)
    segmentation(headers(study / "elsewhere"), LESIONS, study / "seg.dcm")
    with pytest.raises(DataError, match="drawn on other images than"):
        load_dataset(study)
    moved = headers(study / "ct")
    for one in moved:
        one.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
    segmentation(moved, LESIONS, study / "seg.dcm")
    with pytest.raises(DataError, match="lie elsewhere"):
        load_dataset(study)
    found = pydicom.dcmread(segmentation(headers(study / "ct"), LESIONS, study / "seg.dcm"))
    for frame in found.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    save(found, study / "seg.dcm")
    with pytest.raises(DataError, match="says of no image that it was drawn on it"):
        load_dataset(study)
    contours = pydicom.dcmread(study / "ct/000.dcm")
    contours.SOPClassUID = contours.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    for name in ("PixelData", "Rows", "Columns"):
        delattr(contours, name)
    save(contours, study / "seg.dcm")
    with pytest.raises(DataError, match=r"RTSTRUCT.*save them as a DICOM segmentation"):
        load_dataset(study)
    slices(study / "ct/more", HEIGHTS, SeriesInstanceUID="1.2.3")
    with pytest.raises(DataError, match="ct: 2 DICOM series; an image is a file, or a folder with one"):
        load_dataset(study)
