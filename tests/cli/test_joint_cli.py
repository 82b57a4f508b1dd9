"""One detector of several modalities, from the command line: fit, predict, evaluate, export, refit."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folders(make_images, tmp_path):
    made = {}
    for number, name in enumerate(("Brain", "Liver", "Chest")):
        made[name] = make_images(tmp_path / name.lower(), {"valid": (4, 4), "test": (4, 4)}, seed=number)
        for path in made[name].rglob("img/*.png"):
            pixels = np.asarray(Image.open(path)) * np.linspace(1 - 0.4 * number, 1, 64)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return made


def test_a_joint_detector(madclip, small, folders, tmp_path):
    del small[2:4]  # the objective
    sets = [f"{name}={folders[name]}" for name in ("Brain", "Chest")]
    result = madclip("fit", "--joint", *sets, "--out", tmp_path / "d", *small, "--shots", 4, "--folds", 2)
    assert result.code == 0, result
    assert "learned from 8 normal and 8 abnormal images" in result.out
    for name in ("Brain", "Chest"):
        assert f"{name}: 4 normal and 4 abnormal images (4 with masks), threshold 0." in result.out
    assert madclip("predict", tmp_path / "d", folders["Chest"] / "test", "--out", tmp_path / "p").code == 0
    rows = [json.loads(line) for line in (tmp_path / "p" / "predictions.jsonl").read_text("utf-8").splitlines()]
    assert sum("Taken for 'Chest'" in row["note"] for row in rows) >= 7
    assert all(row["threshold"] for row in rows)
    told = madclip("predict", tmp_path / "d", folders["Chest"] / "test", "--out", tmp_path / "q", "--modality", "Brain")
    assert told.code == 0
    assert "Taken for" not in (tmp_path / "q" / "predictions.jsonl").read_text("utf-8")
    slices = sorted((folders["Chest"] / "test" / "Ungood" / "img").iterdir())
    why = ("explain", tmp_path / "d", slices[0], "--data", folders["Chest"], "--data", folders["Brain"])
    result = madclip(*why, "--out", tmp_path / "why.html")
    assert result.code == 0, result
    assert "taken for 'Chest'" in result.out
    assert madclip(*why, "--modality", "Brain", "--out", tmp_path / "brain.html").code == 0
    facts = json.loads(madclip("explain", tmp_path / "d", "--out", tmp_path / "what.html", "--json").out)
    assert {*facts["modalities"]} == {"Brain", "Chest"}
    none = madclip(*why, "--modality", "Eye", "--out", tmp_path / "none.html")
    none.one_line("unknown modality 'Eye': this detector knows Brain, Chest")
    assert not (tmp_path / "none.html").exists()
    facts = json.loads(madclip("evaluate", tmp_path / "d", folders["Brain"], "--modality", "Brain", "--json").out)
    assert facts["specificity"] is not None
    facts = json.loads(madclip("evaluate", tmp_path / "d", folders["Brain"], "--json").out)
    assert facts["specificity"] is None
    assert any("were taken for Brain" in warning for warning in facts["warnings"])
    further = ("calibrate", tmp_path / "d", folders["Liver"], "--out", tmp_path / "c", "--operating-point", "sens=0.8")
    madclip(*further).one_line("say of which, Brain or Chest")
    facts = json.loads(madclip(*further, "--modality", "Brain", "--json").out)
    saved = [json.loads((tmp_path / one / "detector.json").read_text())["modalities"] for one in "dc"]
    assert saved[1]["Brain"]["calibration"]["threshold"] == facts["threshold"]
    assert saved[1]["Brain"]["calibration"]["operating_point"] == "sens=0.8"
    # The patients of valid/ have the names of those that Brain was learned from, and do not count.
    assert (facts["normal"], facts["abnormal"], facts["new"]) == (4 + 4, 4 + 4, 8)
    assert saved[1]["Chest"]["calibration"] == saved[0]["Chest"]["calibration"]
    madclip("refit", tmp_path / "d", sets[0]).one_line("'Chest' would be forgotten")
    sets.append(f"Liver={folders['Liver']}")
    result = madclip("refit", tmp_path / "d", *sets)
    assert result.code == 0, result
    assert "threshold" in next(line for line in result.out.splitlines() if line.startswith("Brain"))
    assert "without folds" in next(line for line in result.out.splitlines() if line.startswith("Liver"))
    said = madclip("predict", tmp_path / "d", slices[0], "--out", tmp_path / "r").err
    assert "Liver: not calibrated" in said
    assert "Brain: not calibrated" not in said
    madclip("predict", tmp_path / "d", slices[0], "--out", tmp_path / "s", "--modality", "").one_line("knows Brain")


def test_what_is_wrong_is_said_in_a_line(madclip, small, folders, small_detector, tmp_path):
    brain, out = f"Brain={folders['Brain']}", ("--out", tmp_path / "d", *small[:2], *small[4:])
    madclip("fit", "--joint", folders["Brain"], folders["Liver"], *out).one_line("say what its images show", "Brain=")
    madclip("fit", "--joint", brain, *out).one_line("two modalities")
    madclip("fit", "--joint", brain, brain, *out).one_line("named twice")
    madclip("fit", "--joint", brain, f"Liver={folders['Brain']}", *out).one_line("given for two modalities")
    madclip("fit", "--joint", brain, f"Liver={tmp_path / 'none'}", *out).one_line("none")
    madclip("fit", folders["Brain"], folders["Liver"], *out).one_line("with --joint")
    madclip("fit", "--joint", brain, "--objective", "Brain", *out).one_line("without")
    madclip("predict", small_detector, folders["Brain"], "--out", tmp_path / "p", "--modality", "Liver").one_line(
        "not fitted for several"
    )
    madclip("refit", small_detector, folders["Brain"], folders["Liver"]).one_line("of one modality")
    assert not (tmp_path / "d").exists()
