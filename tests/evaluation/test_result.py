import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from madclip.calibration.calibration import Calibration
from madclip.errors import DataError
from madclip.evaluation.gallery import choose_gallery
from madclip.evaluation.measure import Uncalibrated, evaluate_scores
from madclip.evaluation.result import ImageRow
from madclip.metrics.image import auroc
from madclip.metrics.pixel import PixelHistogram, dice, pixel_auroc
from madclip.metrics.quantiles import PixelQuantiles
from madclip.metrics.scored import Scored
from madclip.prediction import Prediction, Row, judged


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


def rows_of(names, labels, scores, patients=None, **more):
    owners = [None] * len(names) if patients is None else patients
    return [
        ImageRow(str(name), int(label), float(score), patient=owner, **more)
        for name, label, score, owner in zip(names, labels, scores, owners, strict=True)
    ]


@pytest.fixture
def calibration():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 16)
    return Calibration.fit(labels, rng.normal(0.4, 0.1, 32) + 0.15 * labels, "sens=0.95", pixel_threshold=0.42)


ROW_KEYS = {
    *("name", "patient", "label", "score", "probability", "p_value", "verdict", "familiar", "modality"),
    *("dice", "surface_dice", "false_area", "threshold", "decision", "note", "frame", "axis", "scanner"),
}
ISSUE_KEYS = {
    *("image_auroc", "image_auroc_ci", "image_ap", "pixel_auroc", "pixel_auroc_bound", "pixel_ap", "aupro", "dice"),
    *("threshold", "sensitivity", "sensitivity_ci", "specificity", "specificity_ci", "brier", "n_normal", "n_abnormal"),
}


def test_everything_with_its_interval(scenes, calibration):
    names, labels, scores, maps, masks = scenes
    result = evaluate_scores(rows_of(names, labels, scores), zip(maps, masks, strict=True), calibration=calibration)
    out = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert set(out) >= ISSUE_KEYS
    assert set(out["images"][0]) == ROW_KEYS
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
    assert any("2 of 10 abnormal images have no mask" in line for line in out["warnings"])
    assert any("cannot promise" in line for line in out["warnings"])
    assert "images" not in result.to_json(images=False)
    assert out["confusion"]["true_positive"] + out["confusion"]["false_negative"] == 10


