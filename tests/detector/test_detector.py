"""MadCLIP as its users meet it: what it learns from, what it says, and what must not change what it says."""

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from madclip import MadCLIP, Prediction
from madclip.data.load import load_dataset
from madclip.errors import DataError, RecipeError
from madclip.fitting import Run
from madclip.recipe import ImageScore
from madclip.training.out_of_fold import fold_members, why_not
from madclip.training.shots import Shot


@pytest.fixture
def new(small_recipe, small_backbone):
    """A detector that is not fitted yet."""

    def make(objective="Brain", **changes):
        return MadCLIP(small_recipe.replace(**changes), backbone=small_backbone, objective=objective)

    return make


@pytest.fixture(scope="module")
def detector(small_detector, small_backbone):
    return MadCLIP.load(small_detector, backbone=small_backbone)


@pytest.fixture(scope="module")
def images(small_data):
    return [sample.image for sample in load_dataset(small_data).test_pool]


def weights(detector):
    return list(detector.state.head.state_dict().values())


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


# What it learns from


def test_all_ways_to_give_the_same_images(new, small_data):
    dataset = load_dataset(small_data)
    samples = dataset.shot_pool
    labels = [sample.label for sample in samples]
    arguments = {"shots": None, "folds": 0}
    fits = [
        new().fit(small_data, **arguments),
        new().fit(str(small_data), **arguments),
        new().fit(dataset, **arguments),
        new().fit(samples, folds=0),
        new().fit([s.image for s in samples], labels, [s.mask for s in samples], folds=0),
        new().fit([str(s.image) for s in samples], np.array(labels), [s.mask for s in samples], folds=0),
    ]
    for other in fits[1:]:
        assert same(fits[0], other)
        assert other.provenance.shots == fits[0].provenance.shots


def test_arrays_are_learned_from_as_files_are(new, small_data):
    samples = load_dataset(small_data).shot_pool
    labels = [sample.label for sample in samples]
    grey = [np.asarray(Image.open(s.image.path)) for s in samples]
    masks = [None if s.mask is None else np.asarray(Image.open(s.mask.path)) for s in samples]
    files = new().fit(samples, folds=0)
    colour = [np.repeat(image[..., None], 3, -1) for image in grey]
    floats = [image.astype(np.float32) / 255 for image in grey]
    tensors = [torch.tensor(image).float().div(255).expand(3, -1, -1) for image in grey]
    # The jitter of an image depends on its bytes, and these recipes have none.
    for given in (grey, colour, np.stack(colour), floats, tensors):
        assert same(files, new().fit(given, labels, masks, folds=0))
    assert same(files, new().fit(grey, torch.tensor(labels), [None if m is None else m > 0 for m in masks], folds=0))


@pytest.mark.parametrize("kept", [0, 2, 4], ids=["no masks", "some masks", "all masks"])
def test_masks_where_there_are_any(new, small_data, kept):
    samples = list(load_dataset(small_data).shot_pool)
    abnormal = [s for s in samples if s.label]
    samples = [s for s in samples if not s.label] + [
        s if i < kept else dataclasses.replace(s, mask=None) for i, s in enumerate(abnormal)
    ]
    detector = new().fit(samples, folds=2)
    assert detector.provenance.masks == kept
    assert detector.state.readout.has_masks == bool(kept)
    assert (detector.state.history[-1]["dice"] > 0) == bool(kept)
    assert (detector.calibration.pixel_threshold is not None) == bool(kept)
    one = detector.predict(abnormal[0].image)
    assert one.anomaly_map.std() > 0


def test_unequal_shots(new, small_data):
    detector = new().fit(small_data, shots=(4, 1), folds=2)
    assert (detector.provenance.normal, detector.provenance.abnormal) == (4, 1)
    assert detector.calibration is None  # a single abnormal image cannot be held out
    assert detector.predict(load_dataset(small_data).test_pool[0].image).verdict is None


