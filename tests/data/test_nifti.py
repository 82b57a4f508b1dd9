"""Slices of NIfTI volumes: against SimpleITK's orientation, nibabel's values, and flips of the axes on disk."""

import gzip
import itertools
import os
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from data.scanner import dicom, save, sequence, slices
from madclip.data import read_image, read_mask
from madclip.data.inputs import expand_inputs
from madclip.data.load import load_dataset, scan_dataset
from madclip.data.readers import frames_of
from madclip.data.ref import ImageRef
from madclip.data.samples import Reading, said_of_patients, said_of_volumes
from madclip.errors import DataError, RecipeError

rng = np.random.default_rng(11)
VOXELS = rng.integers(0, 250, (9, 11, 13)).astype(np.int16)
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])


def nifti(path, voxels=VOXELS, affine=AFFINE, codes="RAS", *, sform=1, qform=1, **header):
    """A volume whose voxels are given as (right, anterior, superior), stored in the order of `codes`."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    stored = np.asarray(apply_orientation(voxels, turn))
    image = nibabel.Nifti1Image(stored, affine @ inv_ornt_aff(turn, voxels.shape))
    image.set_sform(image.affine, sform)
    image.set_qform(image.affine, qform)
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def grey(ref, grey_range="0,250"):
    return read_image(ref, grey_range).pixels[0]


def test_label_maps_beside_volumes_are_no_images(tmp_path):
    lesion = (VOXELS > 200).astype(np.float32)
    for name, voxels in (
        ("a/flair", VOXELS),
        ("a/lesions", lesion),
        ("a/seg", VOXELS),  # called so, and of many values
        ("a/binary", lesion),  # of few values, and called something else
        ("b/CASE1_seg", 3 * lesion),  # alone: somebody means it
    ):
        nifti(tmp_path / f"{name}.nii.gz", voxels)
    found = expand_inputs([tmp_path])
    names = {image.path.relative_to(tmp_path).as_posix().removesuffix(".nii.gz") for image in found.images}
    assert names == {"a/flair", "a/seg", "a/binary", "b/CASE1_seg"}
    assert found.passed_over == {"masks": 1}
    assert len(expand_inputs([tmp_path / "a/lesions.nii.gz"]).images) == 13


def test_slices_are_shown_as_a_radiologist_sees_them(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    for codes in ("RAS", "LAS", "LPS", "PIR", "ASL"):
        path = nifti(tmp_path / f"{codes}.nii.gz", codes=codes)
        # Left, posterior, superior: [superior, posterior, left].
        there = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")) / 250
        axial, coronal, sagittal = (frames_of(path, axis) for axis in ("axial", "coronal", "sagittal"))
        assert [len(axial), len(coronal), len(sagittal)] == [13, 11, 9]
        for number, ref in enumerate(axial):
            np.testing.assert_allclose(grey(ref), there[number], atol=1e-6)
        for number, ref in enumerate(coronal):
            np.testing.assert_allclose(grey(ref), there[::-1, 10 - number, :], atol=1e-6)
        for number, ref in enumerate(sagittal):
            np.testing.assert_allclose(grey(ref), there[::-1, :, 8 - number], atol=1e-6)
        assert [read_image(refs[0]).spacing for refs in (axial, coronal, sagittal)] == [(3, 2), (4, 2), (4, 3)]
        assert [read_image(refs[0]).sides for refs in (axial, coronal, sagittal)] == ["RLAP", "RLHF", "APHF"]


def test_the_order_of_axes_on_disk_changes_nothing(tmp_path):
    orders = ["".join(axes) for axes in itertools.permutations(("R", "A", "S"))]
    orders += [order.replace("A", "P").replace("R", "L") for order in orders]
    for axis in ("axial", "coronal", "sagittal"):
        found = []
        for codes in orders:
            path = nifti(tmp_path / f"{codes}.nii.gz", codes=codes)
            found.append(np.stack([grey(ref) for ref in frames_of(path, axis)]))
        for other in found[1:]:
            np.testing.assert_array_equal(found[0], other)


def test_an_axis_may_be_named_by_its_number_on_disk(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", codes="PIR")  # back, down, right
    assert frames_of(path, "0") == frames_of(path, "coronal")
    assert frames_of(path, "1") == frames_of(path, "axial")
    assert frames_of(path, "2") == frames_of(path, "sagittal")
    assert str(frames_of(path, "0")[4]) == f"{path}#coronal4"
    assert len({ref.digest() for axis in "012" for ref in frames_of(path, axis)}) == 9 + 11 + 13


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_values_are_those_of_nibabel(tmp_path, dtype):
    image = nibabel.Nifti1Image(VOXELS.astype(dtype), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / "a.nii")
    expected = nibabel.load(tmp_path / "a.nii").get_fdata()[::-1, ::-1, 5].T
    np.testing.assert_allclose(
        read_image(ImageRef(tmp_path / "a.nii", 5), "-3,130").pixels[0], np.clip((expected + 3) / 133, 0, 1), atol=1e-6
    )


def test_the_range_is_the_volumes(tmp_path):
    voxels = VOXELS.astype(np.float32) - 20
    path = nifti(tmp_path / "a.nii.gz", voxels)
    one = ImageRef(path, 6)
    shown = voxels[::-1, ::-1, 6].T
    for rule, (low, high) in {
        "data": (voxels.min(), voxels.max()),
        "p10,p90": np.percentile(voxels, (10, 90)),
        "file": np.percentile(voxels, (0.5, 99.5)),
    }.items():
        np.testing.assert_allclose(grey(one, rule), np.clip((shown - low) / (high - low), 0, 1), atol=1e-6)
    assert "names no range" in read_image(one).note
    assert read_image(one, "data").note is None
    named = nifti(tmp_path / "b.nii.gz", voxels, cal_min=10, cal_max=60)
    np.testing.assert_allclose(grey(ImageRef(named, 6), "file"), np.clip((shown - 10) / 50, 0, 1), atol=1e-6)
    assert read_image(ImageRef(named, 6)).note is None
    bytes_ = nifti(tmp_path / "c.nii.gz", VOXELS.astype(np.uint8))
    np.testing.assert_allclose(grey(ImageRef(bytes_, 6), "file"), VOXELS[::-1, ::-1, 6].T / 255, atol=1e-6)


def test_colours(tmp_path):
    colour = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    values = rng.integers(0, 255, (9, 10, 4, 3)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(values.view(colour)[..., 0], AFFINE), tmp_path / "a.nii.gz")
    found = read_image(ImageRef(tmp_path / "a.nii.gz", 2)).pixels
    np.testing.assert_allclose(found, values[::-1, ::-1, 2].transpose(2, 1, 0) / 255, atol=1e-6)


def test_trailing_axes_of_one_are_dropped(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VOXELS[..., None, None], AFFINE), tmp_path / "a.nii.gz")
    assert len(frames_of(tmp_path / "a.nii.gz")) == 13


def write_bad(path, how):
    made = {
        "series": lambda: nibabel.Nifti1Image(np.zeros((9, 9, 9, 2), np.int16), AFFINE),
        "flat": lambda: nibabel.Nifti1Image(np.zeros((9, 9), np.int16), AFFINE),
        "complex": lambda: nibabel.Nifti1Image(np.zeros((9, 9, 9), np.complex64), AFFINE),
    }.get(how, lambda: nibabel.Nifti1Image(VOXELS, AFFINE))()
    if how == "codes":
        made.set_sform(None, 0)
        made.set_qform(None, 0)
    nibabel.save(made, path)
    data = bytearray(gzip.decompress(path.read_bytes()))
    if how == "absurd":
        data[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    elif how == "offset":
        data[108:112] = np.array([5e8], "<f4").tobytes()
    elif how == "type":
        data[70:72] = np.array([1999], "<i2").tobytes()
    elif how == "negative":
        data[42:44] = np.array([-9], "<i2").tobytes()
    elif how == "cut":
        data = data[:900]
    elif how == "affine":
        data[280:296] = np.full(4, np.nan, "<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(data)))
    return path


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("series", "four_to_three"),
        ("flat", "no volume"),
        ("complex", "magnitude"),
        ("codes", "set_sform"),
        ("absurd", "more than 1024 MB"),
        ("offset", "damaged"),
        ("type", "damaged"),
        ("negative", "no volume"),
        ("cut", "damaged"),
        ("affine", "orientation"),
    ],
)
def test_bad_volumes_are_refused_in_one_line(tmp_path, how, said):
    path = write_bad(tmp_path / "a.nii.gz", how)
    for read in (lambda: frames_of(path), lambda: read_image(ImageRef(path, 3))):
        with pytest.raises(DataError) as caught:
            read()
        assert said in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_headers_that_contradict_themselves_are_said(tmp_path):
    image = nibabel.Nifti1Image(VOXELS, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(np.diag([2.0, 3.0, 4.5, 1.0]), 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    note = read_image(ImageRef(tmp_path / "a.nii.gz", 3), "data").note
    assert "its sform was used" in note
    assert "voxel sizes" in note


def test_a_slice_has_to_be_named(tmp_path):
    path = nifti(tmp_path / "a.nii.gz")
    for ref in (ImageRef(path), ImageRef(path, 13), ImageRef(path, 11, "coronal")):
        with pytest.raises(DataError, match=r"#6|no such slice"):
            read_image(ref)
    nan = nifti(tmp_path / "b.nii.gz", np.where(VOXELS[3, 3, 3] == VOXELS, np.nan, VOXELS).astype(np.float32))
    with pytest.raises(DataError, match="NaN"):
        read_image(ImageRef(nan, 3), "data")


# Labelled volumes


def lesions(*marked):
    made = np.zeros(VOXELS.shape, np.uint8)
    for number in marked:
        made[3:6, 4:7, number] = 2
    return made


def listed(dataset):
    return [(sample.image.frame, sample.label, sample.mask and sample.mask.frame) for sample in dataset.samples]


def test_a_volume_whose_patient_a_manifest_leaves_out_is_of_one_patient(tmp_path):
    for name in ("known", "unknown"):
        nifti(tmp_path / f"{name}.nii.gz")
        nifti(tmp_path / f"{name}-map.nii.gz", lesions(5, 6))
    rows = ["known.nii.gz,,known-map.nii.gz,7", "unknown.nii.gz,,unknown-map.nii.gz,"]
    (tmp_path / "manifest.csv").write_text("\n".join(["image,label,mask,patient", *rows]))
    found = load_dataset(tmp_path)
    assert {(sample.image.path.stem, sample.patient == "7") for sample in found.samples} == {
        ("known.nii", True),
        ("unknown.nii", False),
    }
    assert len(found.patients) == 2
    assert None not in {sample.patient for sample in found.samples}


def test_a_label_map_that_is_turned_by_little_lies_elsewhere_at_the_far_end(tmp_path):
    """Half a degree about the first voxel: the other end of 200 lies 1.7 mm aside."""
    voxels = np.zeros((200, 12, 12), np.uint8)
    voxels[150:190, 4:7, 5] = 1
    turned, angle = np.eye(4), np.radians(0.5)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    nifti(tmp_path / "scan.nii.gz", voxels, np.eye(4))
    nifti(tmp_path / "map.nii.gz", voxels, turned)
    (tmp_path / "manifest.csv").write_text("image,label,mask\nscan.nii.gz,,map.nii.gz\n")
    with pytest.raises(DataError, match="lies elsewhere in the patient than its volume"):
        scan_dataset(tmp_path)
    turned[:2, :2] = np.eye(2) + (turned[:2, :2] - np.eye(2)) / 100  # as a header rounds
    nifti(tmp_path / "map.nii.gz", voxels, turned)
    assert any(sample.mask for sample in scan_dataset(tmp_path).samples)


def test_a_label_map_says_which_slices_are_abnormal(tmp_path):
    nifti(tmp_path / "scan.nii.gz")
    nifti(tmp_path / "map.nii.gz", lesions(5, 6), codes="LPS")
    (tmp_path / "manifest.csv").write_text("image,label,mask\nscan.nii.gz,,map.nii.gz\n")
    found = load_dataset(tmp_path)
    abnormal = [(5, 1, 5), (6, 1, 6)]
    normal = [(number, 0, None) for number in (0, 1, 2, 3, 8, 9, 10, 11, 12)]
    assert listed(found) == sorted([*abnormal, *normal])
    assert found.left == 2
    assert {sample.group for sample in found.samples} == {f"patient {found.samples[0].volume}"}
    assert "each volume or series counts as one" in said_of_patients(found)
    assert said_of_volumes(found) == "11 slices of 1 volume or series; 2 slices not taken"
    (sample,) = (sample for sample in found.samples if sample.image.frame == 5)
    expected = lesions(5)[::-1, ::-1, 5].T > 0
    np.testing.assert_array_equal(read_mask(sample.mask), expected)


def test_which_slices_are_taken(tmp_path):
    nifti(tmp_path / "normal/a.nii.gz")
    nifti(tmp_path / "abnormal/b.nii.gz", VOXELS + 1)
    nifti(tmp_path / "masks/b.nii.gz", lesions(2, 3, 4, 5))
    three = load_dataset(tmp_path, Reading(slices="3"))
    assert [[s.image.frame for s in side] for side in (three.normal, three.abnormal)] == [
        [0, 9, 12, 0, 6, 12],
        [2, 4, 5],
    ]
    every = load_dataset(tmp_path, Reading(slices="2:9:3"))
    assert [s.image.frame for s in every.normal] == [8, 2, 5, 8]
    assert [s.image.frame for s in every.abnormal] == [2, 5]
    with pytest.raises(DataError, match="no normal images among 0"):
        load_dataset(tmp_path, Reading(slices="5:0"))
    for rule in (":4", "3:", "::4", ":"):  # one volume is normal, and all its slices are its class
        wanted = [*range(13)][slice(*(int(part) if part else None for part in rule.split(":")))]
        found = load_dataset(tmp_path, Reading(slices=rule)).normal
        assert [s.image.frame for s in found if s.image.path.name == "a.nii.gz"] == wanted, rule
    assert len(load_dataset(tmp_path, Reading(axis="coronal")).samples) > 11
    for wrong in ("", "0", "a", "1:2:3:4", "1:2:0"):
        with pytest.raises(RecipeError, match="START:STOP:STEP"):
            Reading(slices=wrong)


def test_volumes_that_do_not_fit_are_refused(tmp_path):
    scan, other = nifti(tmp_path / "scan.nii.gz"), tmp_path / "map.nii.gz"
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("image,label\nscan.nii.gz,abnormal\n")
    with pytest.raises(DataError, match="nothing says which are abnormal"):
        load_dataset(tmp_path)
    manifest.write_text("image,label,mask\nscan.nii.gz,,map.nii.gz\n")
    nifti(other, lesions(3)[:, :, :12])
    with pytest.raises(DataError, match="9 x 11 x 12 voxels for a volume of 9 x 11 x 13"):
        load_dataset(tmp_path)
    shifted = AFFINE.copy()
    shifted[0, 3] = 5
    nifti(other, lesions(3), shifted)
    with pytest.raises(DataError, match="lies elsewhere"):
        load_dataset(tmp_path)
    assert scan.is_file()


def test_a_manifest_names_slices(tmp_path):
    nifti(tmp_path / "scan.nii.gz")
    nifti(tmp_path / "map.nii.gz", lesions(5))
    (tmp_path / "manifest.csv").write_text(
        "image,frame,axis,label,mask\nscan.nii.gz,5,,abnormal,map.nii.gz\nscan.nii.gz,1,coronal,normal,\n"
    )
    found = load_dataset(tmp_path)
    assert {str(sample.image).removeprefix(str(tmp_path)) for sample in found.samples} == {
        "/scan.nii.gz#5",
        "/scan.nii.gz#coronal1",
    }
    assert [sample.mask for sample in found.abnormal] == [ImageRef(tmp_path / "map.nii.gz", 5)]


def test_patients_of_dicom_files_come_from_their_headers(tmp_path):
    for number in range(4):
        folder = tmp_path / ("normal" if number < 2 else "abnormal") / f"s{number}"
        slices(folder, [0, 5], PatientID=f"ZZCANARY{number // 2}", SeriesInstanceUID=f"1.2.{number + 1}")
    found = load_dataset(tmp_path)
    assert found.patients_from == "headers"
    assert len(found.patients) == 2
    assert not any("ZZCANARY" in str(sample) for sample in found.samples)
    assert len({sample.volume for sample in found.samples}) == 4
    unknown = load_dataset(tmp_path, Reading(patients="none"))
    assert unknown.samples[0].patient is None
    assert unknown.samples[0].group == unknown.samples[1].group
    save(dicom(np.zeros((12, 12), np.uint16), PatientID=""), tmp_path / "normal/x.dcm")
    with pytest.raises(DataError, match="not all images have a patient's id"):
        load_dataset(tmp_path, Reading(patients="header"))


def test_headers_know_patients_better_than_names_do_and_a_manifest_better_than_headers(tmp_path):
    for number in range(8):
        kind, patient = ("normal", "abnormal")[number // 4], number // 2
        path = tmp_path / kind / f"p{patient + 10}_slice{number % 2}.dcm"
        save(dicom(np.full((12, 12), number, np.uint16), PatientID=f"ZZ{patient % 2}"), path)
    assert load_dataset(tmp_path).patients_from == "headers"
    assert len(load_dataset(tmp_path).patients) == 2
    named = load_dataset(tmp_path, Reading(patients="^(p[0-9]+)_"))
    assert named.patients == {"p10", "p11", "p12", "p13"}
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name},{n}" for n, path in enumerate(tmp_path.rglob("*.dcm"))]
    (tmp_path / "manifest.csv").write_text("\n".join(["image,label,patient", *rows]))
    assert load_dataset(tmp_path / "manifest.csv").patients == {str(n) for n in range(8)}


def test_studies_count_as_patients_where_ids_are_missing_or_all_the_same(tmp_path):
    for number in range(6):
        kind, study = ("normal", "abnormal")[number % 2], f"1.2.{number // 2}"
        header = {"StudyInstanceUID": study, "SeriesInstanceUID": f"1.2.3.{number}", "PatientID": "ANON"}
        slices(tmp_path / kind, [0, 5], names=[f"{chr(97 + number)}.dcm", f"{chr(107 + number)}.dcm"], **header)
    assert len(load_dataset(tmp_path).patients) == 3
    assert load_dataset(tmp_path).patients_note == "the study"
    save(dicom(np.eye(12, dtype=np.uint16), PatientID="other", SeriesInstanceUID="1.5"), tmp_path / "normal/x.dcm")
    save(dicom(np.eye(12, dtype=np.uint16) * 2, PatientID="", SeriesInstanceUID="1.6"), tmp_path / "normal/y.dcm")
    assert {sample.patient is None for sample in load_dataset(tmp_path).samples} == {False}
    assert len(load_dataset(tmp_path).patients) == 3  # ANON, other, and the study of the one without an id


def test_only_whole_normal_volumes_stand_for_whole_volumes(tmp_path):
    for name in "abc":
        nifti(tmp_path / f"{name}.nii.gz", VOXELS + ord(name))
    nifti(tmp_path / "map.nii.gz", lesions(8))
    slices(tmp_path / "ct", [0, 5, 10], [np.eye(12, 16, dtype=np.uint16)] * 3, SeriesInstanceUID="1.7")
    slices(tmp_path / "part", [0, 5], SeriesInstanceUID="1.8")
    rows = ["a.nii.gz,normal,,", "b.nii.gz,,map.nii.gz,", "c.nii.gz,normal,,3", "ct,normal,,", "part/000.dcm,normal,,"]
    (tmp_path / "manifest.csv").write_text("\n".join(["image,label,mask,frame", *rows]))
    found = scan_dataset(tmp_path, Reading(slices="0:4"))
    # b has a lesion, though not among the slices taken; c is one slice, and so is part.
    assert [{image.path.parent / image.path.name for image in images} for _, images in found.whole] == [
        {tmp_path / "a.nii.gz"},
        {tmp_path / f"ct/00{n}.dcm" for n in range(3)},
    ]
    assert [len(images) for _, images in found.whole] == [13, 3]


def test_frames_of_one_file_are_taken_as_they_lie(tmp_path):
    """Interleaved slices: the neighbours of a lesion are those next to it in the patient."""
    heights = [0.0, 6.0, 12.0, 3.0, 9.0, 15.0]
    frames = np.stack([np.eye(12, dtype=np.uint16) * (n + 1) for n in range(6)])
    made = dicom(frames, NumberOfFrames=6, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1")
    made.PerFrameFunctionalGroupsSequence = pydicom.Sequence()
    for height in heights:
        group = pydicom.Dataset()
        group.PlanePositionSequence = sequence(ImagePositionPatient=[0, 0, height])
        made.PerFrameFunctionalGroupsSequence.append(group)
    made.SharedFunctionalGroupsSequence = sequence(
        PlaneOrientationSequence=sequence(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
        PixelMeasuresSequence=sequence(PixelSpacing=[1, 1]),
    )
    save(made, tmp_path / "scan.dcm")
    mask = np.zeros((6, 12, 12), np.uint8)
    mask[1, 2:5, 2:5] = 1  # at 6 mm, so that those at 3 and 9 mm are neither
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    (tmp_path / "manifest.csv").write_text("image,label,mask\nscan.dcm,,mask.tif\n")
    found = load_dataset(tmp_path)
    assert [(s.image.frame, s.label, s.mask and s.mask.frame) for s in found.samples] == [
        (0, 0, None),
        (1, 1, 1),
        (2, 0, None),
        (5, 0, None),
    ]
    nifti(tmp_path / "map.nii.gz", lesions(3)[:, :, :6])
    for rows in ("scan.dcm,,map.nii.gz", "scan.nii.gz,,mask.tif"):
        nifti(tmp_path / "scan.nii.gz")
        (tmp_path / "manifest.csv").write_text(f"image,label,mask\n{rows}\n")
        with pytest.raises(DataError, match="nothing says which slice of it"):
            load_dataset(tmp_path)
    tifffile.imwrite(tmp_path / "mask.tif", mask[:5])
    (tmp_path / "manifest.csv").write_text("image,label,mask,frame\nscan.dcm,abnormal,mask.tif,1\n")
    with pytest.raises(DataError, match="5 slices for a volume of 6"):
        scan_dataset(tmp_path)


def test_masks_of_any_type_are_masks(tmp_path):
    for dtype in (np.uint8, np.int16, np.float32):
        path = nifti(tmp_path / f"{np.dtype(dtype)}.nii.gz", (255 * (lesions(3) > 0)).astype(dtype))
        assert read_mask(ImageRef(path, 3)).sum() == (lesions(3) > 0).sum()


def test_the_range_of_a_volume_does_not_depend_on_its_type_or_unit(tmp_path):
    voxels = np.clip(VOXELS, 0, 250)
    for dtype in (np.uint8, np.uint16):
        path = nifti(tmp_path / f"{np.dtype(dtype)}.nii.gz", voxels.astype(dtype), cal_min=10, cal_max=100)
        there = np.clip((voxels[::-1, ::-1, 4].T - 10) / 90, 0, 1)
        np.testing.assert_allclose(grey(ImageRef(path, 4), "file"), there, atol=1e-6)
        ends = np.percentile(voxels, (5, 90))
        there = np.clip((voxels[::-1, ::-1, 4].T - ends[0]) / (ends[1] - ends[0]), 0, 1)
        np.testing.assert_allclose(grey(ImageRef(path, 4), "p5,p90"), there, atol=1e-6)
    path = nifti(tmp_path / "um.nii.gz", affine=np.diag([2000.0, 3000.0, 4000.0, 1.0]), xyzt_units=3)
    assert read_image(ImageRef(path, 3)).spacing == (3, 2)


def test_a_slice_is_named_with_its_plane(tmp_path):
    nifti(tmp_path / "normal/a.nii.gz")
    nifti(tmp_path / "abnormal/b.nii.gz")
    nifti(tmp_path / "masks/b.nii.gz", lesions(5))
    found = load_dataset(tmp_path, Reading(axis="coronal", slices="1"))
    assert found.name(found.normal[0].image) == "abnormal/b.nii.gz#coronal0"
    assert load_dataset(tmp_path).name(ImageRef(tmp_path / "normal/a.nii.gz", 3)) == "normal/a.nii.gz#3"


def test_a_series_is_not_cut_along_another_axis_and_that_is_said(tmp_path):
    slices(tmp_path / "study", [10, 0, 5])
    assert "not cut along another axis" in expand_inputs([tmp_path / "study"], "coronal").said()
    assert expand_inputs([tmp_path / "study"], "axial").said() == ""


def test_inputs_are_volumes_and_series(tmp_path):
    path = nifti(tmp_path / "in/a.nii.gz")
    slices(tmp_path / "in/study", [10, 0, 5])
    found = expand_inputs([tmp_path / "in"])
    assert [len(one.images) for one in found.series] == [13, 3]
    assert [image.path.name for image in found.images[-3:]] == ["001.dcm", "002.dcm", "000.dcm"]
    assert len(expand_inputs([path], "coronal").images) == 11
    assert expand_inputs([f"{path}#7"]).images == (ImageRef(path, 7),)
    assert expand_inputs([f"{path}#coronal7"]).images == (ImageRef(path, 7, "coronal"),)


REAL = os.environ.get("MADCLIP_REAL_DATA")


@pytest.mark.skipif(not REAL, reason="MADCLIP_REAL_DATA names no folder with real files")
def test_a_real_volume_and_a_real_series():
    clinical = Path(REAL) / "clinical"
    found = expand_inputs([clinical / "CT_GE_tilt"])
    (series,) = found.series
    assert len(series.images) == 28
    assert "from 1.08 to 7.00 mm" in series.notes[0]
    assert "18.5 degrees" in series.notes[1]
    flair = clinical / "MS_FLAIR/flair.nii.gz"
    assert len(expand_inputs([flair]).images) == 182
    marked = [read_mask(ref).any() for ref in frames_of(clinical / "MS_FLAIR/lesions.nii.gz")]
    assert sum(marked) == 74
