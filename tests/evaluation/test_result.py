import json

import numpy as np
import pytest

from madclip.calibration.calibration import Calibration
from madclip.errors import DataError
from madclip.evaluation.result import choose_gallery, evaluate_scores
from madclip.metrics.image import auroc
from madclip.metrics.pixel import PixelHistogram, dice, pixel_auroc
from madclip.metrics.quantiles import PixelQuantiles


@pytest.fixture
def scenes():
    """30 images of different sizes, ten patients; every third is anomalous, with a mask; two anomalous without."""
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3 == 0
    maps, masks = [], []
    for index, label in enumerate(labels):
        shape = (int(rng.integers(20, 40)), int(rng.integers(20, 40)))
        mask = np.zeros(shape, bool)
        mask[5:12, 4:15] = label
        maps.append(np.clip(rng.normal(0.3, 0.1, shape) + 0.2 * mask, 0, 1).astype(np.float32))
        masks.append((None if index in (0, 3) else mask) if label else None)
    scores = np.clip(rng.normal(0.4, 0.1, 30) + 0.15 * labels, 0, 1)
    names = [f"test/{index:03d}.png" for index in range(30)]
    return names, labels.astype(int), scores, maps, masks


@pytest.fixture
def calibration():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 16)
    return Calibration.fit(labels, rng.normal(0.4, 0.1, 32) + 0.15 * labels, "sens=0.95", pixel_threshold=0.42)


ISSUE_KEYS = {
    *("image_auroc", "image_auroc_ci", "image_ap", "pixel_auroc", "pixel_auroc_bound", "pixel_ap", "aupro", "dice"),
    *("threshold", "sensitivity", "sensitivity_ci", "specificity", "specificity_ci", "brier", "n_normal", "n_abnormal"),
}


def test_everything_with_its_interval(scenes, calibration):
    names, labels, scores, maps, masks = scenes
    result = evaluate_scores(names, labels, scores, zip(maps, masks, strict=True), calibration=calibration)
    out = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert set(out) >= ISSUE_KEYS
    known = [i for i in range(30) if not labels[i] or masks[i] is not None]
    full = [np.zeros(m.shape, bool) if k is None else k for m, k in zip(maps, masks, strict=True)]
    assert out["image_auroc"] == pytest.approx(auroc(labels, scores), abs=1e-12)
    exact = pixel_auroc([maps[i] for i in known], [full[i] for i in known])
    assert abs(out["pixel_auroc"] - exact) <= out["pixel_auroc_bound"] + 1e-12
    overlap = [dice(maps[i] >= 0.42, full[i]) for i in known if labels[i]]
    assert out["dice"] == pytest.approx(np.mean(overlap), abs=1e-12)
    for name, estimate in result.metrics.items():
        assert estimate.low < estimate.high, name
        assert estimate.low <= estimate.value <= estimate.high or name == "ece", name
    assert (out["n_normal"], out["n_abnormal"], len(out["images"])) == (20, 10, 30)
    assert any("2 of 10 anomalous images have no mask" in line for line in out["warnings"])
    assert any("cannot promise" in line for line in out["warnings"])
    assert "images" not in result.to_json(images=False)
    assert out["confusion"]["true_positive"] + out["confusion"]["false_negative"] == 10