@pytest.mark.parametrize("objective", ["Échographie du fœtus", "脑部 MRI", "x-ray {film} (PA)", "  two   words\n"])
def test_any_objective(new, small_data, objective, tmp_path, small_backbone):
    detector = new(objective).fit(small_data, shots=2, folds=0)
    plain = new("Brain").fit(small_data, shots=2, folds=0)
    assert not torch.equal(detector.state.head.text(), plain.state.head.text())
    detector.save(tmp_path / "d")
    again = MadCLIP.load(tmp_path / "d", backbone=small_backbone)
    assert again.objective == objective
    assert torch.equal(again.state.head.text(), detector.state.head.text())


def test_fixed_prompts_take_any_objective(new, small_data):
    detector = new("x-ray {film}", learned_prompts=False, epochs=1).fit(small_data, shots=2, folds=0)
    assert torch.isfinite(detector.state.head.text()).all()


@pytest.mark.parametrize(
    ("images", "labels", "masks", "words"),
    [
        ([np.zeros((64, 64), np.uint8)] * 2, None, None, "labels"),
        ([np.zeros((64, 64), np.uint8)] * 2, [0], None, "2 images, 1 labels"),
        ([np.zeros((64, 64), np.uint8)] * 2, [0, 1], [None], "1 masks"),
        ([np.zeros((64, 64), np.uint8)] * 2, [0, 2], None, "not \\[2\\]"),
        ([np.zeros((64, 64), np.uint8)] * 2, [0, "1"], None, "labels are 0"),
        ([np.zeros((64, 64), np.uint8)] * 2, [1, 1], None, "there are 0 and 2"),
        ([np.zeros((64, 64), np.uint8)] * 2, [0, 1], [None, np.zeros((64, 64))], "empty there"),
        ([np.zeros((64, 64), np.uint8)] * 2, [0, 1], [np.ones((64, 64)), None], "marks a normal image"),
        ([np.zeros((64, 64), np.uint8)] * 2, [0, 1], [None, np.ones((64, 32))], "must agree"),
        ([np.zeros((64, 64), np.uint8)] * 2, [0, 1], [None, np.arange(4096).reshape(64, 64)], "values"),
        ([np.zeros((64, 64, 4), np.uint8)] * 2, [0, 1], None, "not an image"),
        ([np.zeros((1, 1), np.uint8)] * 2, [0, 1], None, "at least"),
        ([np.zeros((0, 0), np.uint8)] * 2, [0, 1], None, "nothing to read"),
        ([np.zeros(64, np.uint8)] * 2, [0, 1], None, "not an image|at least"),
        ([np.full((64, 64), 300.0)] * 2, [0, 1], None, "rescale them to 0..1"),
        ([np.full((64, 64), np.nan)] * 2, [0, 1], None, "NaN"),
        ([torch.zeros(2, 64, 64)] * 2, [0, 1], None, "not an image"),
        ([[[0, 1], [1, 0]]] * 2, [0, 1], None, "at least"),
        ([{"a": 1}] * 2, [0, 1], None, "a dict is not an image"),
        (["missing.png", "also.png"], [0, 1], None, "missing.png"),
        ([], [], None, "0 and 0"),
    ],
)
def test_images_that_cannot_be_learned_from(new, images, labels, masks, words):
    detector = new()
    with pytest.raises(DataError, match=words):
        detector.fit(images, labels, masks)
    assert detector.fitted is None


def test_labels_belong_to_images_given_directly(new, small_data):
    for data in (small_data, load_dataset(small_data), load_dataset(small_data).shot_pool):
        with pytest.raises(DataError, match="labels"):
            new().fit(data, [0, 1] * 4)
    with pytest.raises(DataError, match="labels"):
        new().fit(small_data, masks=[None])


def test_arguments_that_make_no_sense(small_recipe, small_backbone, new, small_data):
    for objective in ("", " \n"):
        with pytest.raises(RecipeError, match="objective is empty"):
            new(objective).fit(small_data)
    with pytest.raises(RecipeError, match="not fitted"):
        new().predict(np.zeros((64, 64), np.uint8))
    with pytest.raises(RecipeError, match="not fitted"):
        new().save("nowhere")
    with pytest.raises(RecipeError, match="image_size=240"):
        MadCLIP(backbone=small_backbone).fit(small_data)
    with pytest.raises(RecipeError, match="activation"):
        MadCLIP(small_recipe.replace(backbone_activation="quick_gelu"), backbone=small_backbone).fit(small_data)
    for arguments in ({"seed": -1}, {"folds": 1}, {"shots": -1}, {"operating_point": "most"}):
        with pytest.raises(RecipeError):
            new().fit(small_data, **({"shots": 2} | arguments))


