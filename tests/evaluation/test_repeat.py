"""Selecting epochs and repeating over draws: what is kept, what is marked, what is not done twice."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from madclip import MadCLIP, Recipe
from madclip.data.load import load_dataset
from madclip.data.samples import Reading
from madclip.errors import CheckpointError, DataError, MadCLIPWarning, RecipeError
from madclip.evaluation.protocol import evaluate
from madclip.evaluation.repeat import repeat
from madclip.fitting import Run

RECIPE = Recipe(image_size=64, variants=("identity",), epochs=3, batch_size=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Grey noise; a bright square where abnormal. valid/ 6 + 6, test/ 8 + 8."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for split, count in (("valid", 6), ("test", 8)):
        for name in ("good", "Ungood"):
            folder = root / split / name / "img"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (64, 64), dtype=np.uint8)
                if name == "Ungood":
                    pixels[20:40, 20:40] = 255
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return load_dataset(root)


@pytest.fixture(scope="module")
def backbone():
    from madclip import load_backbone

    return load_backbone("stand-in", image_size=64, device="cpu")


@pytest.mark.parametrize("select", ["last", "val", "test-best"])
def test_the_kept_weights_are_those_of_the_chosen_epoch(data, backbone, select):
    detector = MadCLIP(RECIPE, backbone=backbone, objective="noise")
    detector.fit(data, shots=4, folds=0, run=Run(select=select))
    assert detector.provenance.select == select
    if select == "last":
        return
    epoch = detector.provenance.selected_epoch
    assert 1 <= epoch <= 3
    assert detector.provenance.normal == (3 if select == "val" else 4)
    watched = {"val": 2, "test-best": 16}[select]
    place = f"{watched} held-out shots" if select == "val" else "the test images"
    assert detector.provenance.selected_on.endswith(place)


def test_numbers_selected_on_the_test_set_carry_the_mark(data, backbone):
    detector = MadCLIP(RECIPE, backbone=backbone, objective="noise")
    detector.fit(data, shots=4, run=Run(select="test-best"))
    assert detector.calibration is None
    result = evaluate(detector, data)
    assert any("optimistic" in warning for warning in result.warnings)
    assert result.to_json()["provenance"]["fit"]["select"] == "test-best"


def test_val_needs_shots_to_hold_out(data, backbone):
    with pytest.raises(DataError, match="folds need"):
        MadCLIP(RECIPE, backbone=backbone, objective="noise").fit(data, shots=2, run=Run(select="val"))


def test_repeating_summarises_and_resumes(data, backbone, tmp_path):
    told = []

    def progress(stage, done, total, *, loss=None, part=""):
        told.append((stage, part, done, total))

    detector = MadCLIP(RECIPE, backbone=backbone, objective="noise")
    arguments = {"shots": 4, "folds": 0, "run": Run(progress=progress)}
    first = repeat(detector, data, tmp_path, seeds=(0, 1), **arguments)
    assert detector.fitted is None
    assert {(stage, part) for stage, part, _, _ in told} == {
        ("draws", ""),
        *((stage, f"seed {seed}") for stage in ("encode", "fit", "evaluate") for seed in (0, 1)),
    }
    assert ("evaluate", "seed 1", 16, 16) in told
    values = first["image_auroc"]["values"]
    assert first["image_auroc"]["mean"] == pytest.approx(np.mean(values))
    assert first["image_auroc"]["std"] == pytest.approx(np.std(values, ddof=1))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-*/evaluation.json")}
    again = repeat(detector, data, tmp_path, seeds=(0, 1, 2), **arguments)
    assert again["image_auroc"]["values"][:2] == values
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    json.loads((tmp_path / "summary.json").read_text())
    with pytest.raises(CheckpointError, match=r"another experiment \(shots differ"):
        repeat(detector, data, tmp_path, seeds=(0,), **(arguments | {"shots": 5}))
    swapped = load_dataset(data.root, Reading(normal=("Ungood",), abnormal=("good",)))
    with pytest.raises(CheckpointError, match=r"another experiment \(images differ"):
        repeat(detector, swapped, tmp_path, seeds=(0,), **arguments)
    moved = shutil.copytree(data.root, tmp_path / "moved" / data.root.name)
    assert repeat(detector, load_dataset(moved), tmp_path, seeds=(0, 1), **arguments)["image_auroc"]["values"] == values
    one, two, *_ = sorted(moved.glob("test/good/img/*.png"))
    one.write_bytes(two.read_bytes())
    with pytest.raises(CheckpointError, match=r"another experiment \(content differ"):
        repeat(detector, load_dataset(moved), tmp_path, seeds=(0,), **arguments)
    with pytest.raises(RecipeError, match="at least one seed"):
        repeat(detector, data, tmp_path, seeds=(), **arguments)
    with pytest.raises(RecipeError, match="no checkpoint of a single fit"):
        repeat(detector, data, tmp_path, run=Run(checkpoint=tmp_path / "state"))
    (tmp_path / "seed-0" / "evaluation.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"evaluation\.json: damaged"):
        repeat(detector, data, tmp_path, seeds=(0, 1), **arguments)


def test_other_images_of_the_shots_patients_are_measured_only_with_a_mark(backbone, tmp_path, make_images):
    """Two images of each of four patients of a class, in one folder without splits: a draw of 2 leaves 6 or 4 of 8."""
    data = load_dataset(make_images(tmp_path / "set", {"": (8, 8)}, masks=False))
    assert len(data.patients) == 8
    detector = MadCLIP(RECIPE, backbone=backbone, objective="noise")
    plain, marked = (
        repeat(detector, data, tmp_path / str(same), seeds=(0, 1), shots=2, folds=0, same_patient=same)
        for same in (False, True)
    )
    assert [run["n_normal"] for run in plain["runs"]] == [4, 4]
    assert [run["n_normal"] for run in marked["runs"]] == [6, 6]
    assert plain["marks"] == []
    assert marked["marks"] == [
        "Other images of patients and volumes that gave shots are measured too: every number here is optimistic."
    ]
    for summary, mark in ((plain, False), (marked, True)):
        metrics = [one for one in summary.values() if isinstance(one, dict) and "mean" in one]
        assert len(metrics) > 1
        assert {one.get("optimistic", False) for one in metrics} == {mark}
    assert json.loads((tmp_path / "True" / "summary.json").read_text())["marks"] == marked["marks"]
    with pytest.raises(CheckpointError, match=r"another experiment \(arguments differ"):
        repeat(detector, data, tmp_path / "True", seeds=(0,), shots=2, folds=0)


def test_no_interval_of_repeated_draws_leaves_0_to_1(data, backbone, tmp_path):
    """Draws that lie far apart, as two evaluations that are there already."""
    detector = MadCLIP(RECIPE, backbone=backbone, objective="noise")
    arguments = {"seeds": (0, 1), "shots": 2, "folds": 0}
    repeat(detector, data, tmp_path, **arguments)
    for seed, value in ((0, 0.35), (1, 0.95)):
        path = tmp_path / f"seed-{seed}" / "evaluation.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"image_auroc": value}))
    found = repeat(detector, data, tmp_path, **arguments)
    assert found["image_auroc"]["ci"] == [0, 1]
    assert found["image_auroc"]["mean"] == pytest.approx(0.65)
    for name, one in found.items():
        if isinstance(one, dict) and one.get("ci"):
            assert 0 <= one["ci"][0] <= one["mean"] <= one["ci"][1] <= 1, name


def test_more_calibration_images_sharpen_the_p_value_and_are_not_test_images(data, backbone):
    detector = MadCLIP(RECIPE, backbone=backbone, objective="noise").fit(data, shots=4, folds=2)
    assert len(detector.calibration.normal_scores) == 4
    with pytest.warns(MadCLIPWarning, match="8 of 28 images"):
        detector.calibrate(data)  # valid/ and test/ alike: all of it is spent then
    assert len(detector.calibration.normal_scores) == 4 + 10  # each counts once, a shot as it was held out
    with pytest.raises(DataError, match=r"28 of 28 images to calibrate on.* were seen before; give others"):
        detector.calibrate(data)
    with pytest.raises(DataError, match="has seen all"):
        evaluate(detector, data)
