"""From a miniature download, in the original's structure, to a set that reads and checks."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from madclip import MadCLIP
from madclip.benchmark.prepare import prepare
from madclip.benchmark.prepare.layout import Original, split_patients
from madclip.benchmark.registry import registered
from madclip.data import check_dataset, load_dataset
from madclip.errors import DataError, RecipeError
from madclip.evaluation.protocol import evaluate

RNG = np.random.default_rng(0)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (8, 8), dtype=np.uint8)).save(path)


@pytest.fixture
def oct2017(tmp_path):
    """OCT2017: a test patient with two images, one who is in both classes, and one whose images are in train/ too."""
    root = tmp_path / "OCT2017"
    for index in range(20):
        picture(root / f"test/NORMAL/NORMAL-{1000 + index}-1.jpeg")
        picture(root / f"train/NORMAL/NORMAL-{9000 + index}-1.jpeg")
        for first, kind in ((2000, "CNV"), (3000, "DME"), (4000, "DRUSEN")):
            picture(root / f"test/{kind}/{kind}-{first + index}-1.jpeg")
            picture(root / f"train/{kind}/{kind}-{first + 5000 + index}-1.jpeg")
    picture(root / "test/CNV/CNV-2000-2.jpeg")
    picture(root / "test/DME/DME-1000-1.jpeg")
    picture(root / "train/NORMAL/NORMAL-1001-7.jpeg")
    return root


@pytest.fixture
def octdl(tmp_path):
    """OCTDL: its table, and folders of its diseases."""
    root = tmp_path / "OCTDL_download"
    rows = []
    for disease in ("AMD", "DME", "ERM", "NO", "RAO", "RVO", "VID"):
        for index in range(24 if disease == "NO" else 6):
            name = f"{disease.lower()}_{100 + index}_1"
            picture(root / "OCTDL" / disease / f"{name}.jpg")
            rows.append((name, disease, "", "", f"{disease}{index // 2}", "OD", "f", "2020", "8", "8"))
    head = "file_name disease subcategory condition patient_id eye sex year image_width image_height"
    with (root / "OCTDL_labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head.split(), *rows])
    return root


@pytest.mark.parametrize(("name", "download"), [("OCT17", "oct2017"), ("octdl", "octdl")])
def test_a_prepared_set_is_sound(name, download, tmp_path, request):
    source = request.getfixturevalue(download)
    facts = prepare(name, source, tmp_path / "out")
    report = check_dataset(tmp_path / "out")
    # Patients come from the manifest, so one on both sides of a split would be an error.
    assert (report.ok, report.patients_from, report.problems) == (True, "manifest", ())
    assert (report.counts["valid"]["normal"], report.counts["valid"]["abnormal"]) == (16, 16)
    for split, counts in facts["counts"].items():
        assert counts == {what: report.counts[split][what] for what in ("normal", "abnormal")}
    assert json.loads((tmp_path / "out/prepared.json").read_text()) == facts
    assert facts["own_split"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, "out"])


def test_oct2017_keeps_images_names_and_classes(oct2017, tmp_path):
    facts = prepare("Retina_OCT2017_AD", oct2017, tmp_path / "out")
    # 20 + 62 held-out images, 32 of them in valid; one training image belongs to a held-out patient.
    assert facts["counts"]["test"] == {"normal": 4, "abnormal": 46}
    assert facts["counts"]["train"] == {"normal": 20, "abnormal": 0}
    for sample in load_dataset(tmp_path / "out").samples:
        kind = sample.image.name.split("-")[0]
        assert sample.label == int(kind != "NORMAL")
        folder = "train" if sample.split == "train" else "test"
        assert sample.image.path.read_bytes() == (oct2017 / folder / kind / sample.image.name).read_bytes()
        assert (
            sample.image.path.parent == tmp_path / "out" / sample.split / ("Ungood" if sample.label else "good") / "img"
        )


def test_the_split_depends_on_the_seed_and_nothing_else(tmp_path):
    images = [Original(tmp_path / f"{i}.png", i % 2, f"p{i // 3 if i < 90 else i}") for i in range(150)]
    split = split_patients(images, 0)
    assert split_patients(images[::-1], 0) == split
    assert split_patients(images, 1) != split
    assert sorted(one.image for one in split) == sorted(one.image for one in images)
    by_patient = {}
    for one in split:
        assert by_patient.setdefault(one.patient, one.split) == one.split
    for label in (0, 1):
        assert sum(one.label == label and one.split == "valid" for one in split) == 16


def test_too_few_images_to_split(tmp_path):
    images = [Original(tmp_path / f"{i}.png", i % 2, f"p{i}") for i in range(32)]
    with pytest.raises(DataError, match="too few patients with few normal"):
        split_patients(images, 0)


def test_val_of_some_copies_is_split_with_test(oct2017, tmp_path):
    for kind, patient in (("NORMAL", 1000), ("CNV", 8001), ("DME", 8002), ("DRUSEN", 8003)):
        picture(oct2017 / f"val/{kind}/{kind}-{patient}-9.jpeg")
    counts = prepare("OCT17", oct2017, tmp_path / "out")["counts"]
    assert sum(counts[split]["normal"] for split in ("valid", "test")) == 21
    assert check_dataset(tmp_path / "out").ok


def test_what_cannot_be_prepared_says_so(oct2017, octdl, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"no folders BraTS2021_NUMBER"):
        prepare("BrainMRI", oct2017, out)
    with pytest.raises(RecipeError, match="not a registered set"):
        prepare("Knee", oct2017, out)
    with pytest.raises(DataError, match="no such folder"):
        prepare("OCT17", tmp_path / "none", out)
    with pytest.raises(DataError, match="no such folder; the download of OCT2017"):
        prepare("OCT17", octdl, out)
    with pytest.raises(DataError, match=r"no OCTDL_labels\.csv"):
        prepare("OCTDL", oct2017, out)
    with pytest.raises(DataError, match="not an empty folder"):
        prepare("OCT17", oct2017, octdl)
    picture(oct2017 / "test/CNV/CNV-x-1.jpeg")
    with pytest.raises(DataError, match=r"CNV-x-1\.jpeg: not an image of OCT2017"):
        prepare("OCT17", oct2017, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("../../secret,NO,1", "line 62: no image"),
        ("no_100_1,KNEE,1", "a disease other than"),
        ("no_100_1,NO,", "no patient"),
        ("no_100_1,NO,1", "a second time"),
    ],
)
def test_a_row_of_octdl_that_cannot_be_used(octdl, tmp_path, row, message):
    name, disease, patient = row.split(",")
    with (octdl / "OCTDL_labels.csv").open("a") as file:
        file.write(f"{name},{disease},,,{patient},OD,f,2020,8,8\n")
    with pytest.raises(DataError, match=message):
        prepare("OCTDL", octdl, tmp_path / "out")


def test_a_table_of_octdl_without_its_columns(octdl, tmp_path):
    (octdl / "OCTDL_labels.csv").write_text("file_name,disease\n")
    with pytest.raises(DataError, match="no column patient_id"):
        prepare("OCTDL", octdl, tmp_path / "out")


def test_from_a_download_to_measures(oct2017, small_recipe, small_backbone, tmp_path):
    prepare("OCT17", oct2017, tmp_path / "out")
    detector = MadCLIP(small_recipe, backbone=small_backbone, objective=registered("OCT17").objective)
    detector.fit(tmp_path / "out", shots=4, folds=0)
    measured = evaluate(detector, tmp_path / "out")
    assert (measured.n_normal, measured.n_abnormal) == (4, 46)