def test_same_seed_same_weights_and_calibration(new, small_data):
    first, second, other = (new().fit(small_data, shots=2, folds=2, seed=seed) for seed in (3, 3, 4))
    assert same(first, second)
    assert first.calibration == second.calibration
    assert first.state.familiarity == second.state.familiarity
    assert not same(first, other)


def test_a_second_fit_forgets_the_first(new, small_data, images):
    once = new().fit(small_data, shots=2, folds=0, seed=1)
    twice = new().fit(small_data, shots=4, folds=2, seed=0)
    before = twice.predict(images[0])
    assert before.verdict is not None
    twice.fit(small_data, shots=2, folds=0, seed=1)
    assert same(once, twice)
    assert twice.predict(images[0]).verdict is None
    assert twice.predict(images[0]).score == once.predict(images[0]).score != before.score


def test_progress_counts_every_image_and_step(new, small_data):
    told = []

    def progress(stage, done, total, *, loss=None, part=""):
        told.append((stage, done, total, loss is not None, part))

    new().fit(small_data, shots=4, folds=2, run=Run(progress=progress))
    assert told[:8] == [("encode", i, 8, False, "") for i in range(1, 9)]
    assert told[8:12] == [("fit", i, 4, True, "") for i in range(1, 5)]  # 8 shots in 2 variants, batches of 8, 2 epochs
    folds = told[12:]
    assert [(stage, done, total) for stage, done, total, _, _ in folds] == [("out-of-fold", i, 4) for i in range(1, 5)]
    assert [part for *_, part in folds] == ["fold 1 of 2"] * 2 + ["fold 2 of 2"] * 2


@pytest.mark.parametrize("seed", range(5))
def test_folds_leave_both_classes_to_learn_from(seed):
    generator = np.random.default_rng(seed)
    for _ in range(40):
        count = generator.integers(2, 12)
        patients = [None if generator.random() < 0.3 else f"p{generator.integers(0, 5)}" for _ in range(2 * count)]
        labels = generator.integers(0, 2, 2 * count)
        shots = [
            Shot(torch.zeros(1), int(label), None, str(i), () if patient is None else (patient,))
            for i, (label, patient) in enumerate(zip(labels, patients, strict=True))
        ]
        if why_not(shots):
            continue
        parts = fold_members(shots, 4, seed)
        assert sorted(i for part in parts for i in part) == list(range(len(shots)))
        homes = [{shots[i].group for i in part} - {None} for part in parts]
        assert not any(a & b for i, a in enumerate(homes) for b in homes[:i])
        for part in parts:
            assert {shots[i].label for i in range(len(shots)) if i not in part} == {0, 1}, (labels, patients, parts)


# What it says


def test_one_or_many_or_arrays(detector, images):
    many = detector.predict(images)
    assert [one.source for one in many] == images
    arrays = detector.predict([np.asarray(Image.open(ref.path)) for ref in images])
    for path, one, from_array in zip(images, many, arrays, strict=True):
        alone = detector.predict(path)
        assert isinstance(alone, Prediction)
        assert alone.score == pytest.approx(one.score, abs=1e-6)
        np.testing.assert_allclose(alone.anomaly_map, one.anomaly_map, atol=1e-6)
        assert from_array.source is None
        assert from_array.score == pytest.approx(one.score, abs=1e-6)
    assert detector.predict([]) == []
    assert detector.predict(str(images[0].path)).score == pytest.approx(many[0].score, abs=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 5, 12])
