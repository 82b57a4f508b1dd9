"""What may be looked at, when: no test image while learning, no shot while evaluating."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from madclip import MadCLIP
from madclip.data.load import load_dataset
from madclip.errors import DataError
from madclip.evaluation.protocol import evaluate

WATCHED_FIT = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from madclip import MadCLIP, Recipe
recipe = Recipe(image_size=64, variants=("identity", "flip-horizontal"), epochs=1, batch_size=8)
detector = MadCLIP(recipe, backbone="stand-in", objective="Brain", device="cpu")
detector.fit(sys.argv[1], shots=4, folds=2, operating_point="sens=0.95")
assert detector.calibration is not None and detector.calibration.pixel_threshold is not None
detector.save(sys.argv[2])
below = [name for name in opened if name.startswith(sys.argv[1])]
assert any("/valid/" in name and name.endswith(".png") for name in below), opened[-20:]
assert not [name for name in below if "/test/" in name], below
print(len(below))
"""


@pytest.fixture
def detector(small_detector, small_backbone):
    return MadCLIP.load(small_detector, backbone=small_backbone)


@pytest.fixture
def data(make_images, tmp_path):
    """As the shared one, to be changed."""
    return make_images(tmp_path / "data", {"valid": (4, 4), "test": (6, 6)})


def test_learning_opens_no_file_of_the_test_set(small_data, tmp_path):
    """Fit, cross-fit, threshold, probability, familiarity: seen by an audit hook of the interpreter."""
    command = [sys.executable, "-c", WATCHED_FIT, str(small_data), str(tmp_path / "d")]
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 12  # eight images, four masks


def test_shots_in_the_test_set_are_left_out_and_named(detector, data):
    whole = evaluate(detector, data)
    assert (whole.n_normal, whole.n_abnormal) == (6, 6)
    assert not [warning for warning in whole.warnings if "left out" in warning]
    shot = min((data / "valid" / "good" / "img").iterdir())
    shutil.copy(shot, data / "test" / "good" / "img" / "Maiercopied00_0.png")
    result = evaluate(detector, data)
    (warning,) = [warning for warning in result.warnings if "left out" in warning]
    assert "1 test images" in warning
    assert "test/good/img/Maiercopied00_0.png" in warning
    assert (result.n_normal, result.n_abnormal) == (6, 6)
    assert result.metrics["image_auroc"] == whole.metrics["image_auroc"]


def test_a_test_set_equal_to_the_shots_is_refused(detector, data):
    shutil.rmtree(data / "test")
    (data / "valid").rename(data / "test")
    with pytest.raises(DataError, match="learned from all 8 test images"):
        evaluate(detector, data)


def test_without_splits_the_shots_are_left_out(small_recipe, small_backbone, data, tmp_path):
    plain = tmp_path / "plain"
    for old, new in (("good", "good"), ("Ungood", "Ungood")):
        shutil.copytree(data / "test" / old, plain / new)
    detector = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain").fit(plain, shots=2, folds=0)
    result = evaluate(detector, plain)
    assert (result.n_normal, result.n_abnormal) == (2, 2)  # two slices of each patient
    assert any("8 test images are among the shots" in warning for warning in result.warnings)


def test_a_data_set_without_test_images(detector, data):
    shutil.rmtree(data / "test")
    with pytest.raises(DataError, match="no test images"):
        evaluate(detector, data)


def test_files_that_cannot_be_used_are_named_and_the_rest_goes_on(detector, data):
    masks = sorted((data / "test" / "Ungood" / "anomaly_mask").iterdir())
    Image.fromarray(np.full((30, 60), 255, np.uint8)).save(masks[0])
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(masks[1])
    min((data / "test" / "good" / "img").iterdir()).write_text("no image")
    result = evaluate(detector, data)
    assert (result.n_normal, result.n_abnormal) == (5, 4)
    (warning,) = [warning for warning in result.warnings if "could not be used" in warning]
    assert "3 of 12" in warning
    for words in (masks[0].name, "60 x 30", masks[1].name, "empty", "whatever its name says"):
        assert words in warning
    for path in (data / "test").rglob("img/*.png"):
        path.write_text("no image")
    with pytest.raises(DataError, match="none of the 12 test images"):
        evaluate(detector, data)


def test_another_objective_is_warned_about(detector, small_data):
    def warned(objective):
        return [w for w in evaluate(detector, small_data, objective=objective).warnings if "was fitted for" in w]

    assert warned("Liver") == ["The detector was fitted for 'Brain', not for 'Liver'."]
    assert warned("brain") == warned(None) == []


def test_pixel_metrics_at_native_size_and_at_the_recipes(detector, make_images, tmp_path):
    """Against maps and masks brought to that size here."""
    from sklearn.metrics import roc_auc_score

    data = make_images(tmp_path / "wide", {"valid": (4, 4), "test": (6, 6)}, size=(64, 150))
    samples = load_dataset(data).test_pool
    masks = [np.zeros((64, 150), bool) if s.mask is None else np.asarray(Image.open(s.mask.path)) > 0 for s in samples]
    for pixel_size, native in (("native", True), ("recipe", False)):
        result = evaluate(detector, data, pixel_size=pixel_size)
        maps = [p.anomaly_map for p in detector.predict_iter([s.image for s in samples], native=native)]
        fitted = [
            mask if native else np.asarray(Image.fromarray(mask).resize((64, 64), Image.Resampling.NEAREST))
            for mask in masks
        ]
        expected = roc_auc_score(np.concatenate([m.ravel() for m in fitted]), np.concatenate([m.ravel() for m in maps]))
        found = result.metrics["pixel_auroc"]
        assert found.value == pytest.approx(expected, abs=max(found.bound or 0, 1e-6))
        assert result.provenance["pixel_size"] == pixel_size


def test_without_masks_there_are_image_metrics_only(detector, make_images, tmp_path):
    result = evaluate(detector, make_images(tmp_path / "d", {"test": (4, 4)}, masks=False, seed=1))
    assert result.metrics["image_auroc"].value is not None
    assert result.metrics["pixel_auroc"].value is None
    assert result.to_json()["pixel_auroc"] is None


def test_patients_and_no_names_of_shots(detector, small_data):
    result = evaluate(detector, small_data)
    assert result.n_patients == 6
    assert "shots" not in result.provenance["fit"]
    assert result.threshold == detector.calibration.threshold