def test_patients_are_the_units(scenes):
    names, labels, scores, maps, masks = scenes
    copies = 3
    many = [np.tile(a, copies) for a in (names, labels, scores)]
    pairs = list(zip(maps, masks, strict=True)) * copies
    patients = names * copies
    clustered = evaluate_scores(*many, pairs, patients=patients)
    single = evaluate_scores(names, labels, scores, zip(maps, masks, strict=True), patients=names)
    blind = evaluate_scores(*many, pairs)

    def width(result, name):
        return result.metrics[name].high - result.metrics[name].low

    for name in ("image_auroc", "image_ap", "pixel_auroc", "aupro"):
        assert width(clustered, name) == pytest.approx(width(single, name), rel=0.25)
        assert width(blind, name) < 0.8 * width(clustered, name)
    assert clustered.n_patients == 30
    assert "patient_auroc" in clustered.metrics
    copied = evaluate_scores(*many, pairs, patients=patients, pixel_threshold=0.4)
    assert copied.metrics["patient_dice"].value == pytest.approx(copied.metrics["dice"].value, abs=1e-12)
    (first,) = (patient for patient in copied.patients if patient["patient"] == names[6])
    assert first == {
        "patient": names[6],
        "images": 3,
        "label": 1,
        "score": scores[6],
        "dice": pytest.approx(dice(maps[6] >= 0.4, masks[6])),
    }
    assert any("90 images of 30 patients" in line for line in clustered.warnings)
    assert any("Patients are not known" in line for line in blind.warnings)


def test_order_changes_nothing_that_is_measured(scenes, calibration):
    names, labels, scores, maps, masks = scenes
    order = np.random.default_rng(2).permutation(30)
    one = evaluate_scores(names, labels, scores, zip(maps, masks, strict=True), calibration=calibration)
    two = evaluate_scores(
        [names[i] for i in order],
        labels[order],
        scores[order],
        ((maps[i], masks[i]) for i in order),
        calibration=calibration,
    )
    for name, estimate in one.metrics.items():
        assert two.metrics[name].value == pytest.approx(estimate.value, abs=1e-9), name
    assert {row.name: row for row in one.rows} == {row.name: row for row in two.rows}


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only_has_reasons(label, calibration):
    maps = [np.full((4, 4), 0.3 + 0.1 * i) for i in range(4)]
    masks = [np.eye(4, dtype=bool) if label else None] * 4
    out = evaluate_scores(
        list("abcd"), [label] * 4, [0.1, 0.2, 0.6, 0.7], zip(maps, masks, strict=True), calibration=calibration
    ).to_json()
    json.dumps(out, allow_nan=False)
    assert out["image_auroc"] is None
    assert "only one kind" in out["reasons"]["image_auroc"]
    assert (out["sensitivity"] is None) == (label == 0)
    assert (out["specificity"] is None) == (label == 1)
    assert (out["pixel_auroc"] is None) == (label == 0)
    assert (out["dice"] is None) == (label == 0)
    assert out["brier"] is not None


def test_what_was_not_given_has_a_reason(scenes):
    names, labels, scores, maps, masks = scenes
    out = evaluate_scores(names, labels, scores).to_json()
    assert out["reasons"]["pixel_auroc"] == out["reasons"]["dice"] == "no anomaly maps were given"
    assert "no threshold" in out["reasons"]["sensitivity"]
    assert "not calibrated" in out["reasons"]["brier"]
    unmasked = evaluate_scores(names, labels, scores, ((m, None) for m in maps), threshold=0.5, pixel_threshold=0.5)
    assert "no anomalous image has a mask" in unmasked.to_json()["reasons"]["pixel_auroc"]
    assert unmasked.metrics["dice"].value is None
    assert unmasked.metrics["false_area"].value is not None
    assert (
        evaluate_scores(names, labels, scores, zip(maps, masks, strict=True))
        .metrics["dice"]
        .reason.startswith("no threshold")
    )


def test_an_empty_mask_is_no_lesion(scenes):
    names, labels, scores, maps, masks = scenes
    masks = [np.zeros(m.shape, bool) if k is None else k for m, k in zip(maps, masks, strict=True)]
    result = evaluate_scores(names, labels, scores, zip(maps, masks, strict=True), pixel_threshold=0.4)
    assert result.rows[0].dice is None
    assert result.rows[6].dice is not None
    assert any("2 anomalous images have an empty mask" in line for line in result.warnings)