def test_batches_and_order_do_not_matter(detector, images, batch):
    whole = detector.predict(images)
    parts = list(detector.predict_iter(reversed(images), batch_size=batch))
    for one, other in zip(whole, reversed(parts), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        assert (one.verdict, one.familiar) == (other.verdict, other.familiar)


@pytest.mark.parametrize("side", [64, 100, 33])
@pytest.mark.parametrize("rule", get_args(ImageScore))
def test_score_says_what_predict_says(detector, small_detector, small_backbone, side, rule):
    recipe = dataclasses.replace(detector.recipe, image_score=rule)
    chosen = MadCLIP.load(small_detector, backbone=small_backbone)
    chosen.fitted = dataclasses.replace(chosen.state, recipe=recipe)
    pixels = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(side))
    scores, maps = chosen.score(pixels)
    assert scores.shape == (3,)
    assert maps.shape == (3, side, side)
    for image, score, one in zip(pixels, scores, maps, strict=True):
        prediction = chosen.predict(image)
        assert prediction.score == pytest.approx(float(score), abs=1e-6)
        np.testing.assert_allclose(prediction.anomaly_map, one.numpy(), atol=1e-6)
    if rule == "max" and side == 64:
        torch.testing.assert_close(scores, maps.amax((1, 2)))


@pytest.mark.parametrize("aspect", ["stretch", "pad"])
@pytest.mark.parametrize("size", [(64, 64), (40, 90), (150, 31), (8, 8)])
def test_maps_have_the_size_of_their_image(new, small_data, aspect, size):
    detector = new(aspect=aspect, epochs=1, variants=("identity",)).fit(small_data, shots=2, folds=0)
    generator = np.random.default_rng(0)
    one = detector.predict(generator.integers(0, 256, size).astype(np.uint8))
    assert one.size == size
    assert one.anomaly_map.shape == size
    assert one.anomaly_map.dtype == np.float32
    assert 0 <= one.anomaly_map.min() <= one.anomaly_map.max() <= 1
    assert 0 <= one.score <= 1


def test_pad_is_not_stretch(new, small_data):
    image = np.tile(np.arange(128, dtype=np.uint8), (64, 1))
    found = [
        new(aspect=aspect, epochs=1).fit(small_data, shots=2, folds=0).predict(image) for aspect in ("pad", "stretch")
    ]
    assert found[0].score != found[1].score


def test_in_a_batch_the_rest_goes_on(detector, images, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    inputs = [images[0], bad, np.full((64, 64), np.nan), np.zeros((1, 1), np.uint8), images[1]]
    results = list(detector.predict_iter(inputs, batch_size=2))
    assert [isinstance(result, DataError) for result in results] == [False, True, True, True, False]
    assert [results[0].score, results[4].score] == pytest.approx([p.score for p in detector.predict(images[:2])])
    assert str(bad) in str(results[1])
    with pytest.raises(DataError, match=r"bad\.png"):
        detector.predict(inputs)


@pytest.mark.parametrize(
    "pixels", [torch.zeros(3, 64, 64), torch.zeros(2, 1, 64, 64), torch.full((1, 3, 64, 64), torch.nan)]
)
def test_batches_that_are_none(detector, pixels):
    with pytest.raises(DataError, match=r"\[B, 3, H, W\]"):
        detector.score(pixels)


def test_an_empty_batch_has_no_scores(detector):
    scores, maps = detector.score(torch.zeros(0, 3, 64, 64))
    assert (scores.shape, maps.shape) == ((0,), (0, 64, 64))


def test_calibrated_predictions(detector, images):
    found = detector.predict(images)
    assert {one.verdict for one in found} <= {"normal", "anomalous", "uncertain"}
    order = np.argsort([one.score for one in found])
    assert (np.diff([found[i].probability for i in order]) >= 0).all()
    assert (np.diff([found[i].p_value for i in order]) <= 0).all()


def test_an_image_of_another_kind_is_unfamiliar(new, make_images, tmp_path):
    data = make_images(tmp_path / "data", {"valid": (8, 8), "test": (8, 8)})
    detector = new().fit(data, shots=8, folds=2)
    known = detector.predict([sample.image for sample in load_dataset(data).test_pool])
    assert sum(one.familiar for one in known) >= 14
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::8] = (255, 0, 0)
    assert not detector.predict(stripes).familiar


@pytest.mark.parametrize("name", ["paper", "released"])
def test_the_other_presets(name, small_data, images):
    from madclip import Recipe

    recipe = Recipe.preset(name, image_size=64, epochs=1, variants=("identity", "jitter"))
    detector = MadCLIP(recipe, backbone="stand-in", objective="Brain", device="cpu").fit(small_data, shots=2, folds=2)
    assert detector.image_score == ("max" if name == "released" else "mean")
    assert 0 <= detector.predict(images[0]).score <= 1