def test_patients_are_the_units(scenes):
    names, labels, scores, maps, masks = scenes
    copies = 3
    many = [np.tile(a, copies) for a in (names, labels, scores)]
    pairs = list(zip(maps, masks, strict=True)) * copies
    patients = names * copies
    clustered = evaluate_scores(rows_of(*many, patients), pairs)
    single = evaluate_scores(rows_of(names, labels, scores, names), zip(maps, masks, strict=True))
    blind = evaluate_scores(rows_of(*many), pairs)

    def width(result, name):
        return result.metrics[name].high - result.metrics[name].low

    for name in ("image_auroc", "image_ap", "pixel_auroc", "aupro"):
        assert width(clustered, name) == pytest.approx(width(single, name), rel=0.25)
        assert width(blind, name) < 0.8 * width(clustered, name)
    assert clustered.n_patients == 30
    assert "patient_auroc" in clustered.metrics
    copied = evaluate_scores(rows_of(*many, patients), pairs, calibration=Uncalibrated(pixel_threshold=0.4))
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
    one = evaluate_scores(rows_of(names, labels, scores), zip(maps, masks, strict=True), calibration=calibration)
    two = evaluate_scores(
        rows_of([names[i] for i in order], labels[order], scores[order]),
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
        rows_of("abcd", [label] * 4, [0.1, 0.2, 0.6, 0.7]), zip(maps, masks, strict=True), calibration=calibration
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
    rows = rows_of(names, labels, scores)
    out = evaluate_scores(rows).to_json()
    assert out["reasons"]["pixel_auroc"] == out["reasons"]["dice"] == "no anomaly maps were given"
    assert "no threshold" in out["reasons"]["sensitivity"]
    assert "not calibrated" in out["reasons"]["brier"]
    given = Uncalibrated(threshold=0.5, pixel_threshold=0.5)
    unmasked = evaluate_scores(rows, ((m, None) for m in maps), calibration=given)
    assert "no abnormal image has a mask" in unmasked.to_json()["reasons"]["pixel_auroc"]
    assert unmasked.metrics["dice"].value is None
    assert unmasked.metrics["false_area"].value is not None
    masked = evaluate_scores(rows, zip(maps, masks, strict=True))
    assert masked.metrics["dice"].reason.startswith("no threshold")


def test_an_empty_mask_is_no_lesion(scenes):
    names, labels, scores, maps, masks = scenes
    masks = [np.zeros(m.shape, bool) if k is None else k for m, k in zip(maps, masks, strict=True)]
    result = evaluate_scores(
        rows_of(names, labels, scores), zip(maps, masks, strict=True), calibration=Uncalibrated(pixel_threshold=0.4)
    )
    assert result.rows[0].dice is None
    assert result.rows[6].dice is not None
    assert any("2 abnormal images have an empty mask" in line for line in result.warnings)


def test_bad_input_names_the_image(scenes):
    names, labels, scores, maps, masks = scenes
    rows = rows_of(names, labels, scores)
    with pytest.raises(DataError, match="empty"):
        evaluate_scores([])
    with pytest.raises(DataError, match=r"test/004\.png: the score is nan"):
        evaluate_scores(rows_of(names, labels, np.where(np.arange(30) == 4, np.nan, scores)))
    with pytest.raises(DataError, match="29 anomaly maps for 30 images"):
        evaluate_scores(rows, list(zip(maps, masks, strict=True))[:-1])
    with pytest.raises(DataError, match="31 anomaly maps for 30 images"):
        evaluate_scores(rows, [*zip(maps, masks, strict=True), (maps[0], None)])
    wrong = [*masks]
    wrong[1] = np.ones(maps[1].shape, bool)
    with pytest.raises(DataError, match=r"test/001\.png: labelled normal, but its mask"):
        evaluate_scores(rows, zip(maps, wrong, strict=True))
    wrong[1], wrong[6] = None, np.ones((3, 3), bool)
    with pytest.raises(DataError, match=r"test/006\.png: the anomaly map is .* sizes must be the same"):
        evaluate_scores(rows, zip(maps, wrong, strict=True))


SAID = ("score", "threshold", "decision", "probability", "p_value", "verdict", "familiar", "note")


def test_a_row_says_of_an_image_what_predict_says(scenes, calibration):
    names, labels, scores, _, _ = scenes
    rows = rows_of(names, labels, scores, familiar=False)[:3] + rows_of(names, labels, scores)[3:]
    result = evaluate_scores(rows, calibration=calibration)
    for before, row in zip(rows, result.rows, strict=True):
        plain = Prediction(before.score, np.zeros((1, 1), np.float32), (1, 1), familiar=before.familiar)
        line = Row.of("a.png", judged(plain, calibration))
        assert [getattr(row, name) for name in SAID] == [getattr(line, name) for name in SAID]
    assert {f.name for f in fields(Row)} - {"image", "error"} <= {f.name for f in fields(ImageRow)}


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.1, 0.3, 0.42, 0.5, 0.9])), min_size=1, max_size=20))
@settings(deadline=None, max_examples=25)
def test_no_number_contradicts_a_row(images):
    rows = rows_of([f"{i}.png" for i in range(len(images))], *zip(*images, strict=True))
    fixed = Calibration.fit([0, 0, 0, 1, 1, 1], [0.1, 0.2, 0.42, 0.42, 0.5, 0.9], "sens=0.5")
    for judge in (fixed, replace(fixed, threshold=0.3, operating_point="given"), Uncalibrated("why", threshold=0.42)):
        out = evaluate_scores(rows, calibration=judge).to_json()
        called = [row["decision"] == "anomalous" for row in out["images"]]
        assert called == [score >= judge.threshold for _, score in images]
        assert {row["threshold"] for row in out["images"]} == {out["threshold"]} == {judge.threshold}
        labels = [label for label, _ in images]
        for name, label in (("true_positive", 1), ("false_positive", 0)):
            assert out["confusion"][name] == sum(c and one == label for c, one in zip(called, labels, strict=True))
        for row in out["images"]:
            assert (row["verdict"] is None) == isinstance(judge, Uncalibrated)
            assert row["note"] or row["verdict"] == row["decision"]


def test_without_a_calibration_everyone_is_told_why(scenes):
    names, labels, scores, _, _ = scenes
    why = "not calibrated: one patient gave all shots"
    result = evaluate_scores(rows_of(names, labels, scores), calibration=Uncalibrated(why))
    assert any(why in line for line in result.warnings)
    assert {row.note for row in result.rows} == {why}
    assert {(row.threshold, row.decision, row.verdict) for row in result.rows} == {(None, None, None)}
    assert result.to_json()["operating_point"] == "none"


def test_the_gallery_holds_both_ends_and_the_middle():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1], bool)
    scores = np.array([0.1, 0.2, 0.3, 0.9, 0.05, 0.5, 0.7, 0.8])
    chosen = choose_gallery(Scored.of(labels, scores), 0.52, 2)
    groups = {name: {i for i, of in chosen.items() if name in of} for name in ("best", "worst", "nearest")}
    assert groups == {"best": {7, 0}, "worst": {4, 3}, "nearest": {5, 6}}
    assert choose_gallery(Scored.of(labels, scores), None, 0) == {}


def test_the_gallery_is_small_and_reads_only_its_images(scenes):
    names, labels, scores, maps, masks = scenes
    read = []

    def image_of(index):
        read.append(index)
        return np.zeros((600, 900, 3), np.uint8)

    big = [np.kron(m, np.ones((20, 20), np.float32)) for m in maps]
    full = [None if k is None else np.kron(k, np.ones((20, 20), bool)) for k in masks]
    result = evaluate_scores(rows_of(names, labels, scores), zip(big, full, strict=True), image_of=image_of)
    assert len(result.gallery) == len(read) == 12
    assert all(max(item.image.shape) <= 224 and max(item.map.shape) <= 224 for item in result.gallery)
    assert all(item.image.shape[:2] == item.map.shape for item in result.gallery)
    by_name = dict(zip(names, zip(big, full, strict=True), strict=True))
    for item in result.gallery:
        whole, mask = by_name[item.row.name]
        size = item.map.shape[::-1]
        assert np.array_equal(item.map, np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.BILINEAR)))
        if mask is not None:
            small = Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
            assert np.array_equal(item.mask, np.asarray(small) == 1)


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
