"""What the rules of Chest, NIHChest, CheXpert and ADNI say, and rows of their tables that cannot be used."""

from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from originals import MINIATURES
from PIL import Image
from pydicom.data import get_testdata_file

from data.scanner import dicom, save
from madclip.benchmark.prepare import adni, chest, chexpert, nih, prepare
from madclip.benchmark.prepare.layout import Original
from madclip.benchmark.prepare.volumes import open_volume
from madclip.benchmark.registry import registered
from madclip.errors import DataError

TABLES = {
    "Chest": "stage_2_detailed_class_info.csv",
    "NIHChest": "Data_Entry_2017.csv",
    "CheXpert": "train.csv",
    "ADNI": "MPRAGE_11_24_2026.csv",
}


@pytest.fixture
def download(tmp_path):
    def make(name):
        root = tmp_path / "download"
        root.mkdir()
        MINIATURES[name](root)
        return root

    return make


def splits(originals):
    return Counter((one.split, one.label) for one in originals)


def append(table, row):
    """Adds a row and says where it stands."""
    lines = len(table.read_text().splitlines())
    with table.open("a") as file:
        file.write(row + "\n")
    return rf"{table.name}: line {lines + 1}: "


def test_chest_of_the_whole_download_has_the_registered_counts():
    # The challenge has 8,851 normal images and 17,833 others.
    images = [Original(Path(f"{i}.dcm"), int(i >= 8851), f"{i:05d}") for i in range(26684)]
    split = chest.split_images(images, 0)
    by_split = Counter(one.split for one in split)
    assert by_split == {name: counts["total"] for name, counts in registered("Chest").counts.items()}
    # Of 18,684 images that are left 1,490 are in valid: 851 and 17,833 times that share are 67.9 and 1,422.1.
    assert splits(split) == {
        ("train", 0): 8000,
        ("valid", 0): 68,
        ("valid", 1): 1422,
        ("test", 0): 783,
        ("test", 1): 16411,
    }
    assert chest.split_images(images[::-1], 0) == split
    assert chest.split_images(images, 1) != split
    assert sorted(one.image for one in split) == sorted(one.image for one in images)


@pytest.mark.parametrize(("normal", "abnormal", "what"), [(30, 40, "normal"), (60, 16, "abnormal")])
def test_chest_of_too_few_images(normal, abnormal, what):
    images = [Original(Path(f"{i}.dcm"), int(i >= normal), f"{i:05d}") for i in range(normal + abnormal)]
    with pytest.raises(DataError, match=f"too few {what} images"):
        chest.split_images(images, 0)


def test_chest_writes_what_the_files_show(download, tmp_path):
    root = download("Chest")
    prepare("Chest", root, tmp_path / "out")
    written = {path.stem: path for path in (tmp_path / "out").rglob("*.png")}
    labelled = {path.stem: path for path in (root / "stage_2_train_images").iterdir()}
    assert written.keys() == labelled.keys()
    for name, path in written.items():
        np.testing.assert_array_equal(np.asarray(Image.open(path)), pydicom.dcmread(labelled[name]).pixel_array)


def test_chest_of_twelve_bits_is_scaled(tmp_path):
    values = np.tile(np.array([100, 1100, 2100], np.uint16), (9, 3))
    path = save(dicom(values, BitsStored=12), tmp_path / "x.dcm")
    # (1100 - 100) / 2000 * 255 = 127.5, rounded to even.
    assert chest.read_dicom(path)[0, :3].tolist() == [0, 128, 255]
    save(dicom(values, Rows=60000, Columns=60000), path)
    with pytest.raises(DataError, match=r"x\.dcm: 60000 x 60000 pixels"):
        chest.read_dicom(path)


def test_chest_of_seven_bits_and_of_a_palette(tmp_path):
    values = np.tile(np.array([0, 27, 127], np.uint8), (9, 3))
    seven = save(dicom(values, BitsStored=7, PhotometricInterpretation="MONOCHROME1"), tmp_path / "x.dcm")
    assert chest.read_dicom(seven)[0, :3].tolist() == [255, round(100 / 127 * 255), 0]
    with pytest.raises(DataError, match="in colours is no radiograph"):
        chest.read_dicom(Path(get_testdata_file("examples_palette.dcm")))


def test_volumes_that_would_be_read_wrong_are_refused(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4))
    nibabel.save(image, tmp_path / "complex.nii")
    with pytest.raises(DataError, match="magnitude"):
        open_volume(tmp_path / "complex.nii")
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(image, tmp_path / "codes.nii")
    with pytest.raises(DataError, match="codes are 0"):
        open_volume(tmp_path / "codes.nii")


