import json

import numpy as np
import pytest
from PIL import Image as Picture

from madclip.data import Sample, load_dataset, read_sample
from madclip.data.load import scan_dataset
from madclip.errors import DataError, RecipeError


def write(path, value=100, size=(10, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


def write_mask(path, size=(10, 12), *, lesion=True):
    write(path, 0, size)
    if lesion:
        mask = np.zeros(size, np.uint8)
        mask[2:5, 3:6] = 255
        Picture.fromarray(mask).save(path)
    return path


def listed(dataset):
    return [
        (
            dataset.name(sample.image),
            sample.label,
            dataset.name(sample.mask) if sample.mask else None,
            sample.patient,
            sample.split,
        )
        for sample in dataset.samples
    ]


@pytest.mark.parametrize("masks", ["anomaly_mask", "label"])
@pytest.mark.parametrize("images", ["img/", ""])
def test_bmad_layouts(tmp_path, masks, images):
    write(tmp_path / f"train/good/{images}t.png")
    for split in ("valid", "test"):
        write(tmp_path / f"{split}/good/{images}b.png")
        write(tmp_path / f"{split}/good/{images}a.png")
        write(tmp_path / f"{split}/Ungood/{images}c.png")
        write_mask(tmp_path / f"{split}/Ungood/{masks}/c.png")
    (tmp_path / "valid/.DS_Store").write_text("")
    write(tmp_path / "valid/good/._a.png")
    dataset = load_dataset(tmp_path)
    assert dataset.layout == "bmad"
    assert dataset.patients_from == "none"
    assert dataset.has_masks
    assert dataset.unused == ()
    assert listed(dataset) == [
        (f"test/Ungood/{images}c.png", 1, f"test/Ungood/{masks}/c.png", None, "test"),
        (f"test/good/{images}a.png", 0, None, None, "test"),
        (f"test/good/{images}b.png", 0, None, None, "test"),
        (f"train/good/{images}t.png", 0, None, None, "train"),
        (f"valid/Ungood/{images}c.png", 1, f"valid/Ungood/{masks}/c.png", None, "valid"),
        (f"valid/good/{images}a.png", 0, None, None, "valid"),
        (f"valid/good/{images}b.png", 0, None, None, "valid"),
    ]
    assert dataset.splits == ("train", "valid", "test")
    assert dataset.shot_pool == dataset.split("valid")
    assert dataset.test_pool == dataset.split("test")
    assert len(dataset.normal) == 5
    assert len(dataset.abnormal) == 2


def test_masks_beside_the_class_folders_and_files(tmp_path):
    write(tmp_path / "valid/good/a.png")
    write(tmp_path / "valid/Ungood/b.png")
    write(tmp_path / "valid/Ungood/c.png")
    write_mask(tmp_path / "valid/anomaly_mask/b.png")
    write_mask(tmp_path / "valid/Ungood/c_mask.png")
    assert listed(load_dataset(tmp_path)) == [
        ("valid/Ungood/b.png", 1, "valid/anomaly_mask/b.png", None, "valid"),
        ("valid/Ungood/c.png", 1, "valid/Ungood/c_mask.png", None, "valid"),
        ("valid/good/a.png", 0, None, None, "valid"),
    ]


def test_plain_folders(tmp_path):
    write(tmp_path / "normal/site1/a.png")
    write(tmp_path / "normal/c.png")
    write(tmp_path / "Abnormal/site1/b.jpg")
    write(tmp_path / "Abnormal/c.tif")
    write(tmp_path / "Abnormal/d.png")
    write_mask(tmp_path / "masks/site1/b.png")
    write_mask(tmp_path / "masks/c.png")
    write_mask(tmp_path / "masks/lost.png")
    (tmp_path / "Abnormal/notes.txt").write_text("")
    write(tmp_path / "extra/e.png")
    dataset = load_dataset(tmp_path)
    assert dataset.layout == "folders"
    assert listed(dataset) == [
        ("Abnormal/c.tif", 1, "masks/c.png", None, None),
        ("Abnormal/d.png", 1, None, None, None),
        ("Abnormal/site1/b.jpg", 1, "masks/site1/b.png", None, None),
        ("normal/c.png", 0, None, None, None),
        ("normal/site1/a.png", 0, None, None, None),
    ]
    assert [dataset.name(path) for path in dataset.unused] == ["Abnormal/notes.txt", "extra", "masks/lost.png"]
    assert dataset.shot_pool == dataset.test_pool == dataset.samples


def test_anomalib_layout(tmp_path):
    write(tmp_path / "train/good/000.png")
    write(tmp_path / "test/good/000.png")
    for defect in ("crack", "stain"):
        write(tmp_path / f"test/{defect}/000.png")
        write_mask(tmp_path / f"ground_truth/{defect}/000_mask.png")
    dataset = load_dataset(tmp_path)
    assert dataset.layout == "anomalib"
    assert listed(dataset) == [
        ("test/crack/000.png", 1, "ground_truth/crack/000_mask.png", None, "test"),
        ("test/good/000.png", 0, None, None, "test"),
        ("test/stain/000.png", 1, "ground_truth/stain/000_mask.png", None, "test"),
        ("train/good/000.png", 0, None, None, "train"),
    ]


def test_one_mask_for_two_images_is_refused(tmp_path):
    write(tmp_path / "train/good/000.png")
    write(tmp_path / "train/crack/000.png")
    write(tmp_path / "test/good/000.png")
    write(tmp_path / "test/crack/000.png")
    write_mask(tmp_path / "ground_truth/crack/000.png")
    with pytest.raises(DataError, match=r"000\.png: is the mask of two images"):
        load_dataset(tmp_path)


def test_two_masks_of_one_name_are_refused(tmp_path):
    write(tmp_path / "normal/a.png")
    write(tmp_path / "abnormal/b.png")
    write_mask(tmp_path / "masks/b.png")
    write_mask(tmp_path / "masks/b.tif")
    with pytest.raises(DataError, match="second mask of the same name"):
        load_dataset(tmp_path)


def write_csv(folder, text, name="manifest.csv"):
    for stem in "abcd":
        write(folder / f"images/{stem}.png")
    write_mask(folder / "masks/b.png")
    (folder / name).write_text(text)
    return folder / name


def test_csv_manifest(tmp_path):
    text = (
        "\ufeffPath,Label,mask,patient,split\n"
        "images/b.png,abnormal,masks/b.png,P1,val\n"
        "images/a.png,0,,P1,train\n\n"
        f"{tmp_path}/images/c.png, 1 ,,,TEST\n"
    )
    path = write_csv(tmp_path, text)
    expected = [
        ("images/a.png", 0, None, "P1", "train"),
        ("images/b.png", 1, "masks/b.png", "P1", "valid"),
        ("images/c.png", 1, None, None, "test"),
    ]
    for root in (path, tmp_path):
        dataset = load_dataset(root)
        assert listed(dataset) == expected
        assert dataset.layout == dataset.patients_from == "manifest"


def test_jsonl_manifest_and_other_delimiters(tmp_path):
    rows = [{"image": "images/a.png", "label": 0, "patient": 7}, {"image": "images/b.png", "label": True, "mask": None}]
    path = write_csv(tmp_path, "\n".join(json.dumps(row) for row in rows) + "\n\n", "set.jsonl")
    expected = [("images/a.png", 0, None, "7", None), ("images/b.png", 1, None, None, None)]
    assert listed(load_dataset(path)) == expected
    path = write_csv(tmp_path, "label;patient;image\nnormal;7;images/a.png\nUngood;;images/b.png\n", "set.csv")
    assert listed(load_dataset(path)) == expected


BAD_MANIFESTS = {
    "": "first row must name the columns",
    "name,label\na,0\n": "first row must name the columns",
    "image,label\n": "no rows",
    "image,label\nimages/a.png,0\nimages/z.png,1\n": r"row 3: image .*z\.png does not exist",
    "image,label,mask\nimages/a.png,1,masks/z.png\n": r"row 2: mask .*z\.png does not exist",
    "image,label\nimages/a.png,maybe\n": "row 2: label 'maybe' is unknown",
    "image,label\nimages/a.png,\n": "row 2: label '' is unknown",
    "image,label\n,1\n": "row 2: no image",
    "image,label,split\nimages/a.png,0,holdout\n": "row 2: split 'holdout' is unknown",
    "image,label\nimages/a.png,0,9\n": "row 2: not as many fields",
    "image,label\nimages/a.png\n": "row 2: not as many fields",
    "image,label\nimages/a.png,0\nimages/a.png,1\n": "row 3: .* has an earlier row",
    'image,label\n"images/a.png,0\n': "not valid CSV",
    "image,label\nimages/a.png,0\n": "no abnormal images",
    "image,label\nimages/a.png,1\n": "no normal images",
}


@pytest.mark.parametrize("text", BAD_MANIFESTS)
def test_bad_csv_manifests(tmp_path, text):
    write_csv(tmp_path, text)
    with pytest.raises(DataError, match=BAD_MANIFESTS[text]) as caught:
        load_dataset(tmp_path)
    assert "\n" not in str(caught.value)
    assert "manifest.csv" in str(caught.value) or "no " in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'image': 1}", "row 1: not valid JSON"),
        ("[1]", "row 1: expected an object"),
        ('{"label": 1}', "row 1: no image"),
    ],
)
def test_bad_jsonl_manifests(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        load_dataset(write_csv(tmp_path, line, "manifest.jsonl"))


def test_manifests_that_cannot_be_read(tmp_path):
    (tmp_path / "manifest.csv").write_bytes(b"image,label\n\xff\xfe\n")
    with pytest.raises(DataError, match="UTF-8"):
        load_dataset(tmp_path)
    (tmp_path / "manifest.jsonl").write_text("")
    with pytest.raises(DataError, match="name the one to use"):
        load_dataset(tmp_path)
    (tmp_path / "readme.md").write_text("")
    with pytest.raises(DataError, match=r"manifest named \.csv or \.jsonl"):
        load_dataset(tmp_path / "readme.md")


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_dataset(tmp_path / "missing")
    with pytest.raises(DataError, match="is empty"):
        load_dataset(tmp_path)
    write(tmp_path / "scans/a.png")
    with pytest.raises(DataError, match=r"no known layout \(found scans\); expected good/ and Ungood/"):
        load_dataset(tmp_path)
    (tmp_path / "normal").mkdir()
    with pytest.raises(DataError, match="hold no image"):
        load_dataset(tmp_path)
    write(tmp_path / "normal/a.png")
    with pytest.raises(DataError, match="no abnormal images among 1"):
        load_dataset(tmp_path)
    assert len(scan_dataset(tmp_path).samples) == 1
    (tmp_path / "normal/a.png").unlink()
    write(tmp_path / "abnormal/a.png")
    with pytest.raises(DataError, match="no normal images among 1"):
        load_dataset(tmp_path)


def write_names(folder, normal, abnormal):
    for label, names in (("good", normal), ("Ungood", abnormal)):
        for name in names:
            write(folder / f"valid/{label}/img/{name}.png")
    return folder


def patients(folder, **options):
    dataset = load_dataset(folder, **options)
    return {sample.image.path.stem: sample.patient for sample in dataset.samples}


def test_patients_from_names(tmp_path):
    root = write_names(tmp_path, ["00012_60", "00012_99", "S_7_1"], ["00013_60"])
    found = {"00012_60": "00012", "00012_99": "00012", "S_7_1": "S_7", "00013_60": "00013"}
    assert patients(root) == found
    assert load_dataset(root).patients_from == "names"
    assert set(patients(root, patient_from_name=None).values()) == {None}
    assert patients(root, patient_from_name=r"^(0+\d+)_") == found | {"S_7_1": None}
    assert patients(root, patient_from_name=r"(x?)(?P<patient>\d)_") == {
        "00012_60": "2",
        "00012_99": "2",
        "S_7_1": "7",
        "00013_60": "3",
    }


@pytest.mark.parametrize(
    ("normal", "abnormal"),
    [
        (["chest_1", "chest_2"], ["virus_1", "virus_2"]),  # no digit: words, not identifiers
        (["norm_a_1", "norm_a_2"], ["dr_a_1", "dr_a_2"]),
        (["img2_1", "img2_2", "img2_3"], ["img3_1"]),  # most images of one "patient"
        (["1_1", "2_1"], ["3_1", "4_1"]),  # as many as images: nothing to keep together
        (["1_1", "1_2"], ["2_1", "extra"]),
    ],
)
def test_names_that_say_nothing_about_patients(tmp_path, normal, abnormal):
    root = write_names(tmp_path, normal, abnormal)
    assert set(patients(root).values()) == {None}
    assert load_dataset(root).patients_from == "none"


@pytest.mark.parametrize(("rule", "message"), [("(", "not a regular expression"), ("abc", "has no group")])
def test_bad_patient_rules(tmp_path, rule, message):
    root = write_names(tmp_path, ["a"], ["b"])
    with pytest.raises(RecipeError, match=message):
        load_dataset(root, patient_from_name=rule)


def test_read_sample(tmp_path):
    image, mask = write(tmp_path / "a.png"), write_mask(tmp_path / "m.png")
    read, lesion = read_sample(Sample(image, 1, mask))
    assert read.size == lesion.shape == (10, 12)
    assert lesion.sum() == 9
    assert read_sample(Sample(image, 1))[1] is None
    empty = write_mask(tmp_path / "empty.png", lesion=False)
    assert read_sample(Sample(image, 0, empty))[1] is None
    other = write_mask(tmp_path / "other.png", (20, 12))
    for sample, message in (
        (Sample(image, 1, empty), r"empty\.png: the mask of an abnormal image is empty"),
        (Sample(image, 0, mask), r"m\.png: marks a lesion in a normal image"),
        (Sample(image, 1, other), r"other\.png: mask of 12 x 20 pixels for an image of 12 x 10 .*a\.png"),
        (Sample(image, 1, tmp_path / "none.png"), r"none\.png: cannot be opened"),
    ):
        with pytest.raises(DataError, match=message):
            read_sample(sample)
