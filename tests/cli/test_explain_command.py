"""`madclip explain` as a user types it."""

import json

import numpy as np
import pytest

from data.test_nifti import nifti


@pytest.fixture
def image(small_data):
    return min((small_data / "test" / "Ungood" / "img").iterdir())


def test_a_page_and_the_numbers(madclip, small_detector, small_data, image, tmp_path):
    page = tmp_path / "why.html"
    result = madclip("explain", small_detector, image, "--data", small_data, "--out", page)
    assert result.code == 0, result
    assert result.out.startswith(f"{page}: look at it in a browser")
    assert "Its score is higher than that of" in result.out
    assert page.read_text("utf-8").startswith("<!doctype html>")
    again = madclip("explain", small_detector, image, "--out", page)
    again.one_line("is there already", "--overwrite")
    facts = json.loads(madclip("explain", small_detector, image, "--out", page, "--overwrite", "--json").out)
    predicted = madclip("predict", small_detector, image, "--out", tmp_path / "p", "--json")
    assert facts["score"] == pytest.approx(json.loads(predicted.out)["predictions"][0]["score"], abs=1e-5)


def test_of_a_volume_the_slice_with_the_highest_score(madclip, small_detector, tmp_path):
    values = np.random.default_rng(0).integers(0, 200, (40, 40, 5)).astype(np.uint8)
    nifti(tmp_path / "scan.nii.gz", values)
    result = madclip("explain", small_detector, tmp_path / "scan.nii.gz", "--out", tmp_path / "why.html")
    assert result.code == 0, result
    assert "of 5 (#" in result.err
    assert "scan.nii" not in (tmp_path / "why.html").read_text("utf-8")
    one = madclip("explain", small_detector, f"{tmp_path / 'scan.nii.gz'}#2", "--out", tmp_path / "two.html")
    assert one.code == 0, one
    assert "slice or frame 3" in (tmp_path / "two.html").read_text("utf-8")


def test_bad_input(madclip, small_detector, make_images, image, tmp_path):
    page = tmp_path / "why.html"
    madclip("explain", tmp_path, image, "--out", page).one_line("not a detector")
    madclip("explain", small_detector, tmp_path / "none.png", "--out", page).one_line("no such file")
    other = make_images(tmp_path / "other", {"valid": (2, 2)}, seed=9)
    madclip("explain", small_detector, image, "--data", other, "--out", page).one_line("none of the detector's 8 shots")
    (tmp_path / "notes.txt").write_text("mine")
    madclip("explain", small_detector, "--out", tmp_path / "notes.txt", "--overwrite").one_line("is no report")
    assert not page.exists()


@pytest.mark.parametrize(("shots", "own"), [("2", "true"), ("2", "false"), ("2,0", "true"), ("0", "true")])
def test_several_towers(madclip, small, small_data, image, tmp_path, shots, own):
    small[small.index("stand-in")] = "tiny+lite0"
    small += ["--set", f"adapters_per_tower={own}"]
    data = [] if shots == "0" else [small_data]
    made = madclip("fit", *data, "--out", tmp_path / "d", *small, "--shots", shots, "--folds", 0)
    assert made.code == 0, made
    result = madclip("explain", tmp_path / "d", image, "--data", small_data, "--out", tmp_path / "why.html")
    assert result.code == 0, result