def test_nih_tests_on_the_published_list(download):
    root = download("NIHChest")
    found = nih.read_originals(root, 0)
    listed = set((root / "test_list.txt").read_text().split())
    assert {one.image.name for one in found if one.split == "test"} == listed
    assert splits(found) == {("test", 0): 20, ("test", 1): 20, ("valid", 0): 16, ("valid", 1): 16}
    patients = {split: {one.patient for one in found if one.split == split} for split in ("valid", "test")}
    assert not patients["valid"] & patients["test"]
    others = nih.read_originals(root, 1)
    assert [one for one in others if one.split == "test"] == [one for one in found if one.split == "test"]
    assert others != found


def test_nih_lists_that_cannot_be_used(download, tmp_path):
    root = download("NIHChest")
    published = root / "test_list.txt"
    published.write_text(published.read_text() + "\n\n00099999_000.png\n")
    with pytest.raises(DataError, match=r"test_list\.txt: line 42: '00099999_000\.png' is not in Data_Entry_2017\.csv"):
        prepare("NIHChest", root, tmp_path / "out")
    published.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a list of images"):
        prepare("NIHChest", root, tmp_path / "out")
    published.unlink()
    with pytest.raises(DataError, match=r"no test_list\.txt"):
        prepare("NIHChest", root, tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"No Finding": "1.0"}, 0),
        ({"No Finding": "1.0", "Support Devices": "-1.0"}, 0),
        ({"Edema": "1.0"}, 1),
        ({"Edema": "1.0", "Fracture": "0.0"}, 1),
        ({"Edema": "1.0", "Fracture": "-1.0"}, None),
        ({"No Finding": "1.0", "Edema": "-1.0"}, None),
        ({"Support Devices": "1.0"}, None),
        ({"Edema": "0.0"}, None),
        ({"No Finding": "0.0", "Edema": "0.0"}, None),
    ],
)
def test_labels_of_chexpert(values, label, tmp_path):
    findings = ("No Finding", *chexpert.FINDINGS, "Support Devices")
    # Enough others that a split can be drawn.
    rows = [{"No Finding": "1.0"} if i % 2 else {"Edema": "1.0"} for i in range(40)] + [values]
    lines = [",".join(("Path", "Frontal/Lateral", *findings))]
    for index, row in enumerate(rows):
        path = tmp_path / f"train/patient{index:05d}/study1/view1_frontal.jpg"
        path.parent.mkdir(parents=True)
        path.touch()  # not opened here
        lines.append(
            ",".join((f"CheXpert-v1.0/{path.relative_to(tmp_path)}", "Frontal", *(row.get(f, "") for f in findings)))
        )
    (tmp_path / "train.csv").write_text("\n".join(lines))
    found = {one.patient: one.label for one in chexpert.read_originals(tmp_path, 0)}
    assert found.get("patient00040") == label
    assert len(found) == 40 + (label is not None)


def test_adni_shows_axial_slices(download, tmp_path):
    root = download("ADNI")
    prepare("ADNI", root, tmp_path / "out")
    volumes = {path.stem.split("_")[-1]: path for path in root.rglob("*.nii")}
    pictures = sorted((tmp_path / "out").rglob("*.png"))
    # Nine CN and nine AD subjects, five slices of each; a slice at 40 to 60 % of 40.
    assert len(pictures) == 90
    assert {path.stem.split("_")[1] for path in pictures} == {"16", "18", "20", "22", "24"}
    for path in pictures[:10]:
        number, index = path.stem.split("_")
        # Stored front to back, head to foot, left to right; shown with the front on top and left on the left.
        stored = nibabel.load(volumes[number]).get_fdata()[:, 39 - int(index), :]
        low, high = np.percentile(stored, [0.5, 99.5])
        expected = (np.clip(stored, low, high) - low) / (high - low) * 255
        assert np.abs(np.asarray(Image.open(path), dtype=float) - expected).max() <= 1


def test_the_slices_of_adni_depend_on_the_head_not_on_how_it_is_stored(tmp_path):
    values = np.random.default_rng(0).integers(0, 900, (6, 7, 20)).astype(np.int16)
    upright = nibabel.Nifti1Image(values, np.diag([1, 1.2, 0.9, 1]))
    for name, axes in (("a", "RAS"), ("b", "PSR"), ("c", "LIA")):
        codes = nibabel.orientations.axcodes2ornt(axes)
        change = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), codes)
        nibabel.save(upright.as_reoriented(change), tmp_path / f"{name}.nii")
        assert adni._height(tmp_path / f"{name}.nii") == 20
        np.testing.assert_array_equal(adni._picture(tmp_path / f"{name}.nii", 8), adni._picture(tmp_path / "a.nii", 8))


