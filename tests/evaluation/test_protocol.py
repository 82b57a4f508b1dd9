"""What may be looked at, when: no test image while learning, no shot while evaluating."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from madclip import MadCLIP
from madclip.data.load import load_dataset
from madclip.errors import DataError
from madclip.evaluation.protocol import evaluate

SIZES = ("native", "recipe")
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
    with pytest.raises(DataError, match="has seen all 8 test images"):
        evaluate(detector, data)


def test_without_splits_the_shots_are_left_out(small_recipe, small_backbone, data, tmp_path):
    plain = tmp_path / "plain"
    for old, new in (("good", "good"), ("Ungood", "Ungood")):
        shutil.copytree(data / "test" / old, plain / new)
    detector = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain").fit(plain, shots=2, folds=0)
    result = evaluate(detector, plain)
    assert (result.n_normal, result.n_abnormal) == (2, 2)  # two slices of each patient
    (shots,) = (warning for warning in result.warnings if "4 test images are among the shots" in warning)
    (others,) = (warning for warning in result.warnings if "4 test images are of patients or volumes" in warning)
    assert result.provenance["same_patient"] is False
    whole = {path.relative_to(plain).as_posix() for path in plain.glob("*/img/*")}
    measured = {row.name for row in result.rows}
    assert {name for name in whole if name in shots or name in others} == whole - measured
    assert not {patient_of(name) for name in measured} & {patient_of(name) for name in whole - measured}


def patient_of(name):
    return name.rpartition("/")[2].rpartition("_")[0]


def test_other_images_of_known_patients_are_measured_only_where_that_is_allowed_and_said(
    small_recipe, small_backbone, data, tmp_path
):
    plain = tmp_path / "plain"
    for name in ("good", "Ungood"):
        shutil.copytree(data / "test" / name, plain / name)
    detector = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain").fit(plain, shots=2, folds=0)
    result = evaluate(detector, plain, same_patient=True)
    assert (result.n_normal, result.n_abnormal) == (4, 4), "the shots themselves are never measured"
    assert result.to_json()["provenance"]["same_patient"] is True
    (said,) = (warning for warning in result.warnings if "measured too" in warning)
    assert "4 of 8" in said
    assert "optimistic" in said


def test_what_was_used_for_what_is_counted_separately(detector, data):
    """A test set that holds a shot, a calibration image, a selection image, a removed one, and one of each patient."""
    pool = load_dataset(data).test_pool
    shot, calibrated, selected, removed = (sample.image.digest() for sample in pool[:8:2])
    seen = replace(
        detector.provenance,
        shots=(shot,),
        calibrated_on=(calibrated,),
        selection_images=(selected,),
        removed=(removed,),
    )
    detector.fitted = replace(detector.fitted, provenance=seen.with_groups([pool[0].group]))
    result = evaluate(detector, data)
    names = [load_dataset(data).name(sample.image) for sample in pool]
    for words, name in (
        ("1 test images are among the shots", names[0]),
        ("1 test images were used for thresholds and probabilities", names[2]),
        ("1 test images were used to choose the epoch", names[4]),
        ("1 test images were used before a refit without them", names[6]),
        ("1 test images are of patients or volumes of which the detector has seen other images", names[1]),
    ):
        (said,) = (warning for warning in result.warnings if words in warning)
        assert name in said
    assert {row.name for row in result.rows} == set(names) - {names[i] for i in (0, 1, 2, 4, 6)}


def test_where_patients_of_the_shots_are_not_known_this_is_said(detector, small_data):
    detector.fitted = replace(detector.fitted, provenance=replace(detector.provenance, groups=()))
    assert any("not known whose images" in warning for warning in evaluate(detector, small_data).warnings)


def test_a_detector_without_thresholds_says_why(small_recipe, small_backbone, small_data):
    detector = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain").fit(small_data, shots=2, folds=0)
    result = evaluate(detector, small_data)
    why = detector.provenance.uncalibrated
    assert "without folds" in why
    assert any(why in warning for warning in result.warnings)
    assert {row.note for row in result.rows} == {why}


def test_rows_are_what_predict_says_and_progress_is_told(detector, small_data):
    told = []
    result = evaluate(detector, small_data, progress=lambda *now, **_: told.append(now))
    assert told == [("evaluate", i, 12) for i in range(1, 13)]
    samples = load_dataset(small_data).test_pool
    for row, said in zip(result.rows, detector.predict([sample.image for sample in samples]), strict=True):
        for name in ("score", "threshold", "decision", "probability", "p_value", "verdict", "familiar", "note"):
            assert getattr(row, name) == getattr(said, name), name


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


def test_padding_is_no_part_of_an_image(detector, make_images, tmp_path):
    """A wide image is 27 of the square's 64 rows; the others say nothing, however easy they are."""
    from sklearn.metrics import roc_auc_score

    data = make_images(tmp_path / "wide", {"valid": (4, 4), "test": (6, 6)}, size=(64, 150))
    samples = load_dataset(data).test_pool
    small = [np.zeros((27, 64), bool)] * len(samples)
    for number, sample in enumerate(samples):
        if sample.mask is not None:
            small[number] = np.asarray(Image.open(sample.mask.path).resize((64, 27), Image.Resampling.NEAREST)) > 0
    detector.recipe = detector.recipe.replace(aspect="pad")
    maps = [p.anomaly_map[18:45] for p in detector.predict_iter([s.image for s in samples], native=False)]
    expected = roc_auc_score(np.ravel(small), np.ravel(maps))
    assert evaluate(detector, data, pixel_size="recipe").metrics["pixel_auroc"].value == pytest.approx(
        expected, abs=1e-6
    )
    # In tiles the map is joined without padding, and lies on its mask all the same.
    width = len(detector.state.familiarity.features[0])
    detector.engine = lambda seen: (seen[:, 0].amax((1, 2)), seen[:, 0], torch.ones(len(seen), width))
    for aspect in ("pad", "stretch"):
        detector.recipe = detector.recipe.replace(aspect=aspect, tile=64)
        native, recipe = (evaluate(detector, data, pixel_size=one).metrics["pixel_auroc"].value for one in SIZES)
        assert recipe == pytest.approx(native, abs=0.03), aspect


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


def test_a_file_that_has_gone_is_counted_and_the_rest_goes_on(detector, data):
    dataset = load_dataset(data)
    dataset.test_pool[0].image.path.unlink()
    result = evaluate(detector, dataset)
    assert len(result.rows) == len(dataset.test_pool) - 1
    assert any("1 of 12 images could not be used" in warning for warning in result.warnings)