def test_bad_input_names_the_image(scenes):
    names, labels, scores, maps, masks = scenes
    with pytest.raises(DataError, match="empty"):
        evaluate_scores([], [], [])
    with pytest.raises(DataError, match=r"test/004\.png: the score is nan"):
        evaluate_scores(names, labels, np.where(np.arange(30) == 4, np.nan, scores))
    with pytest.raises(DataError, match="29 anomaly maps for 30 images"):
        evaluate_scores(names, labels, scores, list(zip(maps, masks, strict=True))[:-1])
    with pytest.raises(DataError, match="31 anomaly maps for 30 images"):
        evaluate_scores(names, labels, scores, [*zip(maps, masks, strict=True), (maps[0], None)])
    wrong = [*masks]
    wrong[1] = np.ones(maps[1].shape, bool)
    with pytest.raises(DataError, match=r"test/001\.png: labelled normal, but its mask"):
        evaluate_scores(names, labels, scores, zip(maps, wrong, strict=True))
    wrong[1], wrong[6] = None, np.ones((3, 3), bool)
    with pytest.raises(DataError, match=r"test/006\.png: the anomaly map is .* sizes must be the same"):
        evaluate_scores(names, labels, scores, zip(maps, wrong, strict=True))
    with pytest.raises(DataError, match="do not match"):
        evaluate_scores(names, labels, scores, familiar=[True])


def test_the_gallery_holds_both_ends_and_the_middle():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1], bool)
    scores = np.array([0.1, 0.2, 0.3, 0.9, 0.05, 0.5, 0.7, 0.8])
    chosen = choose_gallery(labels, scores, 0.52, 2)
    groups = {name: {i for i, of in chosen.items() if name in of} for name in ("best", "worst", "nearest")}
    assert groups == {"best": {7, 0}, "worst": {4, 3}, "nearest": {5, 6}}
    assert choose_gallery(labels, scores, None, 0) == {}


def test_the_gallery_is_small_and_reads_only_its_images(scenes):
    names, labels, scores, maps, masks = scenes
    read = []

    def image_of(index):
        read.append(index)
        return np.zeros((600, 900, 3), np.uint8)

    big = [np.kron(m, np.ones((20, 20), np.float32)) for m in maps]
    full = [None if k is None else np.kron(k, np.ones((20, 20), bool)) for k in masks]
    result = evaluate_scores(names, labels, scores, zip(big, full, strict=True), image_of=image_of, gallery=4)
    assert len(result.gallery) == len(read) == 8
    assert all(max(item.image.shape) <= 224 and max(item.map.shape) <= 224 for item in result.gallery)
    assert all(item.image.shape[:2] == item.map.shape for item in result.gallery)


def test_quantiles_stand_for_the_pixels(scenes):
    """Sixty-four of them per map give the intervals that all pixels would."""
    _, labels, _, maps, _ = scenes
    rng = np.random.default_rng(5)
    masks = [rng.random(m.shape) < 0.1 * label for m, label in zip(maps, labels, strict=True)]
    coarse, fine, histogram = PixelQuantiles(64), PixelQuantiles(10**6), PixelHistogram()
    for scores, mask in zip(maps, masks, strict=True):
        histogram.update(scores, mask)
        coarse.update(scores, mask)
        fine.update(scores, mask)
    for few, many in zip(coarse.intervals(histogram), fine.intervals(histogram), strict=True):
        assert (few.low, few.high) == pytest.approx((many.low, many.high), abs=0.004)
        assert few.low < few.value < few.high


def test_maps_that_are_all_right_or_of_one_image_have_no_interval():
    mask = np.zeros((10, 10), bool)
    mask[2:5, 2:5] = True
    for count, reason in ((1, "two patients or images"), (4, "every bootstrap replicate is equal")):
        histogram, quantiles = PixelHistogram(), PixelQuantiles()
        for _ in range(count):
            histogram.update(0.2 + 0.5 * mask, mask)
            quantiles.update(0.2 + 0.5 * mask, mask)
        for estimate in quantiles.intervals(histogram):
            assert estimate.value == pytest.approx(1.0)
            assert estimate.low is None
            assert reason in estimate.reason