def test_a_volume_of_adni_that_does_not_say_how_it_lies(tmp_path):
    path = tmp_path / "x_I1.nii"
    image = nibabel.Nifti1Image(np.ones((4, 4, 4), np.int16), None)
    image.set_sform(np.diag([1, 1, 0, 1]), 1)
    nibabel.save(image, path)
    with pytest.raises(DataError, match=r"x_I1\.nii: its orientation in the header is no orientation"):
        adni._height(path)


def test_a_volume_of_adni_with_nan(tmp_path):
    path = tmp_path / "x_I1.nii"
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), np.nan, np.float32), np.eye(4)), path)
    with pytest.raises(DataError, match=r"x_I1\.nii: has NaN"):
        adni._picture(path, 1)


BLANK = "," * 11
ROWS = [
    ("Chest", "../../secret,Normal", "no image"),
    ("Chest", "0004cfab-14fd-4e49-80ba-63a80b6b0000,Healthy", "the class is one of"),
    ("Chest", "0004cfab-14fd-4e49-80ba-63a80b6b0000,Lung Opacity", "another class"),
    ("Chest", "", None),
    ("NIHChest", "../00000001_000.png,No Finding,0,1", "no image"),
    ("NIHChest", "00000001_000.png,No Finding,0,1", "a second time"),
    ("NIHChest", "new.png,Broken Rib,0,1", "findings that are not known"),
    ("NIHChest", "new.png,No Finding|Hernia,0,1", "findings that are not known"),
    ("NIHChest", "new.png,,0,1", "findings that are not known"),
    ("NIHChest", "new.png,Hernia,0,", "no patient"),
    ("CheXpert", f"x/train/patient09999/study1/view1_frontal.jpg,F,6,Frontal,AP,1{BLANK}", "no image"),
    ("CheXpert", f"../../../view1_frontal.jpg,F,6,Frontal,AP,1{BLANK}", "no image"),
    ("CheXpert", f"x/train/patient00000/study1/view1_frontal.jpg,F,6,Frontal,AP,1{BLANK}", "a second time"),
    ("CheXpert", f"x/train/patient00000/study1/view1_frontal.jpg,F,6,Oblique,AP,1{BLANK}", "the view is one of"),
    ("CheXpert", f"x/train/patient00000/study1/view1_frontal.jpg,F,6,Frontal,AP,nan{BLANK}", "not 'nan'"),
    ("CheXpert", f"x/train/patient00000/study1/view1_frontal.jpg,F,6,Frontal,AP,0.5{BLANK}", "not '0.5'"),
    ("ADNI", "I99999,002_S_0001,CN", "no volume whose name ends in _I99999.nii"),
    ("ADNI", "../I45000,002_S_0001,CN", "no volume"),
    ("ADNI", "I45000,,CN", "no subject"),
    ("ADNI", "I45000,002_S_0000,CN", "a second time"),
    ("ADNI", "I99999,002_S_0001,MCI", None),
]


@pytest.mark.parametrize(("name", "row", "message"), ROWS)
def test_a_row_that_cannot_be_used(download, tmp_path, name, row, message):
    root = download(name)
    if name == "NIHChest":
        (root / "images_001/images/new.png").touch()
    where = append(root / TABLES[name], row)
    if message is None:
        prepare(name, root, tmp_path / "out")
        return
    with pytest.raises(DataError, match=where + ".*" + message) as error:
        prepare(name, root, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_without_its_columns(download, tmp_path, name):
    table = download(name) / TABLES[name]
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=f"{table.name}: no column"):
        prepare(name, table.parent, tmp_path / "out")


def test_a_list_of_adni_without_a_group(download, tmp_path):
    root = download("ADNI")
    (root / "other.csv").touch()
    with pytest.raises(DataError, match="2 CSV files"):
        prepare("ADNI", root, tmp_path / "out")
    (root / "other.csv").unlink()
    (root / TABLES["ADNI"]).write_text("Image Data ID,Subject,Group\nI45002,002_S_0002,MCI\n")
    with pytest.raises(DataError, match="no row of group CN or AD"):
        prepare("ADNI", root, tmp_path / "out")
