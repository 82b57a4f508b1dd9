"""NRRD and MetaImage: the same slices as those of the same volume in NIfTI, and no other file is opened."""

import gzip
import resource
import zlib

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk

from madclip.data import read_image, read_mask
from madclip.data.inputs import expand_inputs
from madclip.data.load import load_dataset
from madclip.data.readers import frames_of, is_scanner_file
from madclip.data.readers.formats import open_volume
from madclip.data.ref import ImageRef
from madclip.detector import MadCLIP
from madclip.errors import DataError
from madclip.report.plan import Output
from madclip.report.predictions import predict_folder
from madclip.serve.volumes import image_volume

rng = np.random.default_rng(3)
VOXELS = rng.integers(-900, 900, (13, 11, 9)).astype(np.int16)
"""Slices, rows, columns, as SimpleITK has them."""
TURN = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])
KINDS = ("nrrd", "mha")


def write(path, codes="LPS", voxels=VOXELS, turn=TURN, *, packed=False):
    """A volume that SimpleITK writes, leaning a little, whose axes run as `codes` say."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((2.0, 3.0, 4.0))
    image.SetDirection(turn.ravel().tolist())
    image.SetOrigin((5.0, -6.0, 7.0))
    sitk.WriteImage(sitk.DICOMOrient(image, codes), str(path), packed)
    return path


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "ASL"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_slices_are_those_of_the_same_volume_in_nifti(tmp_path, kind, packed, codes):
    one = write(tmp_path / f"a.{kind}", codes, packed=packed)
    other = write(tmp_path / "b.nii.gz", codes)
    for axis in ("axial", "coronal", "sagittal", "0", "1", "2"):
        here, there = frames_of(one, axis), frames_of(other, axis)
        assert [ref.mark for ref in here] == [ref.mark for ref in there]
        for mine, theirs in zip(here, there, strict=True):
            first, second = read_image(mine, "-900,900"), read_image(theirs, "-900,900")
            assert np.array_equal(first.pixels, second.pixels)
            assert first.spacing == pytest.approx(second.spacing)
            assert first.sides == second.sides
    np.testing.assert_allclose(open_volume(one).affine, nibabel.load(other).affine, atol=1e-4)
    assert is_scanner_file(one)
    assert "names no range" in read_image(frames_of(one)[3]).note


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_values_of_every_type(tmp_path, kind, dtype):
    values = (VOXELS.astype(np.float64) / 9 + (100 if dtype[0] == "u" else 0)).clip(0 if dtype[0] == "u" else -100, 100)
    path = write(tmp_path / f"a.{kind}", voxels=values.astype(dtype), turn=np.eye(3))
    expected = (values.astype(dtype).astype(np.float64)[5] + 100) / 200
    np.testing.assert_allclose(read_image(ImageRef(path, 5), "-100,100").pixels[0], expected, atol=1e-6)


@pytest.mark.parametrize("space", ["RAS", "left-anterior-superior", "left-posterior-superior"])
def test_other_spaces_and_byte_orders(tmp_path, space):
    """As 3D Slicer and others write it, by the library that is not ours."""
    ways, origin = np.diag([2.0, 3.0, 4.0]), np.array([5.0, -6.0, 7.0])
    header = {"space": space, "space directions": ways, "space origin": origin, "endian": "big", "encoding": "raw"}
    nrrd.write(str(tmp_path / "a.nrrd"), VOXELS.T.astype(">i2"), header)
    signs = {"RAS": (1, 1), "left-anterior-superior": (-1, 1), "left-posterior-superior": (-1, -1)}[space]
    found = open_volume(tmp_path / "a.nrrd")
    np.testing.assert_allclose(found.affine[:3], np.diag([*signs, 1]) @ np.column_stack([ways, origin]))
    assert np.array_equal(found.voxels, VOXELS.T)


def text_of(path):
    """The header of a file, and its voxels."""
    data = path.read_bytes()
    end = data.index(b"\n\n") + 2 if path.suffix == ".nrrd" else data.index(b"LOCAL\n") + 6
    return data[:end], data[end:]


def write_bad(path, how):
    write(path, packed=how == "bomb")
    head, voxels = text_of(path)
    if path.suffix == ".nrrd":
        old, new = {
            "absurd": (b"sizes: 9 11 13", b"sizes: 90000 11000 13000"),
            "lies": (b"sizes: 9 11 13", b"sizes: 9 11 19"),
            "negative": (b"sizes: 9 11 13", b"sizes: -9 11 13"),
            "detached": (b"\n\n", b"\ndata file: ../../../../etc/passwd\n\n"),
            "nowhere": (b"space: left-posterior-superior", b"content: nothing"),
            "type": (b"type: short", b"type: block"),
            "nan": (b"space origin: (5,-6,7)", b"space origin: (5,nan,7)"),
            "axes": (b"dimension: 3", b"dimension: 4"),
            "endless": (b"\n\n", b"\n" + b"# more\n" * 20_000),
        }.get(how, (b"", b""))
    else:
        old, new = {
            "absurd": (b"DimSize = 9 11 13", b"DimSize = 90000 11000 13000"),
            "lies": (b"DimSize = 9 11 13", b"DimSize = 9 11 19"),
            "negative": (b"DimSize = 9 11 13", b"DimSize = -9 11 13"),
            "detached": (b"LOCAL", b"/etc/passwd"),
            "nowhere": (b"TransformMatrix", b"Comment"),
            "type": (b"MET_SHORT", b"MET_OTHER"),
            "nan": (b"Offset = 5", b"Offset = nan"),
            "axes": (b"NDims = 3", b"NDims = 4"),
            "endless": (b"ElementDataFile = LOCAL", b"Comment = more\n" * 10_000),
        }.get(how, (b"", b""))
    assert old in head, head
    head = head.replace(old, new) if old else head
    if how == "cut":
        voxels = voxels[:-3]
    elif how == "bomb":
        voxels = (gzip.compress if path.suffix == ".nrrd" else zlib.compress)(bytes(2**28))
    path.write_bytes(head + voxels)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("absurd", "more than 1024 MB"),
        ("lies", "damaged"),
        ("negative", "no volume"),
        ("detached", "in another file"),
        ("nowhere", "does not say how it lies"),
        ("type", "are not read"),
        ("nan", "orientation"),
        ("axes", "three axes"),
        ("endless", "no voxels follow"),
        ("cut", "damaged"),
    ],
)
def test_bad_volumes_are_refused_in_one_line_of_text(tmp_path, kind, how, said):
    path = write_bad(tmp_path / f"a.{kind}", how)
    for read in (lambda: frames_of(path), lambda: read_image(ImageRef(path, 3))):
        with pytest.raises(DataError) as caught:
            read()
        assert said in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        assert "passwd" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_is_inflated_no_further_than_its_header_says(tmp_path, kind):
    path = write_bad(tmp_path / f"a.{kind}", "bomb")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(frames_of(path)) == 13
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_map_may_be_of_another_format(tmp_path, kind):
    write(tmp_path / "scan.nii.gz")
    marked = np.zeros(VOXELS.shape, np.uint8)
    marked[5:7, 2:6, 3:6] = 1
    write(tmp_path / f"map.{kind}", "RAS", marked)
    (tmp_path / "manifest.csv").write_text(f"image,label,mask\nscan.nii.gz,,map.{kind}\n")
    found = load_dataset(tmp_path)
    assert [sample.image.frame for sample in found.abnormal] == [5, 6]
    assert [read_mask(sample.mask).sum() for sample in found.abnormal] == [12, 12]


@pytest.mark.parametrize("kind", KINDS)
def test_the_heat_map_lies_on_the_volume(tmp_path, kind, small_detector):
    path = write(tmp_path / f"a.{kind}", "PIR")
    found = expand_inputs([path], "coronal")
    output = Output(overlays=False, maps="npy")
    rows = predict_folder(MadCLIP.load(small_detector, device="cpu"), found, tmp_path / "out", output=output)
    heat = nibabel.load(tmp_path / "out" / "volumes" / "000.nii.gz")
    scan = write(tmp_path / "b.nii.gz", "PIR")
    np.testing.assert_allclose(heat.affine, nibabel.load(scan).affine, atol=1e-4)
    assert heat.shape == nibabel.load(scan).shape
    # One point of one slice, by where it lies in the patient.
    number, row, column = 4, 2, 3
    value = np.load(tmp_path / "out" / rows[number]["map"])[row, column]
    upright = nibabel.as_closest_canonical(heat)
    assert upright.get_fdata()[8 - column, number, 12 - row] == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_shows_it_as_nifti(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}", "PIR")
    _, content = image_volume([(str(path), number, "") for number in range(13)], None)
    (tmp_path / "b.nii.gz").write_bytes(content)
    shown, scan = nibabel.load(tmp_path / "b.nii.gz"), nibabel.load(write(tmp_path / "c.nii.gz", "PIR"))
    np.testing.assert_allclose(shown.affine, scan.affine, atol=1e-4)
    assert np.array_equal(np.asarray(shown.dataobj), np.asarray(scan.dataobj))
