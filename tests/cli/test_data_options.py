"""Options that say how a data set is to be read, and what commands say of it."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from madclip.detector import MadCLIP


@pytest.fixture
def clinic(tmp_path):
    """Folders as people name them, a folder for each patient, two images of each."""
    rng = np.random.default_rng(0)
    for kind in ("benign", "malignant"):
        for patient in range(6):
            for image in range(2):
                values = rng.normal(100, 12, (64, 64))
                values[20:30, 20:30] += 90 * (kind == "malignant")
                path = tmp_path / "clinic" / kind / f"{kind[0]}{patient}" / f"img{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)
    return tmp_path / "clinic"


def test_classes_and_patients_as_they_are_named(madclip, small, clinic, tmp_path):
    named = ["--normal", "benign", "--abnormal", "malignant", "--patients", "folder"]
    result = madclip("fit", clinic, "--out", tmp_path / "d", "--shots", 3, "--folds", 2, *named, *small, "--json")
    assert result.code == 0, result
    assert json.loads(result.out)["data"]["patients"].startswith("12 patients, from the folders")
    assert json.loads(result.out)["normal"] == 3
    result = madclip("evaluate", tmp_path / "d", clinic, *named, "--json")
    # Three patients of each class gave shots, and their other images are not measured either.
    assert (json.loads(result.out)["n_normal"], json.loads(result.out)["n_abnormal"]) == (6, 6)
    assert "12 patients, from the folders" in madclip("evaluate", tmp_path / "d", clinic, *named).out
    result = madclip("evaluate", tmp_path / "d", clinic, *named, "--same-patient", "--json")
    assert (json.loads(result.out)["n_normal"], json.loads(result.out)["n_abnormal"]) == (9, 9)
    assert any("patient" in warning for warning in json.loads(result.out)["warnings"])


@pytest.mark.parametrize(
    ("extra", "said"),
    [(["--patients", "[", "--normal", "benign"], "regular expression"), (["--normal", "x", "--abnormal", "x"], "both")],
)
def test_options_that_make_no_sense(madclip, small, clinic, tmp_path, extra, said):
    madclip("fit", clinic, "--out", tmp_path / "d", "--shots", 2, *extra, *small).one_line(said)


def test_a_detector_without_threshold_says_why(madclip, small, small_data, tmp_path):
    result = madclip("fit", small_data, "--out", tmp_path / "d", "--shots", 2, "--folds", 0, *small)
    assert "not calibrated: it was fitted without folds" in result.out
    result = madclip("predict", tmp_path / "d", small_data / "test", "--out", tmp_path / "p", "--maps", "none")
    assert result.code == 0
    assert "not calibrated: it was fitted without folds" in result.err


def test_errors_of_the_data_stop_a_fit_unless_forced(madclip, small, make_images, tmp_path):
    data = make_images(tmp_path / "data", {"valid": (3, 3), "test": (2, 2)})
    shutil.copy(next(data.glob("valid/good/img/*")), data / "test" / "good" / "img" / "copy.png")
    arguments = ["fit", data, "--out", tmp_path / "d", "--shots", 2, "--folds", 0, *small]
    result = madclip(*arguments)
    assert result.code == 2
    assert "madclip data check" in result.err
    assert "--force" in result.err
    assert not (tmp_path / "d").exists()
    assert madclip(*arguments, "--force").code == 0


def test_the_grey_range_stays_with_the_detector(madclip, small, small_data, tmp_path):
    arguments = ["fit", small_data, "--out", tmp_path / "d", "--shots", 2, "--folds", 0, *small]
    madclip(*arguments, "--range", "backwards").one_line("range")
    assert madclip(*arguments, "--range", "p1,p99").code == 0
    assert MadCLIP.load(tmp_path / "d", device="cpu").recipe.grey_range == "p1,p99"


def test_predict_counts_what_it_passes_over(madclip, small_detector, small_data, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copy(next(small_data.glob("test/good/img/*")), folder / "a.png")
    for name in ("b.txt", "c.txt", "d.csv"):
        (folder / name).write_text("no image")
    result = madclip("predict", small_detector, folder, "--out", tmp_path / "p", "--maps", "none")
    assert result.code == 0, result
    assert "2 .txt" in result.err
    assert "1 .csv" in result.err


def test_predictions_are_not_replaced_without_a_word(madclip, small_detector, small_data, tmp_path):
    arguments = ["predict", small_detector, small_data / "test", "--out", tmp_path / "p", "--maps", "none"]
    assert madclip(*arguments).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file()}
    result = madclip(*arguments)
    assert result.code == 2
    assert "--overwrite" in result.err
    assert {path: path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file()} == before
    assert madclip(*arguments, "--overwrite").code == 0


def test_repeat_marks_every_number_of_the_shots_patients(madclip, small, clinic, tmp_path):
    named = ["--normal", "benign", "--abnormal", "malignant", "--patients", "folder", "--folds", 0, "--seeds", 1]
    result = madclip("repeat", clinic, "--out", tmp_path / "r", "--shots", 3, *named, *small, "--same-patient")
    assert result.code == 0, result
    rows = [line for line in result.out.splitlines()[2:] if not line.startswith("note:")]
    assert len(rows) > 1
    assert all(" (optimistic)" in row for row in rows)
    assert "note: Other images of patients and volumes that gave shots are measured too" in result.out
    result = madclip("repeat", clinic, "--out", tmp_path / "s", "--shots", 3, *named, *small)
    assert "optimistic" not in result.out


def test_a_mask_folder_in_which_nothing_matches_is_left_out_by_force(madclip, small, make_images, tmp_path):
    data = make_images(tmp_path / "data", {"valid": (3, 3), "test": (2, 2)})
    for number, path in enumerate(sorted(data.glob("valid/Ungood/anomaly_mask/*"))):
        path.rename(path.with_name(f"lesion{number}.png"))
    arguments = ["fit", data, "--out", tmp_path / "d", "--shots", 2, "--folds", 0, *small]
    madclip(*arguments).one_line("anomaly_mask: no mask in it has the name of an image")
    result = madclip(*arguments, "--force", "--json")
    assert (result.code, json.loads(result.out).get("masks", 0)) == (0, 0)
    assert "mask folders in which no mask has the name of an image (1); these masks are left out" in result.err
    result = madclip("evaluate", tmp_path / "d", data, "--force", "--json")
    assert (result.code, json.loads(result.out)["n_abnormal"]) == (0, 2)
    madclip("evaluate", tmp_path / "d", data).one_line("no mask in it has the name of an image")
    assert "these masks are left out" in result.err
    for path in data.glob("*/good"):
        shutil.rmtree(path)
    madclip(*arguments, "--force", "--overwrite").one_line("no normal images")


def test_what_is_not_seen_of_the_shots_is_said(madclip, small, make_images, tmp_path):
    """A lesion of 1 px between the pixels that 68 of 640 keep, and 4 px beyond the last of the 16 px patches."""
    data = make_images(tmp_path / "data", {"valid": (2, 3), "test": (2, 2)})
    names = sorted(path.name for path in data.glob("valid/Ungood/img/*"))
    specks = np.zeros((2, 640, 640), np.uint8)
    specks[0, 100, 100] = specks[1, 100, 100] = specks[1, 300:400, 300:400] = 255
    for name, mask in zip(names[:2], specks, strict=True):
        for folder, values in (("img", specks[1] // 2), ("anomaly_mask", mask)):
            Image.fromarray(values).save(data / "valid" / "Ungood" / folder / name)
    kept = Image.fromarray(specks[0]).resize((68, 68), Image.Resampling.NEAREST)
    assert kept.getextrema() == (0, 0), "Pillow loses it as well"
    arguments = [data, "--shots", "2,3", "--folds", 0, *small, "--set", "image_size=68"]
    result = madclip("fit", *arguments, "--out", tmp_path / "d")
    assert result.code == 0, result
    assert "note: image_size 68 is no multiple of the patch of 16 px: 4 px at the right and at the bottom" in result.err
    assert (
        "note: 2 of 5 shots have lesions of which nothing is left when the mask is resized to 68 px; the first: a 1 px"
        in (result.err)
    )
    again = madclip("refit", tmp_path / "d", data, "--out", tmp_path / "e")
    assert "note: 2 of 5 shots have lesions" in again.err
    checked = json.loads(madclip("data", "check", data, "--set", "image_size=68", "--json").out)
    (lost,) = [problem for problem in checked["problems"] if problem["kind"] == "lost_lesion"]
    assert len(lost["files"]) == 2
