"""Detectors that saw no abnormal image, from the command line: fit, predict, evaluate, calibrate, refit, export."""

import json
import shutil

import pytest


@pytest.fixture
def data(make_images, tmp_path):
    return make_images(tmp_path / "data", {"valid": (20, 4), "test": (4, 4)})


def first(rows):
    return json.loads(rows.read_text("utf-8").splitlines()[0])


def test_normal_images_alone(madclip, small, data, tmp_path):
    kept = shutil.copytree(data / "valid" / "Ungood", tmp_path / "kept")
    shutil.rmtree(data / "valid" / "Ungood")
    result = madclip("fit", data, "--out", tmp_path / "d", *small)
    assert result.code == 0, result
    assert "learned from 16 normal images alone" in result.out
    assert "(spec=0.9). The calibration rests on 16 normal images alone: at most 10%" in result.out
    madclip("predict", tmp_path / "d", data / "test", "--out", tmp_path / "p")
    row = first(tmp_path / "p" / "predictions.jsonl")
    assert row["verdict"] in ("normal", "anomalous", "uncertain")
    assert "rests on 16 normal images alone" in row["note"]
    facts = json.loads(madclip("evaluate", tmp_path / "d", data, "--json").out)
    assert facts["specificity"] is not None
    sentence = row["note"][row["note"].index("The calibration rests on 16 normal images alone") :]
    assert any(line.startswith(sentence.rstrip(".")) for line in facts["warnings"])
    assert not any("100%" in line for line in facts["warnings"])
    (data / "valid" / "Ungood").mkdir()
    for folder in ("img", "anomaly_mask"):
        (data / "valid" / "Ungood" / folder).mkdir()
        shutil.copy(min((kept / folder).iterdir()), data / "valid" / "Ungood" / folder)
    result = madclip("refit", tmp_path / "d", data)
    assert result.code == 0, result
    assert "refitted on 16 normal and 1 abnormal images" in result.out
    assert "not calibrated" in result.out


def test_a_folder_of_normal_images_is_checked_and_measured(madclip, small, data, tmp_path):
    for split in ("valid", "test"):
        shutil.copytree(data / split / "good" / "img", tmp_path / split / "normal")
    result = madclip("data", "check", tmp_path / "valid")
    assert result.code == 0
    assert "a detector learns from the 20 normal alone" in result.out
    assert madclip("fit", tmp_path / "valid", "--out", tmp_path / "d", *small, "--shots", "all").code == 0
    result = madclip("evaluate", tmp_path / "d", tmp_path / "test", "--json")
    assert result.code == 0, result
    facts = json.loads(result.out)
    assert facts["specificity"] is not None
    assert facts["image_auroc"] is None
    assert any(line.startswith("No abnormal images") for line in facts["warnings"])


def test_one_normal_image(madclip, small, data, tmp_path):
    result = madclip("fit", data, "--out", tmp_path / "d", *small, "--shots", "1,0")
    assert result.code == 0
    assert "one normal image" in result.out
    madclip("predict", tmp_path / "d", data / "test", "--out", tmp_path / "p")
    row = first(tmp_path / "p" / "predictions.jsonl")
    assert (row["verdict"], row["threshold"]) == ("uncertain", None)
    assert "one normal image" in row["note"]


def test_texts_alone(madclip, small, data, tmp_path):
    result = madclip("fit", "--out", tmp_path / "d", *small, "--shots", "0")
    assert result.code == 0
    assert "learned from texts alone" in result.out
    assert "not calibrated" in result.out
    assert "is not looked at" in madclip("fit", data, "--out", tmp_path / "e", *small, "--shots", "0").err
    assert madclip("evaluate", tmp_path / "d", data).code == 0
    more = data / "valid"
    result = madclip("fit", "--out", tmp_path / "f", *small, "--shots", "0", "--calibrate", more)
    assert result.code == 0
    assert "not calibrated" not in result.out
    assert madclip("refit", tmp_path / "d", data).code == 0
    assert "20 normal and 4 abnormal" in (tmp_path / "d" / "README.md").read_text("utf-8")
