"""One detector of several modalities: what they share, which of them an image is taken for, and what comes later."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from madclip import MadCLIP
from madclip.data.load import load_dataset
from madclip.errors import CheckpointError, DataError, MadCLIPWarning, RecipeError
from madclip.evaluation.protocol import evaluate
from madclip.fitting import Run

LOOKS = {
    "Brain": lambda pixels: pixels,
    "Liver": lambda pixels: (pixels * np.linspace(0.2, 1, 64)).astype(np.uint8),
    "Chest": lambda pixels: 255 - pixels // 2 - (np.arange(64)[:, None] % 16 < 8) * 60,
}


@pytest.fixture(scope="module")
def sets(make_images, tmp_path_factory):
    folders = {}
    for number, (name, look) in enumerate(LOOKS.items()):
        counts = {"valid": (10, 10), "test": (8, 8)}
        folders[name] = make_images(tmp_path_factory.mktemp("joint") / name, counts, seed=number)
        for path in folders[name].rglob("img/*.png"):
            Image.fromarray(look(np.asarray(Image.open(path))).astype(np.uint8)).save(path)
    return folders


@pytest.fixture
def new(small_recipe, small_backbone):
    return MadCLIP(small_recipe.replace(epochs=4), backbone=small_backbone)


@pytest.fixture(scope="module")
def joint(small_recipe, small_backbone, sets):
    two = {name: sets[name] for name in ("Brain", "Liver")}
    return MadCLIP(small_recipe.replace(epochs=4), backbone=small_backbone).fit(two, shots=6, folds=2)


@pytest.fixture
def copied(joint, small_backbone, tmp_path):
    joint.save(tmp_path / "joint")
    return MadCLIP.load(tmp_path / "joint", backbone=small_backbone)


def images(sets, name):
    return [sample.image for sample in load_dataset(sets[name]).test_pool]


def test_each_modality_is_known_and_finds_what_is_wrong(joint, sets):
    for name in ("Brain", "Liver"):
        found = joint.predict(images(sets, name))
        assert {one.modality for one in found} == {name}
        assert all(f"Taken for {name!r}" in one.note for one in found)
        assert sum(one.familiar for one in found) >= 14
        assert evaluate(joint.of(name), sets[name]).metrics["image_auroc"].value > 0.9


def test_an_image_is_judged_as_by_the_head_of_its_modality_alone(joint, sets):
    for name in ("Brain", "Liver"):
        for routed, told in zip(
            joint.predict(images(sets, name)), joint.of(name).predict(images(sets, name)), strict=True
        ):
            assert routed.score == pytest.approx(told.score, abs=1e-6)
            assert np.abs(routed.anomaly_map - told.anomaly_map).max() < 1e-5
            assert (routed.threshold, routed.probability) == (told.threshold, pytest.approx(told.probability, abs=1e-5))
    assert joint.of("Brain").calibration != joint.of("Liver").calibration
    assert repr(joint).endswith("learned 'Brain', 'Liver' from 12 normal and 12 abnormal images)")


def test_a_batch_of_both_is_told_apart(joint, sets):
    mixed = [one for pair in zip(images(sets, "Brain"), images(sets, "Liver"), strict=True) for one in pair]
    assert [one.modality for one in joint.predict(mixed)] == ["Brain", "Liver"] * 16


def test_a_modality_that_was_not_learned_is_unfamiliar(joint, sets):
    found = joint.predict(images(sets, "Chest"))
    assert not any(one.familiar for one in found)
    assert {one.verdict for one in found} == {"uncertain"}


def test_one_set_of_adapters(joint):
    parts = [joint.of(name).state.head for name in ("Brain", "Liver")]
    assert parts[0].adapters is parts[1].adapters
    assert not torch.equal(parts[0].prompts.contexts, parts[1].prompts.contexts)
    count = [sum(p.numel() for p in head.parameters()) for head in (joint.state.head, parts[0])]
    assert count[0] <= 1.2 * count[1]


def test_it_is_saved_once_and_loaded_the_same(joint, copied, sets, small_backbone, tmp_path):
    for name in ("Brain", "Liver"):
        assert copied.predict(images(sets, name)) == joint.predict(images(sets, name))
    single, whole = tmp_path / "single", tmp_path / "joint"
    joint.of("Liver").save(single)
    sizes = [(folder / "head.safetensors").stat().st_size for folder in (whole, single)]
    assert sizes[0] <= 1.2 * sizes[1]
    assert [json.loads((f / "detector.json").read_text())["format"] for f in (whole, single)] == [2, 1]
    again = MadCLIP.load(single, backbone=small_backbone)
    assert again.predict(images(sets, "Liver")) == joint.of("Liver").predict(images(sets, "Liver"))
    assert again.provenance.seen == joint.provenance.seen, "its adapters learned from the other's images too"


def test_a_damaged_one_is_refused(copied, small_backbone, tmp_path):
    path = tmp_path / "joint" / "detector.json"
    facts = json.loads(path.read_text())
    for broken in ({}, {"Brain": {}}, {"Brain": None}, [], {" ": facts["modalities"]["Brain"]}):
        path.write_text(json.dumps(facts | {"modalities": broken}))
        with pytest.raises(CheckpointError, match="damaged"):
            MadCLIP.load(tmp_path / "joint", backbone=small_backbone)


def test_a_modality_is_added_and_none_is_forgotten(copied, sets, tmp_path):
    before = {name: evaluate(copied.of(name), sets[name]).metrics["image_auroc"].value for name in ("Brain", "Liver")}
    shots = copied.provenance.seen
    thresholds = {name: copied.of(name).calibration for name in before}
    copied.refit(sets)
    assert copied.provenance.seen > shots
    assert not copied.provenance.removed
    for name, value in before.items():
        assert evaluate(copied.of(name), sets[name]).metrics["image_auroc"].value > value - 0.1
        assert copied.of(name).calibration == thresholds[name]
        assert copied.of(name).provenance.calibrated_before_refit
    assert evaluate(copied.of("Chest"), sets["Chest"]).metrics["image_auroc"].value > 0.8
    assert copied.of("Chest").calibration is None
    assert {one.modality for one in copied.predict(images(sets, "Chest"))} == {"Chest"}
    copied.refit(sets, folds=2)
    assert all(copied.of(name).calibration for name in sets)


def test_thresholds_of_one_modality_from_further_images(copied, sets):
    kept = copied.of("Liver").calibration
    copied.calibrate(sets["Chest"], modality="Brain")
    assert len(copied.of("Brain").calibration.normal_scores) > 10
    assert copied.of("Liver").calibration == kept
    chest = load_dataset(sets["Chest"]).samples
    assert all(one.provenance.saw(sample) for one in (copied, copied.of("Liver")) for sample in chest)
    with pytest.raises(RecipeError, match="say of which, Brain or Liver"):
        copied.calibrate(sets["Chest"])


def test_a_lesion_that_is_lost_is_said_of_its_set(new, sets, make_images, tmp_path):
    folder = make_images(tmp_path / "specks", {"valid": (3, 3)}, seed=8)
    for number, path in enumerate(sorted(folder.rglob("Ungood/img/*.png"))):
        mask = np.zeros((640, 640), np.uint8)
        mask[101, 101] = 255
        Image.fromarray(np.random.default_rng(number).integers(0, 255, mask.shape, np.uint8)).save(path)
        Image.fromarray(mask).save(path.parent.with_name("anomaly_mask") / path.name)
    with pytest.warns(MadCLIPWarning, match="^Specks: 3 of 6 shots have lesions of which nothing is left"):
        new.fit({"Brain": sets["Brain"], "Specks": folder}, shots=3, folds=0)


def test_what_cannot_be_learned_jointly_is_said_in_a_line(new, joint, sets, make_images, tmp_path):
    brain, liver = sets["Brain"], sets["Liver"]
    normals = make_images(tmp_path / "normals", {"valid": (6, 0)}, seed=7)
    for given, shots, kind, said in (
        ({"Brain": brain}, 4, RecipeError, "two modalities or more"),
        ({"Brain": brain, "brain": liver}, 4, RecipeError, "named twice"),
        ({"Brain": brain, "Liver": brain}, 4, DataError, "given for two modalities"),
        ({"Brain": brain, "Liver": list(load_dataset(brain).shot_pool)}, None, DataError, "images in common"),
        ({"Brain": brain, "Liver": normals}, 4, DataError, "'Liver' has no abnormal images"),
        ({"Brain": brain, "Liver": liver}, 1, DataError, "at least three"),
        ({"Brain": brain, "Liver": liver}, 0, RecipeError, "shots"),
    ):
        with pytest.raises(kind, match=said):
            new.fit(given, shots=shots, folds=0)
    with pytest.raises(RecipeError, match="last epoch"):
        new.fit({"Brain": brain, "Liver": liver}, shots=4, run=Run(select="val"))
    with pytest.raises(RecipeError, match="knows Brain, Liver"):
        joint.of("Chest")
    with pytest.raises(RecipeError, match="knows Brain, Liver"):
        joint.calibrate(brain, modality="")
    with pytest.raises(RecipeError, match="not fitted for several"):
        joint.of("Brain").of("Brain")
    with pytest.raises(RecipeError, match="of several modalities"):
        joint.refit(brain)
    with pytest.raises(RecipeError, match="of one modality"):
        joint.of("Brain").refit({"Brain": brain, "Liver": liver})
    with pytest.raises(DataError, match="'Liver' would be forgotten"):
        joint.refit({"Brain": brain, "Chest": sets["Chest"]})
